//! Rows in which the driver is slow, hangs or fails, or the database's people do something meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster::{Component, until, workload};
use csi::Fault;
use futures::FutureExt;
use serde_json::json;

use super::{
    super::world::{is_held, until_writable},
    CREATE, Matrix, Rows, SHOP,
};
use crate::installed::{SOON, start};

/// Of gRPC: by the first the sidecar knows that nothing was done, by the others it does not.
const INTERNAL: u32 = 13;
const DEADLINE_EXCEEDED: u32 = 4;
const CANCELLED: u32 = 1;

#[tokio::test]
async fn a_driver_and_people_who_do_what_they_want() {
    let cluster = start().await.unwrap();
    let matrix = Matrix::prepare(&cluster).await.unwrap();
    let (m, mut rows) = (&matrix, Rows::default());
    rows.row(m, "slow", slow(m).boxed()).await;
    rows.row(m, "fails for good and is asked again", fails_for_good_and_is_asked_again(m).boxed()).await;
    rows.row(m, "two at once", two_at_once(m).boxed()).await;
    rows.row(m, "forced", forced(m).boxed()).await;
    rows.row(m, "deleted", deleted(m).boxed()).await;
    rows.row(m, "restarted", restarted(m).boxed()).await;
    rows.row(m, "hangs", hangs(m).boxed()).await;
    rows.row(m, "lost", lost(m).boxed()).await;
    rows.row(m, "says no time", says_no_time(m).boxed()).await;
    rows.row(m, "only asks", only_asks(m).boxed()).await;
    // Given up soon, and asked again when it has long been done.
    let hasty = ["--timeout=1s", "--retry-interval-start=6s"];
    cluster.restart_with(Component::Snapshotter, &hasty).await.unwrap();
    rows.row(m, "late within", late_within(m).boxed()).await;
    rows.row(m, "late after", late_after(m).boxed()).await;
    // A claim whose cut did not begin goes after 5 s; asked again when it is gone for certain.
    let slow = ["--timeout=1s", "--retry-interval-start=10s"];
    cluster.restart_with(Component::Snapshotter, &slow).await.unwrap();
    rows.row(m, "cut before", cut_before(m, "cut-before", false, ["crash", "CutOutside"]).boxed()).await;
    rows.row(m, "cut at no time", cut_before(m, "cut-timeless", true, ["unknown", "CutUnknown"]).boxed()).await;
    rows.all_are_right();
}

async fn slow(matrix: &Matrix<'_>) -> Result<()> {
    let before = matrix.driver.calls(CREATE).await?.len();
    let held = matrix.held("slow", Fault { delay_ms: 4000, ..Fault::default() }).await?;
    held.is_worth("application", "Proved").await?;
    matrix.world.until_ready("volumesnapshot", "slow").await?;
    // What is written on its content has its snapshotter call nobody once more.
    let codes = matrix.codes(before).await?;
    ensure!(codes == [0], "{codes:?}");
    Ok(())
}

/// It outlasts the freeze.
async fn hangs(matrix: &Matrix<'_>) -> Result<()> {
    let held = matrix.hanging("hanging").await?;
    held.is_let_go().await?;
    held.is_worth("crash", "FreezeEnded").await?;
    Ok(())
}

async fn fails_for_good_and_is_asked_again(matrix: &Matrix<'_>) -> Result<()> {
    let before = matrix.driver.calls(CREATE).await?.len();
    let fault = Fault { failures: 2, code: INTERNAL, delay_ms: 2000, ..Fault::default() };
    matrix.held("failing", fault).await?;
    matrix.is_worth("failing", "application", "Proved").await?;
    let codes = matrix.codes(before).await?;
    ensure!(codes == [INTERNAL, INTERNAL, 0], "{codes:?}");
    Ok(())
}

