//! Whether the claims of a Snapshot are cut together, by a VolumeGroupSnapshot, and what is found of one. Pure.

use std::collections::{BTreeMap, BTreeSet};

use api::{SnapshotGroup, SnapshotStatus, conditions::reasons};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{ResourceExt, api::DynamicObject};

use crate::copies::volumes::worth::Outcome;

/// How claims are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::copies::volumes) enum Cut {
    Together(SnapshotGroup),
    /// One after the other; and why, where that is less than it could be.
    Each(Option<String>),
}

/// What a namespace and its cluster have for it.
#[derive(Debug, Default)]
pub(super) struct Means {
    /// By claim of the Snapshot, as far as it is known.
    pub(super) drivers: BTreeMap<String, Option<String>>,
    /// All claims of the namespace.
    pub(super) claims: Vec<PersistentVolumeClaim>,
    /// VolumeGroupSnapshotClasses; none, where they are not served.
    pub(super) classes: Vec<DynamicObject>,
}

/// What is there of a VolumeGroupSnapshot.
#[derive(Clone, Debug, Default)]
pub(super) struct GroupFound {
    pub(super) uid: String,
    /// The uid of the Snapshot that it was made for, as it says.
    pub(super) made_for: Option<String>,
    pub(super) error: Option<String>,
    /// The VolumeSnapshots that were cut with it, by claim.
    pub(super) members: BTreeMap<String, String>,
}

/// By which a driver's class is meant where none is named (external-snapshotter `pkg/utils/util.go`).
const DEFAULT_CLASS: &str = "groupsnapshot.storage.kubernetes.io/is-default-class";

/// `wanted`: the class that was named. An error is what is in the way of what was asked for by name.
pub(super) fn cut(name: &str, wanted: Option<&str>, means: &Means) -> Result<Cut, String> {
    if wanted.is_none() && means.drivers.len() < 2 {
        return Ok(Cut::Each(None));
    }
    let group = class(wanted, means).and_then(|class_name| {
        let match_labels = labels_of_these_alone(means)?;
        Ok(SnapshotGroup { name: name.to_owned(), class_name, match_labels, uid: None })
    });
    match (group, wanted) {
        (Ok(group), _) => Ok(Cut::Together(group)),
        (Err(why), None) => Ok(Cut::Each(Some(format!("its claims are cut one after the other: {why}")))),
        (Err(why), Some(_)) => Err(why),
    }
}

fn class(wanted: Option<&str>, means: &Means) -> Result<String, String> {
    let known: BTreeSet<&str> = means.drivers.values().flatten().map(String::as_str).collect();
    let is_known = means.drivers.values().all(Option::is_some);
    let driver = match known.first() {
        Some(driver) if is_known && known.len() == 1 => *driver,
        _ => return Err("their volumes are not all of one CSI driver, which alone could cut them together".to_owned()),
    };
    let of_driver: Vec<&DynamicObject> = means.classes.iter().filter(|one| one.data["driver"] == driver).collect();
    if let Some(wanted) = wanted {
        let found = of_driver.iter().find(|class| class.name_any() == wanted);
        return found
            .map(|class| class.name_any())
            .ok_or_else(|| format!("there is no VolumeGroupSnapshotClass {wanted} of CSI driver {driver}"));
    }
    let is_default = |class: &&&DynamicObject| class.annotations().get(DEFAULT_CLASS).is_some_and(|is| is == "true");
    match (of_driver.iter().find(is_default), of_driver.as_slice()) {
        (Some(class), _) | (None, [class]) => Ok(class.name_any()),
        (None, []) => Err(format!("there is no VolumeGroupSnapshotClass of CSI driver {driver}")),
        (None, _) => Err(format!(
            "there are several VolumeGroupSnapshotClasses of CSI driver {driver}: name one (spec.volumeGroupSnapshotClassName)"
        )),
    }
}

