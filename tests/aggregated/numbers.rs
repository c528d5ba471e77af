//! Numbers of a replica behind a real kube-apiserver, each beside its yardstick in one run: `make bench-cluster`.

mod agents;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::Result;
use fixtures::{Options, PASSWORD, Server, ServerKind, USER};
use futures::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use kube::Client;
use serde_json::{Value, json};
use tests::Stillpoint;
use tokio::time::sleep;

use crate::{
    replica,
    world::{SERVICE, Setup, Space, World},
};

const ROUNDS: usize = 200;
/// What the way through kube-apiserver, and what is stored there, may cost more than a server that has neither.
const MORE: Duration = Duration::from_millis(15);
/// What one freeze leaves to be done after its answer: the next is measured without it.
const AFTERMATH: Duration = Duration::from_millis(200);
const DATABASES: usize = 10_000;
const FREEZES: usize = 1_000;
const MOST_KIB: u64 = 100 * 1024;
/// As many requests at once as a few backup tools make.
const TOGETHER: usize = 16;

async fn verb(client: &Client, path: &str, spec: Value) -> Result<Value> {
    let request = http::Request::post(path).header("content-type", "application/json");
    Ok(client.request(request.body(json!({"spec": spec}).to_string().into_bytes())?).await?)
}

/// The same database, frozen by turns by a standalone server and by one behind kube-apiserver.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench-cluster"]
async fn a_freeze_through_kube_apiserver_costs_little_more() {
    let world = World::of(Setup { fsync: true, ..Setup::default() }).await.unwrap();
    let space = world.space("numbers").await.unwrap();
    let alone = Stillpoint::start().await.unwrap();
    let client = world.cluster.client().await.unwrap();
    let mut servers = Vec::new();
    for (name, kind) in [("orders", ServerKind::POSTGRESQL_15), ("billing", ServerKind::MARIADB_10_11)] {
        let server = Server::start(kind, Options::default()).await.unwrap();
        space.register(name, &server).await.unwrap();
        alone.register(name, &server, json!({})).await.unwrap();
        servers.push(server);
    }
    let mut missed = Vec::new();
    for (what, name, spec) in [
        ("PostgreSQL 15", "orders", json!({})),
        ("MariaDB 10.11", "billing", json!({})),
        (
            "both at WriteBlocked, as the demo freezes them",
            "orders",
            json!({"with": ["billing"], "level": "WriteBlocked"}),
        ),
    ] {
        let path = |namespace: &str, verb| {
            format!("/apis/{}/namespaces/{namespace}/databases/{name}/{verb}", api::LIVE_API_VERSION)
        };
        let (mut beside, mut through) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            for (took, client, namespace) in
                [(&mut beside, &alone.client, "default"), (&mut through, &client, space.name.as_str())]
            {
                let began = Instant::now();
                let held = verb(client, &path(namespace, "quiesce"), spec.clone()).await.unwrap();
                took.push(began.elapsed());
                assert_eq!(held["status"]["phase"], "Frozen", "{held}");
                verb(client, &path(namespace, "unquiesce"), json!({})).await.unwrap();
                // A server is busy for a moment after a session has ended, and what is told of the last freeze is told 100 ms later.
                sleep(AFTERMATH).await;
            }
        }
        let [beside, through] = [beside, through].map(|mut took| {
            took.sort_unstable();
            (took[ROUNDS / 2], took[ROUNDS * 99 / 100])
        });
        let kept = through.0 <= beside.0 + MORE;
        println!(
            "{what}: quiesce standalone p50 {:.1?} p99 {:.1?}, through kube-apiserver p50 {:.1?} p99 {:.1?}: {}",
            beside.0,
            beside.1,
            through.0,
            through.1,
            if kept { "kept" } else { "MISSED" }
        );
        if !kept {
            missed.push(what);
        }
    }
    for line in asked_of_kube_apiserver(&world).unwrap() {
        println!("{line}");
    }
    assert!(missed.is_empty(), "more than {MORE:?} more: {missed:?}");
}

