//! Both replicas are replaced, one after the other, as a Deployment does it, while people and backup tools go on asking.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use fixtures::{Options, Server, ServerKind};
use futures::future::join_all;
use kube::Client;
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{
    replica::Replica,
    world::{APISERVICE, NAMESPACE, SERVICE, SOON, Setup, Space, World},
};

/// Of reads, at even distances; beside them, each Database is frozen and thawed as fast as that goes.
const READS_PER_SECOND: u32 = 50;
const DATABASES: [&str; 3] = ["a", "b", "c"];
/// How long a node may go on sending to a pod that was told to end.
const PROPAGATION: Duration = Duration::from_secs(1);
/// Between two things that happen to replicas.
const CALM: Duration = Duration::from_secs(2);
/// Freezes that are made first, while nothing happens, and how long that may take.
const QUIET: (usize, Duration) = (20, Duration::from_secs(60));
/// Freezes that may fail to be written down in time although none did while nothing happened: what a busy machine does now and
/// then. Each restart failing those under way (one of each Database, twice) would be more.
const FEW: usize = 3;
/// Our account's, in the whole cluster.
const ROLE: &str = "stillpoint:apiserver";
const DELAY: [&str; 2] = ["--shutdown-delay-seconds", "3"];

struct Load {
    began: Instant,
    over: AtomicBool,
    asked: AtomicUsize,
    frozen: AtomicUsize,
    slow: AtomicUsize,
    failed: Mutex<Vec<String>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_is_seen_by_nobody() {
    for aggregator_routing in [true, false] {
        let setup = Setup { aggregator_routing, arguments: DELAY.map(str::to_owned).into(), ..Setup::default() };
        let world = World::of(setup).await.unwrap();
        let quiet = under_load(&world, async |load| {
            cluster::until("enough is frozen", QUIET.1, async || {
                let frozen = load.frozen.load(Ordering::Relaxed);
                ensure!(frozen >= QUIET.0, "{frozen}");
                Ok(())
            })
            .await
            .unwrap();
        })
        .await;
        let load = under_load(&world, async |_| {
            for (old, new) in [("one", "three"), ("two", "four")] {
                world.add_replica(new).await.unwrap();
                sleep(CALM).await;
                world.end(old, PROPAGATION).await.unwrap();
                sleep(CALM).await;
            }
        })
        .await;
        let failed = load.failed.lock().unwrap();
        let (asked, frozen) = (load.asked.load(Ordering::Relaxed), load.frozen.load(Ordering::Relaxed));
        let slow = load.slow.load(Ordering::Relaxed);
        println!(
            "aggregator routing {aggregator_routing}: {asked} requests, {frozen} freezes, {slow} not written down in time, {} \
             failed",
            failed.len()
        );
        let (slow_then, frozen_then) = (quiet.slow.load(Ordering::Relaxed), quiet.frozen.load(Ordering::Relaxed));
        assert!(quiet.failed.lock().unwrap().is_empty(), "while nothing happened");
        assert!(slow_then * 4 <= frozen_then, "this machine is too slow to tell: {slow_then} of {frozen_then}");
        let as_ever = 2 * slow_then * frozen / frozen_then;
        assert!(
            slow <= FEW + as_ever,
            "{slow} of {frozen} could not be written down in time; while nothing happened, {slow_then} of {frozen_then}"
        );
        assert!(failed.is_empty(), "{} failed: {:#?}", failed.len(), &failed[..failed.len().min(10)]);
        assert!(asked > 500 && frozen > 10, "hardly anything was asked: {asked}, {frozen}");
    }
}

/// The control: of replicas that do not say goodbye, the same load is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_just_dies_is_seen() {
    let world = World::start().await.unwrap();
    let load = under_load(&world, async |_| {
        sleep(CALM).await;
        world.first(Replica::kill).unwrap();
        sleep(CALM).await;
    })
    .await;
    assert!(!load.failed.lock().unwrap().is_empty());
}

