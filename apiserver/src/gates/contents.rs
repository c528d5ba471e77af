//! What a VolumeSnapshotContent or VolumeGroupSnapshotContent says of its cut (external-snapshotter `client/v8/apis`). Pure.

use std::collections::BTreeMap;

use api::gate::{
    CONSISTENCY, FREEZE, FROZEN_MILLISECONDS, GROUP_MEMBER, Group, LEVEL, MESSAGE, POSITION, QUIESCE, REASON, SKIP,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::DynamicObject;
use serde_json::Value;

/// Of a content, what its cut is judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) group: Group,
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) driver: String,
    pub(super) class: Option<String>,
    pub(super) handles: Vec<String>,
    /// The snapshot that it is the content of.
    pub(super) snapshot: Of,
    pub(super) fate: Fate,
    /// It is being deleted, or is to be as soon as its driver has answered.
    pub(super) deleting: bool,
    pub(super) made: Timestamp,
    /// It says already what it is worth.
    pub(super) is_judged: bool,
    /// What its snapshotter's mark says: by which claim its Databases were held when it was stored.
    pub(super) claim: Option<String>,
    /// It says itself that it does not want to be waited for.
    pub(super) skips: bool,
    pub(super) version: Option<String>,
    /// Of a group that was cut.
    pub(super) cut_group: Option<CutGroup>,
}

/// A group that was cut, as its members know it, and what it says that it is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CutGroup {
    pub(super) handle: String,
    pub(super) said: Said,
}

/// Our labels and annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
}

/// The snapshot of a content. Another of the same name is another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Of {
    pub(super) namespace: String,
    pub(super) name: String,
    /// It may be made later.
    pub(super) uid: Option<String>,
}

/// The content of one volume of a group, made after the cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) uid: String,
    pub(super) name: String,
    pub(super) driver: String,
    /// Of its group.
    pub(super) handle: String,
    pub(super) snapshot: Of,
    pub(super) is_judged: bool,
}

/// How far its cut is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// The driver was not called yet, or has said no for good, and is asked anew later: then the gate is, too.
    Before,
    /// The driver is being called.
    Calling,
    /// When, by the driver's clock, if it says so.
    Cut { created: Option<Timestamp> },
}

impl Content {
    /// `None`: one that was not made by a cut (restored, or of before our time), a member of a group, or nonsense.
    pub(super) fn read(object: &DynamicObject, group: Group) -> Option<Self> {
        let (spec, status) = (&object.data["spec"], &object.data["status"]);
        let source = &spec["source"];
        let annotations = object.metadata.annotations.as_ref();
        let annotated = |name: &str| annotations.is_some_and(|all| all.contains_key(name));
        if annotated(GROUP_MEMBER) {
            return None;
        }
        let (handles, reference, handle) = match group {
            Group::Single => {
                let handle = source["volumeHandle"].as_str()?.to_owned();
                (vec![handle], "volumeSnapshotRef", "snapshotHandle")
            }
            Group::Group => {
                let handles = source["volumeHandles"].as_array()?.iter();
                let handles = handles.filter_map(Value::as_str).map(str::to_owned).collect();
                (handles, "volumeGroupSnapshotRef", "volumeGroupSnapshotHandle")
            }
        };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let fate = if status[handle].is_string() {
            Fate::Cut { created: created(&status["creationTime"]) }
        } else if annotated(group.mark()) {
            Fate::Calling
        } else {
            Fate::Before
        };
        Some(Self {
            group,
            uid: object.metadata.uid.clone()?,
            name: object.metadata.name.clone()?,
            driver: text(&spec["driver"])?,
            class: text(&spec["volumeSnapshotClassName"]).or_else(|| text(&spec["volumeGroupSnapshotClassName"])),
            handles,
            snapshot: Of::read(&spec[reference])?,
            fate,
            deleting: object.metadata.deletion_timestamp.is_some() || BEING_DELETED.into_iter().any(annotated),
            made: object.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |made| made.0),
            is_judged: is_judged(object),
            claim: annotations.and_then(|all| all.get(group.mark())).cloned(),
            skips: annotations.and_then(|all| all.get(QUIESCE)).is_some_and(|said| said == SKIP),
            version: object.metadata.resource_version.clone(),
            cut_group: (group == Group::Group).then(|| text(&status[handle])).flatten().map(|handle| {
                let ours = |all: &Option<BTreeMap<String, String>>| {
                    let ours = all.iter().flatten().filter(|(key, _)| SAID.contains(&key.as_str()));
                    ours.map(|(key, value)| (key.clone(), value.clone())).collect()
                };
                let ObjectMeta { labels, annotations, .. } = &object.metadata;
                CutGroup { handle, said: Said { labels: ours(labels), annotations: ours(annotations) } }
            }),
        })
    }
}

impl Member {
    /// `None`: it is the content of no group's member.
    pub(super) fn read(object: &DynamicObject) -> Option<Self> {
        let handle = object.metadata.annotations.as_ref()?.get(GROUP_MEMBER)?.clone();
        let spec = &object.data["spec"];
        Some(Self {
            uid: object.metadata.uid.clone()?,
            name: object.metadata.name.clone()?,
            driver: spec["driver"].as_str()?.to_owned(),
            handle,
            snapshot: Of::read(&spec["volumeSnapshotRef"])?,
            is_judged: is_judged(object),
        })
    }
}

impl Of {
    fn read(reference: &Value) -> Option<Self> {
        let text = |key: &str| reference[key].as_str().map(str::to_owned);
        Some(Self { namespace: text("namespace")?, name: text("name")?, uid: text("uid") })
    }
}

/// On a content whose snapshot was deleted (external-snapshotter `pkg/utils/util.go`).
const BEING_DELETED: [&str; 2] = [
    "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted",
    "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted",
];

