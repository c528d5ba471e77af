//! What a run says, as the status of what it was begun for. Pure.

use api::{
    CopyAt, Progress, Snapshot, SnapshotPhase, SnapshotStatus,
    conditions::{self, reasons, types},
    runner::{Dumped, FailedRun},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use repository::Entry;

/// How fast a run is, over its last reports; and which of these are written.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    /// When so many bytes were done.
    points: std::collections::VecDeque<(Timestamp, u64)>,
    /// For so long a step that was written is not written again.
    rest: SignedDuration,
    /// The step that was written last.
    written: Option<(Timestamp, String)>,
}

/// So many seconds of reports tell how fast it is.
const WINDOW: usize = 20;

impl Pace {
    pub(super) fn with_rest(rest: SignedDuration) -> Self {
        Self { rest, ..Self::default() }
    }

    /// Whether it is to be written now. Another step is at once.
    pub(super) fn is_due(&self, step: &str, now: Timestamp) -> bool {
        let rests = |(at, written): &(Timestamp, String)| written == step && now.duration_since(*at) < self.rest;
        !self.written.as_ref().is_some_and(rests)
    }

    pub(super) fn has_written(&mut self, step: &str, now: Timestamp) {
        self.written = Some((now, step.to_owned()));
    }

    pub(super) fn progress(&mut self, step: String, bytes: u64, total: Option<u64>, now: Timestamp) -> Progress {
        if self.points.back().is_some_and(|(_, before)| *before > bytes) {
            self.points.clear();
        }
        self.points.push_back((now, bytes));
        if self.points.len() > WINDOW {
            self.points.pop_front();
        }
        let first = self.points.front().copied().unwrap_or((now, bytes));
        let milliseconds = u64::try_from(now.duration_since(first.0).as_millis()).unwrap_or(0);
        let rate = bytes.saturating_sub(first.1).saturating_mul(1000).checked_div(milliseconds).unwrap_or(0);
        let left = total.filter(|total| *total > bytes).and_then(|total| (total - bytes).checked_div(rate));
        Progress { step, bytes, total_bytes: total, bytes_per_second: rate, remaining_seconds: left }
    }
}

/// A run was begun.
pub(super) fn begun(mut status: SnapshotStatus, now: Timestamp) -> SnapshotStatus {
    status.phase = SnapshotPhase::Running;
    status.attempts += 1;
    status.started_at.get_or_insert(Time(now));
    status.next_run_at = None;
    status.message = None;
    status.progress = Some(Progress { step: "starting".to_owned(), ..Progress::default() });
    ready(&mut status, false, reasons::IN_PROGRESS, "it is being taken", now);
    status
}

/// It can be restored.
pub(super) fn dumped(mut status: SnapshotStatus, dumped: Dumped, now: Timestamp) -> SnapshotStatus {
    status.size = Some(dumped.size());
    let Dumped { id, consistency, cut_between, contents, stored, whole, failed, warnings } = dumped;
    let at = |name: String| CopyAt { name, stored: true, message: None, at: Some(Time(now)) };
    let not = |(name, why): (String, String)| CopyAt { name, stored: false, message: Some(why), at: None };
    status.stored = Some(stored);
    status.id = Some(id);
    status.consistency = Some(consistency);
    status.cut_between = Some(cut_between);
    status.contents = contents;
    status.warnings = warnings;
    status.progress = None;
    status.next_run_at = None;
    status.locations = whole.into_iter().map(at).chain(failed.into_iter().map(not)).collect();
    settle(status, now)
}

/// What is in a repository already of the Snapshot of this uid, as if its run had just told.
pub(super) fn of_entry(entry: &Entry, uid: &str, locations: &[String]) -> Option<Dumped> {
    let manifest = entry.manifest().filter(|manifest| manifest.snapshot.uid == uid)?;
    let (whole, missing): (Vec<String>, Vec<String>) =
        locations.iter().cloned().partition(|name| entry.at.contains(name));
    Some(Dumped {
        id: entry.id.clone(),
        consistency: manifest.consistency.clone()?,
        cut_between: manifest.cut_between.clone()?,
        contents: manifest.contents.clone(),
        // What of it was new is not known any more.
        stored: 0,
        whole,
        failed: missing.into_iter().map(|name| (name, "it was not stored there".to_owned())).collect(),
        warnings: manifest.warnings.clone(),
    })
}

/// A run is begun that gives locations what they lack; its number is that of all of them.
pub(super) fn replicating(status: SnapshotStatus) -> SnapshotStatus {
    SnapshotStatus { replications: status.replications + 1, next_run_at: None, ..status }
}

/// Some locations were given it, or not.
pub(super) fn replicated(
    mut status: SnapshotStatus,
    results: &[(String, Option<String>)],
    now: Timestamp,
) -> SnapshotStatus {
    for location in &mut status.locations {
        match results.iter().find(|(name, _)| *name == location.name) {
            Some((_, None)) => {
                *location = CopyAt { name: location.name.clone(), stored: true, message: None, at: Some(Time(now)) };
            }
            Some((_, Some(why))) => location.message = Some(why.clone()),
            None => {}
        }
    }
    status = settle(status, now);
    let again = Time(next_run(status.replications, now));
    status.next_run_at = (status.phase == SnapshotPhase::Replicating).then_some(again);
    status
}