/// Labels that the claims have, and no other of their namespace: a VolumeGroupSnapshot knows its volumes by nothing else.
fn labels_of_these_alone(means: &Means) -> Result<BTreeMap<String, String>, String> {
    let is_ours = |claim: &&PersistentVolumeClaim| means.drivers.contains_key(&claim.name_any());
    let mut ours = means.claims.iter().filter(is_ours);
    let first = ours.next().map(|claim| claim.labels().clone()).unwrap_or_default();
    let common = ours.fold(first, |mut common, claim| {
        common.retain(|key, value| claim.labels().get(key) == Some(value));
        common
    });
    let has_them =
        |claim: &PersistentVolumeClaim| common.iter().all(|(key, value)| claim.labels().get(key) == Some(value));
    let names = || means.drivers.keys().map(String::as_str).collect::<Vec<_>>().join(" ");
    let remedy = || format!("kubectl label persistentvolumeclaim {} stillpoint.dev/group=NAME", names());
    if common.is_empty() {
        return Err(format!(
            "no label is on all of them, by which a VolumeGroupSnapshot could know them: {}",
            remedy()
        ));
    }
    match means.claims.iter().filter(|claim| !is_ours(claim)).find(|claim| has_them(claim)) {
        None => Ok(common),
        Some(other) => Err(format!("claim {} has all labels that are on all of them: {}", other.name_any(), remedy())),
    }
}

/// Which VolumeSnapshots it has become is in the status that is answered, or else what follows. `uid`: the Snapshot's.
pub(super) fn looked(
    mut status: SnapshotStatus,
    group: &SnapshotGroup,
    uid: &str,
    found: Option<GroupFound>,
) -> (SnapshotStatus, Option<Outcome>) {
    let name = &group.name;
    let Some(found) = found else {
        let message = format!("VolumeGroupSnapshot {name} is gone: somebody has deleted it; make another Snapshot");
        return match &group.uid {
            None => (status, Some(Outcome::MakeGroup(group.clone()))),
            Some(_) => (status, Some(Outcome::Failed { reason: reasons::NOT_FOUND, message })),
        };
    };
    if found.made_for.as_deref() != Some(uid) || group.uid.as_ref().is_some_and(|known| *known != found.uid) {
        let message = format!(
            "VolumeGroupSnapshot {name} is there already, and is none of this Snapshot's: delete it, or make a Snapshot of another name"
        );
        return (status, Some(Outcome::Failed { reason: reasons::EXISTS, message }));
    }
    status.volume_group_snapshot = Some(SnapshotGroup { uid: Some(found.uid), ..group.clone() });
    for volume in &mut status.volumes {
        if let Some(member) = found.members.get(&volume.claim) {
            volume.volume_snapshot.clone_from(member);
        }
    }
    if status.volumes.iter().all(|volume| !volume.volume_snapshot.is_empty()) {
        return (status, None);
    }
    status.message = Some(match found.error {
        Some(error) => format!("VolumeGroupSnapshot {name}: {error}; it is tried again"),
        None => format!("VolumeGroupSnapshot {name} is not cut yet"),
    });
    (status, Some(Outcome::Wait))
}

#[cfg(test)]
mod tests {
    use api::SnapshotVolume;
    use serde_json::{Value, json};

    use super::*;

