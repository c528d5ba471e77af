//! Rows in which the admission goes wrong: somebody else's webhook, ours dying, and what is no cut at all.

use std::fs;

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use certs::{Authority, KeyPairPem, Names};
use cluster::{Cluster, Component, until, workload};
use csi::Fault;
use fixtures::Session;
use futures::FutureExt;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::process::Command;

use super::{
    super::world::{is_held, until_writable},
    CREATE, Matrix, Rows, SHOP,
    other::{Other, Says},
    signal,
};
use crate::installed::{NAMESPACE, SOON, WEBHOOKS, gated, rolled_out, start};

const PROGRAM: &str = api::install::webhooks::NAME;
/// So many times kube-apiserver tries a PATCH by itself (`maxRetryWhenPatchConflicts`), each with admission; then it says 409.
const PATCHED: usize = 6;

#[tokio::test]
async fn an_admission_that_goes_wrong() {
    let cluster = start().await.unwrap();
    let matrix = Matrix::prepare(&cluster).await.unwrap();
    let (m, mut rows) = (&matrix, Rows::default());
    rows.row(m, "forged", forged(m).boxed()).await;
    rows.row(m, "handed over", handed_over(m).boxed()).await;
    rows.row(m, "unmounted", unmounted(m).boxed()).await;

    let other = Other::install(&cluster).await.unwrap();
    rows.row(m, "denied", denied(m, &other).boxed()).await;
    rows.row(m, "conflicting", conflicting(m, &other).boxed()).await;
    other.say(Says::Yes);

    rows.row(m, "webhooks die before it is held", webhooks_die_before_it_is_held(m).boxed()).await;
    rows.row(m, "webhooks die when it is held", webhooks_die_when_it_is_held(m).boxed()).await;
    rows.row(m, "expired", expired(m).boxed()).await;
    rows.all_are_right();
}

/// Ours have held the database, and another denies: for a while, and then no more.
async fn denied(matrix: &Matrix<'_>, other: &Other) -> Result<()> {
    other.say(Says::Nothing);
    let held = matrix.held("denied", Fault::default()).await?;
    other.say(Says::No);
    until("the snapshot says why it is not made", SOON, || async {
        let snapshot = matrix.world.object("volumesnapshot", "denied").await?;
        let message = snapshot["status"]["error"]["message"].as_str().unwrap_or_default();
        ensure!(message.contains("somebody else does not want it"), "{snapshot}");
        Ok(())
    })
    .await?;
    held.is_let_go().await?;
    other.say(Says::Yes);
    held.is_worth("application", "Proved").await?;
    Ok(())
}

/// What was admitted cannot be stored, until the sidecar is told 409, and then some: one freeze, and one snapshot that is good.
async fn conflicting(matrix: &Matrix<'_>, other: &Other) -> Result<()> {
    let (before, asked) = (matrix.world.freezes().await?.len(), other.asked());
    other.say(Says::YesAfterChanging(asked + PATCHED + 1));
    let held = matrix.held("conflicting", Fault { delay_ms: 4000, ..Fault::default() }).await?;
    held.is_worth("application", "Proved").await?;
    let asked = other.asked() - asked;
    ensure!(asked > PATCHED, "it was admitted {asked} times only");
    let after = matrix.world.freezes().await?.len();
    ensure!(after == before + 1, "{} freezes", after - before);
    Ok(())
}

/// The cut is made while the freeze is still being taken, and nobody waits for it any more.
async fn webhooks_die_before_it_is_held(matrix: &Matrix<'_>) -> Result<()> {
    let before = cuts(matrix).await?;
    let mut blocker = blocked(matrix, "early").await?;
    signal(matrix.world.cluster, PROGRAM, "-KILL").await?;
    until("the driver has cut", SOON, || async {
        let now = cuts(matrix).await?;
        ensure!(now > before, "{now} cuts, as before");
        Ok(())
    })
    .await?;
    // Acknowledged after the cut, and before what may hold now.
    blocker.run("COMMIT").await?;
    let said = matrix.world.worth("early", "crash").await?;
    // Whoever asked was gone before it was held; or it was held for nobody, and let go before the cut was seen.
    let reason = &said["annotations"]["stillpoint.dev/reason"];
    ensure!(["NotFrozen", "FreezeEnded"].iter().any(|known| reason == known), "{said}");
    until_writable(&matrix.shop).await?;
    rolled_out(matrix.world.cluster, WEBHOOKS).await
}

/// How many snapshots the driver has.
async fn cuts(matrix: &Matrix<'_>) -> Result<usize> {
    let snapshots = matrix.world.cluster.root().join("csi/pool/snapshots").display().to_string();
    let files = matrix.world.cluster.on_node("ls", &[&snapshots]).await?;
    Ok(files.lines().filter_map(|file| file.strip_suffix(".json")).count())
}

