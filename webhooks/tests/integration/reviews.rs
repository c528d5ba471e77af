//! Reviews as kube-apiserver sends them, to begin with.

use serde_json::{Value, json};
use webhooks::review::{Request, decode};

pub(crate) const UID: &str = "705ab4f5-6393-11e8-b7cc-42010a800002";
pub(crate) const SNAPSHOTTER: &str = "system:serviceaccount:csi:snapshotter";
pub(crate) const BEING_CREATED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-created";
pub(crate) const GROUP_BEING_CREATED: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-created";

/// A review of this operation on `resource` (`plural.group`).
pub(crate) fn review(operation: &str, resource: &str, object: Value, old: Value) -> Value {
    let (plural, group) = resource.split_once('.').unwrap();
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": UID,
            "kind": {"group": group, "version": "v1", "kind": object["kind"]},
            "resource": {"group": group, "version": "v1", "resource": plural},
            "requestKind": {"group": group, "version": "v1", "kind": object["kind"]},
            "requestResource": {"group": group, "version": "v1", "resource": plural},
            "name": object["metadata"]["name"], "namespace": object["metadata"]["namespace"],
            "operation": operation,
            "userInfo": {"username": SNAPSHOTTER, "uid": "1", "groups": ["system:authenticated"]},
            "object": object, "oldObject": old, "dryRun": false,
            "options": {"apiVersion": "meta.k8s.io/v1", "kind": "PatchOptions"},
        },
    })
}

/// The snapshotter marks a content, and cuts next.
pub(crate) fn cut() -> Value {
    let mut object = content();
    let old = object.clone();
    object["metadata"]["annotations"][BEING_CREATED] = "yes".into();
    review("UPDATE", "volumesnapshotcontents.snapshot.storage.k8s.io", object, old)
}

/// The same of a group.
pub(crate) fn group_cut() -> Value {
    let mut object = group_content();
    let old = object.clone();
    object["metadata"]["annotations"] = json!({GROUP_BEING_CREATED: "yes"});
    review("UPDATE", "volumegroupsnapshotcontents.groupsnapshot.storage.k8s.io", object, old)
}

pub(crate) fn content_create() -> Value {
    review("CREATE", "volumesnapshotcontents.snapshot.storage.k8s.io", content(), Value::Null)
}

/// Somebody declares a snapshot.
pub(crate) fn preflight() -> Value {
    let object = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {
            "name": "velero-data-x7k2p", "generateName": "velero-data-", "namespace": "shop", "uid": "vs-1",
            "labels": {"velero.io/backup-name": "nightly", "team": "payments"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
        },
        "spec": {"volumeSnapshotClassName": "fast", "source": {"persistentVolumeClaimName": "data"}},
    });
    review("CREATE", "volumesnapshots.snapshot.storage.k8s.io", object, Value::Null)
}

pub(crate) fn group_preflight() -> Value {
    let object = json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshot",
        "metadata": {"name": "all", "namespace": "shop", "uid": "vgs-1"},
        "spec": {"volumeGroupSnapshotClassName": "fast", "source": {"selector": {"matchLabels": {"app": "orders"}}}},
    });
    review("CREATE", "volumegroupsnapshots.groupsnapshot.storage.k8s.io", object, Value::Null)
}

pub(crate) fn database(spec: Value) -> Value {
    review("CREATE", "databases.stillpoint.dev", own("Database", spec), Value::Null)
}

pub(crate) fn database_update(spec: Value, old: Value) -> Value {
    review("UPDATE", "databases.stillpoint.dev", own("Database", spec), own("Database", old))
}

pub(crate) fn freeze(spec: Value) -> Value {
    review("CREATE", "freezes.stillpoint.dev", own("Freeze", spec), Value::Null)
}

/// A database that asks for an agent.
pub(crate) fn plain_pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "orders-0", "namespace": "shop", "labels": {"stillpoint.dev/inject": "true"}},
        "spec": {"containers": [{"name": "postgres", "image": "postgres:16"}]},
    })
}

/// Somebody makes a Pod.
pub(crate) fn pod_create(pod: Value) -> Value {
    let mut review = review("CREATE", "pods.", pod, Value::Null);
    review["request"]["userInfo"]["username"] = "system:serviceaccount:kube-system:statefulset-controller".into();
    review
}

/// With the value at this pointer another; parents are made.
pub(crate) fn with(mut review: Value, pointer: &str, value: Value) -> Value {
    let mut at = &mut review;
    for key in pointer.split('/').skip(1) {
        at = &mut at[key.replace("~1", "/")];
    }
    *at = value;
    review
}

pub(crate) fn request(review: &Value) -> Request {
    decode(review.to_string().as_bytes()).unwrap().request
}

fn own(kind: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": kind,
        "metadata": {"name": "orders", "namespace": "shop", "uid": "own-1"}, "spec": spec,
    })
}

fn content() -> Value {
    json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
        "metadata": {
            "name": "snapcontent-vs-1", "uid": "vsc-1", "resourceVersion": "812", "generation": 1,
            "creationTimestamp": "2026-09-01T10:00:00Z",
            "annotations": {"snapshot.storage.kubernetes.io/deletion-secret-name": "csi"},
            "finalizers": ["snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"],
            "managedFields": managed_fields(),
        },
        "spec": {
            "deletionPolicy": "Delete", "driver": "csi.example", "volumeSnapshotClassName": "fast",
            "source": {"volumeHandle": "vol-1"}, "sourceVolumeMode": "Filesystem",
            "volumeSnapshotRef": {
                "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
                "name": "nightly", "namespace": "shop", "uid": "vs-1", "resourceVersion": "810",
            },
        },
    })
}

fn group_content() -> Value {
    json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshotContent",
        "metadata": {"name": "groupsnapcontent-vgs-1", "uid": "vgsc-1"},
        "spec": {
            "deletionPolicy": "Delete", "driver": "csi.example", "volumeGroupSnapshotClassName": "fast",
            "source": {"volumeHandles": ["vol-1", "vol-2"]},
            "volumeGroupSnapshotRef": {"kind": "VolumeGroupSnapshot", "name": "all", "namespace": "shop", "uid": "vgs-1"},
        },
    })
}

/// Most of what a review weighs.
fn managed_fields() -> Value {
    let fields = json!({"f:metadata": {"f:finalizers": {".": {}, "v:\"snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection\"": {}}},
        "f:spec": {".": {}, "f:deletionPolicy": {}, "f:driver": {}, "f:source": {".": {}, "f:volumeHandle": {}}, "f:sourceVolumeMode": {},
        "f:volumeSnapshotClassName": {}, "f:volumeSnapshotRef": {}}});
    json!([{"manager": "snapshot-controller", "operation": "Update", "apiVersion": "snapshot.storage.k8s.io/v1",
        "time": "2026-09-01T10:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": fields}])
}