/// The first call cuts, and says that it failed for good: its hold ends. The second, with another hold, answers with that cut.
async fn cut_before(matrix: &Matrix<'_>, snapshot: &str, timeless: bool, worth: [&str; 2]) -> Result<()> {
    let before = matrix.driver.calls(CREATE).await?.len();
    let fault =
        Fault { failures: 1, code: INTERNAL, answer_is_lost: true, no_creation_time: timeless, ..Fault::default() };
    let held = matrix.held(snapshot, fault).await?;
    held.is_let_go_early().await?;
    let [consistency, reason] = worth;
    // The fault is left as it is: the second answer says no time either.
    let said = matrix.is_worth(snapshot, consistency, reason).await?;
    let codes = matrix.codes(before).await?;
    ensure!(codes == [INTERNAL, 0], "{codes:?}");
    // It was held for both, and the second is what is said of.
    let freezes = matrix.world.freezes_of(&held.content).await?;
    let last = freezes.last().context("no Freeze")?;
    ensure!(freezes.len() == 2, "{freezes:?}");
    ensure!(said["annotations"][api::gate::FREEZE] == last["metadata"]["name"], "{said}: {last}");
    Ok(())
}

/// Whoever only asks what a mark would do holds nothing still, and is answered as one who does it. A mark that was taken away again is
/// a call that failed: nobody knows what it did.
async fn only_asks(matrix: &Matrix<'_>) -> Result<()> {
    let cluster = matrix.world.cluster;
    // Then there is a content that waits for its cut, and nobody but us marks it.
    cluster.stop(Component::Snapshotter)?;
    let asked = asked_and_marked(matrix).await;
    // A call after the mark counts as a second one: what it says of when it cut decides.
    let slow = Fault { method: CREATE.to_owned(), delay_ms: 4000, answer_delay_ms: 4000, ..Fault::default() };
    matrix.driver.set(slow).await?;
    cluster.start_again(Component::Snapshotter).await?;
    asked?;
    matrix.is_worth("dry", "unknown", "CutUnknown").await?;
    Ok(())
}

async fn asked_and_marked(matrix: &Matrix<'_>) -> Result<()> {
    let (world, before) = (&matrix.world, matrix.world.freezes().await?.len());
    world.snapshot("dry", SHOP).await?;
    let content = world.until_content("dry").await?;
    let name = content["metadata"]["name"].as_str().context("no name")?;
    let mark = format!("{}=yes", api::gate::BEING_CREATED);
    let annotate = ["annotate", "volumesnapshotcontent", name];
    world.kubectl(&[&annotate[..], &[&mark, "--dry-run=server"]].concat()).await?;
    let held = is_held(&matrix.shop).await?;
    until("the audit log says that the gate was asked", SOON, || async {
        let asked = world.cluster.audit_events()?.into_iter().any(|event| {
            event["objectRef"]["name"] == name
                && event["requestURI"].as_str().is_some_and(|uri| uri.contains("dryRun=All"))
                && event["annotations"]["cut.gates.stillpoint.dev/level"] == "WriteBlocked"
        });
        ensure!(asked, "it was not");
        Ok(())
    })
    .await?;
    let now = world.freezes().await?.len();
    ensure!(!held && now == before, "it is held: {held}; {before} freezes became {now}");

    // Whoever does it is held for.
    world.kubectl(&[&annotate[..], &[&mark]].concat()).await?;
    let held = matrix.is_held("dry").await?;
    let now = world.freezes().await?.len();
    ensure!(now == before + 1, "{before} freezes became {now}");
    world.kubectl(&[&annotate[..], &[&format!("{}-", api::gate::BEING_CREATED)]].concat()).await?;
    held.is_let_go_early().await
}

/// The cut is made, and only its answer is lost: the next call answers with it. Whenever it was, it was within the hold, which began
/// before the first call and goes on.
async fn lost(matrix: &Matrix<'_>) -> Result<()> {
    let lost =
        Fault { failures: 1, code: DEADLINE_EXCEEDED, answer_is_lost: true, answer_delay_ms: 3000, ..Fault::default() };
    matrix.held("lost", lost).await?;
    matrix.is_worth("lost", "application", "Proved").await?;
    Ok(())
}

