//! What runs of a Snapshot leave: copies that nobody heard of, locks of the dead; and what goes with it when it is deleted.

use std::time::Duration;

use api::{DeletionPolicy, Snapshot, SnapshotStatus, runner::Dumped};
use tokio::time::sleep;
use tracing::debug;

use super::order::{replication_of, replications_of, runs_of};
use crate::{
    copies::{Copies, kept::who, status},
    error::ApiError,
};

/// How long is waited after a repository did not do what it should.
const AGAIN: Duration = Duration::from_secs(5);

impl Copies {
    /// What a run before has stored, of which nobody heard: it died, or we did.
    pub(super) async fn stored_before(&self, snapshot: &Snapshot) -> Option<Dumped> {
        let status = snapshot.status.as_ref()?;
        if !status.begun {
            return None;
        }
        let (namespace, _, uid) = who(snapshot);
        let name = snapshot.spec.repository.clone()?;
        let repository = self.repositories.get(&namespace, &name).await.ok()?;
        let entries = self.depot.look(&namespace, &name, &repository.spec).await.entries;
        let locations: Vec<String> = repository.spec.locations.iter().map(|location| location.name.clone()).collect();
        entries.iter().rev().find_map(|entry| status::of_entry(entry, &uid, &locations))
    }

    /// No run of it will follow: what locks the last ones may have left is removed now, or is stale in half an hour.
    pub(super) async fn unlock(&self, snapshot: &Snapshot) {
        if snapshot.status.as_ref().is_none_or(|status| !status.begun) {
            return;
        }
        let (namespace, name, uid) = who(snapshot);
        let of = snapshot.spec.repository.clone().unwrap_or_default();
        let Ok(repository) = self.repositories.get(&namespace, &of).await else { return };
        let over = runs_of(snapshot).into_iter().chain([replications_of(&uid)]).collect();
        if let Err(closed) = self.depot.unlock(&namespace, &of, &repository.spec, over).await {
            debug!(namespace, name, message = closed.message, "a lock of a dead run may be left");
        }
    }

    /// Of one that is deleted: nothing of it goes on. Whether something did, which may have stored what nobody has heard of.
    async fn end_runs(&self, snapshot: &Snapshot) -> Result<bool, ApiError> {
        let (namespace, _, uid) = who(snapshot);
        let replications = snapshot.status.as_ref().map_or(0, |status| status.replications);
        let mut went_on = false;
        for name in runs_of(snapshot).pop().into_iter().chain([replication_of(&uid, replications)]) {
            if let Some(running) = self.runs.resume(&namespace, &name).await? {
                running.end().await;
                went_on = true;
            }
        }
        Ok(went_on)
    }

    pub(super) async fn let_go(&self, snapshot: &Snapshot) -> Result<(), ApiError> {
        let (namespace, name, _) = who(snapshot);
        let went_on = self.end_runs(snapshot).await?;
        if went_on && snapshot.spec.deletion_policy == DeletionPolicy::Delete {
            return self.forget(snapshot).await;
        }
        self.unlock(snapshot).await;
        self.snapshots.let_go(&namespace, &name, api::FINALIZER_SNAPSHOT).await
    }

    /// What was stored goes with its Snapshot: also by a run that nobody heard of again.
    pub(super) async fn forget(&self, snapshot: &Snapshot) -> Result<(), ApiError> {
        let (namespace, name, uid) = who(snapshot);
        self.end_runs(snapshot).await?;
        let id = snapshot.status.as_ref().and_then(|status| status.id.clone());
        let of = snapshot.spec.repository.clone().unwrap_or_default();
        let forgotten = match self.repositories.get(&namespace, &of).await {
            // Nobody could say any more where it is.
            Err(error) if error.code == 404 => Ok(()),
            Err(error) => return Err(error),
            Ok(repository) => {
                self.unlock(snapshot).await;
                self.depot.remove(&namespace, &of, &repository.spec, id, uid).await
            }
        };
        match forgotten {
            Ok(()) => self.snapshots.let_go(&namespace, &name, api::FINALIZER_SNAPSHOT).await,
            Err(closed) => {
                let message = format!(
                    "it cannot be removed from Repository {of}: {}; trying again. To leave it there, set spec.deletionPolicy: Retain",
                    closed.message
                );
                let said = |status: SnapshotStatus| SnapshotStatus { message: Some(message.clone()), ..status };
                self.change(snapshot, said).await?;
                sleep(AGAIN).await;
                Ok(())
            }
        }
    }
}
