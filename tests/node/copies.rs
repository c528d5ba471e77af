//! A Snapshot of a database that is written to, brought back by a Restore to a new claim, and what is in it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cluster::{until, workload};
use fixtures::{Acknowledged, Engine, Load, Verdict, compare};
use serde_json::{Value, json};
use tests::cuts::instant;

use crate::{
    gates::world::World,
    installed::{SOON, start},
};

#[tokio::test]
async fn a_snapshot_that_is_restored_to_a_new_claim_has_all_that_was_acknowledged_and_nothing_that_began_later() {
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    let login = world.database(Engine::PostgreSQL, "shop", json!({})).await.unwrap();
    Load::prepare_at(&login).await.unwrap();
    let writers = Load::new(2).pause(Duration::from_millis(2)).start_at(&login);
    let written = async |after: Instant| {
        until("it is written to", SOON, || async {
            let count = writers.acknowledged().iter().filter(|one| one.asked > after).count();
            ensure!(count > 20, "{count}");
            Ok(())
        })
        .await
        .unwrap();
    };
    written(Instant::now()).await;
    let mut snapshot = json!({
        "apiVersion": api::API_VERSION, "kind": "Snapshot", "metadata": {"name": "noon"},
        "spec": {"databases": ["shop"], "method": "VolumeSnapshot", "onMissed": "Fail"},
    });
    world.apply(&snapshot).await.unwrap();
    let noon = until_phase(&world, "snapshots.stillpoint.dev", "noon", "Ready").await.unwrap();
    let status = &noon["status"];
    assert_eq!(status["consistency"]["verdict"], "application", "{noon}");
    assert!(status["contents"][0]["position"].is_object() && status["volumes"][0]["handle"].is_string(), "{noon}");
    let cut = &status["cutBetween"];
    let (frozen, thawed) = (instant(&cut["frozenAt"]).unwrap(), instant(&cut["thawedAt"]).unwrap());
    written(thawed).await;
    let acknowledged = writers.stop().await;

    let restore = json!({
        "apiVersion": api::API_VERSION, "kind": "Restore", "metadata": {"name": "back"},
        "spec": {"source": {"snapshot": "noon"}, "volumes": [{"name": "copy"}]},
    });
    world.apply(&restore).await.unwrap();
    let back = until_phase(&world, "restores.stillpoint.dev", "back", "Complete").await.unwrap();
    assert_eq!(back["status"]["volumes"][0]["bound"], true, "{back}");
    world.run("copy", workload::postgresql("copy")).await.unwrap();
    let copy = world.login(Engine::PostgreSQL, "copy").await.unwrap();
    let verdict = compare(&copy, &acknowledged, frozen).await.unwrap();
    assert!(verdict.is_sound() && verdict.acknowledged > 0, "{verdict:?}");
    assert_eq!(begun_after(&verdict, &acknowledged, thawed), 0, "{verdict:?}");
    // Both would be seen.
    let all = compare(&copy, &acknowledged, Instant::now()).await.unwrap();
    assert!(all.missing > 0 && all.sum_is_right, "{all:?}");
    assert!(begun_after(&verdict, &acknowledged, acknowledged[0].asked) > 0, "{verdict:?}");

    // Of one that was not held there is none, where it was said so; and nothing of it is left.
    let pause = json!({"spec": {"paused": true}}).to_string();
    world.kubectl(&["patch", "databases.stillpoint.dev", "shop", "--type=merge", "-p", &pause]).await.unwrap();
    snapshot["metadata"]["name"] = "paused".into();
    world.apply(&snapshot).await.unwrap();
    let paused = until_phase(&world, "snapshots.stillpoint.dev", "paused", "Failed").await.unwrap();
    assert_eq!(paused["status"]["conditions"][0]["reason"], "NotHeld", "{paused}");
    is_gone(&world, "paused").await.unwrap();

    // What was made of it goes with it, and a claim that was made of that stays.
    world.kubectl(&["delete", "snapshots.stillpoint.dev", "noon", "--timeout=60s"]).await.unwrap();
    is_gone(&world, "noon").await.unwrap();
    assert_eq!(world.object("persistentvolumeclaim", "copy").await.unwrap()["status"]["phase"], "Bound");
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
