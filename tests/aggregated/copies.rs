//! Snapshots and Restores: with a real kube-apiserver and the real CRDs of snapshots, and with a hand that
//! does what snapshot-controller and csi-snapshotter do. What really is in such a copy `tests/node` looks at.

mod dumps;
mod generated;
mod groups;
mod hand;
mod restores;
mod unreadable;

use std::{path::Path, process::Stdio};

use anyhow::{Context, Result, ensure};
use cluster::{Identity, until};
use serde_json::{Value, json};
use tokio::process::Command;

use self::hand::{DATA, Hand, WAL, database, in_world, snapshot};
use crate::world::{NAMESPACE, SERVICE, SOON, Space};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_of_its_database_s_claim_and_says_what_that_copy_is_worth() {
    let space = in_world().await.space("taken").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA]).await.unwrap();
    space.apply(snapshot("noon", json!({"volumeSnapshotClassName": "fast"}))).await.unwrap();
    let made = hand.made("noon").await.unwrap();
    assert_eq!(made["spec"]["source"]["persistentVolumeClaimName"], DATA, "{made}");
    assert_eq!(made["spec"]["volumeSnapshotClassName"], "fast", "{made}");
    assert!(made["metadata"]["ownerReferences"].is_null(), "{made}");

    hand.says_error("noon", "the array is full").await.unwrap();
    let waits = hand.until("noon", |now| now["status"]["message"].to_string().contains("the array is full"));
    assert_eq!(waits.await.unwrap()["status"]["phase"], "Running");
    hand.cut("noon", "application").await.unwrap();
    let ready = hand.phase("noon", "Ready").await.unwrap();
    let status = &ready["status"];
    assert_eq!(status["consistency"]["verdict"], "application", "{ready}");
    assert_eq!(status["conditions"][0]["status"], "True", "{ready}");
    let volume = &status["volumes"][0];
    assert_eq!((&volume["claim"], &volume["handle"]), (&json!(DATA), &json!("handle-noon")), "{ready}");
    assert_eq!((&volume["size"], &volume["readyToUse"]), (&json!("2Gi"), &json!(true)), "{ready}");
    assert_eq!(status["contents"][0]["database"], "orders", "{ready}");
    let told = space.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]).await.unwrap();
    assert!(["Started", "VolumeSnapshotError", "Stored"].iter().all(|reason| told.contains(reason)), "{told}");

    // It is what really is there.
    let live = hand.live("noon").await.unwrap();
    assert_eq!((&live["status"]["known"], &live["status"]["phase"]), (&json!("Snapshot"), &json!("Ready")), "{live}");
    let table = space.kubectl(&["get", "snapshots.live.stillpoint.dev"]).await.unwrap();
    assert!(table.contains("noon") && table.contains("application") && table.contains("KNOWN-BY"), "{table}");
    let raw = format!("/apis/{}/namespaces/{}/snapshots/noon", api::LIVE_API_VERSION, space.name);
    let nothing = space.kubectl(&["get", "--raw", &format!("{raw}/download")]).await.unwrap_err().to_string();
    assert!(nothing.contains("restore them to new claims"), "{nothing}");
    let log = space.kubectl(&["get", "--raw", &format!("{raw}/log")]).await.unwrap();
    assert!(log.contains("no run"), "{log}");
    space.kubectl(&["delete", "volumesnapshot", "noon"]).await.unwrap();
    until("what is gone is missing", SOON, || async {
        let live = hand.live("noon").await?;
        ensure!(live["status"]["phase"] == "Missing", "{live}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_claims_each_is_cut_by_itself_and_the_whole_says_so() {
    let space = in_world().await.space("several").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA, WAL]).await.unwrap();
    space.apply(snapshot("noon", json!({}))).await.unwrap();
    for claim in [DATA, WAL] {
        hand.cut(&format!("noon-{claim}"), "partial").await.unwrap();
    }
    let ready = hand.phase("noon", "Ready").await.unwrap();
    let worth = &ready["status"]["consistency"];
    assert_eq!(worth["verdict"], "partial", "{ready}");
    assert!(worth["reason"].as_str().unwrap().contains("one after the other"), "{ready}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_held_is_kept_and_says_so_or_is_removed_as_was_said() {
    let space = in_world().await.space("missed").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA]).await.unwrap();
    space.apply(snapshot("kept", json!({}))).await.unwrap();
    hand.cut("kept", "crash").await.unwrap();
    let kept = hand.phase("kept", "Ready").await.unwrap();
    assert_eq!(kept["status"]["consistency"]["verdict"], "crash", "{kept}");
    space.apply(snapshot("wanted", json!({"onMissed": "Fail", "deadlineSeconds": 600}))).await.unwrap();
    let made = hand.made("wanted").await.unwrap();
    let annotations = &made["metadata"]["annotations"];
    assert_eq!(
        (&annotations[api::gate::ON_MISSED], &annotations[api::gate::DEADLINE_SECONDS]),
        (&json!("Fail"), &json!("600"))
    );
    hand.cut("wanted", "crash").await.unwrap();
    let failed = hand.phase("wanted", "Failed").await.unwrap();
    assert_eq!(failed["status"]["conditions"][0]["reason"], "NotHeld", "{failed}");
    hand.is_removed("wanted").await.unwrap();
    hand.until("wanted", |now| now["metadata"]["finalizers"].is_null()).await.unwrap();
    assert!(hand.volume_snapshot("kept").await.unwrap().is_some(), "what is kept is there");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_says_why_and_what_to_do() {
    let space = in_world().await.space("cannot").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA]).await.unwrap();
    // Somebody else's.
    space.apply(hand::foreign("taken", DATA)).await.unwrap();
    space.apply(snapshot("taken", json!({}))).await.unwrap();
    let dump = json!({
        "apiVersion": api::API_VERSION, "kind": "Snapshot", "metadata": {"name": "dump"},
        "spec": {"databases": ["orders"], "repository": "nightly"},
    });
    space.apply(dump).await.unwrap();
    let mut nowhere = snapshot("nowhere", json!({}));
    nowhere["spec"]["databases"] = json!(["gone"]);
    space.apply(nowhere).await.unwrap();
    space.apply(snapshot("late", json!({"deadlineSeconds": 3}))).await.unwrap();
    for (name, reason, says) in [
        ("taken", "Exists", "delete it, or make a Snapshot of another name"),
        ("dump", "NotFound", "there is no Repository nightly"),
        ("nowhere", "NotFound", "there is no Database gone"),
        ("late", "DeadlineExceeded", "not cut yet"),
    ] {
        let failed = hand.phase(name, "Failed").await.unwrap();
        let status = &failed["status"];
        assert_eq!(status["conditions"][0]["reason"], reason, "{failed}");
        assert!(status["message"].as_str().unwrap().contains(says), "{failed}");
    }
    hand.is_removed("late").await.unwrap();
    let others = hand.volume_snapshot("taken").await.unwrap().unwrap();
    assert!(others["metadata"]["labels"].is_null(), "nobody has touched it: {others}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_that_was_not_enabled_has_no_snapshot_made_in_it_until_it_is() {
    let space = in_world().await.space("rights").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA]).await.unwrap();
    space.kubectl(&["delete", "rolebinding", "credentials"]).await.unwrap();
    until("the right is gone", SOON, || async {
        let us = Identity::service_account(NAMESPACE, SERVICE);
        let may =
            space.kubectl_as(&us, &["auth", "can-i", "create", "volumesnapshots.snapshot.storage.k8s.io"]).await?;
        ensure!(may.ok().is_err(), "it is there");
        Ok(())
    })
    .await
    .unwrap();
    space.apply(snapshot("noon", json!({}))).await.unwrap();
    let advice = format!("kubectl still enable {}", space.name);
    hand.until("noon", |now| now["status"]["message"].to_string().contains(&advice)).await.unwrap();
    assert!(hand.volume_snapshot("noon").await.unwrap().is_none());
    let subject = format!("--serviceaccount={NAMESPACE}:{SERVICE}");
    let bind = ["create", "rolebinding", "credentials", "--clusterrole=stillpoint:credentials", &subject];
    space.kubectl(&bind).await.unwrap();
    hand.cut("noon", "application").await.unwrap();
    hand.phase("noon", "Ready").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_deleted_takes_along_what_was_cut_or_leaves_it_as_was_said() {
    let space = in_world().await.space("deleted").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA]).await.unwrap();
    // While it runs nothing is left, whatever its policy.
    for (name, policy, cut, stays) in
        [("running", "Retain", false, false), ("done", "Delete", true, false), ("retained", "Retain", true, true)]
    {
        space.apply(snapshot(name, json!({"deletionPolicy": policy}))).await.unwrap();
        hand.made(name).await.unwrap();
        if cut {
            hand.cut(name, "application").await.unwrap();
            hand.phase(name, "Ready").await.unwrap();
        }
        space.kubectl(&["delete", "snapshots.stillpoint.dev", name, "--timeout=30s"]).await.unwrap();
        assert_eq!(hand.volume_snapshot(name).await.unwrap().is_some(), stays, "{name}");
    }
}

