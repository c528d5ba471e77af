//! Snapshots of databases that are written to, brought back by Restores to new claims, and what is in them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cluster::{image, until, workload};
use fixtures::{Acknowledged, Engine, Load, Login, Verdict, Writers, compare};
use serde_json::{Value, json};
use tests::cuts::instant;

use crate::{
    gates::world::World,
    installed::{SOON, start},
};

/// A server in a Pod, as its own programs know it.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) engine: Engine,
    pod: fn(&str) -> [Value; 2],
}

pub(crate) const KINDS: [Kind; 3] = [
    Kind { name: "shop", engine: Engine::PostgreSQL, pod: workload::postgresql },
    Kind { name: "archive", engine: Engine::PostgreSQL, pod: workload::postgresql_15 },
    Kind { name: "stock", engine: Engine::MariaDB, pod: workload::mariadb },
];

#[tokio::test]
async fn what_is_restored_to_new_claims_has_all_that_was_acknowledged_and_nothing_that_began_later() {
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    cluster.import_image(&image(&["postgresql", "15"]).await.unwrap()).await.unwrap();
    for kind in &KINDS {
        round_trip(&world, kind).await;
    }
    what_is_not_held_is_not_kept(&world).await;
    claims_of_several_databases_at_one_instant(&world).await;
}

impl Kind {
    /// On an empty claim, and a Database that is ready; all have this name.
    pub(crate) async fn database(&self, world: &World<'_>, name: &str) -> Result<Login> {
        world.apply(&workload::claim(name, None)).await?;
        world.run(name, (self.pod)(name)).await?;
        world.register(name, name, self.engine, json!({})).await
    }
}

async fn round_trip(world: &World<'_>, kind: &Kind) {
    let (name, copy) = (kind.name, format!("{}-copy", kind.name));
    let login = kind.database(world, name).await.unwrap();
    let writers = written(&login).await;
    world.apply(&snapshot(name, &[name], "Fail")).await.unwrap();
    let taken = until_phase(world, "snapshots.stillpoint.dev", name, "Ready").await.unwrap();
    let status = &taken["status"];
    assert_eq!(status["consistency"]["verdict"], "application", "{taken}");
    assert!(status["contents"][0]["position"].is_object() && status["volumes"][0]["handle"].is_string(), "{taken}");
    let cut = cut_between(&taken);
    more(&writers, cut.1).await;
    let acknowledged = writers.stop().await;

    world.apply(&restore(name, name, &json!([{"name": copy}]))).await.unwrap();
    let back = until_phase(world, "restores.stillpoint.dev", name, "Complete").await.unwrap();
    assert_eq!(back["status"]["volumes"][0]["bound"], true, "{back}");
    world.run(&copy, (kind.pod)(&copy)).await.unwrap();
    let copy = world.login(kind.engine, &copy).await.unwrap();
    is_whole(&copy, &acknowledged, cut).await;
}

/// A ledger in it, which is written to.
async fn written(login: &Login) -> Writers {
    Load::prepare_at(login).await.unwrap();
    let writers = Load::new(2).pause(Duration::from_millis(2)).start_at(login);
    more(&writers, Instant::now()).await;
    writers
}

async fn more(writers: &Writers, after: Instant) {
    until("it is written to", SOON, || async {
        let count = writers.acknowledged().iter().filter(|one| one.asked > after).count();
        ensure!(count > 20, "{count}");
        Ok(())
    })
    .await
    .unwrap();
}

/// Nothing that was acknowledged before the first instant is missing, nothing is there that began after the second; and both would
/// be seen.
async fn is_whole(copy: &Login, acknowledged: &[Acknowledged], (frozen, thawed): (Instant, Instant)) {
    let verdict = compare(copy, acknowledged, frozen).await.unwrap();
    assert!(verdict.is_sound() && verdict.acknowledged > 0, "{verdict:?}");
    assert_eq!(begun_after(&verdict, acknowledged, thawed), 0, "{verdict:?}");
    let all = compare(copy, acknowledged, Instant::now()).await.unwrap();
    assert!(all.missing > 0 && all.sum_is_right, "{all:?}");
    assert!(begun_after(&verdict, acknowledged, acknowledged[0].asked) > 0, "{verdict:?}");
}

/// Of one that was not held there is none, where it was said so; and nothing of it is left.
async fn what_is_not_held_is_not_kept(world: &World<'_>) {
    let pause = json!({"spec": {"paused": true}}).to_string();
    world.kubectl(&["patch", "databases.stillpoint.dev", "shop", "--type=merge", "-p", &pause]).await.unwrap();
    world.apply(&snapshot("paused", &["shop"], "Fail")).await.unwrap();
    let paused = until_phase(world, "snapshots.stillpoint.dev", "paused", "Failed").await.unwrap();
    assert_eq!(paused["status"]["conditions"][0]["reason"], "NotHeld", "{paused}");
    is_gone(world, "paused").await.unwrap();

    // What was made of it goes with it, and a claim that was made of that stays.
    world.kubectl(&["delete", "snapshots.stillpoint.dev", "shop", "--timeout=60s"]).await.unwrap();
    is_gone(world, "shop").await.unwrap();
    assert_eq!(world.object("persistentvolumeclaim", "shop-copy").await.unwrap()["status"]["phase"], "Bound");
}

