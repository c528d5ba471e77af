//! The command line, and the assembly: args → bound → running.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use certs::{Bound, Leaf, Limits};
use clap::{Parser, ValueEnum};
use freeze::{Drivers, Freezer};
use jiff::Timestamp;
use serde_json::json;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
    time::interval,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    app::App,
    auth::standalone::{Known, Roles},
    controllers,
    data_dir::{DataDir, LEAF_LIFE},
    directory::Directory,
    journal::{RecordsJournal, Told},
    metrics::Metrics,
    objects::Objects,
    records::Records,
    recovery,
    registry::Registry,
    resources::{self, NAMESPACES},
    store::Store,
    verbs::Verbs,
};

/// Holds databases still while their copies are taken: verbs, live views, and, standalone, the stored kinds.
///
/// `--standalone` needs no cluster: one process on loopback that an unmodified kubectl talks to.
#[derive(Debug, Parser)]
#[command(name = "stillpoint-apiserver", version)]
pub struct Args {
    /// Serve everything from this one process, without a cluster.
    #[arg(long, required = true)]
    standalone: bool,
    /// Where objects, keys and kubeconfigs are kept. Made if it is not there (0700).
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// Where to listen; loopback only. Port 0 takes a free one, which the ready line and the kubeconfigs name.
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:7443")]
    listen: SocketAddr,
    /// After SIGTERM: how long freezes that hold may go on before they are thawed, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    drain_seconds: u64,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What is logged (`RUST_LOG` syntax).
    #[arg(long, value_name = "FILTER", env = "STILLPOINT_LOG", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// A server that listens and is recovered, and serves nobody yet.
#[derive(Debug)]
pub struct Server {
    bound: Bound,
    tls: rustls::ServerConfig,
    app: Arc<App>,
    freezer: Freezer,
    verbs: Verbs,
    registry: Registry,
    told: tokio::sync::mpsc::Receiver<Told>,
    leaf: Arc<Leaf>,
    data_dir: DataDir,
    address: SocketAddr,
    stopping: CancellationToken,
    /// The store's writer and whatever the verbs set going.
    tasks: TaskTracker,
    drain: Duration,
}

/// Renewed when a third of its life is left.
const RENEW_EVERY: Duration = Duration::from_secs(LEAF_LIFE.as_secs() * 2 / 3);

impl Args {
    /// Runs until a signal, or until something that must not end has ended.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { standalone: _, data_dir, listen, drain_seconds, log_format, log } = self;
        start_logging(log_format, &log)?;
        let drain = Duration::from_secs(drain_seconds);
        let server = Server::bind(&data_dir, listen, drain, Drivers::real()).await?;
        let kubeconfig = data_dir.join("admin.kubeconfig");
        // The one line on stdout: whoever starts us waits for it.
        println!("ready: https://{} KUBECONFIG={}", server.address(), kubeconfig.display());
        let stop = server.stopping.clone();
        let mut signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
        let watch = tokio::spawn(async move {
            let [terminate, interrupt] = &mut signals;
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            stop.cancel();
        });
        let result = server.run().await;
        watch.abort();
        result
    }
}