/// Whoever leads is killed, and everybody with it, where a copy is half done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_leader_goes_on_where_another_has_stopped() {
    let world = hand::world(vec!["one", "two"]).await.unwrap();
    let space = world.space("leader").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA, WAL]).await.unwrap();
    space.apply(snapshot("noon", json!({}))).await.unwrap();
    let (data, wal) = (format!("noon-{DATA}"), format!("noon-{WAL}"));
    let before = [hand.made(&data).await.unwrap(), hand.made(&wal).await.unwrap()];
    hand.cut(&data, "application").await.unwrap();
    for name in ["one", "two"] {
        world.kill(name).await.unwrap();
    }
    // Nobody of ours sees that.
    hand.cut(&wal, "application").await.unwrap();
    space.apply(snapshot("later", json!({}))).await.unwrap();
    world.add_replica("three").await.unwrap();
    hand.phase("noon", "Ready").await.unwrap();
    let uid = |of: &Value| of["metadata"]["uid"].clone();
    for (name, before) in [(&data, &before[0]), (&wal, &before[1])] {
        let now = hand.volume_snapshot(name).await.unwrap().unwrap();
        assert_eq!(uid(&now), uid(before), "{name} is the same, and not cut twice");
    }
    hand.made(&format!("later-{DATA}")).await.unwrap();
}