    fn means(ours: &[(&str, Value)], others: &[(&str, Value)], classes: &[(&str, &str)]) -> Means {
        let claim = |(name, labels): &(&str, Value)| {
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
        };
        let class = |(name, driver): &(&str, &str)| {
            let annotations = json!({DEFAULT_CLASS: (*name == "default").to_string()});
            serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations}, "driver": driver}))
                .unwrap()
        };
        Means {
            drivers: ours.iter().map(|(name, _)| ((*name).to_owned(), Some("d".to_owned()))).collect(),
            claims: ours.iter().chain(others).map(claim).collect(),
            classes: classes.iter().map(class).collect(),
        }
    }

    #[test]
    fn claims_are_cut_together_where_labels_select_them_alone_and_their_driver_can() {
        let (a, ab) = (json!({"app": "a"}), json!({"app": "a", "tier": "db"}));
        let (one, other) = (("data", ab.clone()), ("wal", ab.clone()));
        let both = [one.clone(), other.clone()];
        let of = |means: &Means, wanted| cut("noon", wanted, means);
        let group = |class: &str, labels: Value| {
            let match_labels = serde_json::from_value(labels).unwrap();
            let (name, class_name) = ("noon".to_owned(), class.to_owned());
            Ok(Cut::Together(SnapshotGroup { name, class_name, match_labels, uid: None }))
        };
        let says = |cut: Result<Cut, String>, what: &str| {
            let why = match cut {
                Ok(Cut::Each(Some(why))) | Err(why) => why,
                other => panic!("{other:?}"),
            };
            assert!(why.contains(what), "{why}");
        };
        let only = [("only", "d"), ("foreign", "x")];
        assert_eq!(of(&means(&both, &[("else", a.clone())], &only), None), group("only", ab.clone()));
        assert_eq!(of(&means(&[one.clone(), ("wal", a.clone())], &[], &only), None), group("only", a.clone()));
        let several = [("slow", "d"), ("default", "d")];
        assert_eq!(of(&means(&both, &[], &several), None), group("default", ab.clone()));
        assert_eq!(of(&means(&both, &[], &several), Some("slow")), group("slow", ab.clone()));
        assert_eq!(of(&means(std::slice::from_ref(&one), &[], &only), None), Ok(Cut::Each(None)));
        assert_eq!(of(&means(std::slice::from_ref(&one), &[], &only), Some("only")), group("only", ab.clone()));

        says(of(&means(&both, &[("replica", ab.clone())], &only), None), "claim replica has all labels");
        says(
            of(&means(&[one.clone(), ("wal", json!({}))], &[], &only), None),
            "kubectl label persistentvolumeclaim data wal",
        );
        says(of(&means(&both, &[], &[("foreign", "x")]), None), "no VolumeGroupSnapshotClass of CSI driver d");
        says(of(&means(&both, &[], &[("a", "d"), ("b", "d")]), None), "name one");
        let missing = of(&means(&both, &[], &only), Some("foreign"));
        assert!(missing.is_err(), "what was asked for by name is not left out");
        says(missing, "no VolumeGroupSnapshotClass foreign");
        let mut elsewhere = means(&both, &[], &only);
        elsewhere.drivers.insert("wal".to_owned(), Some("x".to_owned()));
        says(of(&elsewhere, None), "not all of one CSI driver");
    }

    #[test]
    fn what_it_has_become_is_known_when_it_is_cut() {
        let volume = |claim: &str| SnapshotVolume { claim: claim.to_owned(), ..SnapshotVolume::default() };
        let group = SnapshotGroup { name: "noon".to_owned(), ..SnapshotGroup::default() };
        let known = SnapshotGroup { uid: Some("g".to_owned()), ..group.clone() };
        let status = SnapshotStatus { volumes: vec![volume("data"), volume("wal")], ..SnapshotStatus::default() };
        let found = |made_for: &str, members: &[(&str, &str)]| {
            let members = members.iter().map(|(claim, name)| ((*claim).to_owned(), (*name).to_owned())).collect();
            Some(GroupFound { uid: "g".to_owned(), made_for: Some(made_for.to_owned()), members, error: None })
        };
        let of = |group: &SnapshotGroup, found| looked(status.clone(), group, "s", found);
        assert_eq!(of(&group, None).1, Some(Outcome::MakeGroup(group.clone())));
        assert!(matches!(of(&known, None).1, Some(Outcome::Failed { reason: reasons::NOT_FOUND, .. })));
        for (group, found) in [
            (&group, found("another", &[])),
            (&SnapshotGroup { uid: Some("other".to_owned()), ..group.clone() }, found("s", &[])),
        ] {
            assert!(matches!(of(group, found).1, Some(Outcome::Failed { reason: reasons::EXISTS, .. })));
        }
        let (waits, outcome) = of(&group, found("s", &[("data", "one")]));
        assert_eq!(outcome, Some(Outcome::Wait));
        assert!(waits.message.unwrap().contains("not cut yet"));
        let (cut, outcome) = of(&group, found("s", &[("data", "one"), ("wal", "two"), ("more", "three")]));
        assert_eq!((outcome, cut.volume_group_snapshot), (None, Some(known)));
        assert_eq!(
            cut.volumes.iter().map(|volume| volume.volume_snapshot.as_str()).collect::<Vec<_>>(),
            ["one", "two"]
        );
    }
}
