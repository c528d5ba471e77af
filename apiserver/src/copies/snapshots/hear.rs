//! What is heard of a run of a Snapshot, and how its status is written meanwhile.

use std::time::Duration;

use api::{
    Snapshot, SnapshotStatus,
    runner::{DUMPING, Report},
};
use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    copies::{
        Copies,
        kept::{change_where, is_unwanted, who},
        runs::Running,
    },
    error::ApiError,
};

/// How a run went, as far as it was heard.
pub(super) enum Heard {
    /// Its last word.
    Said(Report),
    /// It ended without one.
    Nothing,
    /// Its Snapshot is gone, or goes.
    Unwanted,
    TooLate,
}

/// How often it is looked whether a Snapshot whose run goes on was deleted.
const STILL_WANTED: Duration = Duration::from_millis(500);

impl Copies {
    /// Follows a run to its end; its progress is shown meanwhile. An error: it goes on, and is heard elsewhere.
    pub(super) async fn hear(
        &self,
        snapshot: &Snapshot,
        running: &mut Running,
        deadline: Timestamp,
    ) -> Result<Heard, ApiError> {
        let (_, _, uid) = who(snapshot);
        let mut pace = self.pace();
        let mut wanted = interval(STILL_WANTED);
        wanted.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = None;
        loop {
            tokio::select! {
                report = running.reports.recv() => match report {
                    None => return Ok(last.map_or(Heard::Nothing, Heard::Said)),
                    Some(Report::Log(line)) => self.logs.say(&uid, &line),
                    Some(Report::Progress { step, bytes, total }) => {
                        let now = Timestamp::now();
                        let progress = pace.progress(step, bytes, total, now);
                        let writes = progress.step == DUMPING;
                        let shown = |status: SnapshotStatus| SnapshotStatus {
                            begun: status.begun || writes,
                            progress: Some(progress.clone()),
                            ..status
                        };
                        if pace.is_due(&progress.step, now) && self.change(snapshot, shown).await.is_ok() {
                            pace.has_written(&progress.step, now);
                        }
                    }
                    Some(report) => last = Some(report),
                },
                _ = wanted.tick() => {
                    self.still_leads()?;
                    if is_unwanted(&*self.snapshots, snapshot).await {
                        return Ok(Heard::Unwanted);
                    }
                    if last.is_none() && Timestamp::now() > deadline {
                        return Ok(Heard::TooLate);
                    }
                }
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
