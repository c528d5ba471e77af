//! The gates: whoever takes a VolumeSnapshot, the database stands still exactly while the storage cuts, and the snapshot says what it
//! is worth.

use std::fs;

use anyhow::{Result, ensure};
use cluster::{Cluster, until, workload};
use serde_json::{Value, json};

use crate::installed::{NAMESPACE, SOON, WEBHOOKS, database, psql, start};

async fn object(cluster: &Cluster, kind: &str, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&cluster.kubectl(&["get", kind, name, "-o", "json"]).await?.ok()?)?)
}

/// What a snapshot says that it is worth.
async fn worth(cluster: &Cluster, name: &str) -> Result<Value> {
    until(&format!("{name} is judged"), SOON, || async {
        let snapshot = object(cluster, "volumesnapshot", name).await?;
        ensure!(
            snapshot["metadata"]["labels"]["stillpoint.dev/consistency"].is_string(),
            "{snapshot}{}",
            logs(cluster).await
        );
        Ok(snapshot["metadata"].clone())
    })
    .await
}

async fn logs(cluster: &Cluster) -> String {
    let mut all = String::new();
    for deployment in [WEBHOOKS, crate::installed::DEPLOYMENT] {
        let log = cluster.kubectl(&["logs", deployment, "-n", NAMESPACE, "--all-pods", "--tail=60"]).await;
        all += &log.map(|log| log.stdout).unwrap_or_default();
    }
    all
}

/// Until kube-apiserver asks the webhooks.
async fn gated(cluster: &Cluster) -> Result<()> {
    until("the webhooks' configuration is there", SOON, || async {
        let configuration = ["get", "validatingwebhookconfiguration", api::install::webhooks::NAME];
        cluster.kubectl(&configuration).await?.ok().map(drop)
    })
    .await
}

#[tokio::test]
async fn a_snapshot_that_anybody_takes_is_consistent_and_says_so() {
    let cluster = start().await.unwrap();
    gated(&cluster).await.unwrap();
    database(&cluster, "shop").await.unwrap();
    psql(&cluster, "shop", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n").await.unwrap();

    // Nobody says that this driver cuts at one instant: then nobody can tell what the copy is.
    cluster.apply(&workload::snapshot("before", "shop").to_string()).await.unwrap();
    let said = worth(&cluster, "before").await.unwrap();
    assert_eq!(said["labels"]["stillpoint.dev/consistency"], "unknown", "{said}");
    assert_eq!(said["annotations"]["stillpoint.dev/reason"], "DriverUnknown", "{said}");

    let class = ["label", "volumesnapshotclass", "test", "stillpoint.dev/atomic=true"];
    cluster.kubectl(&class).await.unwrap().ok().unwrap();
    cluster.apply(&workload::snapshot("noon", "shop").to_string()).await.unwrap();
    let said = worth(&cluster, "noon").await.unwrap();
    assert_eq!(said["labels"]["stillpoint.dev/consistency"], "application", "{said}");
    let freeze = said["annotations"]["stillpoint.dev/freeze"].as_str().unwrap().to_owned();
    let freeze = object(&cluster, "freezes.stillpoint.dev", &freeze).await.unwrap();
    let phase = (&freeze["status"]["phase"], &freeze["status"]["proved"]);
    assert_eq!(phase, (&json!("Thawed"), &json!(true)), "{freeze}");
    let uid = said["uid"].as_str().unwrap();
    let content = object(&cluster, "volumesnapshotcontent", &format!("snapcontent-{uid}")).await.unwrap();
    assert_eq!(content["metadata"]["labels"]["stillpoint.dev/consistency"], "application", "{content}");
    psql(&cluster, "shop", "INSERT INTO orders VALUES (1001)").await.unwrap();
    let ready = ["wait", "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s", "volumesnapshot/noon"];
    cluster.kubectl(&ready).await.unwrap().ok().unwrap();
    let [pod, service] = workload::postgresql("copy");
    for object in [workload::claim("copy", Some("noon")), pod, service] {
        cluster.apply(&object.to_string()).await.unwrap();
    }
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", "pod/copy"]).await.unwrap().ok().unwrap();
    assert_eq!(psql(&cluster, "copy", "SELECT count(*), max(n) FROM orders").await.unwrap(), "1000|1000");

    // Whoever only asks what would happen holds nothing still.
    let freezes = ["get", "freezes.stillpoint.dev", "-o", "name"];
    let before = cluster.kubectl(&freezes).await.unwrap().ok().unwrap();
    let dry = cluster.root().join("dry.json");
    fs::write(&dry, workload::snapshot("dry", "shop").to_string()).unwrap();
    let dry = dry.display().to_string();
    cluster.kubectl(&["create", "--dry-run=server", "-f", &dry]).await.unwrap().ok().unwrap();
    assert_eq!(cluster.kubectl(&freezes).await.unwrap().ok().unwrap(), before);
}
