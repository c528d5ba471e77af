//! What all of this is for: a snapshot that is taken while Stillpoint holds the database.

use cluster::workload;
use serde_json::json;

use crate::installed::{database, psql, start, verb};

#[tokio::test]
async fn a_snapshot_of_a_frozen_database_has_all_that_was_acknowledged_and_nothing_that_came_later() {
    let cluster = start().await.unwrap();
    database(&cluster, "shop").await.unwrap();
    psql(&cluster, "shop", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n").await.unwrap();

    let held = verb(&cluster, "shop", "quiesce").await.unwrap();
    assert_eq!(held["phase"], "Frozen", "{held}");
    cluster.apply(&workload::snapshot("noon", "shop").to_string()).await.unwrap();
    let ready = ["wait", "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s", "volumesnapshot/noon"];
    cluster.kubectl(&ready).await.unwrap().ok().unwrap();
    let ended = verb(&cluster, "shop", "unquiesce").await.unwrap();
    assert_eq!((&ended["phase"], &ended["proof"]["held"]), (&json!("Thawed"), &json!(true)), "{ended}");
    psql(&cluster, "shop", "INSERT INTO orders VALUES (1001)").await.unwrap();

    let [pod, service] = workload::postgresql("copy");
    for object in [workload::claim("copy", Some("noon")), pod, service] {
        cluster.apply(&object.to_string()).await.unwrap();
    }
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/copy"]).await.unwrap().ok().unwrap();
    assert_eq!(psql(&cluster, "copy", "SELECT count(*), max(n) FROM orders").await.unwrap(), "1000|1000");
}