async fn says_no_time(matrix: &Matrix<'_>) -> Result<()> {
    let fault = Fault {
        failures: 1,
        code: DEADLINE_EXCEEDED,
        answer_is_lost: true,
        answer_delay_ms: 3000,
        no_creation_time: true,
        ..Fault::default()
    };
    matrix.held("timeless", fault).await?;
    matrix.is_worth("timeless", "application", "Proved").await?;
    Ok(())
}

/// A call that was given up cuts well within the hold.
async fn late_within(matrix: &Matrix<'_>) -> Result<()> {
    let held = matrix.held("late-within", given_up()).await?;
    let frozen = Instant::now();
    is_given_up(matrix).await?;
    until("the cut is beyond what clocks may differ by", SOON, || async {
        ensure!(frozen.elapsed() > Duration::from_secs(3), "{:?}", frozen.elapsed());
        Ok(())
    })
    .await?;
    held.is_worth("application", "Proved").await?;
    Ok(())
}

/// A call that was given up cuts when the freeze is over.
async fn late_after(matrix: &Matrix<'_>) -> Result<()> {
    let held = matrix.held("late-after", given_up()).await?;
    is_given_up(matrix).await?;
    held.is_let_go().await?;
    held.is_worth("crash", "FreezeEnded").await?;
    Ok(())
}

fn given_up() -> Fault {
    Fault { hang: true, outlives_caller: true, ..Fault::default() }
}

async fn is_given_up(matrix: &Matrix<'_>) -> Result<()> {
    until("the sidecar gives up", SOON, || async {
        let last = matrix.driver.calls(CREATE).await?;
        ensure!(last.iter().rev().take(2).any(|call| call.code == CANCELLED), "{:?}", last.last());
        Ok(())
    })
    .await
}

/// Two tools, one claim, one moment.
async fn two_at_once(matrix: &Matrix<'_>) -> Result<()> {
    matrix.driver.set(Fault { method: CREATE.to_owned(), delay_ms: 2000, ..Fault::default() }).await?;
    let both = ["tool-one", "tool-two"].map(|name| workload::snapshot(name, SHOP).to_string());
    matrix.world.cluster.apply(&both.join("\n---\n")).await?;
    for snapshot in ["tool-one", "tool-two"] {
        matrix.is_worth(snapshot, "application", "Proved").await?;
    }
    matrix.driver.clear().await
}

async fn forced(matrix: &Matrix<'_>) -> Result<()> {
    let held = matrix.hanging("forced").await?;
    let body = matrix.world.cluster.root().join("force.json");
    let force = json!({
        "apiVersion": format!("{}/{}", api::LIVE_GROUP, api::VERSION), "kind": "Unquiesce", "spec": {"force": true},
    });
    std::fs::write(&body, force.to_string())?;
    let path = format!("/apis/{}/{}/namespaces/default/databases/{SHOP}/unquiesce", api::LIVE_GROUP, api::VERSION);
    matrix.world.kubectl(&["create", "--raw", &path, "-f", &body.display().to_string()]).await?;
    held.is_let_go_early().await?;
    held.is_worth("crash", "FreezeEnded").await?;
    Ok(())
}

/// The snapshot is deleted while it is cut.
async fn deleted(matrix: &Matrix<'_>) -> Result<()> {
    let held = matrix.hanging("deleted").await?;
    matrix.world.kubectl(&["delete", "volumesnapshot", "deleted", "--wait=false"]).await?;
    held.is_let_go_early().await?;
    matrix.driver.clear().await?;
    matrix.world.kubectl(&["wait", "--for=delete", "volumesnapshot/deleted", "--timeout=60s"]).await?;
    Ok(())
}

/// As after a crash: the postmaster ends at once, and its container is started again.
async fn restarted(matrix: &Matrix<'_>) -> Result<()> {
    let held = matrix.hanging("restarted").await?;
    matrix.world.kubectl(&["exec", SHOP, "--", "/bin/sh", "-c", "kill -QUIT 1"]).await?;
    held.is_let_go_early().await?;
    until_writable(&matrix.shop).await?;
    held.is_worth("crash", "FreezeEnded").await?;
    Ok(())
}
