//! What snapshots of volumes that are nobody's lose by our being asked: many at once, with the webhooks and without, by kube-apiserver's
//! own clock.

use std::{collections::HashMap, time::Duration};

use anyhow::{Context, Result, ensure};
use cluster::{Component, until, workload};
use jiff::Timestamp;
use serde_json::Value;

use super::numbers::{milliseconds, percentile};
use crate::{
    gates::world::World,
    installed::{DEPLOYMENT, NAMESPACE, SOON, rolled_out},
};

const MANY: usize = 200;
/// The sidecars' own limits would be all that is measured.
const QUICK: [&str; 2] = ["--kube-api-qps=500", "--kube-api-burst=1000"];

pub(super) async fn slowed(world: &World<'_>) -> Result<String> {
    let cluster = world.cluster;
    for component in [Component::SnapshotController, Component::Snapshotter] {
        cluster.restart_with(component, &QUICK).await?;
    }
    world.apply(&workload::claim("idle", None)).await?;
    let mut with = took(world, "with").await?;
    // Nobody is left who would have it back.
    cluster.kubectl(&["scale", DEPLOYMENT, "-n", NAMESPACE, "--replicas=0"]).await?.ok()?;
    rolled_out(cluster, DEPLOYMENT).await?;
    let configuration = ["delete", "validatingwebhookconfiguration", api::install::webhooks::NAME];
    cluster.kubectl(&configuration).await?.ok()?;
    let mut without = took(world, "without").await?;
    let line = |name: &str, all: &mut [Duration]| {
        let [half, most] = [50, 99].map(|percent| milliseconds(percentile(all, percent)));
        format!("{name:<32} p50 {half}, p99 {most}\n")
    };
    Ok(format!(
        "admission of {MANY} snapshots of an unprotected claim at once, and of their marks:\n{}{}",
        line("with the webhooks", &mut with),
        line("without", &mut without)
    ))
}

/// How long kube-apiserver took to take each snapshot and to mark its content, together.
async fn took(world: &World<'_>, prefix: &str) -> Result<Vec<Duration>> {
    let names: Vec<String> = (0..MANY).map(|number| format!("{prefix}-{number}")).collect();
    let all: Vec<String> = names.iter().map(|name| workload::snapshot(name, "idle").to_string()).collect();
    world.cluster.apply(&all.join("\n---\n")).await?;
    let mut contents = HashMap::new();
    until("all are cut", SOON * 5, || async {
        let snapshots = world.list("volumesnapshots").await?;
        let cut =
            |snapshot: &&Value| snapshot["metadata"]["name"].as_str().is_some_and(|name| name.starts_with(prefix));
        let ready = snapshots.iter().filter(cut).filter(|snapshot| snapshot["status"]["readyToUse"] == true).count();
        ensure!(ready == MANY, "{ready} of {MANY}");
        Ok(())
    })
    .await?;
    for snapshot in world.list("volumesnapshots").await? {
        let name = snapshot["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let uid = snapshot["metadata"]["uid"].as_str().unwrap_or_default();
        contents.insert(format!("snapcontent-{uid}"), name);
    }
    let mut took: HashMap<String, Duration> = HashMap::new();
    for event in world.cluster.audit_events()? {
        let object = &event["objectRef"];
        let (name, verb) = (object["name"].as_str().unwrap_or_default(), event["verb"].as_str().unwrap_or_default());
        let snapshot = match (object["resource"].as_str(), object["subresource"].is_null(), verb) {
            // Applied on the server, which makes it.
            (Some("volumesnapshots"), true, "create" | "patch") if by_us(&event) => Some(name.to_owned()),
            // The first one marks it.
            (Some("volumesnapshotcontents"), true, "patch") => contents.remove(name),
            _ => None,
        };
        let Some(snapshot) = snapshot.filter(|name| names.contains(name)) else { continue };
        *took.entry(snapshot).or_default() += between(&event)?;
    }
    ensure!(took.len() == MANY, "{} of {MANY} are in the audit log", took.len());
    Ok(took.into_values().collect())
}

fn by_us(event: &Value) -> bool {
    event["user"]["username"] == "kubernetes-admin"
}

fn between(event: &Value) -> Result<Duration> {
    let at = |field: &str| -> Result<Timestamp> { Ok(event[field].as_str().context("no time")?.parse()?) };
    Ok(Duration::try_from(at("stageTimestamp")?.duration_since(at("requestReceivedTimestamp")?))?)
}