async fn under_load(world: &World, meanwhile: impl AsyncFnOnce(&Load)) -> Arc<Load> {
    let space = world.space("restarts").await.unwrap();
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    for name in DATABASES {
        server.execute("postgres", &format!("CREATE DATABASE {name}")).await.unwrap();
        space.register_databases(name, &server, &[name]).await.unwrap();
    }
    let load = Arc::new(Load::new());
    let client = world.cluster.client().await.unwrap();
    let freezing = join_all(DATABASES.map(|name| freeze(&space, &client, &load, name)));
    let reading = read(&space, &client, &load);
    let meanwhile = async {
        Box::pin(meanwhile(&load)).await;
        load.over.store(true, Ordering::Relaxed);
    };
    tokio::join!(reading, freezing, meanwhile);
    load
}

async fn read(space: &Space<'_>, client: &Client, load: &Arc<Load>) {
    let group = format!("/apis/{}", api::LIVE_API_VERSION);
    let databases = format!("{group}/namespaces/{}/databases", space.name);
    let one = format!("{databases}/a");
    let paths = [group, databases, one];
    let mut tick = interval(Duration::from_secs(1) / READS_PER_SECOND);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut asked = JoinSet::new();
    for path in paths.iter().cycle() {
        tick.tick().await;
        if load.over.load(Ordering::Relaxed) {
            break;
        }
        let (client, path, load) = (client.clone(), path.clone(), Arc::clone(load));
        asked.spawn(async move {
            let request = http::Request::get(&path).body(Vec::new()).unwrap();
            load.note(&path, client.request::<Value>(request).await);
        });
        while asked.try_join_next().is_some() {}
    }
    asked.join_all().await;
}

