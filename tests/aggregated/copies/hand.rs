//! A hand that does what snapshot-controller and csi-snapshotter do, and a database that is a Pod's status: what a test of ours sees of
//! them is what they write.

use anyhow::{Context, Result, ensure};
use cluster::{tool, until};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use super::until_object;
use crate::world::{SOON, Setup, Space, World};

pub(super) const DATA: &str = "data";
pub(super) const WAL: &str = "wal";
/// What Jobs copy the runner from: nobody pulls it.
pub(super) const RUNNER_IMAGE: &str = "stillpoint.test/runner:1";
/// By what the Database's Pod pulls its image.
pub(super) const REGISTRY: &str = "registry";
pub(super) const DRIVER: &str = "hand.stillpoint.test";

/// In one namespace.
pub(super) struct Hand<'s> {
    space: &'s Space<'s>,
}

/// With the CRDs of snapshots, which the others do without.
pub(super) async fn world(replicas: Vec<&'static str>) -> Result<World> {
    let arguments = ["--gates-listen", "127.0.0.1:0", "--runner-image", RUNNER_IMAGE].map(str::to_owned).into();
    let world = World::of(Setup { replicas: Vec::new(), arguments, ..Setup::default() }).await?;
    let crds = tool("kubernetes", &["snapshotter"]).await?.join("crds").display().to_string();
    world.cluster.kubectl(&["apply", "--server-side", "-f", &crds]).await?.ok()?;
    world.cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "-f", &crds]).await?.ok()?;
    for name in replicas {
        world.add_replica(name).await?;
    }
    world.available(2 * SOON).await?;
    Ok(world)
}

/// One for all tests that leave it as it was.
pub(super) async fn in_world() -> &'static World {
    static WORLD: OnceCell<World> = OnceCell::const_new();
    WORLD.get_or_init(|| async { world(vec!["one", "two"]).await.expect("a cluster with snapshots") }).await
}

