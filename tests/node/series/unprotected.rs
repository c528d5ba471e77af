//! What snapshots of volumes that are nobody's lose by our being asked: many at once, with the webhooks and without, by kube-apiserver's
//! own clock.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    time::Duration,
};

use anyhow::{Result, ensure};
use cluster::{Component, until, workload};
use kube::{
    Api,
    api::{ApiResource, DynamicObject, PostParams},
};
use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    numbers::{Promise, milliseconds, percentile},
    stages::{SNAPSHOTTER, time},
};
use crate::{
    gates::world::World,
    installed::{DEPLOYMENT, NAMESPACE, SOON, gated, rolled_out},
};

const AT_ONCE: usize = 200;
const IN_TURN: usize = 50;
/// How often it is looked whether one is ready: seldom, or looking would be what is measured.
const LOOK: Duration = Duration::from_millis(100);
/// What half of them lose at most.
const LOSS: Duration = Duration::from_millis(3);
/// The sidecars' own limits would be all that is measured.
const QUICK: [&str; 2] = ["--kube-api-qps=500", "--kube-api-burst=1000"];
/// Who makes the snapshots. Who marks their contents is not alone in patching them: snapshot-controller puts its finalizer on them at the
/// same time.
const MAKER: &str = "kubernetes-admin";

/// How long snapshots of what is nobody's took, in the two orders.
#[derive(Debug)]
pub(super) struct Slowed {
    /// In a namespace that has no Database.
    apart: Took,
    /// Beside Databases.
    beside: Took,
    without: Took,
}

/// Of each snapshot.
#[derive(Debug)]
struct Took {
    /// One made when the one before is ready: what it costs to be asked.
    in_turn: Vec<Duration>,
    /// All made together: what a machine does at once, and who waits for whom.
    at_once: Vec<Duration>,
}

pub(super) async fn slowed(world: &World<'_>) -> Result<Slowed> {
    let cluster = world.cluster;
    for component in [Component::SnapshotController, Component::Snapshotter] {
        cluster.restart_with(component, &QUICK).await?;
    }
    cluster.kubectl(&["create", "namespace", "apart"]).await?.ok()?;
    let elsewhere = World::of(cluster, "apart").await?;
    for world in [world, &elsewhere] {
        world.apply(&workload::claim("idle", None)).await?;
    }
    let before = gated(cluster, "nothing").await?;
    let apart = took_both(&elsewhere, "apart").await?;
    let asked = gated(cluster, "nothing").await? - before;
    ensure!(asked < 1.0, "the gate was asked {asked} times about who has no Database");
    let beside = took_both(world, "beside").await?;
    // Else there is nothing to lose.
    let asked = gated(cluster, "nothing").await? - before;
    #[expect(clippy::cast_precision_loss, reason = "a count")]
    let all = (IN_TURN + AT_ONCE) as f64;
    ensure!(asked >= all, "the gate was asked {asked} times for {all} snapshots");
    // Nobody is left who would have it back.
    cluster.kubectl(&["scale", DEPLOYMENT, "-n", NAMESPACE, "--replicas=0"]).await?.ok()?;
    rolled_out(cluster, DEPLOYMENT).await?;
    let both = "validatingwebhookconfiguration,mutatingwebhookconfiguration";
    let configuration = ["delete", both, api::install::webhooks::NAME];
    cluster.kubectl(&configuration).await?.ok()?;
    let without = took_both(world, "without").await?;
    Ok(Slowed { apart, beside, without })
}

async fn took_both(world: &World<'_>, prefix: &str) -> Result<Took> {
    let names = |how: &str, count| (0..count).map(|number| format!("{prefix}-{how}-{number}")).collect();
    let (in_turn, at_once): (HashSet<String>, HashSet<String>) = (names("in-turn", IN_TURN), names("at-once", AT_ONCE));
    let snapshots = snapshots(world).await?;
    for name in &in_turn {
        make(&snapshots, std::slice::from_ref(name)).await?;
        let is_ready = async || {
            while snapshots.get(name).await?.data["status"]["readyToUse"] != true {
                sleep(LOOK).await;
            }
            Ok::<_, kube::Error>(())
        };
        timeout(SOON, is_ready()).await??;
    }
    let in_turn = took(world, &in_turn).await?;
    make(&snapshots, &at_once).await?;
    let at_once = took(world, &at_once).await?;
    // Whoever is measured next begins with as little.
    world.kubectl(&["delete", "volumesnapshots", "--all", "--timeout=300s"]).await?;
    Ok(Took { in_turn, at_once })
}

