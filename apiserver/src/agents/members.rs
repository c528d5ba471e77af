//! Which of the agents beside the members of one Database stands beside the member that is meant: each is asked what its server is.
//! Roles change hands, so that nothing of it is remembered.

use std::time::Duration;

use api::{Database, Role};
use freeze::{ServerInfo, remote};
use futures::future::join_all;
use tokio::time::Instant;

use super::{Agent, Agents};

/// Who stands beside the member that is meant.
#[derive(Clone, Debug)]
pub(crate) enum Chosen {
    /// Nobody stands beside any of them.
    Nobody,
    One(Agent),
    /// None of those that answer is what is wanted; what each said.
    NoneOfThem(String),
    /// Several say that they are the primary: whichever is held, acknowledged commits may be at the other.
    Split(String),
}

/// What an agent's server said that it is.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) agent: Agent,
    pub(crate) server: Result<ServerInfo, String>,
}

/// How long the members of one Database have to say what they are.
const ASKED_FOR: Duration = Duration::from_secs(2);

impl Agents {
    /// `member`: the Pod that is meant, if one is; else it is whoever has the role that the Database wants.
    pub(crate) async fn choose(&self, namespace: &str, database: &Database, member: Option<&str>) -> Chosen {
        let (mut agents, pods) = self.beside(namespace, database);
        if let Some(at) = agents.iter().position(|agent| Some(agent.pod.as_str()) == member) {
            return Chosen::One(agents.swap_remove(at));
        }
        if pods <= 1 {
            return agents.pop().map_or(Chosen::Nobody, Chosen::One);
        }
        chosen(database.spec.freeze.target.role, ask(agents).await)
    }

    /// Every member that an agent stands beside, where there are several.
    pub(crate) async fn members(&self, namespace: &str, database: &Database) -> Vec<Asked> {
        let (agents, pods) = self.beside(namespace, database);
        if pods > 1 { ask(agents).await } else { Vec::new() }
    }
}

async fn ask(agents: Vec<Agent>) -> Vec<Asked> {
    let deadline = Instant::now() + ASKED_FOR;
    join_all(agents.into_iter().map(|agent| async move {
        let server = remote::probe(&agent.link, deadline).await.map_err(|error| error.to_string());
        Asked { agent, server }
    }))
    .await
}

/// Pure. Of several replicas the first by its name.
fn chosen(wanted: Role, asked: Vec<Asked>) -> Chosen {
    if asked.is_empty() {
        return Chosen::Nobody;
    }
    let has = |one: &&Asked| one.server.as_ref().is_ok_and(|server| server.role == wanted);
    let mut fitting = asked.iter().filter(has);
    match (fitting.next(), fitting.next()) {
        (Some(first), Some(second)) if wanted == Role::Primary => {
            Chosen::Split(format!("{} and {} both say that they are the primary", first.agent.pod, second.agent.pod))
        }
        (Some(first), _) => Chosen::One(first.agent.clone()),
        (None, _) => Chosen::NoneOfThem(asked.iter().map(said).collect::<Vec<_>>().join("; ")),
    }
}

fn said(one: &Asked) -> String {
    match &one.server {
        Ok(server) => format!("{} is a {}", one.agent.pod, server.role.to_string().to_lowercase()),
        Err(why) => format!("{} does not say what it is ({why})", one.agent.pod),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use api::{Engine, Incarnation};
    use freeze::remote::Link;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;
    use crate::{agents::Missing, indexed::Watched};

    /// What was held is undone there, or nowhere, while it runs.
    #[test]
    fn a_member_that_runs_and_is_not_connected_is_waited_for() {
        let watched = Watched::here();
        for (name, phase) in [("a", "Running"), ("b", "Running"), ("over", "Failed")] {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"namespace": "shop", "name": name}, "spec": {"containers": []}, "status": {"phase": phase},
            }))
            .unwrap();
            watched.put_pod(&pod);
        }
        watched.complete();
        let agents = Agents::new(watched);
        let (link, _sending) = Link::new("a".to_owned(), Arc::new(|_, _, _| {}));
        let agent = Agent { pod: "a".to_owned(), engine: Engine::MariaDB, link: link.clone() };
        agents.enter(("shop".to_owned(), "a".to_owned()), agent);
        let at = |pod, engine| agents.at("shop", pod, engine, None).map(|agent| agent.pod);
        assert_eq!(at("a", Engine::MariaDB), Ok("a".to_owned()));
        assert_eq!(at("a", Engine::PostgreSQL), Err(Missing::Agent));
        assert_eq!(at("b", Engine::MariaDB), Err(Missing::Agent));
        assert_eq!((at("over", Engine::MariaDB), at("gone", Engine::MariaDB)), (Err(Missing::Pod), Err(Missing::Pod)));
        link.close();
        assert_eq!(at("a", Engine::MariaDB), Err(Missing::Agent));
    }

    fn asked(pod: &str, role: Option<Role>) -> Asked {
        let (link, _) = Link::new(pod.to_owned(), Arc::new(|_, _, _| {}));
        let incarnation = Incarnation { server: pod.to_owned(), ..Incarnation::default() };
        let server = role.map(|role| ServerInfo { version: String::new(), role, incarnation, started_at: None });
        let agent = Agent { pod: pod.to_owned(), engine: Engine::PostgreSQL, link };
        Asked { agent, server: server.ok_or_else(|| "why".to_owned()) }
    }

    #[test]
    fn whoever_has_the_role_is_chosen_and_nobody_between_two_primaries() {
        let of = |wanted, roles: &[Option<Role>]| {
            let asked = roles.iter().zip(["a", "b", "c"]).map(|(role, pod)| asked(pod, *role)).collect();
            match chosen(wanted, asked) {
                Chosen::One(agent) => agent.pod,
                other => format!("{other:?}"),
            }
        };
        let (primary, replica) = (Some(Role::Primary), Some(Role::Replica));
        assert_eq!(of(Role::Primary, &[replica, primary]), "b");
        assert_eq!(of(Role::Primary, &[None, primary]), "b", "one that is down keeps nobody from the other");
        assert_eq!(of(Role::Replica, &[primary, replica, replica]), "b");
        assert_eq!(of(Role::Primary, &[]), "Nobody");
        let split = of(Role::Primary, &[primary, primary]);
        assert!(split.starts_with("Split") && split.contains("a and b"), "{split}");
        let none = of(Role::Primary, &[replica, None]);
        assert!(none.contains("a is a replica; b does not say what it is (why)"), "{none}");
    }
}