async fn freeze(space: &Space<'_>, client: &Client, load: &Load, name: &str) {
    for number in 0.. {
        if load.over.load(Ordering::Relaxed) {
            return;
        }
        let spec = json!({"uid": format!("{name}-{number}"), "ttlSeconds": 10});
        for verb in ["quiesce", "unquiesce"] {
            let path = space.verb(name, verb);
            let spec = if verb == "quiesce" { spec.clone() } else { json!({"uid": spec["uid"]}) };
            let request = http::Request::post(&path).header("content-type", "application/json");
            let request = request.body(json!({"spec": spec}).to_string().into_bytes()).unwrap();
            let answered = client.request::<Value>(request).await;
            if let Ok(answer) = &answered
                && verb == "unquiesce"
                && answer["status"]["phase"] == "Thawed"
            {
                load.frozen.fetch_add(1, Ordering::Relaxed);
            }
            load.note(&path, answered);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

impl Load {
    fn new() -> Self {
        Self {
            began: Instant::now(),
            over: AtomicBool::default(),
            asked: AtomicUsize::default(),
            frozen: AtomicUsize::default(),
            slow: AtomicUsize::default(),
            failed: Mutex::default(),
        }
    }

    /// A freeze that a busy disk or API server did not write down within a second is let go, whoever restarts; it is counted, and
    /// must be no more than while nobody does.
    fn note(&self, path: &str, answered: Result<Value, kube::Error>) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = answered {
            if format!("{error:?}").contains(api::conditions::reasons::JOURNAL_UNAVAILABLE) {
                self.slow.fetch_add(1, Ordering::Relaxed);
                return;
            }
            self.failed.lock().unwrap().push(format!("after {:.1?}, {path}: {error:?}", self.began.elapsed()));
        }
    }
}

/// Whoever signs our certificates is exchanged while everybody goes on asking.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_authority_is_exchanged_and_nobody_sees_it() {
    let arguments = ["--ca-overlap-seconds", "15"].map(str::to_owned).into();
    let world = World::of(Setup { arguments, ..Setup::default() }).await.unwrap();
    let before = world.authority().await.unwrap();
    let load = under_load(&world, async |_| {
        ask_for_another_authority(&world).await;
        cluster::until(
            "another authority, and the old one is not trusted any more",
            Duration::from_secs(90),
            || async {
                let (now, trusted) = (world.authority().await?, world.trusted().await?);
                ensure!(now != before && !trusted.contains(before.trim()) && trusted.contains(now.trim()), "{trusted}");
                Ok(())
            },
        )
        .await
        .unwrap();
        sleep(CALM).await;
    })
    .await;
    let failed = load.failed.lock().unwrap().clone();
    assert!(failed.is_empty(), "{} failed: {:#?}", failed.len(), &failed[..failed.len().min(10)]);
    let shown = world.first(|replica| replica.server.clone()).unwrap();
    let now = world.authority().await.unwrap();
    crate::wire::Server { authority: now, ..shown.clone() }.get("/livez").await.unwrap();
    assert!(shown.get("/livez").await.is_err(), "the old authority's certificate is shown no more");
}

/// Whoever signs next is told to kube-apiserver first: until that could be done, what is shown is what it trusts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_that_nobody_could_be_told_of_signs_nothing() {
    let arguments = ["--ca-overlap-seconds", "15"].map(str::to_owned).into();
    let world = World::of(Setup { arguments, replicas: vec!["one"], ..Setup::default() }).await.unwrap();
    let before = world.authority().await.unwrap();
    let role = world.cluster.kubectl(&["get", "clusterrole", ROLE, "-o", "json"]).await.unwrap().ok().unwrap();
    let role: Value = serde_json::from_str(&role).unwrap();
    let mut rules = role["rules"].as_array().unwrap().iter();
    let telling = rules.position(|rule| rule["apiGroups"][0] == "apiregistration.k8s.io").unwrap();
    let given = role["rules"][telling]["verbs"].clone();
    assert!(given.to_string().contains("patch"), "{given}");
    set_verbs(&world, telling, &json!(["get"]), "no").await;
    ask_for_another_authority(&world).await;
    cluster::until("it waits", Duration::from_secs(60), || async {
        assert_eq!(world.authority().await?, before, "nobody was told of this one");
        ensure!(world.log_end().contains("signs nothing before the APIService trusts it"), "{}", world.log_end());
        Ok(())
    })
    .await
    .unwrap();
    world.available(SOON).await.unwrap();
    set_verbs(&world, telling, &given, "yes").await;
    cluster::until("another authority signs", Duration::from_secs(60), || async {
        let now = world.authority().await?;
        ensure!(now != before, "the old one does");
        assert!(world.trusted().await?.contains(now.trim()), "kube-apiserver was told first");
        Ok(())
    })
    .await
    .unwrap();
    world.available(SOON).await.unwrap();
}

async fn ask_for_another_authority(world: &World) {
    let annotate =
        ["--namespace", NAMESPACE, "annotate", "secret", api::install::AUTHORITY, "stillpoint.dev/rotate=now"];
    world.cluster.kubectl(&annotate).await.unwrap().ok().unwrap();
}

/// Changes a rule of our account's role, and waits until kube-apiserver knows whether it may change the APIService.
async fn set_verbs(world: &World, rule: usize, verbs: &Value, may: &str) {
    let patch = json!([{"op": "replace", "path": format!("/rules/{rule}/verbs"), "value": verbs}]).to_string();
    let patch = ["patch", "clusterrole", ROLE, "--type=json", "--patch", &patch];
    world.cluster.kubectl(&patch).await.unwrap().ok().unwrap();
    let who = format!("--as=system:serviceaccount:{NAMESPACE}:{SERVICE}");
    let can = ["auth", "can-i", "patch", &format!("apiservice/{APISERVICE}"), &who];
    cluster::until("kube-apiserver knows", SOON, || async {
        // It fails when it says no.
        let said = world.cluster.kubectl(&can).await?;
        ensure!(said.stdout.trim() == may, "{said:?}");
        Ok(())
    })
    .await
    .unwrap();
}
