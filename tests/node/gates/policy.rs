//! What a namespace and a snapshot say of how they want to be treated, whoever is there to hear it; and that the leader keeps what
//! the webhooks need.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, Output, until, workload};
use fixtures::Engine;
use serde_json::{Value, json};

use super::world::World;
use crate::installed::{NAMESPACE, SOON, WEBHOOKS, rolled_out, start};

const CONFIGURATIONS: &str = "validatingwebhookconfigurations,mutatingwebhookconfigurations";
const CONFIGURED: [&str; 3] = ["get", CONFIGURATIONS, api::install::webhooks::NAME];

/// With `kubectl create`, and so with its warnings and errors.
async fn create(cluster: &Cluster, name: &str, metadata: Value) -> Result<Output> {
    let mut snapshot = workload::snapshot(name, "shop");
    for (key, value) in metadata.as_object().into_iter().flatten() {
        snapshot["metadata"][key] = value.clone();
    }
    let file = cluster.root().join(format!("{name}.json"));
    fs::write(&file, snapshot.to_string())?;
    cluster.kubectl(&["create", "-f", &file.display().to_string()]).await
}

async fn scale(cluster: &Cluster, replicas: u32) -> Result<()> {
    let replicas_ = format!("--replicas={replicas}");
    cluster.kubectl(&["scale", WEBHOOKS, "-n", NAMESPACE, &replicas_]).await?.ok()?;
    if replicas > 0 {
        return rolled_out(cluster, WEBHOOKS).await;
    }
    let pods = ["get", "pods", "-n", NAMESPACE, "-l", "app.kubernetes.io/component=webhooks", "-o", "name"];
    until("the webhooks are gone", SOON, || async {
        let left = cluster.kubectl(&pods).await?.ok()?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await
}

async fn pause(cluster: &Cluster, paused: bool) -> Result<()> {
    let patch = json!({"spec": {"paused": paused}}).to_string();
    let patch = ["patch", "databases.stillpoint.dev", "shop", "--type=merge", "--patch", &patch];
    cluster.kubectl(&patch).await?.ok()?;
    let status = format!("--for=condition=Ready={}", !paused);
    cluster.kubectl(&["wait", &status, "--timeout=60s", "databases.stillpoint.dev", "shop"]).await?.ok().map(drop)
}

async fn described(world: &World<'_>, name: &str) -> Result<String> {
    world.kubectl(&["describe", "volumesnapshot", name]).await
}

fn said<'v>(metadata: &'v Value, key: &str) -> &'v str {
    let said = metadata["labels"][key].as_str().or_else(|| metadata["annotations"][key].as_str());
    said.unwrap_or_default()
}

#[tokio::test]
async fn a_snapshot_is_treated_as_its_namespace_and_itself_say() {
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    world.database(Engine::PostgreSQL, "shop", json!({})).await.unwrap();

    with_nobody_there(&world).await.context("nobody is there").unwrap();
    what_cannot_be_held_waits(&world).await.context("what cannot be held").unwrap();
    who_does_not_want_it_is_left_alone(&world).await.context("who does not want it").unwrap();
    the_leader_keeps_what_the_webhooks_need(&world).await.context("the leader").unwrap();
}

