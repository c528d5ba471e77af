//! The three places where a snapshot is waited for, one file each, and what they share.
//!
//! ```text
//! CREATE VolumeSnapshot ─► preflight       warnings; nothing is held
//! CREATE …Content       ─► content         hold still, for snapshotters that do not tell when they cut
//! UPDATE …Content       ─► cut             the snapshotter says that it cuts next: hold still
//! ```

pub mod content;
pub mod cut;
pub mod preflight;

use api::{
    gate::{self, Gate, GateObject, GateRequest, Group, ObjectRef},
    install::webhooks::left_alone,
};
use serde_json::Value;

use crate::{
    ours::{OUR_OWN, Ours},
    review::{Operation, Request},
};

/// Not asked, and why not.
type Spared = &'static str;

/// Which of the two kinds an object of `resources` (single, group) is, if that is what is admitted.
fn group(request: &Request, operation: Operation, resources: [&str; 2]) -> Result<Group, Spared> {
    let [single, group] = resources;
    if request.operation != operation || !request.sub_resource.is_empty() {
        return Err("another operation");
    }
    match (request.group.as_str(), request.resource.as_str()) {
        (gate::SNAPSHOTS, resource) if resource == single => Ok(Group::Single),
        (gate::GROUP_SNAPSHOTS, resource) if resource == group => Ok(Group::Group),
        _ => Err("another resource"),
    }
}

/// What holds at each gate: whose request it is, where the snapshot is, and whether it wants to be waited for.
fn is_wanted(request: &Request, namespace: &str, ours: &Ours) -> Result<(), Spared> {
    if request.user == ours.user {
        return Err(OUR_OWN);
    }
    if left_alone(&ours.namespace).contains(&namespace) {
        return Err("a namespace that is left alone");
    }
    if request.annotation(gate::QUIESCE) == Some(gate::SKIP) {
        return Err("skipped by annotation");
    }
    Ok(())
}

/// A content that is about to be cut for the first time, by a driver that has to be asked for it.
fn of_content(gate: Gate, group: Group, request: &Request, ours: &Ours) -> Result<GateRequest, Spared> {
    let (reference, handle) = match group {
        Group::Single => ("/spec/volumeSnapshotRef", "/status/snapshotHandle"),
        Group::Group => ("/spec/volumeGroupSnapshotRef", "/status/volumeGroupSnapshotHandle"),
    };
    let of_reference = |key: &str| request.text(&format!("{reference}/{key}"));
    let namespace = of_reference("namespace").unwrap_or_default();
    is_wanted(request, namespace, ours)?;
    if request.annotation(gate::GROUP_MEMBER).is_some() {
        return Err("cut with its group");
    }
    // The annotation comes and goes while the storage uploads: the driver is asked again and again how far it is (external-snapshotter
    // `pkg/sidecar-controller/snapshot_controller.go`, checkandUpdateContentStatusOperation).
    if request.text(handle).is_some() {
        return Err("cut before");
    }
    let volume_handles = match group {
        Group::Single => request.text("/spec/source/volumeHandle").map(str::to_owned).into_iter().collect(),
        Group::Group => texts(request.object.pointer("/spec/source/volumeHandles")),
    };
    if volume_handles.is_empty() {
        return Err("made from a copy that is there");
    }
    let class = match group {
        Group::Single => "/spec/volumeSnapshotClassName",
        Group::Group => "/spec/volumeGroupSnapshotClassName",
    };
    let snapshot = of_reference("name").map(|name| ObjectRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        uid: of_reference("uid").map(str::to_owned),
    });
    Ok(GateRequest {
        snapshot,
        driver: request.text("/spec/driver").map(str::to_owned),
        class: request.text(class).map(str::to_owned),
        volume_handles,
        ..asked(gate, group, request)
    })
}

/// What every gate says of an object.
fn asked(gate: Gate, group: Group, request: &Request) -> GateRequest {
    let of_metadata = |key: &str| request.text(&format!("/metadata/{key}")).unwrap_or_default().to_owned();
    let namespace = request.namespace();
    let object = GateObject {
        group,
        namespace: (!namespace.is_empty()).then(|| namespace.to_owned()),
        name: of_metadata("name"),
        uid: of_metadata("uid"),
    };
    GateRequest {
        gate,
        object,
        snapshot: None,
        driver: None,
        class: None,
        volume_handles: Vec::new(),
        claims: Vec::new(),
        selector: None,
        user: beginning(&request.user, gate::LONGEST_USER),
        dry_run: request.dry_run,
        // Both are the sender's to say: by where the review was sent, and by when it is sent on.
        required: false,
        deadline_milliseconds: 0,
    }
}

fn owners(object: &Value) -> impl Iterator<Item = &Value> {
    object.pointer("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten()
}

/// The texts of a list. Anything else in it is an empty text, which no bound allows: half a group must not be taken for all.
fn texts(list: Option<&Value>) -> Vec<String> {
    let items = list.and_then(Value::as_array).into_iter().flatten();
    items.map(|item| item.as_str().unwrap_or_default().to_owned()).collect()
}

fn beginning(text: &str, longest: usize) -> String {
    text[..text.floor_char_boundary(longest)].to_owned()
}
