//! What is to be done about a Snapshot next. Pure.

use api::{DeletionPolicy, Snapshot, SnapshotPhase};
use jiff::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// A run begins.
    Run,
    /// Somebody else has begun a run of it, which may go on, or be gone.
    Resume,
    /// Locations are given what they lack.
    Replicate,
    /// It is deleted, and what it stored with it. What runs of it go on is ended first, here and below.
    Forget,
    /// It is deleted, and nothing of it is left as far as was heard, or all is to stay.
    LetGo,
}

/// Whoever asks has its turn: no run of it goes on here.
pub(super) fn next(snapshot: &Snapshot, now: Timestamp) -> Next {
    let status = snapshot.status.clone().unwrap_or_default();
    if snapshot.metadata.deletion_timestamp.is_some() {
        let finalizers = snapshot.metadata.finalizers.iter().flatten();
        let may_be_stored = status.id.is_some() || status.begun;
        return match finalizers.filter(|name| *name == api::FINALIZER_SNAPSHOT).count() {
            0 => Next::Nothing,
            _ if may_be_stored && snapshot.spec.deletion_policy == DeletionPolicy::Delete => Next::Forget,
            _ => Next::LetGo,
        };
    }
    let is_due = status.next_run_at.is_none_or(|due| due.0 <= now);
    match status.phase {
        SnapshotPhase::Running => Next::Resume,
        SnapshotPhase::Pending | SnapshotPhase::Replicating if !is_due => Next::Nothing,
        SnapshotPhase::Pending => Next::Run,
        SnapshotPhase::Replicating => Next::Replicate,
        SnapshotPhase::Ready | SnapshotPhase::Failed => Next::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use api::{SnapshotStatus, runner::FailedRun};
    use serde_json::json;

    use super::*;
    use crate::copies::status::{begun, failed, replicated, replicating};

    fn snapshot(status: serde_json::Value, metadata: serde_json::Value, policy: &str) -> Snapshot {
        serde_json::from_value(json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Snapshot", "metadata": metadata, "status": status,
            "spec": {"databases": ["orders"], "repository": "r", "deletionPolicy": policy},
        }))
        .unwrap()
    }

    #[test]
    fn a_deleted_snapshot_goes_when_nothing_of_it_is_left() {
        let deleted = json!({"name": "s", "deletionTimestamp": "2026-11-29T12:00:00Z", "finalizers": ["stillpoint.dev/snapshot"]});
        let gone = json!({"name": "s", "deletionTimestamp": "2026-11-29T12:00:00Z", "finalizers": ["another/one"]});
        let now = Timestamp::now();
        let stored = json!({"phase": "Ready", "id": "ab"});
        assert_eq!(next(&snapshot(stored.clone(), deleted.clone(), "Delete"), now), Next::Forget);
        assert_eq!(next(&snapshot(stored.clone(), deleted.clone(), "Retain"), now), Next::LetGo);
        assert_eq!(next(&snapshot(json!({"phase": "Running"}), deleted.clone(), "Delete"), now), Next::LetGo);
        let unheard = json!({"phase": "Running", "begun": true});
        assert_eq!(next(&snapshot(unheard, deleted, "Delete"), now), Next::Forget);
        assert_eq!(next(&snapshot(stored, gone, "Delete"), now), Next::Nothing);
    }

    #[test]
    fn a_run_that_failed_is_followed_by_another_after_a_pause() {
        let at = |seconds: i64| {
            "2026-11-29T12:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(seconds)
        };
        let one = |status: SnapshotStatus| Snapshot {
            status: Some(status),
            ..snapshot(json!({}), json!({"name": "s"}), "Delete")
        };
        assert_eq!(next(&one(SnapshotStatus::default()), at(0)), Next::Run);
        let why = FailedRun { reason: "X".to_owned(), message: "no".to_owned(), again: true, target: None };
        let mut status = SnapshotStatus::default();
        let mut now = at(0);
        // However often it fails for the same reason.
        for seconds in [5, 20, 60, 300, 300, 300, 300] {
            status = failed(begun(status, now), &why, false, now);
            let just_before = now + jiff::SignedDuration::from_millis(seconds * 1000 - 1);
            assert_eq!(next(&one(status.clone()), just_before), Next::Nothing, "{seconds}");
            now += jiff::SignedDuration::from_secs(seconds);
            assert_eq!(next(&one(status.clone()), now), Next::Run, "{seconds}");
        }
        let location = api::CopyAt { name: "a".into(), stored: false, message: None, at: None };
        let lacking = SnapshotStatus { locations: vec![location], ..SnapshotStatus::default() };
        let lacking = replicated(replicating(lacking), &[("a".to_owned(), Some("down".to_owned()))], at(0));
        assert_eq!(next(&one(lacking.clone()), at(1)), Next::Nothing);
        assert_eq!(next(&one(lacking), at(5)), Next::Replicate);
    }
}
