//! What whoever has asked for agents needs beside them: a Database, where none leads to its Pods, and a word to the owner of a Pod that
//! was skipped. The leader's work; what it has done it sees in the cluster, so that another may go on with it.
//!
//! A Database is made for a StatefulSet or a Deployment of its own, once its agents have seen a server with the role that is held. It is
//! nobody's child: backups of it outlive the workload.

mod owners;

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use api::{
    AgentPolicy, Database, DatabaseSpec, Endpoint, Engine, FreezePolicy, Role, inject::Policy,
    install::webhooks::left_alone,
};
use freeze::remote;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, ObjectReference},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use topology::Asks;
use tracing::{info, warn};

use self::owners::{Owned, Workload};
use super::{Agents, Pod};
use crate::{controllers::events::event_about, verbs::Verbs};

/// Looks after them.
pub(crate) struct Workloads {
    pub(crate) client: Client,
    /// Where we are installed.
    pub(crate) namespace: String,
    pub(crate) agents: Agents,
    pub(crate) verbs: Verbs,
}

const LOOK: Duration = Duration::from_secs(5);
/// How long a Pod is without a Database until one is made: whoever applies a workload applies its Database with it.
const GRACE: Duration = Duration::from_secs(15);
/// How long it is waited after one was made, or could not be.
const AGAIN: Duration = Duration::from_secs(300);
const ASKED_FOR: Duration = Duration::from_secs(10);
/// Events are kept for an hour (kube-apiserver, `--event-ttl`).
const TELL_AGAIN: Duration = Duration::from_secs(50 * 60);
/// On a Database that was made here: for what.
const MADE_FOR: &str = "stillpoint.dev/made-for";

/// What this replica remembers while it leads.
#[derive(Default)]
struct Seen {
    /// When a workload whose agents are there, and that no Database leads to, is looked at next.
    due: HashMap<Workload, Instant>,
    /// When what was told is told again, by the Event's name.
    told: HashMap<String, Instant>,
}

impl Workloads {
    /// For ever.
    pub(crate) async fn follow(self) {
        let (mut seen, mut tick) = (Seen::default(), interval(LOOK));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if !self.verbs.leads() || !self.verbs.stored.is_cancelled() || !self.agents.0.watched.is_complete() {
                seen = Seen::default();
                continue;
            }
            let mut asking = self.agents.0.watched.index().asking();
            asking.retain(|((namespace, _), _)| !left_alone(&self.namespace).contains(&namespace.as_str()));
            self.tell(&asking, &mut seen).await;
            self.make(&asking, &mut seen).await;
        }
    }

    /// Tells owners of Pods that were skipped, each once.
    async fn tell(&self, asking: &[(Pod, Asks)], seen: &mut Seen) {
        seen.told.retain(|_, again| *again > Instant::now());
        for (pod, asks) in asking {
            let Some(why) = asks.skipped.as_deref() else { continue };
            let about = self.about(pod, asks).await;
            self.say(&event(&pod.0, about, "NotInjected", why), seen).await;
        }
    }

    /// Makes Databases for workloads whose agents are there, and that no Database leads to.
    async fn make(&self, asking: &[(Pod, Asks)], seen: &mut Seen) {
        let mut bare: BTreeMap<Workload, Vec<(&Pod, &Asks)>> = BTreeMap::new();
        for (pod, asks) in asking.iter().filter(|(_, asks)| asks.skipped.is_none() && asks.policy.database) {
            if self.agents.agent(pod).is_none() {
                continue;
            }
            let databases = self.verbs.records.databases(Some(&pod.0));
            if self.agents.database_of(&pod.0, &pod.1, &databases).is_none()
                && let Some(workload) = Workload::of(&pod.0, asks)
            {
                bare.entry(workload).or_default().push((pod, asks));
            }
        }
        let now = Instant::now();
        // An agent that comes and goes begins nothing anew.
        seen.due.retain(|workload, due| bare.contains_key(workload) || *due > now);
        for (workload, pods) in bare {
            let due = seen.due.entry(workload.clone()).or_insert(now + GRACE);
            if *due > now {
                continue;
            }
            *due = now + AGAIN;
            let made = timeout(ASKED_FOR, self.made(&workload, &pods)).await;
            if let Err(why) = made.unwrap_or_else(|_| Err("the API server did not answer in time".to_owned())) {
                warn!(namespace = workload.namespace, workload = workload.owner.name, why, "no Database was made");
                if let Some((pod, asks)) = pods.first() {
                    let about = self.about(pod, asks).await;
                    self.say(&event(&pod.0, about, "DatabaseNotMade", &why), seen).await;
                }
            }
        }
    }

    async fn made(&self, workload: &Workload, pods: &[(&Pod, &Asks)]) -> Result<(), String> {
        let owned = owners::owned(&self.client, workload).await?;
        let Some(Owned { kind, name, selector }) = owned else { return Ok(()) };
        let Some((pod, asks)) = pods.first() else { return Ok(()) };
        let engine = self.agents.agent(pod).ok_or("its agent is gone")?.engine;
        self.has_a_primary(pods).await?;
        let mut database = database(engine, asks.policy);
        database.metadata.name = Some(name.clone());
        database.metadata.namespace = Some(workload.namespace.clone());
        database.metadata.annotations = Some([(MADE_FOR.to_owned(), format!("{kind}/{name}"))].into());
        database.spec.pod_selector = Some(selector);
        let databases: Api<Database> = Api::namespaced(self.client.clone(), &workload.namespace);
        match databases.create(&PostParams::default(), &database).await {
            Ok(_) => {
                info!(namespace = workload.namespace, database = name, kind, "a Database was made");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                let there = databases.get_opt(&name).await.map_err(|error| error.to_string())?;
                let leads = |there: &Database| {
                    let index = self.agents.0.watched.index();
                    pods.iter().all(|(pod, _)| index.is_member(&pod.0, there, &pod.1))
                };
                // Somebody was faster.
                if there.is_some_and(|there| leads(&there)) {
                    return Ok(());
                }
                Err(format!(
                    "Database {name} is there, and does not lead to the Pods of {kind} {name}: give it spec.podSelector, or an \
                     endpoint that does; or say {}database: \"false\" on the Pods",
                    api::inject::PREFIX
                ))
            }
            Err(error) => Err(format!("no Database could be made for {kind} {name}: {error}")),
        }
    }

    /// What no server answers in, or has only standbys, is nobody's to hold by itself.
    async fn has_a_primary(&self, pods: &[(&Pod, &Asks)]) -> Result<(), String> {
        let deadline = Instant::now() + ASKED_FOR / 2;
        let agents = pods.iter().filter_map(|(pod, _)| self.agents.agent(pod));
        let asked = join_all(agents.map(|agent| async move { remote::probe(&agent.link, deadline).await })).await;
        if asked.iter().flatten().any(|server| server.role == Role::Primary) {
            return Ok(());
        }
        let said = asked.iter().map(|asked| match asked {
            Ok(server) => format!("a {}", server.role.to_string().to_lowercase()),
            Err(error) => error.to_string(),
        });
        Err(format!(
            "no Database was made of it, for its agents have seen no primary: {}; register one if there is something to hold",
            said.collect::<Vec<_>>().join("; ")
        ))
    }

    /// Where whoever runs it looks: a Deployment rather than its ReplicaSet.
    async fn about(&self, (namespace, pod): &Pod, asks: &Asks) -> ObjectReference {
        let reference = |owner: &OwnerReference| ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            namespace: Some(namespace.clone()),
            ..ObjectReference::default()
        };
        match &asks.owner {
            Some(owner) => match owners::deployment(&self.client, namespace, owner).await {
                Ok(Some(deployment)) => reference(&deployment),
                _ => reference(owner),
            },
            None => ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.clone()),
                uid: Some(asks.uid.clone()),
                namespace: Some(namespace.clone()),
                ..ObjectReference::default()
            },
        }
    }

    /// Once in a while; one that is there already was told by whoever led before.
    async fn say(&self, event: &Event, seen: &mut Seen) {
        let name = event.metadata.name.clone().unwrap_or_default();
        if seen.told.contains_key(&name) {
            return;
        }
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        match timeout(ASKED_FOR, events.create(&PostParams::default(), event)).await {
            Ok(Ok(_)) => {}
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            other => return warn!(namespace, message = event.message, ?other, "an Event was not written"),
        }
        seen.told.insert(name, Instant::now() + TELL_AGAIN);
    }
}

