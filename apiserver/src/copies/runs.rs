//! What a run is: a task that is done by another process, which says how it goes.

use std::{collections::BTreeMap, fmt};

use api::runner::{Report, Task};
use async_trait::async_trait;
use tokio::sync::mpsc;

use crate::error::ApiError;

/// What is to be done.
pub(crate) struct Order {
    /// No other run's, ever.
    pub(crate) name: String,
    pub(crate) task: Task,
    /// Values by Secret and key: only those that the task names.
    pub(crate) secrets: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

/// A run that was begun. Dropped, it is told to end, and then made to.
pub(crate) struct Running {
    /// Ends when the process has; the last one says how it went, unless it died.
    pub(crate) reports: mpsc::Receiver<Report>,
    /// Ends the run when it is dropped.
    pub(crate) hold: Box<dyn Send + Sync>,
}

impl Running {
    /// Tells it to end, and waits until it has.
    pub(crate) async fn end(self) {
        let Self { mut reports, hold } = self;
        drop(hold);
        while reports.recv().await.is_some() {}
    }
}

/// Who does tasks: child processes, or Jobs.
#[async_trait]
pub(crate) trait Runs: fmt::Debug + Send + Sync {
    async fn begin(&self, order: Order) -> Result<Running, ApiError>;
}

/// Where nobody does any yet.
#[derive(Debug)]
pub(crate) struct NoRuns;

#[async_trait]
impl Runs for NoRuns {
    async fn begin(&self, _order: Order) -> Result<Running, ApiError> {
        Err(ApiError::unavailable("dumps are neither taken nor restored in a cluster yet"))
    }
}