/// By the verb of the live group, as somebody who may no more than that.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_is_taken_and_brought_back_by_the_live_group_for_whom_may_quiesce() {
    let space = in_world().await.space("live").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA]).await.unwrap();
    let editor = Identity::user(&format!("editor@{}", space.name), &[]);
    let name = format!("--user=editor@{}", space.name);
    space.kubectl(&["create", "rolebinding", "editor", "--clusterrole=edit", &name]).await.unwrap();
    let all = format!("/apis/{}/namespaces/{}/snapshots", api::LIVE_API_VERSION, space.name);
    let body = space.file(
        "take",
        &json!({
            "metadata": {"name": "now"}, "spec": {"databases": ["orders"], "method": "VolumeSnapshot"},
        }),
    );
    let body = body.unwrap();
    let take = ["create", "--raw", &all, "-f", &body];
    let refused = |error: &str| error.contains("databases/quiesce") || error.contains("databases \"orders\"");
    until("an editor may ask, and not have it quiesced", SOON, || async {
        let error = space.kubectl_as(&editor, &take).await?.ok().err().context("it was done")?.to_string();
        ensure!(refused(&error), "{error}");
        Ok(())
    })
    .await
    .unwrap();
    space.kubectl(&["create", "rolebinding", "freezer", "--clusterrole=stillpoint:freezer", &name]).await.unwrap();
    until("it is taken", SOON, || async { space.kubectl_as(&editor, &take).await?.ok() }).await.unwrap();
    hand.cut("now", "application").await.unwrap();
    hand.phase("now", "Ready").await.unwrap();
    let none = space.file("none", &json!({"metadata": {"name": "back"}})).unwrap();
    let back = format!("{all}/now/restore");
    space.kubectl_as(&editor, &["create", "--raw", &back, "-f", &none]).await.unwrap().ok().unwrap();
    restores::made(&space, &format!("back-{DATA}")).await.unwrap();
    // All that is in it is not an editor's to read.
    let download = space.kubectl_as(&editor, &["get", "--raw", &format!("{all}/now/download")]).await.unwrap();
    assert!(download.ok().unwrap_err().to_string().contains("orbidden"));
}

