//! What tests run on a node: PostgreSQL in a Pod, on a volume, and snapshots of that.

use serde_json::{Value, json};

/// The password of the superuser `postgres`.
pub const PASSWORD: &str = "secret";

/// PostgreSQL (`tests/tools/image postgresql 18`) on the claim of the same name, and a Service of that name.
pub fn postgresql(name: &str) -> [Value; 2] {
    let probe = ["pg_isready", "--host=127.0.0.1", "--username=postgres"];
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "securityContext": {"runAsUser": 999, "runAsGroup": 999, "fsGroup": 999},
            "containers": [{
                "name": "postgresql", "image": "stillpoint.test/postgresql:18", "imagePullPolicy": "Never",
                "env": [
                    {"name": "PGDATA", "value": "/data/pgdata"},
                    {"name": "POSTGRES_PASSWORD", "value": PASSWORD},
                    // For psql.
                    {"name": "PGPASSWORD", "value": PASSWORD},
                ],
                "readinessProbe": {"exec": {"command": probe}, "periodSeconds": 1},
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": name}}],
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": [{"port": 5432}]},
    });
    [pod, service]
}

/// A volume of the class that is the default, empty or with what a snapshot has.
pub fn claim(name: &str, snapshot: Option<&str>) -> Value {
    let source = snapshot
        .map(|snapshot| json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": snapshot}));
    // A restored one is larger than what it begins as.
    let size = if snapshot.is_some() { "768Mi" } else { "512Mi" };
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}, "dataSource": source,
        },
    })
}

pub fn snapshot(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
        "spec": {"source": {"persistentVolumeClaimName": claim}},
    })
}

/// Of all claims with this label, at one instant.
pub fn group_snapshot(name: &str, label: &str, value: &str) -> Value {
    json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshot", "metadata": {"name": name},
        "spec": {"source": {"selector": {"matchLabels": {label: value}}}},
    })
}
