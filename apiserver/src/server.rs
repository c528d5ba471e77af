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
    agents::Agents,
    app::App,
    auth::{Authenticator, Authorizer},
    controllers,
    copies::Copies,
    directory::Directory,
    health::Condition,
    journal::{RecordsJournal, Told},
    metrics::Metrics,
    objects::Objects,
    records::Records,
    registry::Registry,
    resources::Served,
    shown::Shown,
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
    pub(crate) ending: Ending,
}

/// How a server ends after SIGTERM.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// How long it goes on as it was, but for new freezes: until nobody is sent here any more.
    pub delay: Duration,
    /// How long freezes that hold may go on after that.
    pub drain: Duration,
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
    /// Cancelled when nothing is held any more, and nobody is answered.
    pub(crate) over: CancellationToken,
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
    pub(crate) agents: Option<Agents>,
    pub(crate) copies: Option<Copies>,
    pub(crate) authenticator: Arc<dyn Authenticator>,
    pub(crate) authorizer: Arc<dyn Authorizer>,
    pub(crate) conditions: Vec<Arc<Condition>>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stopping: CancellationToken,
    pub(crate) over: CancellationToken,
}

/// How long tasks may take to end when nothing is held any more.
const LAST: Duration = Duration::from_secs(5);

impl Core {
    /// Nothing is frozen until `Verbs::recovered` says that what a dead server left is known.
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts {
            served,
            identity,
            records,
            registry,
            drivers,
            agents,
            copies,
            authenticator,
            authorizer,
            conditions,
            tasks,
            stopping,
            over,
        } = parts;
        let metrics = Arc::new(Metrics::new());
        let replicas = Arc::default();
        let (journal, told) = RecordsJournal::new(Arc::clone(&records), Arc::clone(&metrics), Arc::clone(&replicas));
        let in_cluster = served == Served::Aggregated;
        let directory =
            Directory { records: Arc::clone(&records), drivers, in_cluster, agents, replicas: Arc::clone(&replicas) };
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
            shown: Shown::default(),
            replicas,
        };
        let app = Arc::new(App {
            served,
            authenticator,
            authorizer: Arc::clone(&authorizer),
            objects: Objects { served, registry, verbs: verbs.clone(), copies, authorizer },
            metrics,
            conditions,
            stopping: stopping.clone(),
        });
        Self { app, freezer, verbs, told, stopping, over, tasks }
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
        let Self { bound, tls, address, core, loops: more, ending } = self;
        let Core { app, freezer, verbs, told, stopping, over, tasks } = core;
        let (records, replicas) = (Arc::clone(&verbs.records), Arc::clone(&verbs.replicas));
        // No loop that is cut off: when nothing is held any more it writes what it was told, as the store does.
        let mut telling = tasks.spawn(controllers::events::run(Arc::clone(&records), told, over.clone()));
        let mut loops = spawn(more);
        loops.spawn(controllers::freeze::run(verbs.clone()));
        loops.spawn(controllers::housekeeping::freezes(verbs.clone()));
        loops.spawn(controllers::database::run(verbs));
        loops.spawn(async move {
            records.lost().await;
            error!("objects cannot be kept any more");
        });
        let service = {
            let app = Arc::clone(&app);
            move |request, peer| Arc::clone(&app).serve(request, peer)
        };
        let server = tokio::spawn(bound.serve(tls, service, Limits::default(), over.clone()));
        info!(%address, "serving");
        let died = tokio::select! {
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
        let Ending { delay, drain } = ending;
        info!(
            "stopping: new freezes go to other replicas; after {} s those that hold have {} s",
            delay.as_secs(),
            drain.as_secs()
        );
        if let Some(replicas) = replicas.get().filter(|_| !died) {
            replicas.begin_to_leave();
            sleep(delay).await;
        }
        // While it drains, claims can still be ended: the listener is closed last.
        freezer.drain(drain).await;
        if let Some(replicas) = replicas.get() {
            replicas.leave().await;
        }
        over.cancel();
        server.await?;
        loops.shutdown().await;
        over.cancel();
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