/// A Database by the labels of a Pod that runs, as its status says, on claims that are bound.
pub(super) async fn database(space: &Space<'_>, name: &str, claims: &[&str]) -> Result<()> {
    for claim in claims {
        let volume = format!("{}-{claim}", space.name);
        let size = json!({"storage": "1Gi"});
        space
            .world
            .cluster
            .apply(
                &json!({
                    "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"], "capacity": size, "persistentVolumeReclaimPolicy": "Retain",
                        "storageClassName": "", "claimRef": {"namespace": space.name, "name": claim},
                        "csi": {"driver": DRIVER, "volumeHandle": volume},
                    },
                })
                .to_string(),
            )
            .await?;
        space.apply(json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim},
            "spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": size}, "storageClassName": "", "volumeName": volume,
            },
        })).await?;
    }
    let mounts: Vec<Value> =
        claims.iter().map(|claim| json!({"name": claim, "mountPath": format!("/{claim}")})).collect();
    let volumes: Vec<Value> =
        claims.iter().map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}})).collect();
    space
        .apply(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "containers": [{"name": "db", "image": "none", "volumeMounts": mounts}], "volumes": volumes,
                "imagePullSecrets": [{"name": REGISTRY}],
            },
        }))
        .await?;
    let status = json!({"status": {
        "phase": "Running", "podIP": "192.0.2.7", "podIPs": [{"ip": "192.0.2.7"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    space.kubectl(&["patch", "pod", name, "--subresource=status", "--type=merge", "-p", &status.to_string()]).await?;
    space.apply(json!({
        "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": name},
        "spec": {
            "engine": "PostgreSQL", "agent": "Required", "paused": true, "podSelector": {"matchLabels": {"app": name}},
        },
    })).await.map(drop)
}

/// Of the Database `orders`, by VolumeSnapshots.
pub(super) fn snapshot(name: &str, more: Value) -> Value {
    let mut spec = json!({"databases": ["orders"], "method": "VolumeSnapshot"});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    json!({"apiVersion": api::API_VERSION, "kind": "Snapshot", "metadata": {"name": name}, "spec": spec})
}

/// A VolumeSnapshot that somebody takes.
pub(super) fn foreign(name: &str, claim: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": name},
        "spec": {"source": {"persistentVolumeClaimName": claim}},
    })
}

impl<'s> Hand<'s> {
    pub(super) fn of(space: &'s Space<'s>) -> Self {
        Self { space }
    }

    pub(super) async fn volume_snapshot(&self, name: &str) -> Result<Option<Value>> {
        let found = self.space.kubectl(&["get", "volumesnapshot", name, "-o", "json", "--ignore-not-found"]).await?;
        Ok(if found.trim().is_empty() { None } else { Some(serde_json::from_str(&found)?) })
    }

    /// Waits until it is made, for a Snapshot.
    pub(super) async fn made(&self, name: &str) -> Result<Value> {
        until(&format!("VolumeSnapshot {name} is made"), SOON, || async {
            let made = self.volume_snapshot(name).await?.with_context(|| self.space.world.log_end())?;
            ensure!(made["metadata"]["labels"][api::LABEL_SNAPSHOT].is_string(), "{made}");
            Ok(made)
        })
        .await
    }

    pub(super) async fn is_removed(&self, name: &str) -> Result<()> {
        until(&format!("VolumeSnapshot {name} is removed"), SOON, || async {
            ensure!(self.volume_snapshot(name).await?.is_none(), "it is there");
            Ok(())
        })
        .await
    }

    pub(super) async fn says_error(&self, name: &str, message: &str) -> Result<()> {
        let status =
            json!({"status": {"readyToUse": false, "error": {"message": message, "time": "2026-11-29T12:00:00Z"}}});
        self.status("volumesnapshot", name, &status).await
    }

    /// It is cut, and ready to use; and whoever held, or did not, says what it is worth.
    pub(super) async fn cut(&self, name: &str, worth: &str) -> Result<()> {
        let uid = self.made(name).await?["metadata"]["uid"].as_str().context("no uid")?.to_owned();
        let content = format!("snapcontent-{uid}");
        self.space
            .world
            .cluster
            .apply(
                &json!({
                    "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
                    "metadata": {
                        "name": content, "labels": {api::gate::CONSISTENCY: worth},
                        "annotations": {api::gate::REASON: "ByHand", api::gate::MESSAGE: "as the test wants it"},
                    },
                    "spec": {
                        "deletionPolicy": "Delete", "driver": DRIVER, "source": {"volumeHandle": format!("of-{uid}")},
                        "volumeSnapshotRef": {"name": name, "namespace": self.space.name, "uid": uid},
                    },
                })
                .to_string(),
            )
            .await?;
        let handle = json!({"status": {"snapshotHandle": format!("handle-{name}"), "readyToUse": true}});
        self.status("volumesnapshotcontent", &content, &handle).await?;
        let ready = json!({"status": {
            "boundVolumeSnapshotContentName": content, "readyToUse": true, "restoreSize": "2Gi", "error": null,
        }});
        self.status("volumesnapshot", name, &ready).await
    }

    async fn status(&self, kind: &str, name: &str, patch: &Value) -> Result<()> {
        let patch = ["patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch.to_string()];
        self.space.kubectl(&patch).await.map(drop)
    }

    pub(super) async fn until(&self, name: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
        until_object(self.space, "snapshots.stillpoint.dev", name, is_so).await
    }

    pub(super) async fn phase(&self, name: &str, phase: &str) -> Result<Value> {
        self.until(name, |now| now["status"]["phase"] == phase).await
    }

    pub(super) async fn live(&self, name: &str) -> Result<Value> {
        let get = ["get", "snapshots.live.stillpoint.dev", name, "-o", "json"];
        Ok(serde_json::from_str(&self.space.kubectl(&get).await?)?)
    }
}
