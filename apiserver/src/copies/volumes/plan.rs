//! What is to be done next about a Snapshot by VolumeSnapshots. Pure: from the object alone, so that whoever leads goes on where
//! another has stopped.

use api::{DeletionPolicy, Snapshot, SnapshotPhase};
use jiff::{SignedDuration, Timestamp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// Which claims it is of is written down, before anything is made.
    Begin,
    /// What is not made yet is made, and what is made is looked at.
    Look,
    /// It was not done in time.
    TooLate,
    /// What was made for it is to go.
    Remove,
    /// It is deleted, and nothing of it is left, or all is to stay.
    LetGo,
}

/// So long after its beginning it is looked at again every time; later what is followed says when, and every so often.
const YOUNG: SignedDuration = SignedDuration::from_secs(120);
const SELDOM: i64 = 30;

pub(super) fn next(snapshot: &Snapshot, now: Timestamp) -> Next {
    let status = snapshot.status.clone().unwrap_or_default();
    if snapshot.metadata.deletion_timestamp.is_some() {
        let finalizers = snapshot.metadata.finalizers.iter().flatten();
        let stays = status.phase == SnapshotPhase::Ready && snapshot.spec.deletion_policy == DeletionPolicy::Retain;
        return match finalizers.filter(|name| *name == api::FINALIZER_SNAPSHOT).count() {
            0 => Next::Nothing,
            _ if stays || status.volumes.is_empty() => Next::LetGo,
            _ => Next::Remove,
        };
    }
    match status.phase {
        // There is none: nothing of it is to cost anything, or to be cut after all.
        SnapshotPhase::Failed if !status.volumes.is_empty() => Next::Remove,
        SnapshotPhase::Ready | SnapshotPhase::Failed => Next::Nothing,
        SnapshotPhase::Pending if now > deadline(snapshot) => Next::TooLate,
        SnapshotPhase::Pending => Next::Begin,
        // One that is done at the very end is done.
        SnapshotPhase::Running | SnapshotPhase::Replicating => Next::Look,
    }
}

/// Until when it may be tried.
pub(super) fn deadline(snapshot: &Snapshot) -> Timestamp {
    let made = snapshot.metadata.creation_timestamp.as_ref().map_or(Timestamp::MAX, |made| made.0);
    snapshot.spec.deadline(made)
}

/// Whether one that is not finished is looked at at this tick, of so many a minute.
pub(super) fn is_due(snapshot: &Snapshot, tick: i64, now: Timestamp) -> bool {
    let began = snapshot.metadata.creation_timestamp.as_ref().map_or(now, |made| made.0);
    let deleting = snapshot.metadata.deletion_timestamp.is_some();
    deleting || now.duration_since(began) < YOUNG || tick % SELDOM == 0
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn snapshot(status: &Value, metadata: Value, policy: &str) -> Snapshot {
        let mut all = json!({"name": "s", "creationTimestamp": "2026-11-29T12:00:00Z"});
        all.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Snapshot", "metadata": all, "status": status,
            "spec": {
                "databases": ["orders"], "method": "VolumeSnapshot", "deletionPolicy": policy, "deadlineSeconds": 600,
            },
        }))
        .unwrap()
    }

    #[test]
    fn what_is_next_follows_from_the_object_alone() {
        let at =
            |seconds: i64| "2026-11-29T12:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds);
        let made = json!([{"claim": "data", "volumeSnapshot": "s"}]);
        let of = |phase: &str| json!({"phase": phase, "volumes": made});
        let deleted = json!({"deletionTimestamp": "2026-11-29T12:00:00Z", "finalizers": [api::FINALIZER_SNAPSHOT]});
        let others = json!({"deletionTimestamp": "2026-11-29T12:00:00Z", "finalizers": ["another/one"]});
        let there = json!({});
        for (status, metadata, policy, second, expected) in [
            (json!({}), &there, "Delete", 1, Next::Begin),
            (json!({}), &there, "Delete", 601, Next::TooLate),
            (of("Running"), &there, "Delete", 1, Next::Look),
            (of("Running"), &there, "Delete", 601, Next::Look),
            (of("Ready"), &there, "Delete", 601, Next::Nothing),
            (of("Failed"), &there, "Retain", 1, Next::Remove),
            (json!({"phase": "Failed"}), &there, "Delete", 1, Next::Nothing),
            (json!({}), &deleted, "Delete", 1, Next::LetGo),
            (of("Running"), &deleted, "Retain", 1, Next::Remove),
            (of("Ready"), &deleted, "Retain", 1, Next::LetGo),
            (of("Ready"), &deleted, "Delete", 1, Next::Remove),
            (of("Ready"), &others, "Delete", 1, Next::Nothing),
        ] {
            assert_eq!(next(&snapshot(&status, metadata.clone(), policy), at(second)), expected, "{status} {metadata}");
        }
    }

    #[test]
    fn what_takes_long_is_looked_at_seldom() {
        let running = snapshot(&json!({"phase": "Running"}), json!({}), "Delete");
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert!(is_due(&running, 7, at("2026-11-29T12:01:00Z")));
        assert!(!is_due(&running, 7, at("2026-11-29T12:10:00Z")));
        assert!(is_due(&running, 2 * SELDOM, at("2026-11-29T12:10:00Z")));
    }
}
