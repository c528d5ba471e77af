//! Copies of databases: where they are kept, how they are taken, and what is really there.
//!
//! ```text
//! Repository ─► repositories   made, opened, looked at
//! Snapshot   ─► snapshots      observe ─► plan (pure) ─► a run (another process) ─► reports ─► status (pure)
//! Restore    ─► restores       the same
//! in a cluster: VolumeSnapshots and claims of them ─► volumes
//! live       ─► catalogue      Snapshots and what is in repositories, as one list
//!               download       files of a copy, in ranges
//!               check          whether a repository is whole
//! ```

pub(crate) mod catalogue;
mod check;
mod children;
mod depot;
mod download;
mod kept;
mod log;
mod repositories;
mod restores;
mod runs;
mod snapshots;
mod status;
mod tell;
mod volumes;

use std::{path::PathBuf, sync::Arc};

use api::{Repository, Restore, Snapshot};
use futures::{FutureExt, future::BoxFuture};
use kube::Client;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    records::Records,
    registry::Registry,
    resources::{REPOSITORIES, RESTORES, SNAPSHOTS},
};
use check::Checking;
pub(crate) use check::LONGEST as LONGEST_CHECK;
use children::Children;
pub use children::RUNNER;
use depot::Depot;
pub(crate) use download::Download;
use kept::{InCluster, Kept, Nothing, Own};
use log::Log;
use runs::{NoRuns, Runs};
pub(crate) use volumes::{Leads, Storage};

/// Everything that copies are made with. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Copies {
    records: Arc<dyn Records>,
    repositories: Arc<dyn Kept<Repository>>,
    snapshots: Arc<dyn Kept<Snapshot>>,
    restores: Arc<dyn Kept<Restore>>,
    depot: Depot,
    runs: Arc<dyn Runs>,
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
}

impl Copies {
    /// Of a standalone server: `home` is for its runs alone.
    pub(crate) fn standalone(registry: &Registry, home: PathBuf, tasks: &TaskTracker) -> anyhow::Result<Self> {
        let records: Arc<dyn Records> = Arc::new(registry.clone());
        Ok(Self {
            depot: Depot::new(Arc::clone(&records)),
            records,
            repositories: Own::shared(registry, &REPOSITORIES),
            snapshots: Own::shared(registry, &SNAPSHOTS),
            restores: Own::shared(registry, &RESTORES),
            runs: Arc::new(Children::new(home)?),
            storage: None,
            tasks: tasks.clone(),
            logs: Log::default(),
            checking: Checking::default(),
        })
    }

    /// Of a cluster: begins to mirror what is declared. Dumps are not taken there yet, so there are no Repositories.
    pub(crate) fn in_cluster(
        records: Arc<dyn Records>,
        place: &Place,
        tasks: &TaskTracker,
        over: &CancellationToken,
    ) -> Self {
        let Place { client, watching, storage } = place;
        Self {
            depot: Depot::new(Arc::clone(&records)),
            records,
            repositories: Nothing::of(&REPOSITORIES),
            snapshots: InCluster::begin(client.clone(), watching.clone(), &SNAPSHOTS, tasks, over),
            restores: InCluster::begin(client.clone(), watching.clone(), &RESTORES, tasks, over),
            runs: Arc::new(NoRuns),
            storage: Some(storage.clone()),
            tasks: tasks.clone(),
            logs: Log::default(),
            checking: Checking::default(),
        }
    }

    /// Of a cluster: what is done where `leads` says so.
    pub(crate) fn loops_in_cluster(&self, place: Place, leads: &Leads) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        volumes::loops(self, &place.storage, leads, place.watching)
    }

    pub(crate) fn loops(&self) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        vec![
            ("repositories", repositories::run(self.clone()).boxed()),
            ("snapshots", snapshots::run(self.clone()).boxed()),
            ("restores", restores::run(self.clone()).boxed()),
        ]
    }
}
