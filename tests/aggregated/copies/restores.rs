//! Restores to new claims.

use anyhow::Result;
use serde_json::{Value, json};

use super::{
    hand::{DATA, Hand, WAL, database, in_world, snapshot},
    still, until_object,
};
use crate::world::Space;

/// Waits until it is there, and made of a VolumeSnapshot.
pub(super) async fn made(space: &Space<'_>, claim: &str) -> Result<Value> {
    until_object(space, "persistentvolumeclaim", claim, |now| now["spec"]["dataSource"]["kind"] == "VolumeSnapshot")
        .await
}

fn restore(name: &str, more: Value) -> Value {
    let mut spec = json!({"source": {"snapshot": "noon"}});
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    json!({"apiVersion": api::API_VERSION, "kind": "Restore", "metadata": {"name": name}, "spec": spec})
}

const FIRST_POD: &str = "WaitForFirstConsumer";

/// A StorageClass of which nobody makes volumes.
async fn class(space: &Space<'_>, name: &str, mode: &str) -> Result<String> {
    let name = format!("{name}-{}", space.name);
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "hand.stillpoint.test", "volumeBindingMode": mode,
    });
    space.world.cluster.apply(&class.to_string()).await?;
    Ok(name)
}

async fn phase(space: &Space<'_>, name: &str, phase: &str) -> Result<Value> {
    until_object(space, "restores.stillpoint.dev", name, |now| now["status"]["phase"] == phase).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn claims_are_made_of_what_was_cut_and_those_that_are_there_are_left_alone() {
    let space = in_world().await.space("restored").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA, WAL]).await.unwrap();
    space.apply(snapshot("noon", json!({}))).await.unwrap();
    // Nothing is there yet.
    space.apply(restore("early", json!({}))).await.unwrap();
    let early = phase(&space, "early", "Failed").await.unwrap();
    assert!(early["status"]["message"].as_str().unwrap().contains("cannot be restored"), "{early}");
    for claim in [DATA, WAL] {
        hand.cut(&format!("noon-{claim}"), "application").await.unwrap();
    }
    hand.phase("noon", "Ready").await.unwrap();

    // Of a class whose volumes are made for the first Pod nothing more is to be waited for.
    let (late, now) =
        (class(&space, "late", FIRST_POD).await.unwrap(), class(&space, "now", "Immediate").await.unwrap());
    let volumes = json!({"volumes": [{"name": "copy", "claim": DATA, "storageClassName": late, "size": "3Gi"}]});
    space.apply(restore("one", volumes)).await.unwrap();
    let one = phase(&space, "one", "Complete").await.unwrap();
    assert!(one["status"]["message"].as_str().unwrap().contains("the first Pod"), "{one}");
    let copy = made(&space, "copy").await.unwrap();
    assert_eq!(copy["spec"]["dataSource"]["name"], format!("noon-{DATA}"), "{copy}");
    assert_eq!(copy["spec"]["resources"]["requests"]["storage"], "3Gi", "{copy}");

    // Whoever has its name has it for himself.
    let both = json!({"volumes": [
        {"name": "fresh", "claim": WAL, "storageClassName": now}, {"name": "copy", "claim": DATA, "storageClassName": now},
    ]});
    space.apply(restore("again", both)).await.unwrap();
    let again = phase(&space, "again", "Failed").await.unwrap();
    assert_eq!(again["status"]["conditions"][0]["reason"], "Exists", "{again}");
    let fresh = space.kubectl(&["get", "persistentvolumeclaim", "fresh", "--ignore-not-found"]).await.unwrap();
    assert_eq!(fresh, "", "before all are looked at none is made");

    // Of any other class it is waited for.
    space
        .apply(restore("bound", json!({"volumes": [{"name": "slow", "claim": DATA, "storageClassName": now}]})))
        .await
        .unwrap();
    made(&space, "slow").await.unwrap();
    let waits = until_object(&space, "restores.stillpoint.dev", "bound", |now| now["status"]["message"].is_string());
    let waits = waits.await.unwrap();
    assert_eq!(waits["status"]["phase"], "Running", "{waits}");
    let bound = json!({"status": {"phase": "Bound"}}).to_string();
    let bind = ["patch", "persistentvolumeclaim", "slow", "--subresource=status", "--type=merge", "-p", &bound];
    space.kubectl(&bind).await.unwrap();
    let done = phase(&space, "bound", "Complete").await.unwrap();
    assert_eq!(done["status"]["volumes"][0]["bound"], true, "{done}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_restored_so_says_why() {
    let space = in_world().await.space("unrestored").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA]).await.unwrap();
    space.apply(snapshot("noon", json!({}))).await.unwrap();
    hand.cut("noon", "application").await.unwrap();
    hand.phase("noon", "Ready").await.unwrap();
    space.apply(restore("server", json!({"database": "orders"}))).await.unwrap();
    space.apply(restore("none", json!({"source": {"snapshot": "midnight"}}))).await.unwrap();
    space.apply(restore("which", json!({"volumes": [{"name": "x", "claim": "other"}]}))).await.unwrap();
    for (name, says) in [
        ("server", "leave spec.database out"),
        ("none", "there is no Snapshot midnight"),
        ("which", "no copy of claim other"),
    ] {
        let failed = phase(&space, name, "Failed").await.unwrap();
        assert!(failed["status"]["message"].as_str().unwrap().contains(says), "{failed}");
    }
    space.kubectl(&["delete", "volumesnapshot", "noon"]).await.unwrap();
    space.apply(restore("gone", json!({}))).await.unwrap();
    let gone = phase(&space, "gone", "Failed").await.unwrap();
    assert!(gone["status"]["message"].as_str().unwrap().contains("somebody has deleted it"), "{gone}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_makes_claims_and_says_how_that_ended() {
    let space = in_world().await.space("commanded").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA, WAL]).await.unwrap();
    space.apply(snapshot("noon", json!({}))).await.unwrap();
    for claim in [DATA, WAL] {
        hand.cut(&format!("noon-{claim}"), "application").await.unwrap();
    }
    hand.phase("noon", "Ready").await.unwrap();
    let (late, now) =
        (class(&space, "late", FIRST_POD).await.unwrap(), class(&space, "now", "Immediate").await.unwrap());
    let restore = async |name: &str, claim: &str, class: &str, more: &[&str]| {
        let to = [
            "restore",
            "--to-claims",
            "--snapshot",
            "noon",
            "--name",
            name,
            "--claim",
            claim,
            "--storage-class",
            class,
        ];
        still(&space, &[&to[..], more].concat()).await.unwrap()
    };
    let done = restore("back", &format!("copy={DATA}:3Gi"), &late, &[]).await;
    assert!(
        done.code == 0 && done.stdout.starts_with("restore back is Complete: claims copy of Snapshot noon"),
        "{}",
        done.stderr
    );
    assert!(done.stdout.contains("warning: the first Pod"), "{}", done.stdout);
    let copy = made(&space, "copy").await.unwrap();
    assert_eq!(copy["spec"]["dataSource"]["name"], format!("noon-{DATA}"), "{copy}");
    let spec = &copy["spec"];
    assert_eq!((&spec["storageClassName"], &spec["resources"]["requests"]["storage"]), (&json!(late), &json!("3Gi")));

    let again = restore("again", &format!("copy={DATA}"), &late, &[]).await;
    assert_eq!(again.code, 1, "{}", again.stderr);
    for says in ["there is a claim copy already", "- no claim was made", "describe restores.stillpoint.dev again"] {
        assert!(again.stderr.contains(says), "{says}: {}", again.stderr);
    }
    // Nobody makes its volume: it goes on without us.
    let slow = restore("slow", &format!("slow={WAL}"), &now, &["--timeout", "5s"]).await;
    assert!(slow.code == 124 && slow.stderr.contains("it goes on"), "{} {}", slow.code, slow.stderr);
    assert_eq!(phase(&space, "slow", "Running").await.unwrap()["status"]["volumes"][0]["name"], "slow");
}
