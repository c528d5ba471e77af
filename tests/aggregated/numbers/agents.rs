//! What agents cost: many of them at two replicas, and one of them where it stands.
//!
//! The many are simulated: connections of this process, each with the agent's own half of the protocol and a database in memory.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use api::agent::{AUDIENCE, Hello, PROTOCOL, Welcome};
use cluster::until;
use fixtures::{Options, PASSWORD, Server, ServerKind, USER};
use freeze::{
    Member, Tls,
    engines::memory::MemoryServer,
    remote::{self, Host},
};
use futures::{StreamExt, TryStreamExt, stream};
use kube::{Api, Client, api::PostParams};
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::sleep,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;

use super::TOGETHER;
use crate::{
    agents::{metrics, two_replicas, until_come},
    replica::{Replica, resident},
    world::{SOON, Setup, World},
};

const AGENTS: usize = 10_000;
/// Nobody has all of them in one.
const NAMESPACES: usize = 100;
/// How many of them have a Database, and how often each of these is held.
const DATABASES: usize = 100;
const HOLDS: usize = 5;
/// Agents that introduce themselves at once.
const COMING: usize = 32;
const MOST_KIB_EACH: f64 = 20.0;
/// Within this an order has to be there; it is counted until its answer has come, too.
const ORDER: &str = "0.005";
const LONG: Duration = Duration::from_secs(600);
/// How long an agent is watched that has nothing to do.
const IDLE: Duration = Duration::from_secs(60);
const MOST_IDLE_KIB: u64 = 12 * 1024;
const MOST_IDLE_SHARE: f64 = 0.001;

/// Where [`fleet`] finds who its agents are, whom they trust, and whom they dial.
const FLEET: &str = "STILLPOINT_FLEET";
const HELLOS: &str = "hellos";
const AUTHORITY: &str = "authority";
const DOOR: &str = "door";

/// The agents' half of all links to one replica, in a process of its own: one may not have as many files open as both need.
struct Fleet(Child);

