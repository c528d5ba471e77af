//! What is to be done about a Snapshot next. Pure.

use api::{DeletionPolicy, Snapshot, SnapshotPhase};
use jiff::Timestamp;

use crate::copies::status::pause;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// A run begins.
    Run,
    /// Somebody else has begun a run of it, which may go on, or be gone.
    Resume,
    /// Locations are given what they lack.
    Replicate,
    /// It is deleted, and what it stored with it.
    Forget,
    /// It is deleted, and nothing of it is left, or all is to stay.
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
    match status.phase {
        SnapshotPhase::Pending if status.attempts == 0 => Next::Run,
        SnapshotPhase::Pending => {
            // The Ready condition turned false, or was false again, when the last run failed.
            let failed = status.conditions.iter().map(|condition| condition.last_transition_time.0).max();
            let due = failed.is_none_or(|failed| now.duration_since(failed) >= pause(status.attempts));
            if due { Next::Run } else { Next::Nothing }
        }
        SnapshotPhase::Running => Next::Resume,
        SnapshotPhase::Replicating => Next::Replicate,
        SnapshotPhase::Ready | SnapshotPhase::Failed => Next::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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
        let failed = |attempts: u32| {
            snapshot(
                json!({"phase": "Pending", "attempts": attempts, "conditions": [{
                    "type": "Ready", "status": "False", "reason": "X", "message": "", "lastTransitionTime": "2026-11-29T12:00:00Z"
                }]}),
                json!({"name": "s"}),
                "Delete",
            )
        };
        let at = |seconds: i64| {
            "2026-11-29T12:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(seconds)
        };
        assert_eq!(next(&failed(0), at(0)), Next::Run);
        assert_eq!(next(&failed(1), at(1)), Next::Nothing);
        assert_eq!(next(&failed(1), at(6)), Next::Run);
        assert_eq!(next(&failed(3), at(6)), Next::Nothing);
    }
}
