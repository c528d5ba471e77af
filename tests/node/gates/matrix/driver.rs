//! Rows in which the driver is slow, hangs or fails, or the database's people do something meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cluster::{Component, until, workload};
use csi::Fault;
use futures::FutureExt;
use serde_json::json;

use super::{super::world::until_writable, CREATE, Matrix, Rows, SHOP};
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
    // Given up soon, and asked again when it has long been done.
    let hasty = ["--timeout=1s", "--retry-interval-start=6s"];
    cluster.restart_with(Component::Snapshotter, &hasty).await.unwrap();
    rows.row(m, "late within", late_within(m).boxed()).await;
    rows.row(m, "late after", late_after(m).boxed()).await;
    rows.all_are_right();
}

async fn slow(matrix: &Matrix<'_>) -> Result<()> {
    let held = matrix.held("slow", Fault { delay_ms: 4000, ..Fault::default() }).await?;
    held.is_worth("application", "Proved").await?;
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
