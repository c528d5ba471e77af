//! One control plane for all tests, and Stillpoint behind it, installed from deploy/. Each test has a namespace of its own.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, Identity, Options, ServicePort, until};
use fixtures::{Engine, PASSWORD, USER};
use serde_json::{Value, json};
use tokio::sync::{self, MappedMutexGuard, OnceCell};

use crate::{replica::Replica, wire::Server};

pub(crate) const SOON: Duration = Duration::from_secs(30);
pub(crate) const SERVICE: &str = "stillpoint-apiserver";
pub(crate) const NAMESPACE: &str = "stillpoint";
/// Our APIService.
pub(crate) const APISERVICE: &str = "v1alpha1.live.stillpoint.dev";

/// What every test stands on.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    /// Those that run.
    replicas: Mutex<Vec<Replica>>,
    /// The replicas' kubeconfig.
    account: PathBuf,
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
            *guard = Some(Self::of(&["one"]).await.expect("a second cluster with Stillpoint"));
        }
        sync::MutexGuard::map(guard, |world| world.as_mut().expect("it was just started"))
    }

    /// One for a test that kills replicas.
    pub(crate) async fn start() -> Result<Self> {
        Self::of(&["one", "two"]).await
    }

    async fn of(replicas: &[&str]) -> Result<Self> {
        let cluster = Cluster::start(Options { aggregator_routing: true, fsync: false }).await?;
        cluster.kubectl(&["create", "namespace", NAMESPACE]).await?.ok()?;
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let files = ["crds/databases.yaml", "crds/freezes.yaml", "apiserver/rights.yaml", "apiserver/api.yaml"];
        for file in files {
            cluster.apply(&std::fs::read_to_string(deploy.join(file))?).await.context(file)?;
        }
        let account = cluster.kubeconfig_of(&Identity::service_account(NAMESPACE, SERVICE)).await?;
        let world = Self { cluster, replicas: Mutex::default(), account };
        for name in replicas {
            world.add_replica(name).await?;
        }
        world.available(Duration::from_secs(60)).await?;
        Ok(world)
    }

    /// Waits until kube-apiserver sends us what is ours.
    pub(crate) async fn available(&self, within: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", within.as_secs());
        let wait = ["wait", "--for=condition=Available", &timeout, "apiservice", APISERVICE];
        self.cluster.kubectl(&wait).await?.ok().context("the APIService is available").map(drop)
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
        for replica in self.running().iter_mut().filter(|replica| replica.name == name) {
            replica.signal(signal)?;
        }
        self.route().await
    }

    /// The first of those that run. What is done to it here the Service does not hear of.
    pub(crate) fn first<T>(&self, with: impl FnOnce(&mut Replica) -> T) -> Result<T> {
        Ok(with(self.running().first_mut().context("no replica runs")?))
    }

    /// Starts the first replica again at its address, whatever became of it.
    pub(crate) async fn start_again(&self) -> Result<()> {
        let old = self.running().remove(0);
        let new = old.again(&self.cluster, &self.account).await?;
        self.running().insert(0, new);
        Ok(())
    }

    /// Tells one to stop, as a kubelet would, and has the Service forget it only after a while: the news travels. Returns when it
    /// has ended well.
    pub(crate) async fn retire(&self, name: &str, news: Duration) -> Result<()> {
        let mut replica = {
            let mut running = self.running();
            let at = running.iter().position(|replica| replica.name == name).context("no such replica")?;
            running.remove(at)
        };
        replica.signal("-TERM")?;
        tokio::time::sleep(news).await;
        self.route().await?;
        until("it ends", SOON, || {
            let ended = replica.ended();
            async move {
                ensure!(ended?.context("it still runs")?.success(), "it ended badly");
                Ok(())
            }
        })
        .await
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
        let ports: Vec<u16> =
            self.running().iter().filter(running).map(|replica| replica.server.address.port()).collect();
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