impl Fleet {
    fn start(directory: &Path, hellos: &[Hello], authority: &str, door: SocketAddr) -> Result<Self> {
        std::fs::create_dir_all(directory)?;
        std::fs::write(directory.join(HELLOS), serde_json::to_vec(hellos)?)?;
        std::fs::write(directory.join(AUTHORITY), authority)?;
        std::fs::write(directory.join(DOOR), door.to_string())?;
        let child = Command::new(std::env::current_exe()?)
            .args(["numbers::agents::fleet", "--exact", "--ignored"])
            .env(FLEET, directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Lives until whoever started it is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "what another benchmark starts"]
async fn fleet() {
    let Some(directory) = std::env::var_os(FLEET).map(PathBuf::from) else { return };
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let hellos: Vec<Hello> = serde_json::from_str(&read(HELLOS)).unwrap();
    let door: SocketAddr = read(DOOR).parse().unwrap();
    let tls = TlsConnector::from(Arc::new(certs::client_config(&read(AUTHORITY), PROTOCOL).unwrap()));
    let coming = Arc::new(Semaphore::new(COMING));
    let mut agents = JoinSet::new();
    for hello in hellos {
        agents.spawn(live(hello, door, tls.clone(), Arc::clone(&coming)));
    }
    let ended = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
    ended.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench-cluster"]
async fn ten_thousand_agents_cost_little_and_hear_at_once() {
    let world = World::of(Setup { replicas: Vec::new(), ..Setup::default() }).await.unwrap();
    let doors = two_replicas(&world).await.unwrap();
    let client = world.cluster.client().await.unwrap();
    let began = Instant::now();
    let hellos = pods(&client).await.unwrap();
    println!("{AGENTS} Pods in {NAMESPACES} namespaces, each with a token, made in {:.1?}", began.elapsed());

    let authority = world.authority().await.unwrap();
    let tls = TlsConnector::from(Arc::new(certs::client_config(&authority, PROTOCOL).unwrap()));
    for door in &doors {
        // Who is let in last was made last: the replica knows all of them now, and what it has of Pods is not counted.
        let last = hellos.last().unwrap();
        until("the last Pod is known", LONG, || async { meet(&tls, *door, last).await.map(drop) }).await.unwrap();
    }
    let memory = || world.of_each(|replica| resident(replica.pid())).unwrap();
    let (before, began, mut fleets) = (memory(), Instant::now(), Vec::new());
    for (number, door) in doors.iter().enumerate() {
        let directory = world.cluster.root().join(format!("fleet-{number}"));
        fleets.push(Fleet::start(&directory, &hellos, &authority, *door).unwrap());
    }
    until_come(&world, AGENTS, LONG).await.unwrap();
    println!("all are connected to each replica after {:.1?}", began.elapsed());
    let busy = || world.of_each(Replica::processor_time).unwrap();
    let (spent, began) = (busy(), Instant::now());
    sleep(Duration::from_secs(30)).await;
    for (before, after) in spent.iter().zip(busy()) {
        let share = after.saturating_sub(*before).as_secs_f64() / began.elapsed().as_secs_f64();
        println!("a replica with {AGENTS} agents that nobody asks anything: {:.1} % of a core", share * 100.0);
    }
    let mut missed = Vec::new();
    for (before, after) in before.iter().zip(memory()) {
        #[expect(clippy::cast_precision_loss, reason = "some mebibytes")]
        let each = after.saturating_sub(*before) as f64 / AGENTS as f64;
        println!("a replica has {} MiB, {} before: {each:.1} KiB an agent", after / 1024, before / 1024);
        if each > MOST_KIB_EACH {
            missed.push(format!("{each:.1} KiB an agent, and {MOST_KIB_EACH} at most"));
        }
    }

    databases(&client, &hellos).await.unwrap();
    held(&client, &hellos).await.unwrap();
    for line in orders(&world).await.unwrap() {
        println!("{}", line.text);
        if line.is_late {
            missed.push(line.text);
        }
    }
    drop(fleets);
    assert!(missed.is_empty(), "missed: {missed:#?}");
}

/// Each Pod with its token: what its agent says of itself.
async fn pods(client: &Client) -> Result<Vec<Hello>> {
    for number in 0..NAMESPACES {
        let namespaces = Api::<k8s_openapi::api::core::v1::Namespace>::all(client.clone());
        let namespace = json!({"metadata": {"name": namespace(number)}});
        namespaces.create(&PostParams::default(), &serde_json::from_value(namespace)?).await?;
        let accounts =
            Api::<k8s_openapi::api::core::v1::ServiceAccount>::namespaced(client.clone(), &self::namespace(number));
        accounts.create(&PostParams::default(), &serde_json::from_value(json!({"metadata": {"name": "db"}}))?).await?;
    }
    let made = (0..AGENTS).map(|number| pod(client.clone(), number));
    stream::iter(made).buffer_unordered(TOGETHER).try_collect().await
}

fn namespace(number: usize) -> String {
    format!("agents-{}", number % NAMESPACES)
}

async fn pod(client: Client, number: usize) -> Result<Hello> {
    let (namespace, name) = (namespace(number), format!("db-{number}"));
    let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(client.clone(), &namespace);
    let pod = json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"serviceAccountName": "db", "containers": [{"name": "db", "image": "none"}]},
    });
    let made = pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    let status = json!({"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    pods.patch_status(&name, &kube::api::PatchParams::default(), &kube::api::Patch::Merge(status)).await?;
    let uid = made.metadata.uid.context("no uid")?;
    let wanted = json!({"spec": {
        "audiences": [AUDIENCE], "expirationSeconds": 3600,
        "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid},
    }});
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/db/token");
    let asked = http::Request::post(path).header("content-type", "application/json").body(wanted.to_string().into())?;
    let token: Value = client.request(asked).await?;
    Ok(Hello {
        token: token["status"]["token"].as_str().context("no token")?.to_owned(),
        namespace,
        pod: name,
        pod_uid: uid,
        engine: api::Engine::PostgreSQL,
        version: "simulated".to_owned(),
    })
}

async fn meet(tls: &TlsConnector, door: SocketAddr, hello: &Hello) -> Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(door).await?;
    tcp.set_nodelay(true)?;
    let name = rustls::pki_types::ServerName::try_from(api::install::REPLICAS)?;
    let mut stream = tls.connect(name, tcp).await?;
    remote::write(&mut stream, hello).await?;
    match remote::read(&mut stream).await?.context("it went without a word")? {
        Welcome::Come { .. } => Ok(stream),
        Welcome::Refused { why } => bail!("{why}"),
    }
}

/// Comes, and comes again when it was sent away.
async fn live(hello: Hello, door: SocketAddr, tls: TlsConnector, coming: Arc<Semaphore>) {
    let endpoint = api::Endpoint { host: Some("127.0.0.1".to_owned()), ..api::Endpoint::default() };
    let Some(address) = endpoint.address(api::Engine::PostgreSQL) else { return };
    let tls_of_server = Tls { mode: api::TlsMode::Disable, roots: None };
    let member = Member { address, account: None, tls: tls_of_server, databases: Vec::new() };
    let host = Host::new(MemoryServer::default().driver(), member);
    while let Ok(place) = coming.acquire().await {
        let met = meet(&tls, door, &hello).await;
        drop(place);
        match met {
            Ok(stream) => {
                let (_wishing, wishes) = mpsc::channel(1);
                host.run(stream, wishes, |_| {}, CancellationToken::new()).await;
            }
            Err(_) => sleep(Duration::from_secs(1)).await,
        }
    }
}

/// Of as many agents as there are Databases: those of one namespace each.
fn covered(hellos: &[Hello]) -> impl Iterator<Item = &Hello> {
    hellos.iter().take(DATABASES)
}

async fn databases(client: &Client, hellos: &[Hello]) -> Result<()> {
    for Hello { namespace, pod, .. } in covered(hellos) {
        let database = json!({
            "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": pod},
            "spec": {"engine": "PostgreSQL", "agent": "Required", "podSelector": {"matchLabels": {"app": pod}}},
        });
        let databases = Api::<api::Database>::namespaced(client.clone(), namespace);
        databases.create(&PostParams::default(), &serde_json::from_value(database)?).await?;
    }
    Ok(())
}

