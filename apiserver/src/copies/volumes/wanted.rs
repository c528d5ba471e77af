//! Which claims a Restore makes of what was cut, and what each is like. Pure.

use std::collections::BTreeMap;

use api::{Restore, RestoreSpec, SnapshotVolume, gate};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use serde_json::json;

use super::{CLAIM_FOR, claims::joined, worth::larger};
use crate::copies::kept::who;

/// One claim to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) of: SnapshotVolume,
    pub(super) name: String,
    class: Option<String>,
    size: String,
}

/// Which claims are made of what was cut. Pure.
pub(super) fn planned(restore: &str, spec: &RestoreSpec, volumes: &[SnapshotVolume]) -> Result<Vec<Planned>, String> {
    let there = || volumes.iter().map(|volume| volume.claim.as_str()).collect::<Vec<_>>().join(", ");
    let one = |of: &SnapshotVolume, name: String, class: Option<&String>, size: Option<&String>| {
        let least =
            of.size.clone().ok_or_else(|| format!("nobody knows how large claim {} was: say its size", of.claim));
        let size = match size {
            None => least?,
            Some(size) if larger(Some(size.clone()), of.size.clone()).as_ref() == Some(size) => size.clone(),
            Some(size) => {
                return Err(format!("{size} is less than what was copied of claim {}: {}", of.claim, least?));
            }
        };
        let class = class.or(of.storage_class_name.as_ref()).cloned();
        Ok(Planned { of: of.clone(), name, class, size })
    };
    if spec.volumes.is_empty() {
        return volumes.iter().map(|of| one(of, joined(restore, &of.claim), None, None)).collect();
    }
    let wanted = spec.volumes.iter().map(|wanted| {
        let of = match (&wanted.claim, volumes) {
            (None, [only]) => only,
            (None, _) => return Err(format!("say of which claim {} is to be made: {}", wanted.name, there())),
            (Some(claim), _) => volumes
                .iter()
                .find(|volume| volume.claim == *claim)
                .ok_or_else(|| format!("there is no copy of claim {claim} in it, but of {}", there()))?,
        };
        one(of, wanted.name.clone(), wanted.storage_class_name.as_ref(), wanted.size.as_ref())
    });
    wanted.collect()
}

pub(super) fn claim(restore: &Restore, planned: &Planned) -> Result<PersistentVolumeClaim, serde_json::Error> {
    let (namespace, name, uid) = who(restore);
    let modes = match planned.of.access_modes.as_slice() {
        [] => vec!["ReadWriteOnce".to_owned()],
        modes => modes.to_vec(),
    };
    let labels = BTreeMap::from([(api::LABEL_RESTORE, uid)]);
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": planned.name, "namespace": namespace, "labels": labels, "annotations": {CLAIM_FOR: name},
        },
        "spec": {
            "accessModes": modes, "volumeMode": planned.of.volume_mode, "storageClassName": planned.class,
            "resources": {"requests": {"storage": planned.size}},
            "dataSource": {
                "apiGroup": gate::SNAPSHOTS, "kind": "VolumeSnapshot", "name": planned.of.volume_snapshot,
            },
        },
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn volume(claim: &str) -> SnapshotVolume {
        SnapshotVolume {
            claim: claim.to_owned(),
            volume_snapshot: format!("noon-{claim}"),
            storage_class_name: Some("fast".to_owned()),
            size: Some("10Gi".to_owned()),
            ..SnapshotVolume::default()
        }
    }

    fn named(volumes: &Value, of: &[SnapshotVolume]) -> Result<Vec<String>, String> {
        let spec = json!({"source": {"snapshot": "noon"}, "volumes": volumes});
        let all = planned("back", &serde_json::from_value(spec).unwrap(), of)?;
        let said = |one: Planned| format!("{} of {}, {} {}", one.name, one.of.claim, one.class.unwrap(), one.size);
        Ok(all.into_iter().map(said).collect())
    }

    #[test]
    fn each_claim_is_made_of_what_it_is_to_be_of_and_no_smaller() {
        let (one, both) = ([volume("data")], [volume("data"), volume("wal")]);
        assert_eq!(named(&json!([]), &one).unwrap(), ["back-data of data, fast 10Gi"]);
        let two = named(&json!([]), &both).unwrap();
        assert_eq!(two, ["back-data of data, fast 10Gi", "back-wal of wal, fast 10Gi"]);
        let chosen = json!([{"name": "copy", "claim": "wal", "storageClassName": "slow", "size": "20Gi"}]);
        assert_eq!(named(&chosen, &both).unwrap(), ["copy of wal, slow 20Gi"]);
        assert_eq!(named(&json!([{"name": "copy"}]), &one).unwrap(), ["copy of data, fast 10Gi"]);
        for (wrong, says) in [
            (json!([{"name": "copy"}]), "say of which claim"),
            (json!([{"name": "copy", "claim": "other"}]), "no copy of claim other"),
            (json!([{"name": "copy", "claim": "wal", "size": "1Gi"}]), "less than what was copied"),
        ] {
            let why = named(&wrong, &both).unwrap_err();
            assert!(why.contains(says), "{why}");
        }
    }

    #[test]
    fn a_claim_says_for_whom_it_was_made_and_of_what() {
        let restore: Restore = serde_json::from_value(json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Restore",
            "metadata": {"name": "back", "namespace": "shop", "uid": "u"}, "spec": {"source": {"snapshot": "noon"}},
        }))
        .unwrap();
        let all = planned("back", &restore.spec, &[volume("data")]).unwrap();
        let made = serde_json::to_value(claim(&restore, &all[0]).unwrap()).unwrap();
        assert_eq!(made["metadata"]["labels"][api::LABEL_RESTORE], "u");
        assert_eq!(made["spec"]["dataSource"]["name"], "noon-data");
        assert_eq!(made["spec"]["accessModes"], json!(["ReadWriteOnce"]));
    }
}