fn settle(mut status: SnapshotStatus, now: Timestamp) -> SnapshotStatus {
    let missing: Vec<&str> = status.locations.iter().filter(|at| !at.stored).map(|at| at.name.as_str()).collect();
    if missing.is_empty() {
        status.phase = SnapshotPhase::Ready;
        status.message = None;
        status.finished_at.get_or_insert(Time(now));
        ready(&mut status, true, reasons::OK, "", now);
    } else {
        let message = format!("it can be restored; {} does not have it yet", missing.join(", "));
        status.phase = SnapshotPhase::Replicating;
        ready(&mut status, true, reasons::OK, &message, now);
        status.message = Some(message);
    }
    status
}

/// A run came to nothing; another may follow.
pub(super) fn failed(mut status: SnapshotStatus, failed: &FailedRun, last: bool, now: Timestamp) -> SnapshotStatus {
    status.progress = None;
    status.message = Some(failed.message.clone());
    status.phase = if last { SnapshotPhase::Failed } else { SnapshotPhase::Pending };
    status.finished_at = last.then_some(Time(now));
    status.next_run_at = (!last).then(|| Time(next_run(status.attempts, now)));
    ready(&mut status, false, &failed.reason, &failed.message, now);
    status
}

fn ready(status: &mut SnapshotStatus, is: bool, reason: &str, message: &str, now: Timestamp) {
    conditions::set_condition(
        &mut status.conditions,
        types::READY,
        is,
        reason,
        message,
        status.observed_generation,
        now,
    );
}

/// How long is waited before the next run: a little, and then longer.
pub(super) fn pause(attempts: u32) -> SignedDuration {
    SignedDuration::from_secs(match attempts {
        0 | 1 => 5,
        2 => 20,
        3 => 60,
        _ => 300,
    })
}

fn next_run(attempts: u32, now: Timestamp) -> Timestamp {
    now.saturating_add(pause(attempts)).unwrap_or(Timestamp::MAX)
}

/// Whether a failure is the last.
pub(super) fn is_last(snapshot: &Snapshot, failed: &FailedRun, now: Timestamp) -> bool {
    let status = snapshot.status.clone().unwrap_or_default();
    let started = status.started_at.as_ref().map_or(now, |started| started.0);
    !failed.again || next_run(status.attempts, now) >= snapshot.spec.deadline(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_of_the_last_reports_and_says_how_long_it_will_take() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let mut pace = Pace::default();
        let first = pace.progress("dumping".into(), 0, Some(1000), at(0));
        assert_eq!((first.bytes_per_second, first.remaining_seconds), (0, None));
        let later = pace.progress("dumping".into(), 500, Some(1000), at(5));
        assert_eq!((later.bytes_per_second, later.remaining_seconds), (100, Some(5)));
        let beyond = pace.progress("dumping".into(), 1500, Some(1000), at(10));
        assert_eq!((beyond.bytes_per_second, beyond.remaining_seconds), (150, None));
        assert_eq!(pace.progress("verifying".into(), 0, None, at(11)).bytes_per_second, 0, "another step begins anew");
    }

    #[test]
    fn a_step_is_written_at_once_and_then_every_so_often() {
        let at = |milliseconds| Timestamp::from_millisecond(milliseconds).unwrap();
        let mut pace = Pace::with_rest(SignedDuration::from_secs(5));
        assert!(
            pace.is_due("dumping", at(0)) && pace.is_due("dumping", at(1)),
            "one that was not written is due still"
        );
        pace.has_written("dumping", at(0));
        for (step, now, due) in
            [("dumping", 1000, false), ("dumping", 4999, false), ("dumping", 5000, true), ("verifying", 1000, true)]
        {
            assert_eq!(pace.is_due(step, at(now)), due, "{step} {now}");
        }
        let mut without = Pace::default();
        without.has_written("dumping", at(0));
        assert!(without.is_due("dumping", at(0)));
    }

    #[test]
    fn what_is_not_everywhere_can_be_restored_and_is_not_settled() {
        let now = Timestamp::now();
        let status = SnapshotStatus {
            locations: vec![
                CopyAt { name: "a".into(), stored: true, message: None, at: None },
                CopyAt { name: "b".into(), stored: false, message: Some("full".into()), at: None },
            ],
            ..SnapshotStatus::default()
        };
        let still = replicated(status, &[("b".into(), Some("still full".into()))], now);
        assert_eq!(
            (still.phase, still.locations[1].message.as_deref()),
            (SnapshotPhase::Replicating, Some("still full"))
        );
        assert!(conditions::is_true(&still.conditions, types::READY));
        let done = replicated(still, &[("b".into(), None)], now);
        assert_eq!((done.phase, done.message), (SnapshotPhase::Ready, None));
    }
}
