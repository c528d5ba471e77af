//! Whoever reaches the webhooks' port can write a review: what it says is looked up before anybody is held for it.

use api::gate::{Gate, GateRequest, Group, ObjectRef};
use kube::api::DynamicObject;

use super::{
    Gates,
    contents::{Content, Fate, Of},
    cut::Together,
};
use crate::csi_snapshots::Kind;

impl Gates {
    /// Whether this is about a content that is there, is about to be cut, and has these volumes: whoever reaches the webhooks' port
    /// can write a review. The inner error says what is wrong with it.
    pub(super) async fn is_real(
        &self,
        request: &GateRequest,
        together: &Together,
    ) -> Result<Result<(), String>, kube::Error> {
        let Some(of) = &request.snapshot else { return Ok(Err("it is the content of no snapshot".to_owned())) };
        if of.namespace != together.namespace {
            return Ok(Err(format!("its volumes are of claims in namespace {}", together.namespace)));
        }
        let object = &request.object;
        if request.gate == Gate::Content {
            // It is not stored yet, but its snapshot is, and says what is to be cut.
            if !self.0.is_unmarked(request.driver.as_deref().unwrap_or_default()) {
                return Ok(Err("its driver tells when it cuts".to_owned()));
            }
            let found = self.0.kinds.snapshots(object.group, &of.namespace).get_opt(&of.name).await?;
            let right = found.is_some_and(|found| is_for(request, together, &found));
            return Ok(right.then_some(()).ok_or_else(|| "no such snapshot of these claims has no content".to_owned()));
        }
        let known = self.known().get(&object.uid).cloned();
        let known = match known {
            Some(known) => Some(known),
            // The watch may be behind.
            None => {
                let there = self.0.kinds.all(Kind::Content, object.group).get_opt(&object.name).await?;
                there.and_then(|there| Content::read(&there, object.group))
            }
        };
        let right = known.is_some_and(|known| is_of(request, &known));
        Ok(right.then_some(()).ok_or_else(|| "there is no such content that is about to be cut".to_owned()))
    }

    /// Asked once it is held for a content that is being made: whether that is stored already, and may be cut at any time.
    /// kube-apiserver goes on without us when it cannot reach us, or has waited for long enough, and nobody tells us then.
    pub(super) async fn is_stored(&self, request: &GateRequest) -> Result<bool, kube::Error> {
        let object = &request.object;
        let content = self.0.kinds.all(Kind::Content, object.group).get_metadata_opt(&object.name).await?;
        Ok(content.is_some_and(|content| content.metadata.uid.as_deref() == Some(object.uid.as_str())))
    }
}

/// Whether this snapshot is the one that a content is made for, and has none. Pure. The content's name is the snapshot controller's
/// (external-snapshotter `pkg/utils/util.go`).
fn is_for(request: &GateRequest, together: &Together, found: &DynamicObject) -> bool {
    let Some(uid) = &found.metadata.uid else { return false };
    let (prefix, bound) = match request.object.group {
        Group::Single => ("snapcontent", "boundVolumeSnapshotContentName"),
        Group::Group => ("groupsnapcontent", "boundVolumeGroupSnapshotContentName"),
    };
    let is_it = request.snapshot.as_ref().is_some_and(|of| of.uid.as_ref() == Some(uid));
    let has_none = found.data["status"][bound].is_null() && request.object.name == format!("{prefix}-{uid}");
    let same_claims = match found.data["spec"]["source"]["persistentVolumeClaimName"].as_str() {
        Some(claim) => together.cut.iter().all(|cut| cut == claim),
        None => request.object.group == Group::Group,
    };
    is_it && has_none && same_claims
}

/// Whether a review says of a content what is stored of it, and it was not cut yet. Pure.
fn is_of(request: &GateRequest, known: &Content) -> bool {
    let object = &request.object;
    let snapshot = request.snapshot.as_ref().map(of_request);
    let same = known.group == object.group && known.uid == object.uid && known.name == object.name;
    let same_cut = known.handles == request.volume_handles && Some(&known.driver) == request.driver.as_ref();
    same && same_cut && snapshot.as_ref() == Some(&known.snapshot) && !matches!(known.fate, Fate::Cut { .. })
}

pub(super) fn of_request(of: &ObjectRef) -> Of {
    Of { namespace: of.namespace.clone(), name: of.name.clone(), uid: of.uid.clone() }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_content_that_is_not_stored_yet_is_believed_for_a_snapshot_of_these_claims_that_has_none() {
        let request = |name: &str| -> GateRequest {
            serde_json::from_value(json!({
                "gate": "Content", "object": {"group": "Single", "name": name, "uid": "u"},
                "snapshot": {"namespace": "shop", "name": "noon", "uid": "of"},
                "driver": "d", "volumeHandles": ["h"], "user": "us", "deadlineMilliseconds": 1,
            }))
            .unwrap()
        };
        let together = Together {
            namespace: "shop".to_owned(),
            databases: BTreeSet::new(),
            level: api::Level::Durable,
            cut: ["data".to_owned()].into(),
            of: BTreeSet::new(),
            names: BTreeMap::new(),
            pods: BTreeMap::new(),
            since: None,
        };
        let snapshot = |uid: &str, claim: Value, status: Value| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": {"name": "noon", "uid": uid},
                "spec": {"source": {"persistentVolumeClaimName": claim}}, "status": status,
            }))
            .unwrap()
        };
        let (free, bound) = (json!(null), json!({"boundVolumeSnapshotContentName": "snapcontent-of"}));
        for (name, uid, claim, status, right) in [
            ("snapcontent-of", "of", json!("data"), &free, true),
            ("snapcontent-other", "of", json!("data"), &free, false),
            ("snapcontent-of", "another", json!("data"), &free, false),
            ("snapcontent-of", "of", json!("files"), &free, false),
            ("snapcontent-of", "of", json!(null), &free, false),
            // It was cut long ago, or is about to be.
            ("snapcontent-of", "of", json!("data"), &bound, false),
        ] {
            let found = snapshot(uid, claim.clone(), status.clone());
            assert_eq!(is_for(&request(name), &together, &found), right, "{name} {uid} {claim} {status}");
        }
    }
}
