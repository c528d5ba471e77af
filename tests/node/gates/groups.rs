//! Group snapshots: two databases at one instant, and a database with two volumes, which is whole only when both are cut together.

use std::time::Duration;

use anyhow::ensure;
use cluster::{until, workload};
use fixtures::{Engine, Load, Login, Session, compare};
use serde_json::{Value, json};

use super::world::World;
use crate::installed::{SOON, start};

const GROUP: &str = "volumegroupsnapshot";

#[tokio::test]
async fn a_group_is_as_good_as_what_is_in_it() {
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    two_databases_at_one_instant(&world).await;
    two_volumes_of_one_database(&world).await;
}

async fn two_databases_at_one_instant(world: &World<'_>) {
    let both = [("shop", Engine::PostgreSQL), ("stock", Engine::MariaDB)];
    let mut writers = Vec::new();
    for (name, engine) in both {
        let login = world.database(engine, name, json!({})).await.unwrap();
        Load::prepare_at(&login).await.unwrap();
        world.kubectl(&["label", "persistentvolumeclaim", name, "group=both"]).await.unwrap();
        let load = Load::new(2).pause(Duration::from_millis(2));
        writers.push(load.start_at(&login));
    }
    until("both are written to", SOON, || async {
        let all: Vec<usize> = writers.iter().map(|writers| writers.acknowledged().len()).collect();
        ensure!(all.iter().all(|count| *count > 20), "{all:?}");
        Ok(())
    })
    .await
    .unwrap();
    world.apply(&workload::group_snapshot("noon", "group", "both")).await.unwrap();
    let said = world.worth_of(GROUP, "noon", "application").await.unwrap();
    let content = format!("groupsnapcontent-{}", said["uid"].as_str().unwrap());
    world.worth_of("volumegroupsnapshotcontent", &content, "application").await.unwrap();
    let positions: Value =
        serde_json::from_str(said["annotations"]["stillpoint.dev/position"].as_str().unwrap()).unwrap();
    assert!(positions["shop"].is_object() && positions["stock"].is_object(), "{positions}");
    let frozen_at = world.frozen_at(&said).await.unwrap();

    for ((claim, engine), writers) in both.into_iter().zip(writers) {
        let acknowledged = writers.stop().await;
        let member = world.member("noon", claim).await.unwrap();
        // Cut with its group, it was not held for again, and is worth the same.
        world.worth(&member, "application").await.unwrap();
        world.until_ready("volumesnapshot", &member).await.unwrap();
        let copy = world.restored(&member, engine, &format!("{claim}-copy")).await.unwrap();
        let verdict = compare(&copy, &acknowledged, frozen_at).await.unwrap();
        assert!(verdict.is_sound() && verdict.acknowledged > 0, "{claim}: {verdict:?}");
    }
    assert_eq!(world.freezes().await.unwrap().len(), 1, "one freeze for all of it");
}

async fn two_volumes_of_one_database(world: &World<'_>) {
    for claim in ["ledger", "ledger-wal"] {
        world.apply(&workload::claim(claim, None)).await.unwrap();
        world.kubectl(&["label", "persistentvolumeclaim", claim, "group=ledger"]).await.unwrap();
    }
    world.run("ledger", workload::postgresql_with_wal("ledger", "ledger-wal")).await.unwrap();
    let login = world.register("ledger", "ledger", Engine::PostgreSQL, json!({})).await.unwrap();
    run(&login, "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n").await;

    for claim in ["ledger", "ledger-wal"] {
        let name = format!("{claim}-alone");
        world.snapshot(&name, claim).await.unwrap();
        let said = world.worth(&name, "partial").await.unwrap();
        assert!(
            said["annotations"]["stillpoint.dev/message"].as_str().unwrap().contains("VolumeGroupSnapshot"),
            "{said}"
        );
    }
    world.apply(&workload::group_snapshot("whole", "group", "ledger")).await.unwrap();
    world.worth_of(GROUP, "whole", "application").await.unwrap();
    run(&login, "INSERT INTO orders VALUES (1001)").await;

    for claim in ["ledger", "ledger-wal"] {
        let member = world.member("whole", claim).await.unwrap();
        world.worth(&member, "application").await.unwrap();
        world.until_ready("volumesnapshot", &member).await.unwrap();
        let copy = claim.replace("ledger", "copy");
        world.apply(&workload::claim(&copy, Some(&member))).await.unwrap();
    }
    world.run("copy", workload::postgresql_with_wal("copy", "copy-wal")).await.unwrap();
    let sum = "SELECT concat(count(*), ' ', max(n)) FROM orders";
    let copy = Login { host: world.address("copy").await.unwrap(), ..login };
    assert_eq!(Session::at(&copy, "postgres").await.unwrap().scalar(sum).await.unwrap(), "1000 1000");
}

async fn run(login: &Login, statement: &str) {
    Session::at(login, "postgres").await.unwrap().run(statement).await.unwrap();
}
