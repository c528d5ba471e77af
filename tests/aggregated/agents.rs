//! Agents beside real databases: what they hold for replicas behind a real kube-apiserver, who is let in as one, and what is left when
//! one of them, or the network between them, is gone.
//!
//! The Pods are objects that no node runs: the agent and its database are processes of this host, at the Pod's address.

mod beside;
mod faults;
mod tokens;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use api::agent::{AUDIENCE, Hello, PROTOCOL, Welcome};
use cluster::until;
use fixtures::{Engine, PASSWORD, Port, ServerKind, USER};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};

use self::beside::Beside;
pub(crate) use self::beside::{agent, pod, token, uid};
use crate::{
    wire::whole,
    world::{SOON, Setup, World},
};

/// The longest that anything is held when nobody is there who would let it go.
const LEASE_AND_A_SECOND: Duration = Duration::from_secs(11);

/// A world whose replica lets agents in, and where.
async fn world() -> Result<(World, String)> {
    let port = Port::reserve()?;
    let listen = format!("127.0.0.1:{}", port.number);
    let arguments = vec![format!("--agents-listen={listen}")];
    let world = World::of(Setup { replicas: vec!["one"], arguments, ..Setup::default() }).await?;
    Ok((world, listen))
}

/// Two replicas that let agents in, and where.
pub(crate) async fn two_replicas(world: &World) -> Result<Vec<SocketAddr>> {
    let mut doors = Vec::new();
    for name in ["one", "two"] {
        let door = SocketAddr::from(([127, 0, 0, 1], Port::reserve()?.number));
        world.add_replica_with(name, &[format!("--agents-listen={door}")]).await?;
        doors.push(door);
    }
    world.available(SOON * 2).await?;
    Ok(doors)
}

/// What each replica says of itself.
pub(crate) async fn metrics(world: &World) -> Result<Vec<String>> {
    const SCRAPER: [&str; 2] = ["default", "scraper"];
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": SCRAPER[0], "name": SCRAPER[1]}});
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": SCRAPER[1]},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "namespace": SCRAPER[0], "name": SCRAPER[1]}],
    });
    for object in [account, binding] {
        world.cluster.apply(&object.to_string()).await?;
    }
    let token = world.cluster.kubectl(&["create", "token", SCRAPER[1]]).await?.ok()?;
    let mut texts = Vec::new();
    for server in world.servers() {
        let request = http::Request::get(format!("https://{}/metrics", server.address));
        let request = request.header("authorization", format!("Bearer {}", token.trim())).body(whole(""))?;
        let answer = server.ask(None, request).await?;
        let text = String::from_utf8(answer.body.to_vec())?;
        ensure!(answer.code == 200, "{text}");
        texts.push(text);
    }
    Ok(texts)
}

