//! Every Database: may its Secrets be read, is it ready, and could a network policy be why not. And what the dead left.

use std::collections::BTreeSet;

use api::{
    Database, Freeze,
    conditions::{reasons, types},
    install::LEASE,
};
use k8s_openapi::{
    api::{coordination::v1::Lease, networking::v1::NetworkPolicy},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{Api as Objects, Client, Resource, ResourceExt, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;

use super::{Finding, rights};
use crate::{client::Api, seen::all_of};

/// Of all namespaces, or of the one that was named; of one's own when no other may be read.
pub(super) async fn look(api: &Api, named: Option<&str>, home: Option<&str>) -> Vec<Finding> {
    let client = &api.client;
    let mut findings = Vec::new();
    let mut namespace = named;
    let mut databases = list::<Database>(client, namespace).await;
    if namespace.is_none() && matches!(&databases, Err(kube::Error::Api(status)) if status.code == 403) {
        namespace = Some(&api.namespace);
        databases = list(client, namespace).await;
        let message = format!("you may not list the Databases of all namespaces; those of {} follow", api.namespace);
        findings.push(Finding::warn("databases", message, "have somebody run this who may"));
    }
    let databases = match databases {
        Ok(databases) => databases,
        Err(error) => {
            findings.push(Finding::unseen("databases", "Databases", &error));
            return findings;
        }
    };
    if databases.is_empty() {
        let of = namespace.map_or("in any namespace".to_owned(), |namespace| format!("in namespace {namespace}"));
        findings.push(Finding::warn("databases", format!("no Database {of}"), "kubectl still database create"));
    }
    for database in &databases {
        let subject = format!("{}/{}", database.namespace().unwrap_or_default(), database.name_any());
        if let Some(home) = home {
            findings.extend(credentials(client, home, database).await.map(|finding| finding.of(&subject)));
        }
        let ready = ready(database);
        let unreachable = ready.unreachable;
        findings.push(ready.finding.of(&subject));
        if unreachable && home.is_some() {
            findings.extend(network(client, database).await.map(|finding| finding.of(&subject)));
        }
    }
    if let Some(home) = home {
        findings.extend(orphans(client, namespace, home).await);
    }
    findings
}

async fn list<K>(client: &Client, namespace: Option<&str>) -> Result<Vec<K>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
{
    Ok(all_of(client, namespace).list(&ListParams::default()).await?.items)
}

/// Only what is wrong: a Database that is ready says the rest.
async fn credentials(client: &Client, home: &str, database: &Database) -> Option<Finding> {
    let namespace = database.namespace().unwrap_or_default();
    let spec = &database.spec;
    let named = [
        spec.credentials.as_ref().map(|credentials| &credentials.secret_ref),
        spec.tls.as_ref().and_then(|tls| tls.ca_secret_ref.as_ref()),
        spec.tls.as_ref().and_then(|tls| tls.cert_secret_ref.as_ref()),
    ];
    for secret in named.into_iter().flatten() {
        match rights::reads_secret(client, home, &namespace, &secret.name).await {
            Ok(true) => {}
            Ok(false) => {
                let message = format!("Stillpoint may not read Secret {} of namespace {namespace}", secret.name);
                return Some(Finding::fail("credentials", message, format!("kubectl still enable {namespace}")));
            }
            Err(error) => return Some(Finding::unseen("credentials", "what Stillpoint may read", &error)),
        }
    }
    None
}

struct Ready {
    finding: Finding,
    /// Nothing answered at its address.
    unreachable: bool,
}

fn ready(database: &Database) -> Ready {
    let status = database.status.clone().unwrap_or_default();
    let condition = |type_: &str| status.conditions.iter().find(|condition| condition.type_ == type_);
    let preflight =
        format!("kubectl still preflight {} -n {}", database.name_any(), database.namespace().unwrap_or_default());
    let old = status.observed_generation < database.metadata.generation;
    let finding = match condition(types::READY) {
        _ if database.spec.paused => Finding::warn(
            "ready",
            "it is paused: nothing freezes it",
            "set spec.paused to false when it may be frozen again",
        ),
        None => Finding::fail(
            "ready",
            "nobody has looked at it yet",
            "if it stays so: see the replicas above, and their log",
        ),
        Some(ready) if ready.status == "True" && !old => {
            let level = database.spec.freeze.level;
            Finding::pass("ready", format!("a freeze at {level} would be tried"))
        }
        Some(_) if old => Finding::warn("ready", "it was changed, and not looked at since", "try again in a moment"),
        Some(ready) => Finding::fail("ready", said(ready), preflight),
    };
    let unreachable = condition(types::REACHABLE).is_some_and(|reachable| {
        reachable.status != "True" && [reasons::UNREACHABLE, reasons::TIMEOUT].contains(&reachable.reason.as_str())
    });
    Ready { finding, unreachable }
}

fn said(condition: &Condition) -> String {
    format!("{}: {}", condition.reason, condition.message)
}

/// Nothing tells us whether a network plugin drops packets; that somebody asked it to is worth a hint.
async fn network(client: &Client, database: &Database) -> Option<Finding> {
    let namespace = database.namespace().unwrap_or_default();
    let policies = list::<NetworkPolicy>(client, Some(&namespace)).await.ok()?;
    let names: Vec<String> =
        policies.iter().filter(|policy| limits_ingress(policy)).map(ResourceExt::name_any).collect();
    if names.is_empty() {
        return None;
    }
    let message = format!("NetworkPolicies of namespace {namespace} limit who reaches it: {}", names.join(", "));
    let fix = "let in the pods labelled app.kubernetes.io/name=stillpoint, app.kubernetes.io/component=apiserver of the namespace that \
         Stillpoint is installed in";
    Some(Finding::warn("network", message, fix))
}

/// `policyTypes` is always Ingress unless it says otherwise (NetworkPolicySpec, networking/v1).
fn limits_ingress(policy: &NetworkPolicy) -> bool {
    let types = policy.spec.as_ref().and_then(|spec| spec.policy_types.as_ref());
    types.is_none_or(|types| types.is_empty() || types.iter().any(|type_| type_ == "Ingress"))
}

/// Freezes that are not finished, and whose freezer has no Lease: a replica that lives finishes them within a minute.
async fn orphans(client: &Client, namespace: Option<&str>, home: &str) -> Option<Finding> {
    let freezes = list::<Freeze>(client, namespace).await.ok()?;
    let leases: Objects<Lease> = Objects::namespaced(client.clone(), home);
    let leases = leases.list(&ListParams::default().labels(&format!("{LEASE}=replica"))).await.ok()?;
    let alive: BTreeSet<&str> =
        leases.items.iter().filter_map(|lease| lease.spec.as_ref()?.holder_identity.as_deref()).collect();
    let names: Vec<String> = freezes.iter().filter(|freeze| is_orphan(freeze, &alive)).map(subject).collect();
    if names.is_empty() {
        return None;
    }
    let message = format!("left by a replica that is gone: Freeze {}", names.join(", "));
    Some(Finding::warn(
        "freezes",
        message,
        "a replica that lives finishes them within a minute; if it stays so, see its log",
    ))
}

fn subject(freeze: &Freeze) -> String {
    format!("{}/{}", freeze.namespace().unwrap_or_default(), freeze.name_any())
}

fn is_orphan(freeze: &Freeze, alive: &BTreeSet<&str>) -> bool {
    let status = freeze.status.as_ref();
    status.is_some_and(|status| {
        !status.phase.is_finished() && status.freezer.as_deref().is_some_and(|by| !alive.contains(by))
    })
}

#[cfg(test)]
mod tests {
    use api::CheckResult;
    use serde_json::{Value, from_value, json};

    use super::*;

    fn database(paused: bool, generation: i64, conditions: Value) -> Database {
        from_value(json!({
            "apiVersion": api::API_VERSION, "kind": "Database",
            "metadata": {"name": "orders", "namespace": "shop", "generation": generation},
            "spec": {"engine": "PostgreSQL", "endpoint": {"host": "db"}, "paused": paused},
            "status": {"observedGeneration": 1, "conditions": conditions},
        }))
        .unwrap()
    }

    #[test]
    fn a_database_is_ready_or_says_why_not() {
        let condition = |type_: &str, status: &str, reason: &str| {
            json!({
                "type": type_, "status": status, "reason": reason, "message": "refused",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let (yes, no) = (condition("Ready", "True", "OK"), condition("Ready", "False", "AuthenticationFailed"));
        for (database, result, says) in [
            (database(false, 1, json!([yes])), CheckResult::Pass, "Durable"),
            (database(false, 1, json!([no])), CheckResult::Fail, "AuthenticationFailed: refused"),
            (database(false, 2, json!([yes])), CheckResult::Warn, "not looked at since"),
            (database(true, 1, json!([yes])), CheckResult::Warn, "paused"),
            (database(false, 1, json!([])), CheckResult::Fail, "nobody has looked"),
        ] {
            let ready = ready(&database);
            assert!(ready.finding.result == result && ready.finding.message.contains(says), "{:?}", ready.finding);
        }
        let lost = [condition("Ready", "False", "Unreachable"), condition("Reachable", "False", "Unreachable")];
        assert!(
            ready(&database(false, 1, json!(lost))).unreachable && !ready(&database(false, 1, json!([no]))).unreachable
        );
    }

    #[test]
    fn a_network_policy_limits_ingress_unless_it_says_otherwise() {
        let policy = |spec| -> NetworkPolicy { from_value(json!({"spec": spec})).unwrap() };
        assert!(limits_ingress(&policy(json!({"podSelector": {}}))));
        assert!(limits_ingress(&policy(json!({"podSelector": {}, "policyTypes": ["Egress", "Ingress"]}))));
        assert!(!limits_ingress(&policy(json!({"podSelector": {}, "policyTypes": ["Egress"]}))));
    }

    #[test]
    fn a_freeze_is_left_when_it_is_not_over_and_its_freezer_is_gone() {
        let freeze = |phase: &str| -> Freeze {
            from_value(json!({
                "apiVersion": api::API_VERSION, "kind": "Freeze", "metadata": {"name": "f"},
                "spec": {"targets": [{"database": "orders"}]}, "status": {"phase": phase, "freezer": "one"},
            }))
            .unwrap()
        };
        assert!(is_orphan(&freeze("Frozen"), &BTreeSet::from(["two"])));
        assert!(!is_orphan(&freeze("Frozen"), &BTreeSet::from(["one"])));
        assert!(!is_orphan(&freeze("Lost"), &BTreeSet::new()));
    }
}
