//! Copies of databases: where they are kept, how they are taken, and what is really there.
//!
//! ```text
//! Repository ─► repositories   made, opened, looked at
//! Snapshot   ─► snapshots      observe ─► plan (pure) ─► a run (another process) ─► reports ─► status (pure)
//! Restore    ─► restores       the same
//! in a cluster: VolumeSnapshots and claims of them ─► volumes
//! live       ─► catalogue      Snapshots and what is in repositories, as one list
//!               download       files of a copy, in ranges
//!               generate       what is made for a Snapshot or a Restore, for people to see
//!               check          whether a repository is whole
//! ```

mod ambient;
pub(crate) mod catalogue;
mod check;
mod children;
mod depot;
mod download;
mod generate;
mod hear;
mod jobs;
mod kept;
mod log;
mod repositories;
mod restores;
mod runs;
mod slots;
mod snapshots;
mod status;
mod tell;
mod tools;
mod volumes;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

use api::{Repository, Restore, Snapshot, SnapshotMethod};
use futures::{FutureExt, future::BoxFuture};
use jiff::SignedDuration;
use kube::Client;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    indexed::Watched,
    records::Records,
    registry::Registry,
    resources::{REPOSITORIES, RESTORES, SNAPSHOTS},
};
pub(crate) use ambient::Ambient;
use check::Checking;
pub(crate) use check::LONGEST as LONGEST_CHECK;
use children::Children;
pub use children::RUNNER;
use depot::Depot;
pub(crate) use download::Download;
use jobs::Jobs;
use kept::{InCluster, Kept, Own};
use log::Log;
use restores::Claimed;
use runs::{NoRuns, Runs};
use slots::Slots;
use status::Pace;
use tools::Tools;
pub(crate) use volumes::Storage;

/// How often the progress of a step is written in a cluster; elsewhere it is as often as a run tells it.
const PROGRESS: SignedDuration = SignedDuration::from_secs(5);

/// Everything that copies are made with. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Copies {
    records: Arc<dyn Records>,
    repositories: Arc<dyn Kept<Repository>>,
    snapshots: Arc<dyn Kept<Snapshot>>,
    restores: Arc<dyn Kept<Restore>>,
    tools: Tools,
    depot: Depot,
    runs: Arc<dyn Runs>,
    dumping: Slots,
    restoring: Slots,
    /// The Databases that something is restored into here, in their namespaces.
    targets: Claimed,
    lead: Lead,
    /// In a cluster.
    storage: Option<Storage>,
    tasks: TaskTracker,
    logs: Log,
    checking: Checking,
}

/// What copies of a cluster are made with.
pub(crate) struct Place {
    pub(crate) client: Client,
    /// Its requests may be silent for long.
    pub(crate) watching: Client,
    pub(crate) storage: Storage,
    pub(crate) watched: Watched,
    /// The image with the runner of dumps in it. `None`: none are taken.
    pub(crate) runner_image: Option<String>,
    pub(crate) ambient: Ambient,
}

/// Whether what only one replica has to do is done here.
pub(crate) type Leads = Arc<dyn Fn() -> bool + Send + Sync>;

/// That, as it was set before anything is done. A standalone server has no other.
#[derive(Clone, Default)]
struct Lead(Arc<OnceLock<Leads>>);

/// Dumps at once, and Restores, as processes of this machine; and as Jobs of a cluster.
const CHILDREN: usize = 4;
const JOBS: usize = 64;

impl Copies {
    /// Of a standalone server: `home` is for its runs alone.
    pub(crate) fn standalone(registry: &Registry, home: PathBuf, tasks: &TaskTracker) -> anyhow::Result<Self> {
        let records: Arc<dyn Records> = Arc::new(registry.clone());
        let depot = Depot::new(Arc::clone(&records), Ambient::All);
        Ok(Self {
            runs: Arc::new(Children::new(home, depot.clone())?),
            depot,
            records,
            repositories: Own::shared(registry, &REPOSITORIES),
            snapshots: Own::shared(registry, &SNAPSHOTS),
            restores: Own::shared(registry, &RESTORES),
            tools: Tools::Own(registry.clone()),
            dumping: Slots::new(CHILDREN),
            restoring: Slots::new(CHILDREN),
            targets: Claimed::default(),
            lead: Lead::default(),
            storage: None,
            tasks: tasks.clone(),
            logs: Log::default(),
            checking: Checking::default(),
        })
    }

    /// Of a cluster: begins to mirror what is declared.
    pub(crate) fn in_cluster(
        records: Arc<dyn Records>,
        place: &Place,
        tasks: &TaskTracker,
        over: &CancellationToken,
    ) -> Self {
        let Place { client, watching, storage, watched, runner_image, ambient } = place;
        let runs: Arc<dyn Runs> = match runner_image {
            Some(image) => Arc::new(Jobs::new(client.clone(), watching.clone(), image.clone(), watched.clone())),
            None => Arc::new(NoRuns),
        };
        Self {
            depot: Depot::new(Arc::clone(&records), *ambient),
            records,
            repositories: InCluster::begin(client.clone(), watching.clone(), &REPOSITORIES, tasks, over),
            snapshots: InCluster::begin(client.clone(), watching.clone(), &SNAPSHOTS, tasks, over),
            restores: InCluster::begin(client.clone(), watching.clone(), &RESTORES, tasks, over),
            tools: Tools::InCluster(client.clone()),
            runs,
            dumping: Slots::new(JOBS),
            restoring: Slots::new(JOBS),
            targets: Claimed::default(),
            lead: Lead::default(),
            storage: Some(storage.clone()),
            tasks: tasks.clone(),
            logs: Log::default(),
            checking: Checking::default(),
        }
    }

    /// Of a cluster: what is done where `leads` says so.
    pub(crate) fn loops_in_cluster(&self, place: Place, leads: &Leads) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        self.lead.0.set(Arc::clone(leads)).ok();
        let mut loops = volumes::loops(self, &place.storage, place.watching);
        loops.extend(self.loops());
        loops
    }

    /// Of one run. Each write of a cluster goes to etcd, and to all who watch.
    fn pace(&self) -> Pace {
        if self.storage.is_some() { Pace::with_rest(PROGRESS) } else { Pace::default() }
    }

    /// Whether a Snapshot is of volumes, which are taken elsewhere.
    fn is_of_volumes(&self, snapshot: &Snapshot) -> bool {
        self.storage.is_some() && snapshot.spec.method == SnapshotMethod::VolumeSnapshot
    }

    pub(crate) fn loops(&self) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        vec![
            ("repositories", repositories::run(self.clone()).boxed()),
            ("dumps", snapshots::run(self.clone()).boxed()),
            ("restores of dumps", restores::run(self.clone()).boxed()),
        ]
    }
}

impl Lead {
    fn is_ours(&self) -> bool {
        self.0.get().is_none_or(|leads| leads())
    }
}

impl fmt::Debug for Lead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lead").finish_non_exhaustive()
    }
}
