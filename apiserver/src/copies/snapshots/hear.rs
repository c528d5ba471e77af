//! What is heard of a run of a Snapshot, and how its status is written meanwhile.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use api::{
    Snapshot, SnapshotStatus,
    runner::{DUMPING, Report},
};
use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval};

use super::KIND;
use crate::{
    copies::{Copies, kept::who, runs::Running},
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
                    if self.is_unwanted(snapshot).await {
                        return Ok(Heard::Unwanted);
                    }
                    if last.is_none() && Timestamp::now() > deadline {
                        return Ok(Heard::TooLate);
                    }
                }
            }
        }
    }

    /// Whether it is deleted, or being so. What was seen last is asked first: that costs nothing.
    pub(super) async fn is_unwanted(&self, snapshot: &Snapshot) -> bool {
        let (namespace, name, uid) = who(snapshot);
        let is_gone =
            |now: &Snapshot| now.metadata.uid.as_deref() != Some(&uid) || now.metadata.deletion_timestamp.is_some();
        if self.snapshots.seen(&namespace, &name).await.is_some_and(|now| !is_gone(&now)) {
            return false;
        }
        match self.snapshots.get(&namespace, &name).await {
            Ok(now) => is_gone(&now),
            Err(error) => error.code == 404,
        }
    }

    /// Made anew under its name, it is somebody else's.
    async fn is_another(&self, snapshot: &Snapshot) -> bool {
        let (namespace, name, uid) = who(snapshot);
        self.snapshots.get(&namespace, &name).await.is_ok_and(|now| now.metadata.uid.as_deref() != Some(&uid))
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
        let (namespace, name, _) = who(snapshot);
        let generation = snapshot.metadata.generation;
        if self.is_another(snapshot).await {
            return Err(ApiError::not_found(KIND.about(&name)));
        }
        let was_so = AtomicBool::new(false);
        let change = |status: SnapshotStatus| {
            was_so.store(is_so(&status), Ordering::Relaxed);
            let next = SnapshotStatus { observed_generation: generation, ..change(status.clone()) };
            (was_so.load(Ordering::Relaxed) && next != status).then_some(next)
        };
        self.snapshots.change(&namespace, &name, &change).await?;
        Ok(was_so.into_inner())
    }
}