impl Server {
    /// Opens the data directory, listens, and takes care of what a dead server left. `drivers`: tests bring their own.
    pub async fn bind(
        path: &std::path::Path,
        listen: SocketAddr,
        drain: Duration,
        drivers: Drivers,
    ) -> anyhow::Result<Self> {
        if !listen.ip().is_loopback() {
            bail!("--listen {listen} is not a loopback address: a standalone server is for this machine only");
        }
        let now = Timestamp::now();
        let data_dir = DataDir::open(path)?;
        let authority = data_dir.authority(now)?;
        let tokens = data_dir.tokens()?;
        let bound = Bound::bind(listen).await?;
        let address = bound.address().context("the address that we listen on")?;
        let leaf = Leaf::new(&DataDir::leaf(&authority, address, now)?)?;
        let tls = certs::server_config(Arc::clone(&leaf))?;
        data_dir.write_kubeconfigs(address, &authority, &tokens)?;
        let (tasks, stopping) = (TaskTracker::new(), CancellationToken::new());
        let store = Store::open(&data_dir.objects(), &resources::stored(), &tasks)?;
        let registry = Registry::new(store);
        ensure_default_namespace(&registry).await?;
        let metrics = Arc::new(Metrics::new());
        let records: Arc<dyn Records> = Arc::new(registry.clone());
        let (journal, told) = RecordsJournal::new(Arc::clone(&records), Arc::clone(&metrics));
        let directory = Directory { records: Arc::clone(&records), drivers };
        let identity = format!("standalone/{}", std::process::id());
        let freezer = Freezer::new(identity, now.as_microsecond(), journal, Arc::new(directory.clone()));
        let authorizer = Arc::new(Roles);
        let verbs = Verbs {
            records: Arc::clone(&records),
            freezer: freezer.clone(),
            directory,
            authorizer: authorizer.clone(),
            tasks: tasks.clone(),
        };
        recovery::recover(records.as_ref(), &freezer);
        let app = Arc::new(App {
            authenticator: Arc::new(Known::new(authority.certificate().into(), tokens)),
            authorizer: authorizer.clone(),
            objects: Objects { registry: registry.clone(), verbs: verbs.clone(), authorizer },
            metrics,
            stopping: stopping.clone(),
        });
        Ok(Self { bound, tls, app, freezer, verbs, registry, told, leaf, data_dir, address, stopping, tasks, drain })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends [`Server::run`] when it is cancelled.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Serves until `stopping`; then no new freezes, those that hold may end, the rest is thawed.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { bound, tls, app, freezer, verbs, registry, told, leaf, data_dir, address, stopping, tasks, drain } =
            self;
        let records = Arc::clone(&verbs.records);
        let serving = CancellationToken::new();
        let mut loops = JoinSet::new();
        // No loop that is cut off: when nothing is held any more it writes what it was told, as the store does.
        let mut telling = tasks.spawn(controllers::events::run(Arc::clone(&records), told, serving.clone()));
        loops.spawn(controllers::freeze::run(verbs.clone()));
        loops.spawn(controllers::database::run(verbs));
        loops.spawn(controllers::housekeeping::namespaces(registry.clone()));
        loops.spawn(controllers::housekeeping::events(registry));
        loops.spawn(controllers::housekeeping::freezes(Arc::clone(&records)));
        loops.spawn(async move {
            records.lost().await;
            error!("nothing can be written any more: the store's writer has ended");
        });
        loops.spawn(renew_leaf(data_dir, leaf, address));
        let service = {
            let app = Arc::clone(&app);
            move |request, peer| Arc::clone(&app).serve(request, peer)
        };
        let server = tokio::spawn(bound.serve(tls, service, Limits::default(), serving.clone()));
        info!(%address, "serving");
        let died = tokio::select! {
            () = stopping.cancelled() => false,
            ended = loops.join_next() => {
                warn!(?ended, "a loop that must not end has ended");
                true
            }
            ended = &mut telling => {
                warn!(?ended, "the telling of phases has ended");
                true
            }
        };
        stopping.cancel();
        info!("stopping: no new freezes; those that hold have {} s", drain.as_secs());
        // While it drains, claims can still be ended: the listener is closed last.
        freezer.drain(drain).await;
        serving.cancel();
        server.await?;
        loops.shutdown().await;
        // The store's writer ends with its last user.
        drop((app, freezer));
        tasks.close();
        if tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await.is_err() {
            warn!("some tasks did not end in time");
        }
        if died {
            bail!("a loop that must not end has ended; see the log")
        }
        Ok(())
    }
}

async fn ensure_default_namespace(registry: &Registry) -> anyhow::Result<()> {
    if registry.get(&NAMESPACES, None, "default").is_ok() {
        return Ok(());
    }
    let namespace = json!({"metadata": {"name": "default"}, "status": {"phase": "Active"}});
    match registry.create_with_status(&NAMESPACES, "", &namespace).await {
        Ok(_) => Ok(()),
        Err(error) => bail!("the namespace \"default\" could not be made: {}", error.internal.unwrap_or(error.message)),
    }
}

async fn renew_leaf(data_dir: DataDir, leaf: Arc<Leaf>, address: SocketAddr) {
    let mut tick = interval(RENEW_EVERY);
    tick.tick().await;
    loop {
        tick.tick().await;
        let now = Timestamp::now();
        let renewed = data_dir.authority(now).and_then(|authority| DataDir::leaf(&authority, address, now));
        match renewed.map(|pair| leaf.replace(&pair)) {
            Ok(Ok(())) => info!("the serving certificate was renewed"),
            Ok(Err(error)) => warn!(%error, "the serving certificate was not renewed"),
            Err(error) => warn!(%error, "the serving certificate was not renewed"),
        }
    }
}

fn start_logging(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).context("--log")?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
