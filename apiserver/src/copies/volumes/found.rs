//! What is there of a Snapshot's VolumeSnapshots: each, its content, and what whoever held for its cut says of it.

use api::{Consistency, CutBetween, Freeze, Snapshot, SnapshotVolume, Verdict, gate};
use freeze::FreezeName;
use kube::api::DynamicObject;

use super::{
    Storage,
    worth::{Found, Judged},
};
use crate::{
    copies::{Copies, kept::who},
    error::ApiError,
    records::cluster::told,
    resources::SNAPSHOTS,
};

impl Copies {
    /// What is there of one.
    pub(super) async fn found(
        &self,
        storage: &Storage,
        snapshot: &Snapshot,
        volume: &SnapshotVolume,
    ) -> Result<Option<Found>, ApiError> {
        let (namespace, name, _) = who(snapshot);
        let about = SNAPSHOTS.about(&name);
        let asked = storage.snapshots(&namespace).get_opt(&volume.volume_snapshot).await;
        let Some(there) = asked.map_err(|error| told(&error, about))? else { return Ok(None) };
        let is_of_claim = there.spec.source.persistent_volume_claim_name.as_ref() == Some(&volume.claim);
        let status = there.status.clone().unwrap_or_default();
        let mut found = Found {
            uid: there.metadata.uid.clone().unwrap_or_default(),
            // Whoever may make VolumeSnapshots could have written so on one of another claim.
            made_for: there.label(api::LABEL_SNAPSHOT).filter(|_| is_of_claim).map(str::to_owned),
            ready: status.ready_to_use == Some(true),
            size: status.restore_size,
            error: status.error.and_then(|error| error.message),
            ..Found::default()
        };
        let Some(content) = status.bound_volume_snapshot_content_name else { return Ok(Some(found)) };
        let content = storage.contents().get_opt(&content).await.map_err(|error| told(&error, about))?;
        // What stands on it nobody of the namespace could have written.
        if let Some(content) = content.filter(|content| is_of(content, &found.uid)) {
            found.handle = content.data["status"]["snapshotHandle"].as_str().map(str::to_owned);
            found.judged = self.judged(&namespace, &content).await;
        }
        Ok(Some(found))
    }

    /// `None`: nobody has said yet what it is worth, or not all of it is known here yet.
    async fn judged(&self, namespace: &str, content: &DynamicObject) -> Option<Judged> {
        let (labels, annotations) = (content.metadata.labels.as_ref()?, content.metadata.annotations.as_ref());
        let text = |key: &str| annotations.and_then(|all| all.get(key)).map(String::as_str);
        let verdict = Verdict::of(labels.get(gate::CONSISTENCY)?).unwrap_or(Verdict::Unknown);
        let reason = [text(gate::REASON), text(gate::MESSAGE)].into_iter().flatten().collect::<Vec<_>>().join(": ");
        let level = text(gate::LEVEL).and_then(|level| serde_json::from_value(level.into()).ok());
        let freeze = text(gate::FREEZE).map(str::to_owned);
        let mut held = None;
        if let (Some(name), true) = (&freeze, verdict.was_held()) {
            let name = FreezeName { namespace: namespace.to_owned(), name: name.clone() };
            if let Ok(freeze) = self.records.freeze(&name).await {
                held = Some(cut_between(&freeze, content.metadata.uid.as_deref().unwrap_or_default())?);
            }
        }
        let positions = text(gate::POSITION).and_then(|all| serde_json::from_str(all).ok()).unwrap_or_default();
        Some(Judged {
            consistency: Consistency { verdict, level: level.filter(|_| verdict.was_held()), reason },
            freeze,
            held,
            positions,
        })
    }
}

/// Whether a content is this VolumeSnapshot's: anybody could name any.
fn is_of(content: &DynamicObject, uid: &str) -> bool {
    content.data["spec"]["volumeSnapshotRef"]["uid"].as_str() == Some(uid)
}

/// Between which instants it was held for this content. `None`: it is not over, as far as is known here. Pure.
fn cut_between(freeze: &Freeze, content: &str) -> Option<CutBetween> {
    let status = freeze.status.as_ref()?;
    let is_its = |claim: &&api::Claim| gate::claim::content_of(&claim.uid).is_some_and(|(_, of)| of == content);
    let claim = status.claims.iter().rev().find(is_its);
    let frozen_at = claim.and_then(|claim| claim.frozen_at.clone()).or_else(|| status.frozen_at.clone())?;
    let thawed_at = claim.and_then(|claim| claim.ended_at.clone()).or_else(|| status.thawed_at.clone())?;
    Some(CutBetween { frozen_at, thawed_at })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_copy_was_cut_between_its_own_claim_s_instants() {
        let freeze: Freeze = serde_json::from_value(json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Freeze", "metadata": {"name": "f"},
            "spec": {"targets": [{"database": "orders"}]},
            "status": {
                "phase": "Frozen", "frozenAt": "2026-11-29T12:00:00.000000Z",
                "claims": [
                    {
                        "kind": "User", "name": "u", "user": "u", "uid": "VolumeSnapshotContent/early",
                        "since": "2026-11-29T12:00:00.000000Z", "until": "2026-11-29T12:01:00.000000Z",
                        "endedAt": "2026-11-29T12:00:02.000000Z",
                    },
                    {
                        "kind": "User", "name": "u", "user": "u", "uid": "VolumeSnapshotContent/late/1",
                        "since": "2026-11-29T12:00:01.000000Z", "until": "2026-11-29T12:01:00.000000Z",
                        "frozenAt": "2026-11-29T12:00:01.500000Z",
                    },
                ],
            },
        }))
        .unwrap();
        let seconds = |cut: CutBetween| (cut.frozen_at.0.to_string(), cut.thawed_at.0.to_string());
        assert_eq!(
            cut_between(&freeze, "early").map(seconds),
            Some(("2026-11-29T12:00:00Z".to_owned(), "2026-11-29T12:00:02Z".to_owned()))
        );
        assert_eq!(cut_between(&freeze, "late"), None, "it is held still");
        let mut over = freeze;
        over.status.as_mut().unwrap().thawed_at = Some(api::micro_time("2026-11-29T12:00:03Z".parse().unwrap()));
        assert_eq!(
            cut_between(&over, "late").map(seconds),
            Some(("2026-11-29T12:00:01.5Z".to_owned(), "2026-11-29T12:00:03Z".to_owned()))
        );
    }
}
