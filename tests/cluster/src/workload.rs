//! What tests run on a node: PostgreSQL and MariaDB in Pods, on volumes, and snapshots of those.

use serde_json::{Value, json};

/// The password of the superusers: `postgres` of PostgreSQL, `root` of MariaDB.
pub const PASSWORD: &str = "secret";

/// PostgreSQL (`tests/tools/image postgresql 18`) on the claim of the same name, and a Service of that name.
pub fn postgresql(name: &str) -> [Value; 2] {
    POSTGRESQL.on(name, &[("data", name)])
}

/// The same of `tests/tools/image postgresql 15`.
pub fn postgresql_15(name: &str) -> [Value; 2] {
    Engine { image: "stillpoint.test/postgresql:15", ..POSTGRESQL }.on(name, &[("data", name)])
}

/// PostgreSQL 18 with its WAL on a claim of its own.
pub fn postgresql_with_wal(name: &str, wal: &str) -> [Value; 2] {
    let [mut pod, service] = POSTGRESQL.on(name, &[("data", name), ("wal", wal)]);
    if let Some(environment) = pod["spec"]["containers"][0]["env"].as_array_mut() {
        environment.push(json!({"name": "WALDIR", "value": "/wal/pg_wal"}));
    }
    [pod, service]
}

/// MariaDB (`tests/tools/image mariadb 11.4`) on the claim of the same name, and a Service of that name.
pub fn mariadb(name: &str) -> [Value; 2] {
    MARIADB.on(name, &[("data", name)])
}

/// A database's Pod.
struct Engine {
    name: &'static str,
    image: &'static str,
    port: u16,
    environment: &'static [(&'static str, &'static str)],
    is_ready: &'static [&'static str],
}

const POSTGRESQL: Engine = Engine {
    name: "postgresql",
    image: "stillpoint.test/postgresql:18",
    port: 5432,
    // The last for psql.
    environment: &[("PGDATA", "/data/pgdata"), ("POSTGRES_PASSWORD", PASSWORD), ("PGPASSWORD", PASSWORD)],
    is_ready: &["pg_isready", "--host=127.0.0.1", "--username=postgres"],
};

const MARIADB: Engine = Engine {
    name: "mariadb",
    image: "stillpoint.test/mariadb:11.4",
    port: 3306,
    // The last for its clients.
    environment: &[("DATADIR", "/data/mariadb"), ("MARIADB_PASSWORD", PASSWORD), ("MYSQL_PWD", PASSWORD)],
    is_ready: &["mariadb", "--no-defaults", "--host=127.0.0.1", "--user=root", "--execute=SELECT 1"],
};

impl Engine {
    /// `volumes`: where they are mounted, below `/`, and their claims.
    fn on(&self, name: &str, volumes: &[(&str, &str)]) -> [Value; 2] {
        let environment: Vec<Value> =
            self.environment.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
        let mounts: Vec<Value> =
            volumes.iter().map(|(name, _)| json!({"name": name, "mountPath": format!("/{name}")})).collect();
        let volumes: Vec<Value> = volumes
            .iter()
            .map(|(name, claim)| json!({"name": name, "persistentVolumeClaim": {"claimName": claim}}))
            .collect();
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "securityContext": {"runAsUser": 999, "runAsGroup": 999, "fsGroup": 999},
                "containers": [{
                    "name": self.name, "image": self.image, "imagePullPolicy": "Never", "env": environment,
                    // Not to be taken for gone when the machine is busy: a Service without a Pod refuses.
                    "readinessProbe": {"exec": {"command": self.is_ready}, "periodSeconds": 1, "timeoutSeconds": 10},
                    "volumeMounts": mounts,
                }],
                "volumes": volumes,
            },
        });
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"port": self.port}]},
        });
        [pod, service]
    }
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