/// Holds each of them, a few at once, some times.
async fn held(client: &Client, hellos: &[Hello]) -> Result<()> {
    let began = Instant::now();
    let asked = (0..HOLDS).flat_map(|_| covered(hellos)).map(|Hello { namespace, pod, .. }| {
        let path = |verb| format!("/apis/{}/namespaces/{namespace}/databases/{pod}/{verb}", api::LIVE_API_VERSION);
        let paths = [path("quiesce"), path("unquiesce")];
        async move {
            // One that was just made is known a little later.
            let [quiesce, unquiesce] = &paths;
            let held = until("it is held", SOON, || async { super::verb(client, quiesce, json!({})).await }).await?;
            ensure!(held["status"]["phase"] == "Frozen", "{held}");
            let ended = super::verb(client, unquiesce, json!({})).await?;
            ensure!(ended["status"]["proof"]["held"] == true, "{ended}");
            Ok(())
        }
    });
    stream::iter(asked).buffer_unordered(2).try_collect::<Vec<()>>().await?;
    println!("{} freezes through agents in {:.1?}", DATABASES * HOLDS, began.elapsed());
    Ok(())
}

struct Line {
    text: String,
    is_late: bool,
}

/// By the replicas' own metric: of each kind of order how many were answered in time.
async fn orders(world: &World) -> Result<Vec<Line>> {
    let mut counted: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for text in metrics(world).await? {
        for line in text.lines().filter_map(|line| line.strip_prefix("stillpoint_agent_order_seconds_")) {
            let label = |name: &str| {
                let (_, rest) = line.split_once(&format!("{name}=\""))?;
                rest.split_once('"').map(|(value, _)| value.to_owned())
            };
            let (Some(order), Some(outcome)) = (label("order"), label("outcome")) else { continue };
            ensure!(outcome == "done", "an order was not obeyed: {line}");
            let value = line.rsplit_once(' ').context("no value")?.1.parse::<f64>()?;
            let (in_time, all) = counted.entry(order).or_default();
            if line.starts_with("count") {
                *all += value;
            } else if label("le").as_deref() == Some(ORDER) {
                *in_time += value;
            }
        }
    }
    ensure!(counted.contains_key("acquire"), "no order is counted: {counted:?}");
    let lines = counted.into_iter().map(|(order, (in_time, all))| {
        let share = in_time / all * 100.0;
        // A hold is written down before it is taken: its answer waits for kube-apiserver.
        let writes = order == "acquire";
        let is_late = share < 99.0 && all >= 100.0 && !writes;
        let kept = if is_late {
            "MISSED"
        } else if writes {
            "it waits for the journal"
        } else {
            "kept"
        };
        Line { text: format!("{order:<10} {all:>6} orders, {share:.1} % answered within {ORDER} s: {kept}"), is_late }
    });
    Ok(lines.collect())
}