/// They die with the answer: kube-apiserver goes on without, and stores a mark that nobody has answered for. That it was held before is
/// so, and nobody can prove it.
async fn webhooks_die_when_it_is_held(matrix: &Matrix<'_>) -> Result<()> {
    let mut blocker = blocked(matrix, "unheard").await?;
    signal(matrix.world.cluster, PROGRAM, "-STOP").await?;
    blocker.run("COMMIT").await?;
    let held = matrix.is_held("unheard").await?;
    signal(matrix.world.cluster, PROGRAM, "-KILL").await?;
    held.is_let_go().await?;
    let said = matrix.world.worth("unheard", "crash").await?;
    // It is let go as soon as that is certain, or by the cut, whichever is first.
    let message = said["annotations"][api::gate::MESSAGE].as_str().unwrap_or_default();
    ensure!(message.contains("without the answer"), "{said}");
    rolled_out(matrix.world.cluster, WEBHOOKS).await
}

/// A session that is in the way of a freeze that a snapshot has just asked for; the driver answers late.
async fn blocked(matrix: &Matrix<'_>, snapshot: &str) -> Result<Session> {
    let mut blocker = Session::at(&matrix.shop, "postgres").await?;
    blocker.run("BEGIN; INSERT INTO probe VALUES (now())").await?;
    let late = Fault { method: CREATE.to_owned(), answer_delay_ms: 5000, ..Fault::default() };
    matrix.driver.set(late).await?;
    matrix.world.snapshot(snapshot, SHOP).await?;
    until("the freeze waits for the session", SOON, || async {
        let waiting = "SELECT count(*)::text FROM pg_locks WHERE NOT granted AND relation = 'probe'::regclass";
        let waiting = Session::at(&matrix.shop, "postgres").await?.scalar(waiting).await?;
        ensure!(waiting != "0", "nobody waits");
        Ok(())
    })
    .await?;
    Ok(blocker)
}

/// Nobody who checks certificates gets an answer from them.
async fn expired(matrix: &Matrix<'_>) -> Result<()> {
    let cluster = matrix.world.cluster;
    let names = Names { dns: vec![format!("{PROGRAM}.{NAMESPACE}.svc")], addresses: vec![] };
    let from = Timestamp::now() - SignedDuration::from_hours(48);
    let pair = authority(cluster).await?.serve(&names, from, std::time::Duration::from_secs(3600))?;
    let expired = Other::serve(cluster, &pair).await?;
    // Where their Service leads is changed, not they: they would be given a new one.
    cluster.kubectl(&["scale", WEBHOOKS, "-n", NAMESPACE, "--replicas=0"]).await?.ok()?;
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "expired", "namespace": NAMESPACE, "labels": {
            "kubernetes.io/service-name": PROGRAM, "endpointslice.kubernetes.io/managed-by": "tests",
        }},
        "addressType": "IPv4", "ports": [{"name": "https", "port": expired.port}],
        "endpoints": [{"addresses": [cluster.address()], "conditions": {"ready": true}}],
    });
    cluster.apply(&slice.to_string()).await?;
    let gone =
        ["wait", "--for=delete", "pod", "-l", "app.kubernetes.io/component=webhooks", "-n", NAMESPACE, "--timeout=60s"];
    cluster.kubectl(&gone).await?.ok()?;
    matrix.world.snapshot("expired", SHOP).await?;
    matrix.is_worth("expired", "crash", "NotFrozen").await?;
    ensure!(expired.asked() == 0, "it was trusted");
    ensure!(expired.dialled() > 0, "nobody has seen its certificate: that nobody asks it shows nothing");
    Ok(())
}

async fn authority(cluster: &Cluster) -> Result<Authority> {
    let secret = ["get", "secret", api::install::AUTHORITY, "-n", NAMESPACE, "-o", "json"];
    let secret: Value = serde_json::from_str(&cluster.kubectl(&secret).await?.ok()?)?;
    let text = |key: &str| -> Result<String> {
        let encoded = secret["data"][key].as_str().with_context(|| format!("no {key}"))?;
        Ok(String::from_utf8(STANDARD.decode(encoded)?)?)
    };
    Ok(Authority::from_pem(&KeyPairPem { certificate: text("ca.crt")?, key: text("ca.key")? })?)
}

/// Whoever reaches the webhooks tells them of cuts that there are not: nothing is held for them. Nobody cuts meanwhile, so that there are
/// contents that could be.
async fn forged(matrix: &Matrix<'_>) -> Result<()> {
    let world = &matrix.world;
    world.cluster.stop(Component::Snapshotter)?;
    let told = told_of_what_is_not(matrix).await;
    world.cluster.start_again(Component::Snapshotter).await?;
    told?;
    matrix.is_worth("truth", "application", "Proved").await?;
    world.until_ready("volumesnapshot", "decoy").await
}

