//! Copies of databases: where they are kept, how they are taken, and what is really there.
//!
//! ```text
//! Repository ─► repositories   made, opened, looked at
//! Snapshot   ─► snapshots      observe ─► plan (pure) ─► a run (another process) ─► reports ─► status (pure)
//! Restore    ─► restores       the same
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

use std::{path::PathBuf, sync::Arc};

use api::{Repository, Restore, Snapshot};
use futures::{FutureExt, future::BoxFuture};
use tokio_util::task::TaskTracker;

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
use kept::{Kept, Own};
use log::Log;
use runs::Runs;

/// Everything that copies are made with. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Copies {
    records: Arc<dyn Records>,
    repositories: Arc<dyn Kept<Repository>>,
    snapshots: Arc<dyn Kept<Snapshot>>,
    restores: Arc<dyn Kept<Restore>>,
    depot: Depot,
    runs: Arc<dyn Runs>,
    tasks: TaskTracker,
    logs: Log,
    checking: Checking,
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
            tasks: tasks.clone(),
            logs: Log::default(),
            checking: Checking::default(),
        })
    }

    pub(crate) fn loops(&self) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        vec![
            ("repositories", repositories::run(self.clone()).boxed()),
            ("snapshots", snapshots::run(self.clone()).boxed()),
            ("restores", restores::run(self.clone()).boxed()),
        ]
    }
}