/// A real agent beside a real database, to which nobody says anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark: make bench-cluster"]
async fn an_agent_that_has_nothing_to_do_is_small() {
    let world = World::of(Setup { replicas: Vec::new(), ..Setup::default() }).await.unwrap();
    let doors = two_replicas(&world).await.unwrap();
    let space = world.space("idle").await.unwrap();
    for (name, kind) in [("pg-0", ServerKind::POSTGRESQL_15), ("maria-0", ServerKind::MARIADB_10_11)] {
        let server = Server::start(kind, Options::default()).await.unwrap();
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("username"), USER).unwrap();
        std::fs::write(directory.path().join("password"), PASSWORD).unwrap();
        crate::agents::pod(&space, name).await.unwrap();
        let token = crate::agents::token(&space, name, AUDIENCE).await.unwrap();
        std::fs::write(directory.path().join("token"), token).unwrap();
        let uid = crate::agents::uid(&space, name).await.unwrap();
        let both = doors.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut child =
            crate::agents::agent(&space, name, &uid, &server, directory.path().to_owned(), &both).await.unwrap();
        let child = Watched(child.spawn().unwrap());
        until_come(&world, 1, SOON * 2).await.unwrap();
        let (spent, began) = (child.ran().unwrap(), Instant::now());
        sleep(IDLE).await;
        let share = child.ran().unwrap().saturating_sub(spent).as_secs_f64() / began.elapsed().as_secs_f64();
        let kib = resident(child.0.id()).unwrap();
        println!("{name}: an agent that nobody asks anything has {kib} KiB, and {:.3} % of a core", share * 100.0);
        assert!(kib <= MOST_IDLE_KIB, "{kib} KiB, and {MOST_IDLE_KIB} at most");
        assert!(share <= MOST_IDLE_SHARE, "{:.3} % of a core", share * 100.0);
        drop(child);
        until_come(&world, 0, SOON * 2).await.unwrap();
    }
}

/// Killed when it is dropped.
struct Watched(Child);

impl Watched {
    /// How long it has run on a processor (Linux `Documentation/scheduler/sched-stats.rst`, `/proc/<pid>/schedstat`), in all its threads.
    fn ran(&self) -> Result<Duration> {
        let mut ran = Duration::ZERO;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
            let said = std::fs::read_to_string(task?.path().join("schedstat"))?;
            ran += Duration::from_nanos(said.split_whitespace().next().context("no time")?.parse()?);
        }
        Ok(ran)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