/// Reached through its agents alone: no address and no password of it is known here.
fn database(engine: Engine, policy: Policy) -> Database {
    let freeze = FreezePolicy {
        level: policy.level.unwrap_or_default(),
        ttl_seconds: policy.ttl_seconds,
        ..FreezePolicy::default()
    };
    let spec = DatabaseSpec {
        engine,
        endpoint: Endpoint::default(),
        pod_selector: None,
        databases: Vec::new(),
        credentials: None,
        tls: None,
        freeze,
        agent: AgentPolicy::Required,
        paused: false,
    };
    let mut database = Database::new("", spec);
    database.metadata.labels = Some([("app.kubernetes.io/managed-by".to_owned(), "stillpoint".to_owned())].into());
    database
}

/// The same word to the same one has the same name.
fn event(namespace: &str, about: ObjectReference, reason: &str, why: &str) -> Event {
    let hash = Sha256::digest(format!("{} {reason} {why}", about.uid.as_deref().unwrap_or_default()));
    let hash = hash.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let of: String = about.name.iter().flat_map(|name| name.chars()).take(LONGEST_OF).collect();
    let mut event = event_about(about, false, reason, why, Timestamp::now());
    event.metadata.name = Some(format!("{}.{hash}", of.trim_end_matches(['-', '.'])));
    event.metadata.namespace = Some(namespace.to_owned());
    event
}

/// Of whom it is about, in an Event's name: with what follows it is no longer than a name may be.
const LONGEST_OF: usize = 200;

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    use super::*;

    #[test]
    fn what_is_made_is_valid_and_nobodys_child() {
        let policy = Policy { level: Some(api::Level::WriteBlocked), ..Policy::default() };
        let mut made = database(Engine::MariaDB, policy);
        let labels = [("app".to_owned(), "orders".to_owned())].into();
        made.spec.pod_selector = Some(LabelSelector { match_labels: Some(labels), match_expressions: None });
        assert_eq!(api::validate::database(&made.spec), []);
        assert_eq!(made.metadata.owner_references, None);
        assert_eq!(made.spec.freeze.level, api::Level::WriteBlocked);
    }

    #[test]
    fn the_same_word_to_the_same_one_is_one_event() {
        let of = |uid: &str, why: &str| {
            let about = ObjectReference {
                name: Some("orders-".repeat(40)),
                uid: Some(uid.to_owned()),
                ..ObjectReference::default()
            };
            event("shop", about, "NotInjected", why).metadata.name.unwrap()
        };
        assert_eq!(of("a", "why"), of("a", "why"));
        assert_ne!(of("a", "why"), of("a", "another why"));
        assert_ne!(of("a", "why"), of("b", "why"));
        assert!(of("a", "why").len() <= 253 && !of("a", "why").contains("-."), "{}", of("a", "why"));
    }
}
