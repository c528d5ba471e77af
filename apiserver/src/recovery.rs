//! What a dead server was doing: read from the stored Freezes, handed to the freezer, which undoes it and says so.

use std::sync::Arc;

use api::{Freeze, FreezeStatus, Phase};
use freeze::{FreezeName, Remains};
use futures::StreamExt;
use tracing::info;

use crate::{
    metrics::Metrics,
    records::{Seen, freeze_name},
    verbs::Verbs,
};

/// What a stored Freeze is to the next freezer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Left {
    /// Nobody has begun it.
    Nothing,
    /// It is over; its claims' uids stay finished.
    Memory,
    /// It holds, or held, and is not tidied up.
    Remains,
}

/// Call it once everything that is stored can be read; before, nothing is frozen.
pub fn recover(verbs: &Verbs) {
    let Verbs { records, freezer, .. } = verbs;
    let mut remains = Vec::new();
    for (freeze, status) in oldest_first(&records.freezes()) {
        match left(&status) {
            Left::Nothing => {}
            Left::Memory => freezer.remember(&freeze, &status),
            Left::Remains => remains.push(Remains { freeze, status }),
        }
    }
    if !remains.is_empty() {
        info!(count = remains.len(), "taking care of freezes that a dead server left");
    }
    freezer.recover(remains);
    verbs.recovered.cancel();
}

/// A claim that is repeated under one uid is answered by its newest freeze.
fn oldest_first(freezes: &[Arc<Freeze>]) -> Vec<(FreezeName, FreezeStatus)> {
    let begun = freezes.iter().filter_map(|freeze| Some((freeze_name(freeze)?, freeze.status.clone()?)));
    let mut begun: Vec<_> = begun.collect();
    begun.sort_by_key(|(_, status)| status.requested_at.as_ref().map(|at| at.0));
    begun
}

/// The claims of finished freezes, so that their uids stay finished.
pub fn remember(verbs: &Verbs) {
    for (freeze, status) in oldest_first(&verbs.records.freezes()) {
        if left(&status) == Left::Memory {
            verbs.freezer.remember(&freeze, &status);
        }
    }
}

/// What other replicas finish, for ever, so that a uid of theirs is finished here, too.
pub(crate) async fn follow(verbs: Verbs, metrics: Arc<Metrics>) {
    let mut following = verbs.records.follow_freezes();
    while let Some(seen) = following.next().await {
        if let Some((freeze, status)) = over(&seen) {
            metrics.remembered(&status);
            verbs.freezer.remember(&freeze, &status);
        }
    }
}

/// How a Freeze ended, if it did. One that was deleted as soon as it was over may be seen only then.
fn over(seen: &Seen<Arc<Freeze>>) -> Option<(FreezeName, FreezeStatus)> {
    let (Seen::There(freeze) | Seen::Gone(freeze)) = seen;
    let status = freeze.status.as_ref().filter(|status| left(status) == Left::Memory)?;
    Some((freeze_name(freeze)?, status.clone()))
}

fn left(status: &FreezeStatus) -> Left {
    let to_undo = status.targets.iter().any(|target| !target.undo.is_empty());
    match status.phase {
        Phase::Pending => Left::Nothing,
        phase if phase.is_finished() && !to_undo => Left::Memory,
        _ => Left::Remains,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn freeze(name: &str, status: serde_json::Value) -> Freeze {
        let value = json!({
            "apiVersion": api::API_VERSION, "kind": "Freeze", "metadata": {"namespace": "shop", "name": name},
            "spec": {"targets": [{"database": "orders"}]}, "status": status,
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn the_newest_freeze_of_a_uid_comes_last_whatever_the_names_say() {
        let at =
            |second: u32| json!({"phase": "Thawed", "requestedAt": format!("2026-01-01T00:00:{second:02}.000000Z")});
        let sorted = oldest_first(&[freeze("a", at(3)), freeze("b", at(1)), freeze("c", at(2))].map(Arc::new));
        assert_eq!(sorted.iter().map(|(freeze, _)| freeze.name.as_str()).collect::<Vec<_>>(), ["b", "c", "a"]);
    }

    #[test]
    fn how_a_freeze_ended_is_heard_also_when_it_is_gone() {
        let thawed = Arc::new(freeze("f", json!({"phase": "Thawed"})));
        let frozen = Arc::new(freeze("f", json!({"phase": "Frozen"})));
        for seen in [Seen::There(Arc::clone(&thawed)), Seen::Gone(thawed)] {
            assert_eq!(over(&seen).map(|(name, status)| (name.name, status.phase)), Some(("f".into(), Phase::Thawed)));
        }
        assert_eq!(over(&Seen::Gone(frozen)), None, "it did not end: it was taken away");
    }

    #[test]
    fn what_is_left_follows_from_the_phase_and_from_what_is_to_undo() {
        let undo = json!([{"version": 1, "kind": "k", "data": {}}]);
        let target = |undo| json!([{"database": "orders", "engine": "MariaDB", "member": "m", "undo": undo}]);
        for (status, expected) in [
            (json!({"phase": "Pending"}), Left::Nothing),
            (json!({"phase": "Preparing"}), Left::Remains),
            (json!({"phase": "Frozen", "targets": target(json!([]))}), Left::Remains),
            (json!({"phase": "Thawed", "targets": target(json!([]))}), Left::Memory),
            (json!({"phase": "Thawed", "targets": target(undo)}), Left::Remains),
        ] {
            assert_eq!(left(&freeze("f", status.clone()).status.unwrap()), expected, "{status}");
        }
    }
}
