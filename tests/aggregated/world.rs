//! One control plane for all tests, and Stillpoint behind it, installed from deploy/. Each test has a namespace of its own.

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cluster::{Cluster, Identity, Options, ServicePort, until};
use fixtures::{Engine, PASSWORD, USER};
use serde_json::{Value, json};
use tokio::sync::{self, MappedMutexGuard, OnceCell};

use crate::{forwarder::Forwarder, replica::Replica, wire::Server};

pub(crate) const SOON: Duration = Duration::from_secs(30);
pub(crate) const SERVICE: &str = api::install::ACCOUNT;
pub(crate) const NAMESPACE: &str = api::install::NAMESPACE;

/// What is applied of deploy/: all but the server itself, which is a process of this host.
const INSTALLED: [&str; 10] = [
    "crds/databases.yaml",
    "crds/dumptools.yaml",
    "crds/freezes.yaml",
    "crds/repositories.yaml",
    "crds/restores.yaml",
    "crds/snapshots.yaml",
    "apiserver/namespace.yaml",
    "apiserver/rights.yaml",
    "apiserver/policies.yaml",
    "apiserver/api.yaml",
];
/// Our APIService.
pub(crate) const APISERVICE: &str = "v1alpha1.live.stillpoint.dev";

/// What every test stands on.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    /// Those that run.
    replicas: Mutex<Vec<Replica>>,
    /// The replicas' kubeconfig.
    pub(crate) account: PathBuf,
    /// What replicas are started with, beside what all are.
    arguments: Vec<String>,
    /// Between each replica and kube-apiserver, where a test may cut it.
    networks: Mutex<HashMap<String, Forwarder>>,
    can_be_cut: bool,
    /// Stands where the Service is, when kube-apiserver is told to go there.
    proxy: Option<Forwarder>,
}

