//! What people see of a cut: labels and annotations on the snapshot and its content, and Events, so that
//! `kubectl describe volumesnapshot` says what the copy is worth, and why.

use api::{
    FreezeStatus,
    gate::{self, CONSISTENCY, Group},
};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};
use tracing::warn;

use super::{
    Gates,
    contents::{Content, Member},
    kinds::Kind,
    verdict::{Consistency, Verdict},
};
use crate::meta;

/// On what a judgement is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum If {
    /// Whatever is there: who held knows.
    Always,
    /// Only if the content is as it was when it was judged: somebody else may know more.
    Unchanged,
}

/// On the content and on its snapshot, as one Event more. What cannot be written is told in the log: the Freeze has it, too.
pub(super) async fn judgement(
    gates: &Gates,
    content: &Content,
    held: Option<(&str, &FreezeStatus)>,
    verdict: &Verdict,
    condition: If,
) {
    let mut metadata =
        json!({"labels": {CONSISTENCY: verdict.consistency.word()}, "annotations": annotations(held, verdict)});
    let snapshot = json!({"metadata": metadata});
    if condition == If::Unchanged {
        metadata["resourceVersion"] = json!(content.version);
    }
    let contents = gates.0.kinds.all(Kind::Content, content.group);
    let params = PatchParams::default();
    let written = contents.patch(&content.name, &params, &Patch::Merge(json!({"metadata": metadata}))).await;
    match written {
        Ok(_) => {}
        // It has changed meanwhile, and is looked at again.
        Err(kube::Error::Api(status)) if condition == If::Unchanged && status.code == 409 => return,
        Err(kube::Error::Api(status)) if status.code == 404 => return,
        Err(error) => warn!(content = content.name, %error, "what a copy is worth could not be written on its content"),
    }
    let uid = on_snapshot(gates, content.group, &content.snapshot, &snapshot).await;
    gates.0.app.metrics.judged(verdict.consistency.word());
    let good = verdict.consistency == Consistency::Application;
    event(gates, content.group, &content.snapshot, uid, good, verdict.reason, &verdict.message).await;
}

/// A member of a group is worth what its group is.
pub(super) async fn of_group(gates: &Gates, member: &Member, group: &Content) {
    let Some(cut) = &group.cut_group else { return };
    let patch = json!({"metadata": {"labels": cut.said.labels, "annotations": cut.said.annotations}});
    let contents = gates.0.kinds.all(Kind::Content, Group::Single);
    if let Err(error) = contents.patch(&member.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        warn!(content = member.name, %error, "what a group is worth could not be written on its member");
    }
    on_snapshot(gates, Group::Single, &member.snapshot, &patch).await;
}

/// Answers its uid.
async fn on_snapshot(
    gates: &Gates,
    group: Group,
    (namespace, name): &(String, String),
    patch: &Value,
) -> Option<String> {
    let snapshots = gates.0.kinds.snapshots(group, namespace);
    match snapshots.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(snapshot) => snapshot.metadata.uid,
        // Its content is kept without it.
        Err(kube::Error::Api(status)) if status.code == 404 => None,
        Err(error) => {
            warn!(namespace, name, %error, "what a snapshot is worth could not be written on it");
            None
        }
    }
}

fn annotations(held: Option<(&str, &FreezeStatus)>, verdict: &Verdict) -> Value {
    let mut annotations = json!({gate::REASON: verdict.reason, gate::MESSAGE: verdict.message});
    let Some((freeze, status)) = held else { return annotations };
    let positions: Map<String, Value> = status
        .targets
        .iter()
        .filter_map(|target| Some((target.database.clone(), serde_json::to_value(target.position.as_ref()?).ok()?)))
        .collect();
    annotations[gate::FREEZE] = freeze.into();
    annotations[gate::LEVEL] = status.level.unwrap_or_default().to_string().into();
    annotations[gate::POSITION] = Value::Object(positions).to_string().into();
    if let Some(held) = status.frozen_milliseconds {
        annotations[gate::FROZEN_MILLISECONDS] = held.to_string().into();
    }
    annotations
}

/// About a snapshot that is there: one without a uid is not.
pub(super) async fn event(
    gates: &Gates,
    group: Group,
    (namespace, name): &(String, String),
    uid: Option<String>,
    good: bool,
    reason: &str,
    message: &str,
) {
    let Some(uid) = uid else { return };
    let kind = gates.0.kinds.resource(Kind::Snapshot, group);
    let at = Time(Timestamp::now());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(meta::generated(&format!("{name}."))),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(kind.api_version),
            kind: Some(kind.kind),
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            uid: Some(uid),
            ..ObjectReference::default()
        },
        type_: Some(if good { "Normal" } else { "Warning" }.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.chars().take(1024).collect()),
        source: Some(EventSource { component: Some("stillpoint-apiserver".to_owned()), host: None }),
        first_timestamp: Some(at.clone()),
        last_timestamp: Some(at),
        count: Some(1),
        ..Event::default()
    };
    gates.0.verbs.records.tell(vec![event]).await;
}
