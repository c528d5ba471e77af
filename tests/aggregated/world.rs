//! One control plane for all tests, and Stillpoint behind it, installed from deploy/. Each test has a namespace of its own.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, Identity, Options, ServicePort, until};
use fixtures::{Engine, PASSWORD, Port, Server, USER};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, oneshot};

pub(crate) const SOON: Duration = Duration::from_secs(30);
pub(crate) const SERVICE: &str = api::install::ACCOUNT;
pub(crate) const NAMESPACE: &str = api::install::NAMESPACE;

/// What is applied of deploy/: all but the server itself, which is a process of this host.
const INSTALLED: [&str; 6] = [
    "crds/databases.yaml",
    "crds/freezes.yaml",
    "apiserver/namespace.yaml",
    "apiserver/rights.yaml",
    "apiserver/policies.yaml",
    "apiserver/api.yaml",
];

/// What every test stands on.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    /// Those that run.
    pub(crate) replicas: Mutex<Vec<Replica>>,
    pub(crate) account: PathBuf,
}

/// One `stillpoint-apiserver`, as a process of this host. Killed when it is dropped.
pub(crate) struct Replica {
    name: String,
    child: Child,
    port: Port,
    stopped: bool,
}

/// A namespace of one test's.
pub(crate) struct Space<'w> {
    pub(crate) world: &'w World,
    pub(crate) name: String,
}

impl World {
    /// Started by whoever is first.
    pub(crate) async fn get() -> &'static Self {
        static WORLD: OnceCell<World> = OnceCell::const_new();
        WORLD.get_or_init(|| async { Self::start().await.expect("a cluster with Stillpoint") }).await
    }

    /// One for a test that kills replicas.
    pub(crate) async fn start() -> Result<Self> {
        let cluster = Cluster::start(Options { aggregator_routing: true, fsync: false }).await?;
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        for file in INSTALLED {
            cluster.apply(&std::fs::read_to_string(deploy.join(file))?).await.context(file)?;
        }
        let account = Identity::ServiceAccount { namespace: NAMESPACE.to_owned(), name: SERVICE.to_owned() };
        let account = cluster.kubeconfig_of(&account).await?;
        let world = Self { cluster, replicas: Mutex::default(), account };
        for name in ["one", "two"] {
            world.add_replica(name).await?;
        }
        let cluster = &world.cluster;
        let name = format!("{}.{}", api::VERSION, api::LIVE_GROUP);
        let wait = ["wait", "--for=condition=Available", "--timeout=60s", "apiservice", &name];
        cluster.kubectl(&wait).await?.ok().context("the APIService is available")?;
        Ok(world)
    }

    /// Starts one more, and has the Service lead to all that run.
    pub(crate) async fn add_replica(&self, name: &str) -> Result<()> {
        let replica = Replica::start(&self.cluster, &self.account, name).await?;
        self.running().push(replica);
        self.route().await
    }

    /// Kills one as a crash would, and has the Service lead to those that are left, as a node's controller does.
    pub(crate) async fn kill(&self, name: &str) -> Result<()> {
        self.running().retain(|replica| replica.name != name);
        self.route().await
    }

    /// Stopped, it keeps its connections and answers nothing; the Service leads to it until it fails its probes, which here is at
    /// once.
    pub(crate) async fn signal(&self, name: &str, signal: &str) -> Result<()> {
        let stops = signal == "-STOP";
        for replica in self.running().iter_mut().filter(|replica| replica.name == name) {
            replica.stopped = stops;
            Command::new("kill").args([signal, &replica.child.id().to_string()]).status()?;
        }
        self.route().await
    }

    async fn route(&self) -> Result<()> {
        let running = |replica: &&Replica| !replica.stopped;
        let ports: Vec<u16> = self.running().iter().filter(running).map(|replica| replica.port.number).collect();
        self.cluster.register_service(NAMESPACE, SERVICE, &[ServicePort::https(&ports)]).await.map(drop)
    }

    fn running(&self) -> MutexGuard<'_, Vec<Replica>> {
        self.replicas.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A namespace in which Stillpoint may read Secrets.
    pub(crate) async fn space<'w>(&'w self, prefix: &str) -> Result<Space<'w>> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.cluster.kubectl(&["create", "namespace", &name]).await?.ok()?;
        let space = Space { world: self, name };
        let subject = format!("--serviceaccount={NAMESPACE}:{SERVICE}");
        space
            .kubectl(&["create", "rolebinding", "credentials", "--clusterrole=stillpoint:credentials", &subject])
            .await?;
        Ok(space)
    }
}

impl Replica {
    async fn start(cluster: &Cluster, kubeconfig: &Path, name: &str) -> Result<Self> {
        Self::start_with(cluster, kubeconfig, name, &["--identity".to_owned(), name.to_owned()]).await
    }

