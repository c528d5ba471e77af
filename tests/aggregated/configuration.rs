//! What kube-apiserver makes of the webhooks' configuration: whose snapshots it shows, how long it may be, and what becomes of those who
//! ask nobody, when webhooks are there and say nothing, for their pods hang or a firewall drops what is sent to them.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use api::install::webhooks::{self, Kind, Webhooks};
use cluster::until;
use serde_json::Value;
use tokio::net::TcpListener;

use crate::{
    install::{asked, shop},
    installation::{Installation, SHOP},
    world::{NAMESPACE, SOON, World},
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

/// An expression has a limit, and one that is beyond it has all that is applied with it refused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_namespaces_want_nothing_less_it_is_not_refused() {
    let world = World::get().await;
    let many: Vec<String> = (0..5000).map(|at| format!("{at:0>63}")).collect();
    let others: Vec<String> = (0..1400).map(|at| format!("o{at:0>62}")).collect();
    let made = Webhooks {
        namespace: NAMESPACE,
        ca_bundle: "",
        required: &many,
        databases: Some(&others),
        content_drivers: &many,
        injects: true,
    };
    let [mut configuration, mut declared] = [Kind::Mutating, Kind::Validating].map(|kind| made.configuration(kind));
    declared["metadata"]["name"] = "long".into();
    configuration["metadata"]["name"] = "long".into();
    let file = world.cluster.root().join("long.json");
    let created = async |configuration: &Value| {
        fs::write(&file, configuration.to_string()).unwrap();
        let file = file.display().to_string();
        world.cluster.kubectl(&["create", "--dry-run=server", "-f", &file]).await.unwrap().ok()
    };
    created(&configuration).await.unwrap();
    created(&declared).await.unwrap();
    assert!(!made.left_out().is_empty());
    // As it would be if nobody counted.
    let all = format!("request.namespace in {}", webhooks::cel_list(&many));
    configuration["webhooks"][0]["matchConditions"][0]["expression"] = all.into();
    let refused = created(&configuration).await.unwrap_err().to_string();
    assert!(refused.contains("size exceeds limit"), "{}", &refused[refused.len().saturating_sub(300)..]);
}

/// Whoever waits until a Database is ready, and takes a snapshot then, has it held for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn snapshots_are_shown_of_namespaces_that_have_a_database_and_of_each_before_that_is_ready() {
    let mut here = Installation::begin().await.unwrap();
    here.documented("plain-install").await.unwrap();
    here.start_pod().await.unwrap();
    here.until_available().await.unwrap();
    asked(&here).await.unwrap();
    assert!(!shown(&here).await.unwrap(), "nobody has a Database");
    let _server = shop(&here).await.unwrap();
    assert!(shown(&here).await.unwrap(), "it says that it is ready");
    here.run(&format!("kubectl delete databases.stillpoint.dev orders -n {SHOP}")).await.unwrap();
    until("nobody is asked about those who have none", SOON, || async {
        ensure!(!shown(&here).await?, "it is shown");
        Ok(())
    })
    .await
    .unwrap();
}

/// Whether kube-apiserver shows cuts of the shop's volumes, and snapshots of them when they are made.
async fn shown(here: &Installation) -> Result<bool> {
    let entries = asked(here).await?;
    let entries: Vec<&Value> = entries.as_array().into_iter().flatten().collect();
    let names = |name: &str| entries.iter().find(|entry| entry["name"] == name).map(ToString::to_string);
    let [cut, declared] = ["cut.gates.stillpoint.dev", "preflight.gates.stillpoint.dev"].map(names);
    let [cut, declared] = [cut, declared].map(|entry| entry.is_some_and(|entry| entry.contains(SHOP)));
    ensure!(cut == declared, "{entries:?}");
    Ok(cut)
}

/// How long it took to write a Database.
async fn written(here: &Installation) -> Result<Duration> {
    let began = Instant::now();
    here.run(&format!("kubectl annotate databases.stillpoint.dev orders -n {SHOP} --overwrite written=$RANDOM"))
        .await?;
    Ok(began.elapsed())
}
