//! Webhooks that are there, and answer nobody: their pods hang, or a firewall drops what is sent to them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use api::install::webhooks;
use cluster::until;
use tokio::net::TcpListener;

use crate::{
    install::{asked, shop},
    installation::{Installation, SHOP},
    world::SOON,
};

/// As long as kube-apiserver waits for a word about a Database or a Freeze.
const WAITS: Duration = Duration::from_secs(5);

/// What a freeze writes down has a limit of its own, no longer than that: waiting for them no freeze would ever begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_that_say_nothing_keep_people_for_a_while_and_no_freeze() {
    let mut here = Installation::begin().await.unwrap();
    here.documented("plain-install").await.unwrap();
    here.start_pod().await.unwrap();
    here.until_available().await.unwrap();
    let _server = shop(&here).await.unwrap();
    asked(&here).await.unwrap();
    // The kernel shakes hands; nobody ever reads.
    let silent = TcpListener::bind((here.cluster.address(), 0)).await.unwrap();
    here.lead(webhooks::NAME, &[silent.local_addr().unwrap().port()]).await.unwrap();

    until("what somebody writes waits for them, and is stored", SOON, || async {
        let took = written(&here).await?;
        ensure!(took >= WAITS, "{took:?}");
        Ok(())
    })
    .await
    .unwrap();
    let began = Instant::now();
    let held = here.verb("orders", "quiesce").await.unwrap();
    assert_eq!(held["phase"], "Frozen", "{held}");
    assert_eq!(here.verb("orders", "unquiesce").await.unwrap()["proof"]["held"], true);
    assert!(began.elapsed() < WAITS, "{:?}", began.elapsed());
    let took = written(&here).await.unwrap();
    assert!(took >= WAITS, "they still say nothing: {took:?}");
}

/// How long it took to write a Database.
async fn written(here: &Installation) -> Result<Duration> {
    let began = Instant::now();
    here.run(&format!("kubectl annotate databases.stillpoint.dev orders -n {SHOP} --overwrite written=$RANDOM"))
        .await?;
    Ok(began.elapsed())
}