/// What a judgement writes.
const SAID: [&str; 7] = [CONSISTENCY, REASON, MESSAGE, FREEZE, LEVEL, POSITION, FROZEN_MILLISECONDS];

fn is_judged(object: &DynamicObject) -> bool {
    object.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(CONSISTENCY))
}

/// Nanoseconds since 1970 of a single content; RFC 3339 of a group's.
fn created(value: &Value) -> Option<Timestamp> {
    match value {
        Value::Number(number) => Timestamp::from_nanosecond(i128::from(number.as_i64()?)).ok(),
        Value::String(text) => text.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use api::gate::{BEING_CREATED, GROUP_BEING_CREATED};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn content(annotations: Value, status: Value) -> DynamicObject {
        serde_json::from_value(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": "snapcontent-1", "uid": "u", "annotations": annotations},
            "spec": {
                "driver": "d", "volumeSnapshotClassName": "fast", "source": {"volumeHandle": "h"},
                "volumeSnapshotRef": {"namespace": "shop", "name": "noon"},
            },
            "status": status,
        }))
        .unwrap()
    }

    #[test]
    fn how_far_a_cut_is_follows_from_the_mark_and_the_handle() {
        let mark = json!({BEING_CREATED: "yes"});
        let error = json!({"error": {"message": "no"}});
        let cut = json!({"snapshotHandle": "s", "creationTime": 1_800_000_000_000_000_000_i64});
        let at = Timestamp::from_second(1_800_000_000).ok();
        for (annotations, status, fate) in [
            (json!({}), json!(null), Fate::Before),
            (json!({}), error.clone(), Fate::Before),
            (mark.clone(), json!(null), Fate::Calling),
            (mark.clone(), error, Fate::Calling),
            (mark, cut.clone(), Fate::Cut { created: at }),
            (json!({}), cut, Fate::Cut { created: at }),
            (json!({}), json!({"snapshotHandle": "s"}), Fate::Cut { created: None }),
        ] {
            let content = Content::read(&content(annotations, status), Group::Single).unwrap();
            assert_eq!((content.fate, content.snapshot.name.as_str()), (fate, "noon"));
        }
    }

    #[test]
    fn what_was_not_cut_for_itself_is_not_ours() {
        assert!(Content::read(&content(json!({GROUP_MEMBER: "g"}), json!(null)), Group::Single).is_none());
        let mut restored = content(json!({}), json!(null));
        restored.data["spec"]["source"] = json!({"snapshotHandle": "s"});
        assert!(Content::read(&restored, Group::Single).is_none());
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            "\\PC{0,40}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-zA-Z]{1,12}", inner, 0..4)
                    .prop_map(|map| map.into_iter().collect::<Value>()),
            ]
        })
    }

    proptest! {
        /// Whatever stands where: it is read or not, and only a handle that is a text is a cut.
        #[test]
        fn whatever_a_content_says_it_is_read_or_not(
            spec in any_json(), handle in any_json(), created in any_json(), error in any_json(), group in any::<bool>(),
            volumes in any_json(), annotated in prop::collection::btree_map("\\PC{0,60}", "\\PC{0,40}", 0..3),
        ) {
            let mut object = content(json!(annotated), json!({
                "snapshotHandle": handle, "volumeGroupSnapshotHandle": handle, "creationTime": created, "error": error,
            }));
            let group = if group { Group::Group } else { Group::Single };
            let is_cut = Content::read(&object, group).is_some_and(|all| matches!(all.fate, Fate::Cut { .. }));
            prop_assert!(!is_cut || handle.is_string());
            object.data["spec"]["source"] = volumes;
            Content::read(&object, group);
            object.data["spec"] = spec;
            Content::read(&object, group);
            Member::read(&object);
        }
    }

    #[test]
    fn a_group_has_all_its_volumes() {
        let group: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshotContent",
            "metadata": {"name": "g", "uid": "u", "annotations": {GROUP_BEING_CREATED: "yes"}},
            "spec": {
                "driver": "d", "source": {"volumeHandles": ["a", "b"]},
                "volumeGroupSnapshotRef": {"namespace": "shop", "name": "noon"},
            },
            "status": {"volumeGroupSnapshotHandle": "s", "creationTime": "2026-01-01T00:00:00Z"},
        }))
        .unwrap();
        let content = Content::read(&group, Group::Group).unwrap();
        assert_eq!(content.handles, ["a", "b"]);
        assert!(matches!(content.fate, Fate::Cut { created: Some(_) }));
        assert_eq!(content.cut_group, Some(CutGroup { handle: "s".to_owned(), said: Said::default() }));
    }

    #[test]
    fn a_member_knows_its_group_and_a_group_what_it_said() {
        let member = Member::read(&content(json!({GROUP_MEMBER: "s"}), json!(null))).unwrap();
        assert_eq!((member.handle.as_str(), member.snapshot.name.as_str(), member.is_judged), ("s", "noon", false));
        assert_eq!(Member::read(&content(json!({}), json!(null))), None);
        let group: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshotContent",
            "metadata": {
                "name": "g", "uid": "u", "labels": {CONSISTENCY: "application", "other": "x"},
                "annotations": {FREEZE: "f", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
            },
            "spec": {
                "driver": "d", "source": {"volumeHandles": ["a"]},
                "volumeGroupSnapshotRef": {"namespace": "shop", "name": "noon"},
            },
            "status": {"volumeGroupSnapshotHandle": "s"},
        }))
        .unwrap();
        let said = Content::read(&group, Group::Group).unwrap().cut_group.unwrap().said;
        let only = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert_eq!(said, Said { labels: only(CONSISTENCY, "application"), annotations: only(FREEZE, "f") });
    }
}