async fn told_of_what_is_not(matrix: &Matrix<'_>) -> Result<()> {
    let world = &matrix.world;
    world.apply(&workload::claim("decoy", None)).await?;
    world.snapshot("decoy", "decoy").await?;
    world.snapshot("truth", SHOP).await?;
    let (decoy, truth) = (world.until_content("decoy").await?, world.until_content("truth").await?);
    let with = |content: &Value, pointer: &str, value: &Value| {
        let mut content = content.clone();
        *content.pointer_mut(pointer).with_context(|| pointer.to_owned())? = value.clone();
        anyhow::Ok(content)
    };
    let of_shop = "/spec/source/volumeHandle";
    for forged in [
        // One that is not there, one of another volume, and one of another snapshot.
        with(&with(&truth, "/metadata/name", &json!("snapcontent-forged"))?, "/metadata/uid", &json!("forged"))?,
        with(&decoy, of_shop, &truth["spec"]["source"]["volumeHandle"])?,
        with(&truth, "/spec/volumeSnapshotRef/uid", &decoy["spec"]["volumeSnapshotRef"]["uid"])?,
    ] {
        let (freezes, unreal) = (world.freezes().await?.len(), gated(world.cluster, "unreal").await?);
        let answer = tell(matrix, &forged).await?;
        let now = world.freezes().await?;
        ensure!(now.len() == freezes && !is_held(&matrix.shop).await?, "{forged}: {answer}: {now:?}");
        let now = gated(world.cluster, "unreal").await?;
        ensure!(now > unreal, "{forged}: {answer}: the apiserver was not asked, or believed it: {unreal} became {now}");
    }
    // In the same words, of one that is there: then they were enough, and nobody need have cut for it to be let go.
    tell(matrix, &truth).await?;
    let held = matrix.is_held("truth").await?;
    held.is_let_go_early().await
}

/// Shows the webhooks a review of a mark on this content, as kube-apiserver would; the answer.
async fn tell(matrix: &Matrix<'_>, content: &Value) -> Result<Value> {
    let mut marked = content.clone();
    marked["metadata"]["annotations"][api::gate::BEING_CREATED] = "yes".into();
    let review = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "forged", "operation": "UPDATE", "name": content["metadata"]["name"],
            "userInfo": {"username": "mallory"},
            "kind": {"group": api::gate::SNAPSHOTS, "version": "v1", "kind": "VolumeSnapshotContent"},
            "resource": {"group": api::gate::SNAPSHOTS, "version": "v1", "resource": "volumesnapshotcontents"},
            "object": marked, "oldObject": content,
        },
    });
    let file = matrix.world.cluster.root().join("forged.json");
    fs::write(&file, review.to_string())?;
    let address = ["get", "service", PROGRAM, "-n", NAMESPACE, "-o", "jsonpath={.spec.clusterIP}"];
    let address = matrix.world.cluster.kubectl(&address).await?.ok()?;
    let curl = Command::new("curl")
        .args(["--silent", "--show-error", "--insecure", "--max-time", "30"])
        .args(["--header", "content-type: application/json", "--data", &format!("@{}", file.display())])
        .arg(format!("https://{address}/gates/content?timeout=10s"))
        .output()
        .await?;
    let answer = String::from_utf8_lossy(&curl.stdout);
    let answer: Value = serde_json::from_str(&answer).with_context(|| format!("{answer} {curl:?}"))?;
    ensure!(answer["response"]["uid"] == "forged", "{answer}");
    Ok(answer)
}

/// A snapshot of what was cut before, by whoever has its handle.
async fn handed_over(matrix: &Matrix<'_>) -> Result<()> {
    let world = &matrix.world;
    world.snapshot("origin", SHOP).await?;
    matrix.is_worth("origin", "application", "Proved").await?;
    world.until_ready("volumesnapshot", "origin").await?;
    let (before, handle) =
        (world.freezes().await?.len(), world.content("origin").await?["status"]["snapshotHandle"].take());
    world
        .apply(&json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": "handed-over"},
            "spec": {
                "driver": csi::NAME, "deletionPolicy": "Retain", "source": {"snapshotHandle": handle},
                "volumeSnapshotRef": {"namespace": "default", "name": "handed-over"},
            },
        }))
        .await?;
    let mut snapshot = workload::snapshot("handed-over", SHOP);
    snapshot["spec"]["source"] = json!({"volumeSnapshotContentName": "handed-over"});
    world.apply(&snapshot).await?;
    world.until_ready("volumesnapshot", "handed-over").await?;
    nothing_is_said(matrix, "handed-over", before).await
}

/// Nobody runs on what is cut.
async fn unmounted(matrix: &Matrix<'_>) -> Result<()> {
    let before = matrix.world.freezes().await?.len();
    matrix.world.apply(&workload::claim("idle", None)).await?;
    matrix.world.snapshot("idle", "idle").await?;
    matrix.world.until_ready("volumesnapshot", "idle").await?;
    nothing_is_said(matrix, "idle", before).await
}

/// Whoever wanted to say something of it, or to hold for it, has.
async fn nothing_is_said(matrix: &Matrix<'_>, snapshot: &str, freezes: usize) -> Result<()> {
    let world = &matrix.world;
    world.until_the_leader_has_looked(snapshot, SHOP).await?;
    for object in [world.object("volumesnapshot", snapshot).await?, world.bound(snapshot).await?] {
        ensure!(object["metadata"]["labels"][api::gate::CONSISTENCY].is_null(), "{object}");
    }
    ensure!(!world.is_told(snapshot).await?, "people are told something of {snapshot}");
    let now = world.freezes().await?.len();
    ensure!(now == freezes, "{snapshot} was held for: {freezes} freezes became {now}");
    Ok(())
}
