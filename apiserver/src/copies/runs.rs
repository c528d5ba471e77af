//! What a run is: a task that is done by another process, which says how it goes.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use api::{
    Database,
    runner::{Report, RunnerTemplate, Task},
};
use async_trait::async_trait;
use k8s_openapi::{api::batch::v1::Job, apimachinery::pkg::apis::meta::v1::OwnerReference};
use tokio::sync::{mpsc, oneshot};

use crate::error::ApiError;

/// What is to be done.
pub(crate) struct Order {
    /// No other run's, ever.
    pub(crate) name: String,
    pub(crate) task: Task,
    /// Only what the task names. The values are read where it is done: by a kubelet, or for a child process.
    pub(crate) secrets: Keys,
    pub(crate) place: Place,
}

/// By Secret, the keys of it.
pub(crate) type Keys = BTreeMap<String, Vec<String>>;

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

/// Of what several have named, each once.
pub(crate) fn keys(wanted: Vec<(&str, Vec<&str>)>) -> Keys {
    let mut keys = Keys::new();
    for (secret, of) in wanted {
        keys.entry(secret.to_owned()).or_default().extend(of.into_iter().map(str::to_owned));
    }
    for of in keys.values_mut() {
        of.sort();
        of.dedup();
    }
    keys
}

/// As whoever reads Secrets is asked.
pub(crate) fn named(keys: &Keys) -> Vec<(&str, Vec<&str>)> {
    keys.iter().map(|(secret, keys)| (secret.as_str(), keys.iter().map(String::as_str).collect())).collect()
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
    /// The Job that [`begin`](Self::begin) makes of it, where runs are Jobs.
    async fn job(&self, order: &Order) -> Result<Job, ApiError>;

    async fn begin(&self, order: Order) -> Result<Running, NotBegun>;

    /// One that somebody else has begun, if it is still there.
    async fn resume(&self, namespace: &str, name: &str) -> Result<Option<Running>, ApiError>;
}

/// Where nobody does any.
#[derive(Debug)]
pub(crate) struct NoRuns;

#[async_trait]
impl Runs for NoRuns {
    async fn job(&self, _: &Order) -> Result<Job, ApiError> {
        Err(nobody_does())
    }

    async fn begin(&self, _: Order) -> Result<Running, NotBegun> {
        Err(NotBegun::Refused(nobody_does()))
    }

    async fn resume(&self, _: &str, _: &str) -> Result<Option<Running>, ApiError> {
        Ok(None)
    }
}

fn nobody_does() -> ApiError {
    ApiError::unavailable(
        "dumps are neither taken nor restored here: start the server with --runner-image (runners.enabled of the chart)",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_that_several_name_is_there_once_with_the_keys_of_all() {
        let wanted = vec![("account", vec!["user", "password"]), ("ca", vec!["ca.crt"]), ("account", vec!["password"])];
        let of = |secret: &str, keys: &[&str]| (secret.to_owned(), keys.iter().map(|key| (*key).to_owned()).collect());
        assert_eq!(keys(wanted), Keys::from([of("account", &["password", "user"]), of("ca", &["ca.crt"])]));
    }
}