/// `Preferred` is never in the way; `Required` takes nothing less.
async fn with_nobody_there(world: &World<'_>) -> Result<()> {
    scale(world.cluster, 0).await?;
    create(world.cluster, "down", json!({})).await?.ok()?;
    let metadata = world.worth("down", "crash").await?;
    ensure!(said(&metadata, api::gate::REASON) == "NotFrozen", "{metadata}");
    let told = described(world, "down").await?;
    ensure!(told.contains("NotFrozen") && told.contains("nobody asked before the cut"), "{told}");

    world.kubectl(&["label", "namespace", "default", "stillpoint.dev/snapshots=Required"]).await?;
    until("the namespace has entries of its own", SOON, || async {
        let configuration = world.kubectl(&[&CONFIGURED[..], &["-o", "yaml"]].concat()).await?;
        ensure!(configuration.contains("cut.required.stillpoint.dev"), "{configuration}");
        Ok(())
    })
    .await?;
    until("a snapshot is refused", SOON, || async {
        let refused = create(world.cluster, "refused", json!({})).await?;
        // kube-apiserver hears of a new configuration a moment later.
        world.kubectl(&["delete", "volumesnapshot", "refused", "--ignore-not-found"]).await?;
        ensure!(refused.code != 0 && refused.stderr.contains("preflight.required.stillpoint.dev"), "{refused:?}");
        Ok(())
    })
    .await?;

    scale(world.cluster, 2).await?;
    create(world.cluster, "again", json!({})).await?.ok()?;
    world.worth("again", "application").await?;
    Ok(())
}

/// In the namespace that takes nothing less.
async fn what_cannot_be_held_waits(world: &World<'_>) -> Result<()> {
    pause(world.cluster, true).await?;
    let created = create(world.cluster, "waits", json!({})).await?;
    ensure!(created.stderr.contains("Database shop is paused"), "{created:?}");
    created.ok()?;
    until("it says why it waits", SOON, || async {
        let told = described(world, "waits").await?;
        ensure!(told.contains("CutWaits") && told.contains("paused"), "{told}");
        let snapshot = world.object("volumesnapshot", "waits").await?;
        let error = snapshot["status"]["error"]["message"].as_str().unwrap_or_default();
        ensure!(error.contains("not held") && error.contains("try again"), "{snapshot}");
        Ok(())
    })
    .await?;
    let mut keep = json!({"annotations": {"stillpoint.dev/on-missed": "Keep", "stillpoint.dev/deadline-seconds": "1"}});
    create(world.cluster, "kept", keep.take()).await?.ok()?;
    let metadata = world.worth("kept", "crash").await?;
    ensure!(said(&metadata, api::gate::MESSAGE).contains("paused"), "{metadata}");
    let uncut = world.object("volumesnapshot", "waits").await?;
    ensure!(uncut["metadata"]["labels"].is_null() && uncut["status"]["readyToUse"] != true, "{uncut}");

    pause(world.cluster, false).await?;
    world.worth("waits", "application").await?;
    Ok(())
}

async fn who_does_not_want_it_is_left_alone(world: &World<'_>) -> Result<()> {
    let before = world.freezes().await?.len();
    create(world.cluster, "skipped", json!({"annotations": {"stillpoint.dev/quiesce": "skip"}})).await?.ok()?;
    let metadata = world.worth("skipped", "crash").await?;
    ensure!(said(&metadata, api::gate::REASON) == "Skipped", "{metadata}");
    create(world.cluster, "operators", json!({"labels": {"cnpg.io/backupName": "nightly"}})).await?.ok()?;
    let ready = ["wait", "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s", "volumesnapshot/operators"];
    world.kubectl(&ready).await?;
    world.until_the_leader_has_looked("operators", "shop").await?;
    let left_alone = world.object("volumesnapshot", "operators").await?;
    ensure!(left_alone["metadata"]["labels"] == json!({"cnpg.io/backupName": "nightly"}), "{left_alone}");
    let content = world.content("operators").await?;
    ensure!(content["metadata"]["labels"][api::gate::CONSISTENCY].is_null(), "{content}");
    ensure!(!world.is_told("operators").await?, "{}", described(world, "operators").await?);
    let now = world.freezes().await?.len();
    ensure!(now == before, "{before} became {now}");

    // Whoever wants it is held for, once.
    create(world.cluster, "last", json!({})).await?.ok()?;
    let metadata = world.worth("last", "application").await?;
    let now = world.freezes().await?.len();
    ensure!(now == before + 1, "{before} became {now}");
    let content = world.content("last").await?;
    let freeze = world.freeze_of(content["metadata"]["uid"].as_str().unwrap_or_default()).await?;
    ensure!(said(&metadata, api::gate::FREEZE) == freeze["metadata"]["name"], "{metadata}: {freeze}");
    Ok(())
}

