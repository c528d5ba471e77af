//! One control plane for all tests, and Stillpoint behind it, installed from deploy/. Each test has a namespace of its own.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, Identity, Options, ServicePort, until};
use fixtures::{Engine, PASSWORD, Port, Server, USER};
use serde_json::{Value, json};
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard, OnceCell};

use crate::replica::Replica;

pub(crate) const SOON: Duration = Duration::from_secs(30);
pub(crate) const SERVICE: &str = "stillpoint-apiserver";
pub(crate) const NAMESPACE: &str = "stillpoint";

/// What every test stands on.
pub(crate) struct World {
    pub(crate) cluster: Cluster,
    pub(crate) replica: Replica,
    /// The replica's.
    kubeconfig: PathBuf,
    port: Port,
}

/// A namespace of one test's.
pub(crate) struct Space {
    pub(crate) world: &'static World,
    pub(crate) name: String,
}

impl World {
    /// Started by whoever is first.
    pub(crate) async fn get() -> &'static Self {
        static WORLD: OnceCell<World> = OnceCell::const_new();
        WORLD.get_or_init(|| async { Self::start().await.expect("a cluster with Stillpoint") }).await
    }

    /// Another one, for one test at a time: what floods or stops a server would be in the way of all others.
    pub(crate) async fn alone() -> MappedMutexGuard<'static, Self> {
        static WORLD: Mutex<Option<World>> = Mutex::const_new(None);
        let mut guard = WORLD.lock().await;
        if guard.is_none() {
            *guard = Some(Self::start().await.expect("a second cluster with Stillpoint"));
        }
        MutexGuard::map(guard, |world| world.as_mut().expect("it was just started"))
    }

    async fn start() -> Result<Self> {
        let cluster = Cluster::start(Options { aggregator_routing: true, fsync: false }).await?;
        cluster.kubectl(&["create", "namespace", NAMESPACE]).await?.ok()?;
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let files = ["crds/databases.yaml", "crds/freezes.yaml", "apiserver/rights.yaml", "apiserver/api.yaml"];
        for file in files {
            cluster.apply(&std::fs::read_to_string(deploy.join(file))?).await.context(file)?;
        }
        let port = Port::reserve()?;
        cluster.register_service(NAMESPACE, SERVICE, &[ServicePort::https(&[port.number])]).await?;
        let account = Identity::service_account(NAMESPACE, SERVICE);
        let kubeconfig = cluster.kubeconfig_of(&account).await?;
        let replica = Replica::start(&cluster, &kubeconfig, &port).await?;
        let world = Self { cluster, replica, kubeconfig, port };
        world.available().await?;
        Ok(world)
    }

    /// Waits until kube-apiserver sends us what is ours.
    pub(crate) async fn available(&self) -> Result<()> {
        let name = format!("{}.{}", api::VERSION, api::LIVE_GROUP);
        let wait = ["wait", "--for=condition=Available", "--timeout=60s", "apiservice", &name];
        self.cluster.kubectl(&wait).await?.ok().context("the APIService is available").map(drop)
    }

    /// Starts the replica again, whatever became of it.
    pub(crate) async fn start_replica_again(&mut self) -> Result<()> {
        self.replica.kill();
        self.replica = Replica::start(&self.cluster, &self.kubeconfig, &self.port).await?;
        self.available().await
    }

    /// A namespace in which Stillpoint may read Secrets.
    pub(crate) async fn space(&'static self, prefix: &str) -> Result<Space> {
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

impl Space {
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
                "credentials": {"secretRef": {"name": account}},
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
