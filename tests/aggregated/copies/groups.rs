//! Snapshots of several claims that are cut together, by a VolumeGroupSnapshot.

use anyhow::{Context, Result, ensure};
use cluster::until;
use serde_json::{Value, json};

use super::hand::{DATA, DRIVER, Hand, WAL, database, in_world, snapshot};
use crate::world::{SOON, Space};

const GROUP: &str = "volumegroupsnapshot";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_that_labels_select_alone_are_cut_together_and_the_whole_is_worth_what_that_is() {
    let space = in_world().await.space("together").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA, WAL]).await.unwrap();
    class(&space).await.unwrap();

    // By nothing could a group know them.
    space.apply(snapshot("apart", json!({}))).await.unwrap();
    let apart = hand.until("apart", |now| now["status"]["warnings"].is_array()).await.unwrap();
    let warning = apart["status"]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("one after the other") && warning.contains("kubectl label"), "{apart}");
    assert!(apart["status"]["volumeGroupSnapshot"].is_null(), "{apart}");
    space.apply(snapshot("wanted", json!({"volumeGroupSnapshotClassName": "hand"}))).await.unwrap();
    let waits = hand.until("wanted", |now| now["status"]["message"].to_string().contains("kubectl label"));
    assert_eq!(waits.await.unwrap()["status"]["phase"], "Pending");

    space.kubectl(&["label", "persistentvolumeclaim", DATA, WAL, "stillpoint.dev/group=orders"]).await.unwrap();
    hand.until("wanted", |now| now["status"]["phase"] == "Running").await.unwrap();
    space.apply(snapshot("noon", json!({"onMissed": "Fail", "deadlineSeconds": 600}))).await.unwrap();
    let group = made(&space, "noon").await.unwrap();
    assert_eq!(
        group["spec"]["source"]["selector"]["matchLabels"],
        json!({"stillpoint.dev/group": "orders"}),
        "{group}"
    );
    assert_eq!(group["spec"]["volumeGroupSnapshotClassName"], "hand", "{group}");
    assert_eq!(group["metadata"]["annotations"][api::gate::ON_MISSED], "Fail", "{group}");
    let waits = hand.until("noon", |now| now["status"]["message"].to_string().contains("noon is not cut yet"));
    assert_eq!(waits.await.unwrap()["status"]["phase"], "Running");

    for (claim, member) in [(DATA, "member-1"), (WAL, "member-2")] {
        space.apply(cut_with(&group, claim, member)).await.unwrap();
        hand.cut(member, "application").await.unwrap();
    }
    let ready = hand.phase("noon", "Ready").await.unwrap();
    let worth = &ready["status"]["consistency"];
    assert_eq!(worth["verdict"], "application", "{ready}");
    assert!(worth["reason"].as_str().unwrap().contains("by VolumeGroupSnapshot noon"), "{ready}");
    let of = |at: usize| ready["status"]["volumes"][at]["volumeSnapshot"].clone();
    assert_eq!((of(0), of(1)), (json!("member-1"), json!("member-2")), "{ready}");
    assert!(hand.volume_snapshot("noon-data").await.unwrap().is_none(), "nothing is cut twice");
    assert_eq!(hand.live("noon").await.unwrap()["status"]["phase"], "Ready");

    space.kubectl(&["delete", "snapshots.stillpoint.dev", "noon", "--timeout=60s"]).await.unwrap();
    assert!(there(&space, "noon").await.unwrap().is_none());
    for member in ["member-1", "member-2"] {
        hand.is_removed(member).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_another_s_is_left_alone() {
    let space = in_world().await.space("others").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA, WAL]).await.unwrap();
    class(&space).await.unwrap();
    space.kubectl(&["label", "persistentvolumeclaim", DATA, WAL, "group=orders"]).await.unwrap();
    space.apply(cluster::workload::group_snapshot("noon", "group", "orders")).await.unwrap();
    space.apply(snapshot("noon", json!({}))).await.unwrap();
    let failed = hand.phase("noon", "Failed").await.unwrap();
    assert_eq!(failed["status"]["conditions"][0]["reason"], "Exists", "{failed}");
    space.kubectl(&["delete", "snapshots.stillpoint.dev", "noon", "--timeout=60s"]).await.unwrap();
    assert!(there(&space, "noon").await.unwrap().is_some());
}

/// Of the driver of all volumes here; the same for all who make it.
async fn class(space: &Space<'_>) -> Result<()> {
    let class = json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshotClass",
        "metadata": {"name": "hand"}, "driver": DRIVER, "deletionPolicy": "Delete",
    });
    space.world.cluster.apply(&class.to_string()).await.map(drop)
}

/// As snapshot-controller makes it when the group is cut.
fn cut_with(group: &Value, claim: &str, name: &str) -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {"name": name, "ownerReferences": [{
            "apiVersion": group["apiVersion"], "kind": group["kind"],
            "name": group["metadata"]["name"], "uid": group["metadata"]["uid"],
        }]},
        "spec": {"source": {"persistentVolumeClaimName": claim}},
    })
}

async fn there(space: &Space<'_>, name: &str) -> Result<Option<Value>> {
    let found = space.kubectl(&["get", GROUP, name, "-o", "json", "--ignore-not-found"]).await?;
    Ok(if found.trim().is_empty() { None } else { Some(serde_json::from_str(&found)?) })
}

/// Waits until it is made, for a Snapshot.
async fn made(space: &Space<'_>, name: &str) -> Result<Value> {
    until(&format!("VolumeGroupSnapshot {name} is made"), SOON, || async {
        let made = there(space, name).await?.with_context(|| space.world.log_end())?;
        ensure!(made["metadata"]["labels"][api::LABEL_SNAPSHOT].is_string(), "{made}");
        Ok(made)
    })
    .await
}
