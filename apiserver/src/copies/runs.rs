//! What a run is: a task that is done by another process, which says how it goes.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use api::{
    Database,
    runner::{Report, RunnerTemplate, Task},
};
use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use tokio::sync::{mpsc, oneshot};

use crate::error::ApiError;

/// What is to be done.
pub(crate) struct Order {
    /// No other run's, ever.
    pub(crate) name: String,
    pub(crate) task: Task,
    /// Values by Secret and key: only those that the task names.
    pub(crate) secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pub(crate) place: Place,
}

/// Where it is done, and how, where that is to be said.
pub(crate) struct Place {
    pub(crate) namespace: String,
    /// The Snapshot or Restore.
    pub(crate) owner: OwnerReference,
    pub(crate) template: RunnerTemplate,
    /// Those whose servers' own programs it needs.
    pub(crate) databases: Vec<Arc<Database>>,
    /// It is ended then, whatever it does.
    pub(crate) longest: Duration,
}

/// A run that was begun. Dropped, a child process is told to end, and then made to; a Job goes on, or stays with what it has said, and is
/// heard by whoever leads next: so it is told to end only when what it has said is written.
pub(crate) struct Running {
    /// Ends when nothing more will be said; the last one says how it went, unless the process died.
    pub(crate) reports: mpsc::Receiver<Report>,
    pub(crate) end: oneshot::Sender<()>,
    /// Whoever has the other half drops it when nothing of the run is left.
    pub(crate) gone: oneshot::Receiver<()>,
}

/// Why a run was not begun.
#[derive(Debug)]
pub(crate) enum NotBegun {
    /// Nothing of it is there, nor will be.
    Refused(ApiError),
    /// It may be there: nobody has answered.
    Unknown(ApiError),
}

impl Running {
    /// Tells it to end, if it goes on still, and waits until nothing of it is left.
    pub(crate) async fn end(self) {
        let Self { mut reports, end, gone } = self;
        end.send(()).ok();
        while reports.recv().await.is_some() {}
        gone.await.ok();
    }
}

/// Who does tasks: child processes, or Jobs.
#[async_trait]
pub(crate) trait Runs: fmt::Debug + Send + Sync {
    async fn begin(&self, order: Order) -> Result<Running, NotBegun>;

    /// One that somebody else has begun, if it is still there.
    async fn resume(&self, namespace: &str, name: &str) -> Result<Option<Running>, ApiError>;
}

/// Where nobody does any.
#[derive(Debug)]
pub(crate) struct NoRuns;

#[async_trait]
impl Runs for NoRuns {
    async fn begin(&self, _: Order) -> Result<Running, NotBegun> {
        Err(NotBegun::Refused(ApiError::unavailable(
            "dumps are neither taken nor restored here: start the server with --runner-image (runners.enabled of the chart)",
        )))
    }

    async fn resume(&self, _: &str, _: &str) -> Result<Option<Running>, ApiError> {
        Ok(None)
    }
}