/// How a world of a test's own is.
pub(crate) struct Setup {
    pub(crate) replicas: Vec<&'static str>,
    /// Whether kube-apiserver goes to the endpoints itself.
    pub(crate) aggregator_routing: bool,
    pub(crate) arguments: Vec<String>,
    /// Whether what is stored is on disk before it is answered.
    pub(crate) fsync: bool,
    /// Whether replicas can be cut off from kube-apiserver.
    pub(crate) can_be_cut: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            replicas: vec!["one", "two"],
            aggregator_routing: true,
            arguments: Vec::new(),
            fsync: false,
            can_be_cut: false,
        }
    }
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

    /// Another one, of one replica, for one test at a time: what floods or stops a server would be in the way of all others.
    /// Whoever had it leaves it as it was.
    pub(crate) async fn alone() -> MappedMutexGuard<'static, Self> {
        static WORLD: sync::Mutex<Option<World>> = sync::Mutex::const_new(None);
        let mut guard = WORLD.lock().await;
        if guard.is_none() {
            *guard = Some(
                Self::of(Setup { replicas: vec!["one"], ..Setup::default() })
                    .await
                    .expect("a second cluster with Stillpoint"),
            );
        }
        sync::MutexGuard::map(guard, |world| world.as_mut().expect("it was just started"))
    }

    /// One for a test that kills replicas.
    pub(crate) async fn start() -> Result<Self> {
        Self::of(Setup::default()).await
    }

    pub(crate) async fn of(setup: Setup) -> Result<Self> {
        let Setup { replicas, aggregator_routing, arguments, fsync, can_be_cut } = setup;
        let cluster = Cluster::start(Options { aggregator_routing, fsync, node: None }).await?;
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        for file in INSTALLED {
            cluster.apply(&std::fs::read_to_string(deploy.join(file))?).await.context(file)?;
        }
        let account = cluster.kubeconfig_of(&Identity::service_account(NAMESPACE, SERVICE)).await?;
        let proxy = if aggregator_routing {
            None
        } else {
            let service = cluster.register_service(NAMESPACE, SERVICE, &[ServicePort::https(&[])]).await?;
            Some(Forwarder::start((service, 443).into(), Vec::new()).await.context("at the Service's address")?)
        };
        let networks = Mutex::default();
        let world = Self { cluster, replicas: Mutex::default(), account, arguments, networks, can_be_cut, proxy };
        let any = !replicas.is_empty();
        for name in replicas {
            world.add_replica(name).await?;
        }
        if any {
            world.available(Duration::from_secs(60)).await?;
        }
        Ok(world)
    }

    /// Waits until kube-apiserver sends us what is ours.
    pub(crate) async fn available(&self, within: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", within.as_secs());
        let wait = ["wait", "--for=condition=Available", &timeout, "apiservice", APISERVICE];
        self.cluster.kubectl(&wait).await?.ok().context("the APIService is available")?;
        // Whoever passes requests on learns our authority a little later than whoever looks whether we are there.
        let group = format!("/apis/{}", api::LIVE_API_VERSION);
        until("requests are passed on", within, async || self.cluster.kubectl(&["get", "--raw", &group]).await?.ok())
            .await
            .map(drop)
    }

    /// Starts one more, and has the Service lead to all that run once it is ready.
    pub(crate) async fn add_replica(&self, name: &str) -> Result<()> {
        self.add_replica_with(name, &[]).await
    }

    /// With arguments of its own, beside what all have.
    pub(crate) async fn add_replica_with(&self, name: &str, more: &[String]) -> Result<()> {
        let account = if self.can_be_cut { &self.network(name).await? } else { &self.account };
        let arguments = [&self.arguments, more].concat();
        let replica = Replica::start(&self.cluster, account, name, &arguments).await?;
        replica.ready().await?;
        self.running().push(replica);
        self.route().await
    }

    /// A way to kube-apiserver of its own for one replica: its kubeconfig.
    async fn network(&self, name: &str) -> Result<PathBuf> {
        let mut kubeconfig: Value = serde_json::from_str(&std::fs::read_to_string(&self.account)?)?;
        let server = &mut kubeconfig["clusters"][0]["cluster"]["server"];
        let target =
            server.as_str().and_then(|server| server.strip_prefix("https://")).context("no server")?.parse()?;
        let network = Forwarder::start(([127, 0, 0, 1], 0).into(), vec![target]).await?;
        *server = format!("https://{}", network.address).into();
        let path = self.cluster.root().join(format!("{name}.kubeconfig"));
        std::fs::write(&path, kubeconfig.to_string())?;
        self.networks.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), network);
        Ok(path)
    }

    /// Between a replica and kube-apiserver nothing comes through from now on, or again.
    pub(crate) fn cut(&self, name: &str, cut: bool) {
        if let Some(network) = self.networks.lock().unwrap_or_else(PoisonError::into_inner).get(name) {
            network.cut(cut);
        }
    }

    /// Ends one as a kubelet does: told to stop, it is still sent requests until the news has travelled to the Service. Returns
    /// when it has ended well.
    pub(crate) async fn end(&self, name: &str, news: Duration) -> Result<()> {
        let mut replica = {
            let mut running = self.running();
            let at = running.iter().position(|replica| replica.name == name).context("no such replica")?;
            running.remove(at)
        };
        replica.signal("-TERM")?;
        tokio::time::sleep(news).await;
        self.route().await?;
        let status = until("it ends", SOON, || {
            let ended = replica.ended();
            async { ended?.context("it still runs") }
        })
        .await?;
        ensure!(status.success(), "{name} ended with {status}");
        Ok(())
    }

    /// What signs our certificates now, PEM.
    pub(crate) async fn authority(&self) -> Result<String> {
        let secret = ["--namespace", NAMESPACE, "get", "secret", "stillpoint-apiserver-ca"];
        self.decoded(&secret, "{.data.ca\\.crt}").await
    }

    /// What kube-apiserver trusts us by.
    pub(crate) async fn trusted(&self) -> Result<String> {
        self.decoded(&["get", "apiservice", APISERVICE], "{.spec.caBundle}").await
    }

    async fn decoded(&self, what: &[&str], path: &str) -> Result<String> {
        let path = format!("jsonpath={path}");
        let all: Vec<&str> = what.iter().copied().chain(["-o", &path]).collect();
        Ok(String::from_utf8(STANDARD.decode(self.cluster.kubectl(&all).await?.ok()?.trim())?)?)
    }

    /// Kills one as a crash would, and has the Service lead to those that are left, as a node's controller does.
    pub(crate) async fn kill(&self, name: &str) -> Result<()> {
        self.running().retain(|replica| replica.name != name);
        self.route().await
    }

    /// Stopped, it keeps its connections and answers nothing; the Service leads to it until it fails its probes, which here is at
    /// once.
    pub(crate) async fn signal(&self, name: &str, signal: &str) -> Result<()> {
        for replica in self.running().iter_mut().filter(|replica| replica.name == name) {
            replica.signal(signal)?;
        }
        self.route().await
    }

    /// The first of those that run. What is done to it here the Service does not hear of.
    pub(crate) fn first<T>(&self, with: impl FnOnce(&mut Replica) -> T) -> Result<T> {
        Ok(with(self.running().first_mut().context("no replica runs")?))
    }

    /// Of each that runs.
    pub(crate) fn of_each<T>(&self, of: impl Fn(&Replica) -> Result<T>) -> Result<Vec<T>> {
        self.running().iter().map(of).collect()
    }

    /// Starts the first replica again at its address, whatever became of it, and waits until it is ready: before, what it shows is
    /// trusted by nobody, and a kubelet would lead nobody there.
    pub(crate) async fn start_again(&self) -> Result<()> {
        let old = self.running().remove(0);
        let new = old.again(&self.cluster, &self.account, &self.arguments).await?;
        new.ready().await?;
        self.running().insert(0, new);
        Ok(())
    }

    pub(crate) fn servers(&self) -> Vec<Server> {
        self.running().iter().map(|replica| replica.server.clone()).collect()
    }

    /// The first replica is there again, whatever became of it: one that was stopped goes on, any other starts again.
    pub(crate) async fn back(&self) -> Result<()> {
        let stopped = self.first(|replica| replica.is_stopped())?;
        if stopped { self.first(|replica| replica.signal("-CONT"))? } else { self.start_again().await }
    }

    /// What the first replica said last, for messages of failed tests.
    pub(crate) fn log_end(&self) -> String {
        let name = self.first(|replica| replica.name.clone()).unwrap_or_default();
        let text = std::fs::read_to_string(self.cluster.root().join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    async fn route(&self) -> Result<()> {
        let running = |replica: &&Replica| !replica.is_stopped();
        let addresses: Vec<SocketAddr> =
            self.running().iter().filter(running).map(|replica| replica.server.address).collect();
        if let Some(proxy) = &self.proxy {
            proxy.lead_to(addresses.clone());
        }
        let ports: Vec<u16> = addresses.iter().map(SocketAddr::port).collect();
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

impl Space<'_> {
    /// Waits until the namespace is gone.
    pub(crate) async fn is_gone(&self, within: Duration) -> Result<()> {
        until("the namespace is gone", within, || async {
            let left = ["get", "namespace", &self.name, "--ignore-not-found", "-o", "json"];
            let left = self.world.cluster.kubectl(&left).await?.ok()?;
            ensure!(left.is_empty(), "{left}");
            Ok(())
        })
        .await
    }

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
    pub(crate) async fn register(&self, name: &str, server: &fixtures::Server) -> Result<()> {
        self.register_databases(name, server, &[]).await
    }

    /// Covering only these databases of the server.
    pub(crate) async fn register_databases(
        &self,
        name: &str,
        server: &fixtures::Server,
        databases: &[&str],
    ) -> Result<()> {
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