async fn the_leader_keeps_what_the_webhooks_need(world: &World<'_>) -> Result<()> {
    let cluster = world.cluster;
    let is_right = || async {
        let configuration: Value =
            serde_json::from_str(&cluster.kubectl(&[&CONFIGURED[..], &["-o", "json"]].concat()).await?.ok()?)?;
        let secret = ["get", "secret", api::install::webhooks::SERVING, "-n", NAMESPACE, "-o", "json"];
        let secret: Value = serde_json::from_str(&cluster.kubectl(&secret).await?.ok()?)?;
        let entries = configuration["items"].as_array().into_iter().flatten();
        let entries = entries.flat_map(|one| one["webhooks"].as_array().into_iter().flatten()).cloned();
        let entries: Vec<Value> = entries.collect();
        let trusts = entries.iter().all(|entry| entry["clientConfig"]["caBundle"] == secret["data"]["ca.crt"]);
        ensure!(trusts && entries.len() >= 5, "{configuration}");
        Ok(entries)
    };
    let entries = until("all is right", SOON, is_right).await?;
    let name = api::install::webhooks::NAME;
    cluster.kubectl(&["delete", CONFIGURATIONS, name]).await?.ok()?;
    // As it is installed: empty.
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/webhooks/configuration.yaml");
    cluster.apply(&fs::read_to_string(installed)?).await?;
    until("it is filled again", SOON, is_right).await?;
    cluster.kubectl(&["delete", "secret", api::install::webhooks::SERVING, "-n", NAMESPACE]).await?.ok()?;
    until("the certificate is there again", SOON, is_right).await?;
    let edit = json!([{"op": "remove", "path": "/webhooks/0"}]).to_string();
    for kind in CONFIGURATIONS.split(',') {
        cluster.kubectl(&["patch", kind, name, "--type=json", "--patch", &edit]).await?.ok()?;
    }
    until("what somebody took out is in again", SOON, || async {
        let now = is_right().await?;
        ensure!(now.len() == entries.len(), "{now:?}");
        Ok(())
    })
    .await?;

    // The first cut of this driver nobody could ask about; before the next one somebody is asked.
    let content = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": {"name": "unmarked"},
        "spec": {
            "driver": csi::NAME, "deletionPolicy": "Retain", "source": {"volumeHandle": "h"},
            "volumeSnapshotRef": {"namespace": "default", "name": "of-nobody"},
        },
    });
    cluster.apply(&content.to_string()).await?;
    let cut = json!({"status": {"snapshotHandle": "s", "readyToUse": true}}).to_string();
    let cut = ["patch", "volumesnapshotcontent", "unmarked", "--subresource=status", "--type=merge", "--patch", &cut];
    cluster.kubectl(&cut).await?.ok()?;
    until("the driver is asked about when its contents are made", SOON, || async {
        let now = is_right().await?;
        let now = Value::from(now).to_string();
        ensure!(now.contains(&format!("object.spec.driver in ['{}']", csi::NAME)), "{now}");
        Ok(())
    })
    .await?;
    // The one that is made first is asked about when it is made; that it was marked is learnt, too.
    create(cluster, "early", json!({})).await?.ok()?;
    world.worth("early", "application").await?;
    let content = world.content("early").await?["metadata"]["name"].clone();
    until("the audit log says that it was held for", SOON, || async {
        let of_it = |event: &Value| event["verb"] == "create" && event["objectRef"]["name"] == content;
        let told = cluster.audit_events()?.into_iter().filter(of_it).any(|event| {
            let mut told = event["annotations"].as_object().into_iter().flatten().map(|(key, _)| key);
            told.any(|key| key.starts_with("content.") && key.ends_with("stillpoint.dev/freeze"))
        });
        ensure!(told, "it does not");
        Ok(())
    })
    .await
}