/// What the command line said.
struct Said {
    code: i32,
    stdout: String,
    stderr: String,
}

/// `kubectl still`, as the administrator.
async fn still(space: &Space<'_>, arguments: &[&str]) -> Result<Said> {
    still_with(space, space.world.cluster.kubeconfig(), arguments).await
}

async fn still_as(space: &Space<'_>, who: &Identity, arguments: &[&str]) -> Result<Said> {
    still_with(space, &space.world.cluster.kubeconfig_of(who).await?, arguments).await
}

async fn still_with(space: &Space<'_>, kubeconfig: &Path, arguments: &[&str]) -> Result<Said> {
    let still = Command::new(tests::binary("kubectl-still")?)
        .args(arguments)
        .args(["-n", &space.name])
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::null())
        .output()
        .await?;
    Ok(Said {
        code: still.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&still.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&still.stderr).into_owned(),
    })
}

/// We make the object, so that no policy asks who has it made: we do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_pods_are_made_is_said_to_the_live_group_only_by_who_may_make_jobs() {
    let space = in_world().await.space("runner").await.unwrap();
    let hand = Hand::of(&space);
    database(&space, "orders", &[DATA]).await.unwrap();
    space.apply(snapshot("noon", json!({}))).await.unwrap();
    hand.cut("noon", "application").await.unwrap();
    hand.phase("noon", "Ready").await.unwrap();
    let (user, subject) = (Identity::user(&format!("dev@{}", space.name), &[]), format!("--user=dev@{}", space.name));
    let allow = async |name: &str, resources: &str| {
        let (role, resources) = (format!("--role={name}"), format!("--resource={resources}"));
        space.kubectl(&["create", "role", name, "--verb=create", &resources]).await.unwrap();
        space.kubectl(&["create", "rolebinding", name, &role, &subject]).await.unwrap();
    };
    let live = |resource: &str| resource.replacen('/', &format!(".{}/", api::LIVE_GROUP), 1);
    allow("take", &format!("snapshots.{}", api::LIVE_GROUP)).await;
    allow("restore", &live("snapshots/restore")).await;
    allow("quiesce", &live("databases/quiesce")).await;
    let all = format!("/apis/{}/namespaces/{}/snapshots", api::LIVE_API_VERSION, space.name);
    let tried = async |name: &str, path: &str, runner: Value| {
        let mut body = json!({"metadata": {"name": name}, "spec": {"runner": runner}});
        if path == all {
            body["spec"]["databases"] = json!(["orders"]);
            body["spec"]["method"] = "VolumeSnapshot".into();
        }
        let file = space.file(name, &body)?;
        space.kubectl_as(&user, &["create", "--raw", path, "-f", &file]).await?.ok()
    };
    let back = format!("{all}/noon/restore");
    let runner = json!({"image": "mine"});
    // The controls: without it, and by whoever may make Jobs.
    for (at, path) in [&all, &back].into_iter().enumerate() {
        let (plain, named) = (format!("plain-{at}"), format!("named-{at}"));
        until("it is made as we make it", SOON, || tried(&plain, path, Value::Null)).await.unwrap();
        let refused = tried(&named, path, runner.clone()).await.unwrap_err().to_string();
        assert!(refused.contains("spec.runner says how Pods are made") && refused.contains("jobs.batch"), "{refused}");
    }
    allow("jobs", "jobs.batch").await;
    for (at, path) in [&all, &back].into_iter().enumerate() {
        let named = format!("named-{at}");
        let made = until("it is made as was said", SOON, || tried(&named, path, runner.clone())).await.unwrap();
        assert!(made.contains(r#""image":"mine""#), "{made}");
    }
}

/// What is waited for of one object.
async fn until_object(space: &Space<'_>, kind: &str, name: &str, is_so: impl Fn(&Value) -> bool) -> Result<Value> {
    let get = ["get", kind, name, "-o", "json"];
    space.until_json(&format!("{kind} {name}"), &get, is_so).await
}