    /// With these arguments, beside where it listens.
    pub(crate) async fn start_with(cluster: &Cluster, kubeconfig: &Path, name: &str, more: &[String]) -> Result<Self> {
        let port = Port::reserve()?;
        let log = File::create(cluster.root().join(format!("{name}.log")))?;
        let mut command = Command::new("setpriv");
        command
            .arg("--pdeathsig=KILL")
            .arg(tests::binary("stillpoint-apiserver")?)
            .args(["--listen", &format!("0.0.0.0:{}", port.number), "--kubeconfig"])
            .arg(kubeconfig)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = spawn_for_good(command).await?;
        let stdout = child.stdout.take().context("no stdout")?;
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).map(|_| line)
        });
        let line = tokio::time::timeout(SOON, line).await.context("no line")???;
        ensure!(line.starts_with("listening:"), "it did not start; see its log");
        Ok(Self { name: name.to_owned(), child, port, stopped: false })
    }
}

impl Replica {
    pub(crate) fn port(&self) -> u16 {
        self.port.number
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it ended with, if it did.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }
}

/// From a thread that never ends: the kernel kills a child when the thread that spawned it is gone, and a test's threads go
/// with the test.
async fn spawn_for_good(mut command: Command) -> Result<Child> {
    let (sender, spawned) = oneshot::channel();
    thread::spawn(move || {
        sender.send(command.spawn()).ok();
        loop {
            thread::park();
        }
    });
    Ok(spawned.await??)
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Space<'_> {
    /// As the administrator; a failure is an error.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let all: Vec<&str> = ["--namespace", &self.name].into_iter().chain(arguments.iter().copied()).collect();
        self.world.cluster.kubectl(&all).await?.ok()
    }

    /// As somebody else; a refusal is an answer.
    pub(crate) async fn kubectl_as(&self, who: &Identity, arguments: &[&str]) -> Result<cluster::Output> {
        let all: Vec<&str> = ["--namespace", &self.name].into_iter().chain(arguments.iter().copied()).collect();
        self.world.cluster.kubectl_as(who, &all).await
    }

    pub(crate) async fn apply(&self, mut object: Value) -> Result<String> {
        object["metadata"]["namespace"] = self.name.as_str().into();
        self.world.cluster.apply(&object.to_string()).await
    }

    /// A Database with the administrator's account in a Secret, and waits until it is ready.
    pub(crate) async fn register(&self, name: &str, server: &Server) -> Result<()> {
        self.register_databases(name, server, &[]).await
    }

    /// Covering only these databases of the server.
    pub(crate) async fn register_databases(&self, name: &str, server: &Server, databases: &[&str]) -> Result<()> {
        let account = format!("{name}-account");
        self.apply(json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": account},
            "stringData": {"username": USER, "password": PASSWORD},
        }))
        .await?;
        let engine = match server.kind.engine {
            Engine::PostgreSQL => "PostgreSQL",
            Engine::MariaDB => "MariaDB",
        };
        self.apply(json!({
            "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": name},
            "spec": {
                "engine": engine, "endpoint": {"host": "127.0.0.1", "port": server.port},
                "credentials": {"secretRef": {"name": account}}, "databases": databases,
            },
        }))
        .await?;
        let wait = ["wait", "--for=condition=Ready", "--timeout=60s", "databases.stillpoint.dev", name];
        self.kubectl(&wait).await.map(drop)
    }

    /// The path of a Database's verb, for `kubectl create --raw`.
    pub(crate) fn verb(&self, database: &str, verb: &str) -> String {
        format!("/apis/{}/{}/namespaces/{}/databases/{database}/{verb}", api::LIVE_GROUP, api::VERSION, self.name)
    }

    /// A verb as the administrator; the status of the answer.
    pub(crate) async fn run(&self, database: &str, verb: &str) -> Result<Value> {
        let answer = self.kubectl(&["create", "--raw", &self.verb(database, verb), "-f", "/dev/null"]).await?;
        Ok(serde_json::from_str::<Value>(&answer)?["status"].take())
    }

    /// A file with this in it, for kubectl.
    pub(crate) fn file(&self, name: &str, body: &Value) -> Result<String> {
        let path = self.world.cluster.root().join(format!("{}-{name}.json", self.name));
        std::fs::write(&path, body.to_string())?;
        Ok(path.display().to_string())
    }

    pub(crate) async fn until_json(
        &self,
        what: &str,
        arguments: &[&str],
        is_so: impl Fn(&Value) -> bool,
    ) -> Result<Value> {
        until(what, SOON, || async {
            let object: Value = serde_json::from_str(&self.kubectl(arguments).await?)?;
            ensure!(is_so(&object), "{object}");
            Ok(object)
        })
        .await
    }
}
