//! A server that is put together and serves nobody yet, and its life: serving, draining, gone. What differs between standalone
//! and aggregated is put in by `standalone.rs` and `aggregated.rs`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::bail;
use certs::{Bound, Limits};
use freeze::{Drivers, Freezer};
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::{task::JoinSet, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{error, info, warn};

use crate::{
    app::App,
    auth::{Authenticator, Authorizer},
    controllers,
    directory::Directory,
    journal::{RecordsJournal, Told},
    metrics::Metrics,
    objects::Objects,
    records::Records,
    registry::Registry,
    resources::Served,
    verbs::Verbs,
};

/// A server that listens, and serves nobody yet.
pub struct Server {
    pub(crate) bound: Bound,
    pub(crate) tls: rustls::ServerConfig,
    pub(crate) address: SocketAddr,
    pub(crate) core: Core,
    /// Loops beside those that every server has. The end of one ends the server.
    pub(crate) loops: Vec<Loop>,
    pub(crate) drain: Duration,
    /// How long it serves after it was told to stop, for those who have not heard of it yet.
    pub(crate) linger: Duration,
}

/// Its name, for the log.
pub(crate) type Loop = (&'static str, BoxFuture<'static, ()>);

/// What answers, and what it stands on.
pub(crate) struct Core {
    pub(crate) app: Arc<App>,
    pub(crate) freezer: Freezer,
    pub(crate) verbs: Verbs,
    told: tokio::sync::mpsc::Receiver<Told>,
    pub(crate) stopping: CancellationToken,
    /// The store's writer, and whatever the verbs set going.
    pub(crate) tasks: TaskTracker,
}

/// What a [`Core`] is made of.
pub(crate) struct Parts {
    pub(crate) served: Served,
    pub(crate) identity: String,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) registry: Option<Registry>,
    pub(crate) drivers: Drivers,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stopping: CancellationToken,
}

/// How long tasks may take to end when nothing is held any more.
const LAST: Duration = Duration::from_secs(5);

impl Core {
    /// Nothing is frozen until `Verbs::recovered` says that what a dead server left is known.
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { served, identity, records, registry, drivers, authenticator, authorizer, tasks, stopping } = parts;
        let metrics = Arc::new(Metrics::new());
        let (journal, told) = RecordsJournal::new(Arc::clone(&records), Arc::clone(&metrics));
        let directory = Directory { records: Arc::clone(&records), drivers };
        let epoch = Timestamp::now().as_microsecond();
        let freezer = Freezer::new(identity, epoch, journal, Arc::new(directory.clone()));
        let verbs = Verbs {
            records,
            freezer: freezer.clone(),
            directory,
            authorizer: Arc::clone(&authorizer),
            tasks: tasks.clone(),
            recovered: CancellationToken::new(),
            stored: CancellationToken::new(),
            replicas: Arc::default(),
        };
        let app = Arc::new(App {
            served,
            authenticator,
            authorizer: Arc::clone(&authorizer),
            objects: Objects { served, registry, verbs: verbs.clone(), authorizer },
            metrics,
            stopping: stopping.clone(),
        });
        Self { app, freezer, verbs, told, stopping, tasks }
    }
}

impl Server {
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends [`Server::run`] when it is cancelled.
    pub fn stopping(&self) -> CancellationToken {
        self.core.stopping.clone()
    }

    /// Serves until `stopping`; then no new freezes, those that hold may end, the rest is thawed.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { bound, tls, address, core, loops: more, drain, linger } = self;
        let Core { app, freezer, verbs, told, stopping, tasks } = core;
        let (records, replicas) = (Arc::clone(&verbs.records), Arc::clone(&verbs.replicas));
        let serving = CancellationToken::new();
        // No loop that is cut off: when nothing is held any more it writes what it was told, as the store does.
        let mut telling = tasks.spawn(controllers::events::run(Arc::clone(&records), told, serving.clone()));
        let mut loops = spawn(more);
        loops.spawn(controllers::freeze::run(verbs.clone()));
        loops.spawn(controllers::database::run(verbs));
        loops.spawn(controllers::housekeeping::freezes(Arc::clone(&records)));
        loops.spawn(async move {
            records.lost().await;
            error!("objects cannot be kept any more");
        });
        let service = {
            let app = Arc::clone(&app);
            move |request, peer| Arc::clone(&app).serve(request, peer)
        };
        let server = tokio::spawn(bound.serve(tls, service, Limits::default(), serving.clone()));
        info!(%address, "serving");
        let died = tokio::select! {
            // First: some loops end with it, and have not died.
            biased;
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
        tokio::join!(freezer.drain(drain), sleep(if died { Duration::ZERO } else { linger }));
        if let Some(replicas) = replicas.get() {
            replicas.leave().await;
        }
        serving.cancel();
        server.await?;
        loops.shutdown().await;
        // The store's writer ends with its last user.
        drop((app, freezer));
        tasks.close();
        if tokio::time::timeout(LAST, tasks.wait()).await.is_err() {
            warn!("some tasks did not end in time");
        }
        if died {
            bail!("a loop that must not end has ended; see the log")
        }
        Ok(())
    }
}

fn spawn(loops: Vec<Loop>) -> JoinSet<()> {
    let mut set = JoinSet::new();
    for (name, work) in loops {
        set.spawn(async move {
            work.await;
            error!(name, "a loop has ended");
        });
    }
    set
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