/// Waits until each replica has so many agents.
pub(crate) async fn until_come(world: &World, agents: usize, within: Duration) -> Result<()> {
    let line = format!("stillpoint_agents {agents}");
    until(&line, within, || async {
        let metrics = metrics(world).await?;
        ensure!(metrics.iter().all(|text| text.lines().any(|said| said == line)), "not yet");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_holds_its_database_for_kubectl_and_for_hooks_and_no_password_leaves_its_pod() {
    let (world, replicas) = world().await.unwrap();
    let space = world.space("agents").await.unwrap();
    for (name, kind) in [("pg-0", ServerKind::POSTGRESQL_15), ("maria-0", ServerKind::MARIADB_10_11)] {
        let beside = Beside::start(&space, name, kind, &replicas).await.unwrap();
        let table = match kind.engine {
            Engine::PostgreSQL => "CREATE TABLE t (n int)",
            Engine::MariaDB => "CREATE DATABASE shop; CREATE TABLE shop.t (n int)",
        };
        beside.server.execute("postgres", table).await.unwrap();
        let held = beside.hold("WriteBlocked", 10).await.unwrap();
        assert!(!beside.is_writable(Duration::from_millis(500)).await, "{held}");
        let ended = space.run(name, "unquiesce").await.unwrap();
        assert_eq!((&ended["phase"], &ended["proof"]["held"]), (&json!("Thawed"), &json!(true)), "{ended}");
        assert!(beside.is_writable(SOON).await);
        let freeze = beside.freeze(&held["freeze"], &["Thawed"]).await.unwrap();
        let target = &freeze["status"]["targets"][0];
        assert_eq!((&target["via"], &target["member"]), (&json!("Agent"), &json!(name)), "{freeze}");

        let (good, said) = beside.command(&["freeze", "--for", "10s", "--level", "WriteBlocked"]).unwrap();
        assert!(good && said.contains("frozen at WriteBlocked by Freeze"), "{said}");
        assert!(!beside.is_writable(Duration::from_millis(500)).await);
        let (good, said) = beside.command(&["status"]).unwrap();
        assert!(good && said.contains("Frozen: Freeze"), "{said}");
        let (good, said) = beside.command(&["thaw"]).unwrap();
        assert!(good && said.contains("it was held all the time"), "{said}");
        assert!(beside.is_writable(SOON).await);
        let (good, said) = beside.command(&["thaw"]).unwrap();
        assert!(good && said.contains("nothing was held"), "{said}");
    }
    let log = world.log_end();
    assert!(!log.contains(PASSWORD), "{log}");
}

/// A hook that is forgotten, and an agent that dies, hangs or ends while it holds: the database goes on by itself, and what was held
/// says that it was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_an_agent_its_database_goes_on() {
    let (world, replicas) = world().await.unwrap();
    let space = world.space("agents").await.unwrap();
    let mut beside = Beside::start(&space, "pg-0", ServerKind::POSTGRESQL_15, &replicas).await.unwrap();
    beside.server.execute("postgres", "CREATE TABLE t (n int)").await.unwrap();
    for (signal, ends_as) in [("-KILL", "Lost"), ("-STOP", "Lost"), ("-TERM", "Lost")] {
        let held = beside.hold("WriteBlocked", 10).await.unwrap();
        assert!(!beside.is_writable(Duration::from_millis(500)).await, "{signal}: held");
        let began = Instant::now();
        beside.signal(signal).unwrap();
        assert!(beside.is_writable(LEASE_AND_A_SECOND).await, "{signal}: it goes on");
        println!("{signal}: writable after {} ms", began.elapsed().as_millis());
        let freeze = beside.freeze(&held["freeze"], &["Lost", "Expired", "Failed"]).await.unwrap();
        assert_eq!(freeze["status"]["phase"], ends_as, "{signal}: {freeze}");
        assert_ne!(freeze["status"]["proved"], true);
        // Whoever asks while there is none is told what to do.
        if signal != "-STOP" {
            let refused = beside.hold("Durable", 10).await.unwrap_err().to_string();
            assert!(refused.contains("none is connected"), "{refused}");
        }
        beside.again().await.unwrap();
    }
    let (good, said) = beside.command(&["freeze", "--for", "2s", "--level", "WriteBlocked"]).unwrap();
    assert!(good, "{said}");
    assert!(beside.is_writable(LEASE_AND_A_SECOND).await, "the post hook never came");
    let (good, said) = beside.command(&["thaw"]).unwrap();
    assert!(!good && said.contains("NOT proved"), "{said}");
    // A replica that dies lets go, too: its agents hear it at once.
    let held = beside.hold("WriteBlocked", 10).await.unwrap();
    assert!(!beside.is_writable(Duration::from_millis(500)).await);
    world.first(crate::replica::Replica::kill).unwrap();
    assert!(beside.is_writable(LEASE_AND_A_SECOND).await);
    world.start_again().await.unwrap();
    let freeze = beside.freeze(&held["freeze"], &["Lost"]).await.unwrap();
    assert_ne!(freeze["status"]["proved"], true);
    beside.is_ready().await.unwrap();
}

/// What was given up comes to hold for nobody, also when what was in its way is gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hook_that_gives_up_leaves_nothing_behind() {
    let (world, replicas) = world().await.unwrap();
    let space = world.space("agents").await.unwrap();
    let beside = Beside::start(&space, "pg-0", ServerKind::POSTGRESQL_15, &replicas).await.unwrap();
    beside.server.execute("postgres", "CREATE TABLE t (n int)").await.unwrap();
    let patient = json!({"spec": {"freeze": {"acquireTimeoutSeconds": 10}}}).to_string();
    space.kubectl(&["patch", "databases.stillpoint.dev", "pg-0", "--type=merge", "-p", &patient]).await.unwrap();
    let mut in_the_way = beside.server.postgres("postgres", USER, PASSWORD).await.unwrap();
    sqlx::raw_sql("BEGIN; INSERT INTO t VALUES (0)").execute(&mut in_the_way).await.unwrap();

    let began = Instant::now();
    let hook = ["freeze", "--for", "10s", "--level", "WriteBlocked", "--within"];
    let (good, said) = beside.command(&[&hook[..], &["2s"]].concat()).unwrap();
    assert!(!good && said.contains("given up") && began.elapsed() < Duration::from_secs(8), "{said}");
    sqlx::raw_sql("COMMIT").execute(&mut in_the_way).await.unwrap();
    let freezes = until("what was begun is over", SOON, async || {
        let freezes: Value = serde_json::from_str(&space.kubectl(&["get", "freezes", "-o", "json"]).await?)?;
        let freezes = freezes["items"].as_array().context("none")?.clone();
        ensure!(!freezes.is_empty() && freezes.iter().all(|one| one["status"]["phase"] == "Failed"), "{freezes:?}");
        Ok(freezes)
    })
    .await
    .unwrap();
    assert!(beside.is_writable(Duration::from_secs(1)).await, "{freezes:?}");
    let (good, said) = beside.command(&["thaw"]).unwrap();
    assert!(good && said.contains("nothing was held"), "{said}");

    // The control: with nothing in the way it holds. And whoever thaws what somebody else has ended is told.
    let (good, said) = beside.command(&[&hook[..], &["10s"]].concat()).unwrap();
    assert!(good && !beside.is_writable(Duration::from_millis(500)).await, "{said}");
    let all = space.file("all", &json!({"spec": {"force": true}})).unwrap();
    space.kubectl(&["create", "--raw", &space.verb("pg-0", "unquiesce"), "-f", &all]).await.unwrap();
    assert!(beside.is_writable(SOON).await);
    let (good, said) = beside.command(&["thaw"]).unwrap();
    assert!(!good && said.contains("NOT proved"), "{said}");
}

/// Says who it is, from this address, and what the replica says to that.
async fn knock(world: &World, replicas: &str, from: &str, hello: &Hello) -> Result<Welcome> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(format!("{from}:0").parse()?)?;
    let tcp: TcpStream = socket.connect(replicas.parse()?).await?;
    let config = certs::client_config(&world.authority().await?, PROTOCOL)?;
    let name = rustls::pki_types::ServerName::try_from(api::install::REPLICAS)?;
    let mut stream = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config)).connect(name, tcp).await?;
    freeze::remote::write(&mut stream, hello).await?;
    freeze::remote::read(&mut stream).await?.context("it went without a word")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_pods_own_agent_is_let_in_for_it() {
    let (world, replicas) = world().await.unwrap();
    let space = world.space("agents").await.unwrap();
    for name in ["pg-0", "other"] {
        pod(&space, name).await.unwrap();
    }
    let own = token(&space, "pg-0", AUDIENCE).await.unwrap();
    let unbound = space.kubectl(&["create", "token", "db", "--audience", AUDIENCE]).await.unwrap();
    let (uid, others) = (uid(&space, "pg-0").await.unwrap(), uid(&space, "other").await.unwrap());
    let hello = |token: &str, pod: &str, pod_uid: &str| Hello {
        token: token.trim().to_owned(),
        namespace: space.name.clone(),
        pod: pod.to_owned(),
        pod_uid: pod_uid.to_owned(),
        engine: api::Engine::PostgreSQL,
        version: "test".to_owned(),
    };
    let good = hello(&own, "pg-0", &uid);
    until("the Pod is known, and its agent let in", SOON, async || {
        let welcome = knock(&world, &replicas, "127.0.0.1", &good).await?;
        ensure!(matches!(welcome, Welcome::Come { .. }), "{welcome:?}");
        Ok(())
    })
    .await
    .unwrap();
    let audience = token(&space, "pg-0", "gates.stillpoint.dev").await.unwrap();
    let stolen = token(&space, "other", AUDIENCE).await.unwrap();
    let resigned = |seconds| tokens::at_another_time(&world.cluster, &own, seconds).unwrap();
    let (again, expired) = (resigned(-60), resigned(-24 * 3_600));
    // The control: one that was signed here is as good as any, as long as it is not too old.
    let welcome = knock(&world, &replicas, "127.0.0.1", &hello(&again, "pg-0", &uid)).await.unwrap();
    assert!(matches!(welcome, Welcome::Come { .. }), "{welcome:?}");
    for (what, from, hello, says) in [
        ("a token that has expired", "127.0.0.1", hello(&expired, "pg-0", &uid), ""),
        ("a token of another Pod", "127.0.0.1", hello(&stolen, "pg-0", &uid), "Pod other"),
        ("another Pod's name", "127.0.0.1", hello(&own, "other", &others), "Pod pg-0"),
        ("another run of the Pod", "127.0.0.1", hello(&own, "pg-0", &others), "Pod pg-0"),
        ("a token for somebody else", "127.0.0.1", hello(&audience, "pg-0", &uid), ""),
        ("a token that is bound to no Pod", "127.0.0.1", hello(&unbound, "pg-0", &uid), "bound to no Pod"),
        ("no token", "127.0.0.1", hello("", "pg-0", &uid), ""),
        ("no token at all", "127.0.0.1", hello("x.y.z", "pg-0", &uid), ""),
        ("from elsewhere", "127.0.0.2", hello(&own, "pg-0", &uid), "comes from 127.0.0.2"),
    ] {
        let welcome = knock(&world, &replicas, from, &hello).await.unwrap();
        let Welcome::Refused { why } = welcome else { panic!("{what}: {welcome:?}") };
        println!("{what}: {why}");
        assert!(why.to_lowercase().contains(&says.to_lowercase()), "{what}: {why}");
    }
    // What is over with its Pod is over.
    space.kubectl(&["delete", "pod", "pg-0", "--force", "--grace-period=0"]).await.unwrap();
    let welcome = knock(&world, &replicas, "127.0.0.1", &good).await.unwrap();
    assert!(matches!(welcome, Welcome::Refused { .. }), "{welcome:?}");
}