impl Slowed {
    pub(super) fn promises(&self) -> Vec<Promise> {
        let promise = |how: &str, with: &[Duration], without: &[Duration]| {
            let [with, without] = [with, without].map(|all| percentile(&mut all.to_vec(), 50));
            Promise {
                what: format!("{how}: a snapshot of what is nobody's loses {} p50 at most", milliseconds(LOSS)),
                was: format!("{} and {} without us", milliseconds(with), milliseconds(without)),
                kept: with.saturating_sub(without) <= LOSS,
            }
        };
        vec![
            promise("in turn, apart", &self.apart.in_turn, &self.without.in_turn),
            promise("at once, apart", &self.apart.at_once, &self.without.at_once),
            promise("in turn, beside Databases", &self.beside.in_turn, &self.without.in_turn),
            promise("at once, beside Databases", &self.beside.at_once, &self.without.at_once),
        ]
    }
}

impl fmt::Display for Slowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "admission of snapshots of an unprotected claim, and of their marks, {IN_TURN} in turn and {AT_ONCE} at once:"
        )?;
        for (name, all) in [
            ("in turn, apart", &self.apart.in_turn),
            ("in turn, beside Databases", &self.beside.in_turn),
            ("in turn, without us", &self.without.in_turn),
            ("at once, apart", &self.apart.at_once),
            ("at once, beside Databases", &self.beside.at_once),
            ("at once, without us", &self.without.at_once),
        ] {
            let [half, most] = [50, 99].map(|percent| milliseconds(percentile(&mut all.clone(), percent)));
            writeln!(f, "{name:<32} p50 {half}, p99 {most}")?;
        }
        Ok(())
    }
}

/// How long kube-apiserver took to take each snapshot and to mark its content, together, when all of them are cut.
async fn took(world: &World<'_>, names: &HashSet<String>) -> Result<Vec<Duration>> {
    until("all are cut", SOON * 5, || async {
        let snapshots = world.list("volumesnapshots").await?;
        let ready = snapshots.iter().filter(|snapshot| snapshot["status"]["readyToUse"] == true);
        let ready = ready.filter(|snapshot| names.contains(text(&snapshot["metadata"]["name"]))).count();
        ensure!(ready == names.len(), "{ready} of {}", names.len());
        Ok(())
    })
    .await?;
    let snapshots = world.list("volumesnapshots").await?;
    let contents: HashMap<String, &str> = snapshots
        .iter()
        .map(|snapshot| &snapshot["metadata"])
        .map(|metadata| (format!("snapcontent-{}", text(&metadata["uid"])), text(&metadata["name"])))
        .collect();
    let (mut made, mut marked) = (HashMap::new(), HashMap::new());
    for event in world.cluster.audit_events()? {
        let object = &event["objectRef"];
        let (name, of) = (text(&object["name"]), text(&object["resource"]));
        if !object["subresource"].is_null() || event["responseStatus"]["code"].as_u64().is_none_or(|code| code >= 300) {
            continue;
        }
        match (of, text(&event["verb"]), text(&event["user"]["username"])) {
            ("volumesnapshots", "create", MAKER) if names.contains(name) => {
                made.insert(name.to_owned(), between(&event)?);
            }
            // Its first is the mark.
            ("volumesnapshotcontents", "patch", SNAPSHOTTER) => {
                if let Some(snapshot) = contents.get(name).filter(|snapshot| names.contains(**snapshot)) {
                    let took = between(&event)?;
                    marked.entry((*snapshot).to_owned()).or_insert(took);
                }
            }
            _ => {}
        }
    }
    let both = made.len() == names.len() && marked.len() == names.len();
    ensure!(both, "{} of {} are made and {} marked by the audit log", made.len(), names.len(), marked.len());
    Ok(made.into_iter().map(|(name, took)| took + marked[&name]).collect())
}

async fn snapshots(world: &World<'_>) -> Result<Api<DynamicObject>> {
    let kind = ApiResource {
        group: api::gate::SNAPSHOTS.to_owned(),
        version: "v1".to_owned(),
        api_version: format!("{}/v1", api::gate::SNAPSHOTS),
        kind: "VolumeSnapshot".to_owned(),
        plural: "volumesnapshots".to_owned(),
    };
    Ok(Api::namespaced_with(world.cluster.client().await?, world.namespace, &kind))
}

/// Each by a request of its own, all on their way together.
async fn make(snapshots: &Api<DynamicObject>, names: impl IntoIterator<Item = &String>) -> Result<()> {
    let mut making = JoinSet::new();
    for name in names {
        let snapshot = serde_json::from_value(workload::snapshot(name, "idle"))?;
        let snapshots = snapshots.clone();
        making.spawn(async move { snapshots.create(&PostParams::default(), &snapshot).await.map(drop) });
    }
    while let Some(made) = making.join_next().await {
        made??;
    }
    Ok(())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn between(event: &Value) -> Result<Duration> {
    let [from, to] = ["requestReceivedTimestamp", "stageTimestamp"].map(|field| time(&event[field]));
    Ok(Duration::try_from(to?.duration_since(from?))?)
}