/// What the verbs asked of kube-apiserver meanwhile, and how long it took there: why they take longer than without.
fn asked_of_kube_apiserver(world: &World) -> Result<Vec<String>> {
    let mut took: BTreeMap<String, Vec<i128>> = BTreeMap::new();
    for event in world.cluster.audit_events()?.iter().filter(|event| event["stage"] == "ResponseComplete") {
        let at = |stamp: &str| event[stamp].as_str().and_then(|at| at.parse::<Timestamp>().ok());
        let (Some(from), Some(to)) = (at("requestReceivedTimestamp"), at("stageTimestamp")) else { continue };
        let what = &event["objectRef"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (who, verb) = (text(&event["user"]["username"]), text(&event["verb"]));
        if verb != "watch" && (what["apiGroup"] == api::LIVE_GROUP || who.ends_with(SERVICE)) {
            let what = format!("{}/{}", text(&what["resource"]), text(&what["subresource"]));
            took.entry(format!("{verb} {what}")).or_default().push(to.duration_since(from).as_micros());
        }
    }
    Ok(took
        .into_iter()
        .filter(|(_, took)| took.len() >= ROUNDS / 10)
        .map(|(what, mut took)| {
            took.sort_unstable();
            let millis = |at: usize| Duration::from_micros(u64::try_from(took[at]).unwrap_or_default());
            let (p50, p99) = (millis(took.len() / 2), millis(took.len() * 99 / 100));
            format!("{what:<34} {:>5} times, p50 {p50:.1?} p99 {p99:.1?}", took.len())
        })
        .collect())
}

/// One replica, ten thousand Databases, a thousand of them held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench-cluster"]
async fn a_replica_with_many_databases_and_freezes_is_small() {
    let world = World::of(Setup { replicas: vec!["one"], ..Setup::default() }).await.unwrap();
    let space = world.space("many").await.unwrap();
    let options = Options::default().set("max_connections", "1500");
    let server = Server::start(ServerKind::POSTGRESQL_15, options).await.unwrap();
    let client = world.cluster.client().await.unwrap();
    let resident = |what: &str| {
        let kib = replica::resident(world.first(|replica| replica.pid()).unwrap()).unwrap();
        println!("{what}: {} MiB", kib / 1024);
        kib
    };
    let busy = || world.first(|replica| replica.processor_time()).unwrap().unwrap();
    resident("nothing registered");
    let account = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "account"},
        "stringData": {"username": USER, "password": PASSWORD},
    });
    space.apply(account).await.unwrap();
    let mut shares = Vec::new();
    for (from, to) in [(0, DATABASES / 2), (DATABASES / 2, DATABASES)] {
        let began = Instant::now();
        register(&space, &client, &server, from..to).await.unwrap();
        println!("{} more registered in {:.1?}", to - from, began.elapsed());
        cluster::until("all are ready", Duration::from_secs(600), async || {
            // Asked seldom: it is the largest answer that there is.
            sleep(Duration::from_secs(5)).await;
            let list = format!("/apis/{}/namespaces/{}/databases", api::API_VERSION, space.name);
            let list: Value = client.request(http::Request::get(&list).body(Vec::new())?).await?;
            let ready = |item: &&Value| item["status"]["conditions"].to_string().contains("\"type\":\"Ready\"");
            let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
            let found = items.iter().filter(ready).count();
            anyhow::ensure!(found == to, "{found} of {to}");
            Ok(())
        })
        .await
        .unwrap();
        resident(&format!("{to} Databases"));
        let (began, before) = (Instant::now(), busy());
        sleep(Duration::from_secs(20)).await;
        let share = busy().saturating_sub(before).as_secs_f64() / began.elapsed().as_secs_f64();
        println!("{to} Databases, nothing asked: {:.1} % of a core", share * 100.0);
        shares.push(share);
    }
    let linear = shares[1] <= shares[0] * 2.5 + 0.02;
    println!("twice as many: {:.1} times the processor time", shares[1] / shares[0]);
    assert!(linear, "more than in proportion: {shares:?}");
    let began = Instant::now();
    let paths = (0..FREEZES).map(|number| space.verb(&format!("d{number}"), "quiesce"));
    let spec = json!({"level": "Recoverable", "ttlSeconds": 60});
    let asked = paths.map(|path| {
        let (client, spec) = (client.clone(), spec.clone());
        async move { verb(&client, &path, spec).await }
    });
    let held: Vec<Result<Value>> = stream::iter(asked).buffer_unordered(TOGETHER).collect().await;
    let failed: Vec<_> = held.iter().filter_map(|held| held.as_ref().err()).collect();
    println!("{FREEZES} quiesced in {:.1?}, {} failed", began.elapsed(), failed.len());
    let kib = resident(&format!("{DATABASES} Databases, {} held", FREEZES - failed.len()));
    assert!(failed.is_empty(), "{:?}", &failed[..failed.len().min(3)]);
    assert!(kib <= MOST_KIB, "more than {MOST_KIB} KiB: {kib}");
}

async fn register(space: &Space<'_>, client: &Client, server: &Server, numbers: std::ops::Range<usize>) -> Result<()> {
    let databases: kube::Api<api::Database> = kube::Api::namespaced(client.clone(), &space.name);
    let made = numbers.map(|number| {
        let databases = databases.clone();
        let database = json!({
            "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": format!("d{number}")},
            "spec": {
                "engine": "PostgreSQL", "endpoint": {"host": "127.0.0.1", "port": server.port},
                "credentials": {"secretRef": {"name": "account"}}, "databases": ["postgres"],
            },
        });
        async move {
            let database = serde_json::from_value(database)?;
            databases.create(&kube::api::PostParams::default(), &database).await?;
            Ok::<_, anyhow::Error>(())
        }
    });
    stream::iter(made).buffer_unordered(TOGETHER).try_collect::<Vec<()>>().await.map(drop)
}
