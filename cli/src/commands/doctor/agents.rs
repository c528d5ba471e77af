//! Agents beside databases: Pods that asked for one and got none, and those whose agent nobody has heard of.

use api::{
    AgentPolicy, Database, Via,
    conditions::{self, types},
    inject,
};
use kube::ResourceExt;

use super::Finding;
use crate::{
    client::Api,
    seen::{Running, Seen},
};

/// Of each kind so many are named.
const MOST: usize = 10;

/// Of all namespaces, or of the one that was named; of one's own when no other may be read.
pub(super) async fn look(api: &Api, named: Option<&str>) -> Vec<Finding> {
    let (mut seen, mut within) = (Seen::read(&api.client, named).await, named);
    if named.is_none() && matches!(&seen, Err(kube::Error::Api(status)) if status.code == 403) {
        within = Some(&api.namespace);
        seen = Seen::read(&api.client, within).await;
    }
    match seen {
        Ok(seen) => findings(&seen, within),
        Err(error) => vec![Finding::unseen("agents", "Pods, and what leads to them", &error)],
    }
}

/// Only what is wrong, and how many are well.
fn findings(seen: &Seen, within: Option<&str>) -> Vec<Finding> {
    let databases = seen.databases_by_namespace();
    let asking: Vec<&Running> = seen.pods.iter().filter(|pod| pod.asked.is_some()).collect();
    let of = |pod: &Running| databases.get(&pod.namespace).map(Vec::as_slice).unwrap_or_default();
    let wrong: Vec<Finding> = asking.iter().filter_map(|pod| wrong(seen, pod, of(pod))).collect();
    let (well, more) = (asking.len() - wrong.len(), wrong.len().saturating_sub(MOST));
    let mut findings: Vec<Finding> = wrong.into_iter().take(MOST).collect();
    if more > 0 {
        findings.push(Finding::warn("agents", format!("and of {more} Pods more"), "mend these first"));
    }
    if well > 0 {
        let within = within.map_or("any namespace".to_owned(), |namespace| format!("namespace {namespace}"));
        let message =
            format!("nothing is wrong with {well} of {} Pods of {within} that ask for an agent", asking.len());
        findings.push(Finding::pass("agents", message));
    }
    findings
}

fn wrong(seen: &Seen, pod: &Running, databases: &[&Database]) -> Option<Finding> {
    let (namespace, name) = (&pod.namespace, &pod.name);
    let say =
        |message: String, fix: String| Some(Finding::warn("agents", message, fix).of(format!("{namespace}/{name}")));
    if let Err(why) = pod.asked.as_ref()? {
        let message = format!("the Pod asked for an agent and got none: {why}");
        return say(message, "mend that, and make the Pod again (docs/injection.md)".to_owned());
    }
    let log = format!("kubectl logs {name} -n {namespace} -c {}", inject::CONTAINER);
    let Some(database) = databases.iter().find(|database| seen.index.is_member(namespace, database, name)) else {
        let message = "the Pod has an agent, and no Database leads to it".to_owned();
        let fix = format!(
            "of a StatefulSet or a Deployment one is made when its server is a primary and its agent is heard of, unless it says \
             otherwise; of all else: kubectl still database create (docs/injection.md). If it stays so: {log}"
        );
        return say(message, fix);
    };
    if database.spec.agent == AgentPolicy::Never || !is_ready(database) || is_heard_of(database, name) {
        return None;
    }
    let name = database.name_any();
    let message = format!("when Database {name} was looked at last, the agent in the Pod was not asked");
    say(message, format!("Pods must reach port 8444 of the apiserver's; see: {log}"))
}

/// What is wrong with one that is not, it says itself.
fn is_ready(database: &Database) -> bool {
    database.status.as_ref().is_some_and(|status| conditions::is_true(&status.conditions, types::READY))
}

fn is_heard_of(database: &Database, pod: &str) -> bool {
    let mut members = database.status.iter().flat_map(|status| &status.members);
    members.any(|member| member.via == Via::Agent && member.name == *pod)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::{from_value, json};
    use topology::Index;

    use super::*;

    fn pod(name: &str, status: Option<&str>) -> Pod {
        let mut pod = json!({
            "metadata": {"namespace": "shop", "name": name, "labels": {"app": name}, "annotations": {}},
            "spec": {"containers": [{"name": "c", "image": "postgres"}]}, "status": {"phase": "Running"},
        });
        if let Some(status) = status {
            pod["metadata"]["annotations"] = json!({inject::STATUS: status, inject::MESSAGE: "level is wrong"});
        }
        from_value(pod).unwrap()
    }

    fn database(name: &str, via: &str) -> Database {
        from_value(json!({
            "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"namespace": "shop", "name": name},
            "spec": {"engine": "PostgreSQL", "agent": "Required", "podSelector": {"matchLabels": {"app": name}}},
            "status": {
                "members": [{"name": name, "role": "Primary", "via": via, "version": "16", "id": "1"}],
                "conditions": [{
                    "type": "Ready", "status": if name == "broken" { "False" } else { "True" }, "reason": "R", "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            },
        }))
        .unwrap()
    }

    #[test]
    fn who_asked_and_is_not_heard_of_is_named() {
        let (injected, skipped) = (Some(inject::INJECTED), Some(inject::SKIPPED));
        let pods = [
            pod("well", injected),
            pod("skipped", skipped),
            pod("nobodys", injected),
            pod("unheard", injected),
            pod("broken", injected),
            pod("never-asked", None),
        ];
        let mut index = Index::new("cluster.local".to_owned());
        for pod in &pods {
            index.put_pod(pod);
        }
        let databases = vec![database("well", "Agent"), database("unheard", "Network"), database("broken", "Network")];
        let seen = Seen {
            index,
            databases,
            pods: pods.iter().filter_map(Running::of).collect(),
            volumes: true,
            classes: None,
        };
        let said: Vec<(String, String)> =
            findings(&seen, None).into_iter().map(|finding| (finding.subject, finding.message)).collect();
        for (subject, says) in [
            ("shop/skipped", "level is wrong"),
            ("shop/nobodys", "no Database leads to it"),
            ("shop/unheard", "was not asked"),
            ("cluster", "with 2 of 5 Pods of any namespace"),
        ] {
            assert!(said.iter().any(|(of, message)| of == subject && message.contains(says)), "{subject}: {said:?}");
        }
        assert_eq!(said.len(), 4, "{said:?}");
    }
}
