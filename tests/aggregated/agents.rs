//! Agents beside real databases: what they hold for replicas behind a real kube-apiserver, who is let in as one, and what is left when
//! one of them, or the network between them, is gone.
//!
//! The Pods are objects that no node runs: the agent and its database are processes of this host, at the Pod's address.

mod faults;
mod tokens;

use std::{
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use api::agent::{AUDIENCE, Hello, PROTOCOL, Welcome};
use cluster::until;
use fixtures::{Engine, Options, PASSWORD, Port, Server, ServerKind, USER};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};

use crate::{
    wire::whole,
    world::{SOON, Setup, Space, World},
};

/// What an agent and its Pod are made of.
struct Beside<'s> {
    space: &'s Space<'s>,
    pod: &'static str,
    server: Server,
    /// Its credentials, its token and its socket.
    directory: TempDir,
    replicas: String,
    /// Of its agent's, beside what every agent is told.
    environment: Vec<(&'static str, String)>,
    child: Child,
}

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

/// A Pod that is at 127.0.0.1, as far as anybody is told.
pub(crate) async fn pod(space: &Space<'_>, name: &str) -> Result<()> {
    space.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "db"}})).await?;
    space
        .apply(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"serviceAccountName": "db", "containers": [{"name": "db", "image": "none"}]},
        }))
        .await?;
    let status = json!({"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    space.kubectl(&["patch", "pod", name, "--subresource=status", "-p", &status.to_string()]).await.map(drop)
}

/// A token that is bound to a Pod.
pub(crate) async fn token(space: &Space<'_>, pod: &str, audience: &str) -> Result<String> {
    let bound =
        ["create", "token", "db", "--bound-object-kind=Pod", "--bound-object-name", pod, "--audience", audience];
    Ok(space.kubectl(&bound).await?.trim().to_owned())
}

pub(crate) async fn uid(space: &Space<'_>, pod: &str) -> Result<String> {
    space.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]).await
}

impl<'s> Beside<'s> {
    /// With a Database that names no Secret, and is frozen by its agent or not at all.
    async fn start(space: &'s Space<'s>, pod: &'static str, kind: ServerKind, replicas: &str) -> Result<Self> {
        Self::start_in(space, pod, kind, replicas, Vec::new()).await
    }

    /// Its agent in this environment.
    async fn start_in(
        space: &'s Space<'s>,
        pod: &'static str,
        kind: ServerKind,
        replicas: &str,
        environment: Vec<(&'static str, String)>,
    ) -> Result<Self> {
        let server = Server::start(kind, Options::default()).await?;
        self::pod(space, pod).await?;
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("username"), USER)?;
        std::fs::write(directory.path().join("password"), PASSWORD)?;
        std::fs::write(directory.path().join("token"), token(space, pod, AUDIENCE).await?)?;
        let uid = uid(space, pod).await?;
        let mut command = agent(space, pod, &uid, &server, directory.path().to_owned(), replicas).await?;
        let child = command.envs(environment.clone()).spawn()?;
        let beside = Self { space, pod, server, directory, replicas: replicas.to_owned(), environment, child };
        space
            .apply(json!({
                "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": pod},
                "spec": {
                    "engine": beside.engine(), "endpoint": {"host": "127.0.0.1", "port": beside.server.port},
                    "agent": "Required",
                },
            }))
            .await?;
        beside.is_ready().await?;
        Ok(beside)
    }

    fn engine(&self) -> &'static str {
        match self.server.kind.engine {
            Engine::PostgreSQL => "PostgreSQL",
            Engine::MariaDB => "MariaDB",
        }
    }

    async fn is_ready(&self) -> Result<()> {
        // Looks are a minute apart, and one that found nobody is not made again for an agent that comes.
        until("its agent is asked", SOON, async || {
            let dry = format!("{}?dryRun=All", self.space.verb(self.pod, "quiesce"));
            let said = self.space.kubectl(&["create", "--raw", &dry, "-f", "/dev/null"]).await?;
            let said: Value = serde_json::from_str(&said)?;
            let failed =
                said["status"]["checks"].as_array().context("no checks")?.iter().any(|check| check["result"] == "Fail");
            ensure!(!failed, "{said}");
            Ok(())
        })
        .await
    }

    /// Runs a command of the agent's, as a hook would: whether it went well, and what it said.
    fn command(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let output = Command::new(tests::binary("stillpoint-agent")?)
            .args(arguments)
            .env("STILLPOINT_RUN", self.directory.path())
            .output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    async fn hold(&self, level: &str, seconds: u32) -> Result<Value> {
        let body = self.space.file("hold", &json!({"spec": {"level": level, "ttlSeconds": seconds}}))?;
        let answer =
            self.space.kubectl(&["create", "--raw", &self.space.verb(self.pod, "quiesce"), "-f", &body]).await?;
        Ok(serde_json::from_str::<Value>(&answer)?["status"].take())
    }

    /// A commit is acknowledged within so long.
    async fn is_writable(&self, within: Duration) -> bool {
        let write = match self.server.kind.engine {
            Engine::PostgreSQL => "INSERT INTO t VALUES (1)",
            Engine::MariaDB => "INSERT INTO shop.t VALUES (1)",
        };
        tokio::time::timeout(within, self.server.execute("postgres", write)).await.is_ok_and(|done| done.is_ok())
    }

    async fn freeze(&self, name: &Value, phases: &[&str]) -> Result<Value> {
        let name = name.as_str().context("no name")?;
        self.space
            .until_json(&format!("{phases:?}"), &["get", "freezes", name, "-o", "json"], |freeze| {
                phases.iter().any(|phase| freeze["status"]["phase"] == *phase)
            })
            .await
    }

    fn signal(&self, signal: &str) -> Result<()> {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status()?;
        ensure!(sent.success(), "kill {signal}");
        Ok(())
    }

    async fn again(&mut self) -> Result<()> {
        self.child.kill().ok();
        self.child.wait().ok();
        let uid = uid(self.space, self.pod).await?;
        let directory = self.directory.path().to_owned();
        let mut command = agent(self.space, self.pod, &uid, &self.server, directory, &self.replicas).await?;
        self.child = command.envs(self.environment.clone()).spawn()?;
        self.is_ready().await
    }
}

impl Drop for Beside<'_> {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The agent of a Pod, to be started.
pub(crate) async fn agent(
    space: &Space<'_>,
    pod: &str,
    uid: &str,
    server: &Server,
    directory: PathBuf,
    replicas: &str,
) -> Result<Command> {
    let engine = match server.kind.engine {
        Engine::PostgreSQL => "PostgreSQL",
        Engine::MariaDB => "MariaDB",
    };
    let log = std::fs::File::create(space.world.cluster.root().join(format!("{}-{pod}-agent.log", space.name)))?;
    let mut command = Command::new(tests::binary("stillpoint-agent")?);
    command
        .arg("run")
        .env_clear()
        .env("STILLPOINT_ENGINE", engine)
        .env("STILLPOINT_ADDRESS", format!("127.0.0.1:{}", server.port))
        .env("STILLPOINT_APISERVER", replicas)
        .env("STILLPOINT_CA", space.world.authority().await?)
        .env("STILLPOINT_CREDENTIALS", &directory)
        .env("STILLPOINT_TOKEN_FILE", directory.join("token"))
        .env("STILLPOINT_RUN", &directory)
        .env("POD_NAMESPACE", &space.name)
        .env("POD_NAME", pod)
        .env("POD_UID", uid)
        .stdout(Stdio::null())
        .stderr(log);
    Ok(command)
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
