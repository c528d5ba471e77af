//! How the status of a Snapshot is written, while a run of it is heard and otherwise.

use api::{Snapshot, SnapshotStatus, runner::DUMPING};
use jiff::Timestamp;

use crate::{
    copies::{
        Copies,
        hear::{Event, Heard, Hearing},
        kept::{change_where, who},
        runs::Running,
    },
    error::ApiError,
};

impl Copies {
    /// Follows a run to its end; its progress is shown meanwhile. An error: it goes on, and is heard elsewhere.
    pub(super) async fn hear(
        &self,
        snapshot: &Snapshot,
        running: &mut Running,
        deadline: Timestamp,
    ) -> Result<Heard, ApiError> {
        let mut hearing = Hearing::new(self, running, deadline);
        loop {
            let progress = match hearing.next(self, &*self.snapshots, snapshot).await? {
                Event::Progress(progress) => progress,
                Event::Over(heard) => return Ok(heard),
            };
            let shown = |status: SnapshotStatus| SnapshotStatus {
                begun: status.begun || progress.step == DUMPING,
                progress: Some(progress.clone()),
                ..status
            };
            if self.change(snapshot, shown).await.is_ok() {
                hearing.has_written(&progress);
            }
        }
    }

    /// There is more or less in its Repository than somebody has seen.
    pub(super) fn has_changed(&self, snapshot: &Snapshot) {
        let (namespace, _, _) = who(snapshot);
        self.depot.has_changed(&namespace, snapshot.spec.repository.as_deref().unwrap_or_default());
    }

    /// Only as long as it is the same object.
    pub(in crate::copies) async fn change(
        &self,
        snapshot: &Snapshot,
        change: impl Fn(SnapshotStatus) -> SnapshotStatus + Send + Sync,
    ) -> Result<(), ApiError> {
        self.change_where(snapshot, |_| true, change).await.map(drop)
    }

    /// And only where it stands so: whoever led meanwhile may have gone on. Whether it did.
    pub(in crate::copies) async fn change_where(
        &self,
        snapshot: &Snapshot,
        is_so: impl Fn(&SnapshotStatus) -> bool + Send + Sync,
        change: impl Fn(SnapshotStatus) -> SnapshotStatus + Send + Sync,
    ) -> Result<bool, ApiError> {
        let generation = snapshot.metadata.generation;
        let change = |status| SnapshotStatus { observed_generation: generation, ..change(status) };
        change_where(&*self.snapshots, snapshot, is_so, change).await
    }
}
