//! What Stillpoint may do in a cluster, and what people may do with it. Reading Secrets is granted namespace by namespace
//! (`stillpoint:credentials` by a RoleBinding), never to all.

use serde_json::{Value, json};

use crate::{ACCOUNT, NAMESPACE, labels};

/// Roles and bindings, in the order in which they are applied.
pub(crate) fn rights() -> Vec<Value> {
    vec![
        account(),
        cluster_role("stillpoint:apiserver", &json!({}), &APISERVER),
        cluster_binding("stillpoint:apiserver", "stillpoint:apiserver"),
        cluster_binding("stillpoint:apiserver:reviews", "system:auth-delegator"),
        binding("stillpoint:apiserver:authentication", "kube-system", "extension-apiserver-authentication-reader"),
        role("stillpoint:apiserver:own", NAMESPACE, &OWN),
        binding("stillpoint:apiserver:own", NAMESPACE, "stillpoint:apiserver:own"),
        cluster_role("stillpoint:credentials", &json!({}), &[("", "secrets", "get")]),
        cluster_role("stillpoint:view", &aggregated("view"), &VIEW),
        cluster_role("stillpoint:edit", &aggregated("edit"), &EDIT),
        cluster_role("stillpoint:admin", &aggregated("admin"), &ADMIN),
        cluster_role("stillpoint:freezer", &json!({}), &FREEZER),
    ]
}

/// Group, resources, verbs; each a list with commas.
type Rule = (&'static str, &'static str, &'static str);

const STORED: &str = "stillpoint.dev";
const LIVE: &str = "live.stillpoint.dev";

const APISERVER: [Rule; 6] = [
    (STORED, "databases", "get,list,watch"),
    (STORED, "databases/status,freezes/status", "get,patch,update"),
    (STORED, "freezes", "create,delete,get,list,patch,update,watch"),
    ("", "events", "create,patch"),
    ("apiregistration.k8s.io", "apiservices", "get,patch"),
    ("apiextensions.k8s.io", "customresourcedefinitions", "get,list,watch"),
];
const OWN: [Rule; 2] =
    [("", "secrets", "create,get,update"), ("coordination.k8s.io", "leases", "create,delete,get,list,update,watch")];
const VIEW: [Rule; 2] = [(STORED, "databases,freezes", "get,list,watch"), (LIVE, "databases", "get,list")];
/// No Freeze: whoever may make one may stop the writers of every Database of the namespace.
const EDIT: [Rule; 1] = [(STORED, "databases", "create,delete,deletecollection,patch,update")];
const ADMIN: [Rule; 2] = [
    (STORED, "freezes", "create,delete,deletecollection,patch,update"),
    (LIVE, "databases/quiesce,databases/renew,databases/thaw,databases/unquiesce", "create"),
];
const FREEZER: [Rule; 3] = [
    (STORED, "databases,freezes", "get,list,watch"),
    (LIVE, "databases", "get,list"),
    (LIVE, "databases/quiesce,databases/renew,databases/unquiesce", "create"),
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
    let list = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
    let rule = |(group, resources, verbs): &Rule| json!({"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)});
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
