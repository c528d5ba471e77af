//! The gates: whoever takes a VolumeSnapshot, the database stands still exactly while the storage cuts, and the snapshot says what it
//! is worth.

mod groups;
mod matrix;
mod policy;
pub(crate) mod world;

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Result, ensure};
use cluster::Cluster;
use fixtures::Engine;
use serde_json::json;

use self::world::World;
use crate::installed::{metrics, psql, start};

#[tokio::test]
async fn a_snapshot_that_anybody_takes_is_consistent_and_says_so() {
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    world.database(Engine::PostgreSQL, "shop", json!({})).await.unwrap();
    psql(&cluster, "shop", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n").await.unwrap();

    // Nobody says that this driver cuts at one instant: then nobody can tell what the copy is.
    let class = "volumesnapshotclass/test";
    world.kubectl(&["label", class, "stillpoint.dev/atomic-"]).await.unwrap();
    world.snapshot("before", "shop").await.unwrap();
    let said = world.worth("before", "unknown").await.unwrap();
    assert_eq!(said["annotations"]["stillpoint.dev/reason"], "DriverUnknown", "{said}");

    world.kubectl(&["label", class, "stillpoint.dev/atomic=true"]).await.unwrap();
    world.snapshot("noon", "shop").await.unwrap();
    let said = world.worth("noon", "application").await.unwrap();
    let freeze = said["annotations"]["stillpoint.dev/freeze"].as_str().unwrap();
    let freeze = world.object("freezes.stillpoint.dev", freeze).await.unwrap();
    let phase = (&freeze["status"]["phase"], &freeze["status"]["proved"]);
    assert_eq!(phase, (&json!("Thawed"), &json!(true)), "{freeze}");
    let content = world.content("noon").await.unwrap();
    assert_eq!(content["metadata"]["labels"]["stillpoint.dev/consistency"], "application", "{content}");
    psql(&cluster, "shop", "INSERT INTO orders VALUES (1001)").await.unwrap();
    world.until_ready("volumesnapshot", "noon").await.unwrap();
    world.restored("noon", Engine::PostgreSQL, "copy").await.unwrap();
    assert_eq!(psql(&cluster, "copy", "SELECT count(*), max(n) FROM orders").await.unwrap(), "1000|1000");

    alerts_are_of_what_is_counted(&cluster).await.unwrap();
}

/// By both sides, where something was snapshotted.
async fn alerts_are_of_what_is_counted(cluster: &Cluster) -> Result<()> {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/chart/templates/webhooks.yaml");
    let rules = fs::read_to_string(rules)?;
    let name = |c: char| c.is_ascii_lowercase() || c == '_';
    let named: BTreeSet<&str> = rules.split(|c| !name(c)).filter(|word| word.starts_with("stillpoint_")).collect();
    ensure!(named.len() >= 3, "{named:?}");
    let [webhooks, apiserver] = [metrics(cluster, "webhooks", 9443).await?, metrics(cluster, "apiserver", 6443).await?];
    for name in named {
        let of = if name.starts_with("stillpoint_webhook_") { &webhooks } else { &apiserver };
        ensure!(of.lines().any(|line| line.starts_with(name)), "{name} in {of}");
    }
    let unknown = "stillpoint_snapshots_total{consistency=\"unknown\"} 1";
    ensure!(rules.contains("crash|unknown") && apiserver.contains(unknown), "{unknown} in {apiserver}");
    Ok(())
}
