//! What Stillpoint may do in a cluster, and what people may do with it. Reading Secrets, and making VolumeSnapshots and claims, is
//! granted namespace by namespace (`stillpoint:credentials` by a RoleBinding), never to all.

use api::{
    GROUP as STORED, LIVE_GROUP as LIVE,
    install::{ACCOUNT, AT_HOME, CREDENTIALS, ENABLED, EVERYWHERE, ROLE, Rule, rule},
};
use serde_json::{Value, json};

use crate::{labels, settings::NAMESPACE};

/// Roles and bindings, in the order in which they are applied.
pub(crate) fn rights() -> Vec<Value> {
    vec![
        account(),
        cluster_role(ROLE, &json!({}), &EVERYWHERE),
        cluster_binding(ROLE, ROLE),
        cluster_binding("stillpoint:apiserver:reviews", "system:auth-delegator"),
        binding("stillpoint:apiserver:authentication", "kube-system", "extension-apiserver-authentication-reader"),
        role("stillpoint:apiserver:own", NAMESPACE, &AT_HOME),
        binding("stillpoint:apiserver:own", NAMESPACE, "stillpoint:apiserver:own"),
        cluster_role(CREDENTIALS, &json!({}), &ENABLED),
        cluster_role("stillpoint:view", &aggregated("view"), &VIEW),
        cluster_role("stillpoint:edit", &aggregated("edit"), &EDIT),
        cluster_role("stillpoint:admin", &aggregated("admin"), &ADMIN),
        cluster_role("stillpoint:freezer", &json!({}), &FREEZER),
    ]
}

/// Lets our account read the Secrets of a namespace, and make there what copies are made of; `kubectl still enable` makes the same.
pub(crate) fn credentials(namespace: &str) -> Value {
    let mut binding = binding(CREDENTIALS, namespace, CREDENTIALS);
    binding["roleRef"]["kind"] = "ClusterRole".into();
    binding
}

const VIEW: [Rule; 3] = [
    rule(STORED, "databases,dumptools,freezes,repositories,restores,snapshots", "get,list,watch"),
    rule(LIVE, "databases,snapshots", "get,list"),
    // What is made for a copy says no more than the copy, its Databases and their Pods do.
    rule(LIVE, "restores/generate,restores/log,snapshots/generate,snapshots/log", "get"),
];
/// No DumpTool, which is a program that is run beside everybody's Databases: that is for whoever administers the cluster. No Freeze: whoever may make one may stop the writers of every Database of the namespace. Of which Databases somebody may make a
/// Snapshot is asked for each: he needs `databases/quiesce`, too.
const EDIT: [Rule; 2] = [
    rule(STORED, "databases,repositories,restores,snapshots", "create,delete,deletecollection,patch,update"),
    rule(LIVE, "repositories/check,restores/generate,snapshots,snapshots/generate,snapshots/restore", "create"),
];
/// What is in a copy is all that is in its Databases: no role but this one reads it.
const ADMIN: [Rule; 3] = [
    rule(STORED, "freezes", "create,delete,deletecollection,patch,update"),
    rule(LIVE, "databases/quiesce,databases/renew,databases/thaw,databases/unquiesce", "create"),
    rule(LIVE, "snapshots/download", "get"),
];
const FREEZER: [Rule; 3] = [
    rule(STORED, "databases,freezes", "get,list,watch"),
    rule(LIVE, "databases", "get,list"),
    rule(LIVE, "databases/quiesce,databases/renew,databases/unquiesce", "create"),
];

fn account() -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": ACCOUNT, "namespace": NAMESPACE, "labels": labels()},
    })
}

fn aggregated(to: &str) -> Value {
    json!({format!("rbac.authorization.k8s.io/aggregate-to-{to}"): "true"})
}

fn rules(rules: &[Rule]) -> Vec<Value> {
    let rule = |rule: &Rule| {
        let mut told = json!({"apiGroups": [rule.group], "resources": rule.resources(), "verbs": rule.verbs()});
        if !rule.names().is_empty() {
            told["resourceNames"] = rule.names().into();
        }
        told
    };
    rules.iter().map(rule).collect()
}

fn cluster_role(name: &str, more: &Value, of: &[Rule]) -> Value {
    let mut all = labels();
    if let (Some(all), Some(more)) = (all.as_object_mut(), more.as_object()) {
        all.extend(more.clone());
    }
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": name, "labels": all}, "rules": rules(of),
    })
}

fn role(name: &str, namespace: &str, of: &[Rule]) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": name, "namespace": namespace, "labels": labels()}, "rules": rules(of),
    })
}

fn cluster_binding(name: &str, role: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": labels()},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}],
    })
}

fn binding(name: &str, namespace: &str, role: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": namespace, "labels": labels()},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": ACCOUNT, "namespace": NAMESPACE}],
    })
}
