//! Agents beside databases: Pods that asked for one and got none, and those whose agent nobody has heard of.

use std::collections::BTreeMap;

use api::{Database, Via, inject};
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
    let mut seen = Seen::read(&api.client, named).await;
    if named.is_none() && matches!(&seen, Err(kube::Error::Api(status)) if status.code == 403) {
        seen = Seen::read(&api.client, Some(&api.namespace)).await;
    }
    match seen {
        Ok(seen) => findings(&seen),
        Err(error) => vec![Finding::unseen("agents", "Pods, and what leads to them", &error)],
    }
}

/// Only what is wrong, and how many are well.
fn findings(seen: &Seen) -> Vec<Finding> {
    let mut databases: BTreeMap<String, Vec<&Database>> = BTreeMap::new();
    for database in &seen.databases {
        databases.entry(database.namespace().unwrap_or_default()).or_default().push(database);
    }
    let asking: Vec<&Running> = seen.pods.iter().filter(|pod| pod.asked.is_some()).collect();
    let of = |pod: &Running| databases.get(&pod.namespace).map(Vec::as_slice).unwrap_or_default();
    let wrong: Vec<Finding> = asking.iter().filter_map(|pod| wrong(seen, pod, of(pod))).collect();
    let (well, more) = (asking.len() - wrong.len(), wrong.len().saturating_sub(MOST));
    let mut findings: Vec<Finding> = wrong.into_iter().take(MOST).collect();
    if more > 0 {
        findings.push(Finding::warn("agents", format!("and {more} Pods more"), "mend these first"));
    }
    if well > 0 {
        findings.push(Finding::pass("agents", format!("{well} Pods have an agent that answers")));
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
        let fix = format!("one is made when its server is a primary and its agent is heard of; if it stays so: {log}");
        return say(message, fix);
    };
    let status = database.status.as_ref();
    let mut members = status.into_iter().flat_map(|status| &status.members);
    if members.any(|member| member.via == Via::Agent && member.name == *name) {
        return None;
    }
    let message =
        format!("when Database {} was looked at last, the agent in the Pod was not asked", database.name_any());
    let fix = format!("Pods must reach port 8444 of the apiserver's; and spec.agent must not be Never; see: {log}");
    say(message, fix)
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
            "status": {"members": [{"name": name, "role": "Primary", "via": via, "version": "16", "id": "1"}]},
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
            pod("never-asked", None),
        ];
        let mut index = Index::new("cluster.local".to_owned());
        for pod in &pods {
            index.put_pod(pod);
        }
        let databases = vec![database("well", "Agent"), database("unheard", "Network")];
        let seen = Seen { index, databases, pods: pods.iter().filter_map(Running::of).collect(), volumes: true };
        let said: Vec<(String, String)> =
            findings(&seen).into_iter().map(|finding| (finding.subject, finding.message)).collect();
        for (subject, says) in [
            ("shop/skipped", "level is wrong"),
            ("shop/nobodys", "no Database leads to it"),
            ("shop/unheard", "was not asked"),
            ("cluster", "1 Pods have an agent that answers"),
        ] {
            assert!(said.iter().any(|(of, message)| of == subject && message.contains(says)), "{subject}: {said:?}");
        }
        assert_eq!(said.len(), 4, "{said:?}");
    }
}