/// One has its data on two claims, and is whole only when both are cut together.
async fn claims_of_several_databases_at_one_instant(world: &World<'_>) {
    for claim in ["ledger", "ledger-wal"] {
        world.apply(&workload::claim(claim, None)).await.unwrap();
    }
    world.run("ledger", workload::postgresql_with_wal("ledger", "ledger-wal")).await.unwrap();
    let ledger = world.register("ledger", "ledger", Engine::PostgreSQL, json!({})).await.unwrap();
    let stock = world.login(Engine::MariaDB, "stock").await.unwrap();
    let label = ["label", "persistentvolumeclaim", "ledger", "ledger-wal", "stock", "stillpoint.dev/group=all"];
    world.kubectl(&label).await.unwrap();
    let stock = (&stock, Load::new(2).pause(Duration::from_millis(2)).start_at(&stock));
    let ledger = (&ledger, written(&ledger).await);
    more(&stock.1, Instant::now()).await;
    world.apply(&snapshot("all", &["ledger", "stock"], "Fail")).await.unwrap();
    let taken = until_phase(world, "snapshots.stillpoint.dev", "all", "Ready").await.unwrap();
    assert_eq!(taken["status"]["consistency"]["verdict"], "application", "{taken}");
    assert_eq!(taken["status"]["consistency"]["level"], "WriteBlocked", "{taken}");
    assert_eq!(taken["status"]["volumes"].as_array().map(Vec::len), Some(3), "{taken}");
    let cut = cut_between(&taken);

    let wanted = [("ledger", "ledger-copy"), ("ledger-wal", "ledger-wal-copy"), ("stock", "stock-again")];
    let wanted: Vec<Value> = wanted.iter().map(|(claim, name)| json!({"claim": claim, "name": name})).collect();
    world.apply(&restore("all", "all", &wanted.into())).await.unwrap();
    until_phase(world, "restores.stillpoint.dev", "all", "Complete").await.unwrap();
    world.run("ledger-copy", workload::postgresql_with_wal("ledger-copy", "ledger-wal-copy")).await.unwrap();
    world.run("stock-again", workload::mariadb("stock-again")).await.unwrap();
    for ((login, writers), copy) in [(ledger, "ledger-copy"), (stock, "stock-again")] {
        more(&writers, cut.1).await;
        let acknowledged = writers.stop().await;
        let copy = world.login(login.engine, copy).await.unwrap();
        is_whole(&copy, &acknowledged, cut).await;
    }
    world.kubectl(&["delete", "snapshots.stillpoint.dev", "all", "--timeout=60s"]).await.unwrap();
    let left = world.list("volumegroupsnapshots").await.unwrap();
    assert_eq!(left, Vec::<Value>::new());
}

fn snapshot(name: &str, databases: &[&str], on_missed: &str) -> Value {
    json!({
        "apiVersion": api::API_VERSION, "kind": "Snapshot", "metadata": {"name": name},
        "spec": {"databases": databases, "method": "VolumeSnapshot", "onMissed": on_missed},
    })
}

fn restore(name: &str, snapshot: &str, volumes: &Value) -> Value {
    json!({
        "apiVersion": api::API_VERSION, "kind": "Restore", "metadata": {"name": name},
        "spec": {"source": {"snapshot": snapshot}, "volumes": volumes},
    })
}

fn cut_between(snapshot: &Value) -> (Instant, Instant) {
    let cut = &snapshot["status"]["cutBetween"];
    (instant(&cut["frozenAt"]).unwrap(), instant(&cut["thawedAt"]).unwrap())
}

/// Commits in the copy that nobody had asked for before `after`.
fn begun_after(copy: &Verdict, acknowledged: &[Acknowledged], after: Instant) -> usize {
    let is_in = |one: &&Acknowledged| copy.last.get(&one.writer).is_some_and(|last| one.number <= *last);
    acknowledged.iter().filter(is_in).filter(|one| one.asked > after).count()
}

async fn until_phase(world: &World<'_>, kind: &str, name: &str, phase: &str) -> Result<Value> {
    until(&format!("{name} is {phase}"), SOON, || async {
        let object = world.object(kind, name).await?;
        ensure!(object["status"]["phase"] == phase, "{object}");
        Ok(object)
    })
    .await
}

async fn is_gone(world: &World<'_>, snapshot: &str) -> Result<()> {
    until(&format!("VolumeSnapshot {snapshot} is gone"), SOON, || async {
        let left = world.kubectl(&["get", "volumesnapshot", snapshot, "--ignore-not-found"]).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await
}
