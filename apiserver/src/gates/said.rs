//! What people see of a cut: labels and annotations on the snapshot and its content, and Events, so that
//! `kubectl describe volumesnapshot` says what the copy is worth, and why.

use api::{
    FreezeStatus,
    gate::{self, CONSISTENCY, Group},
};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api,
    api::{DynamicObject, Patch, PatchParams},
};
use serde_json::{Map, Value, json};
use tokio::time::{Duration, sleep};
use tracing::{debug, warn};

use super::{
    Gates,
    contents::{Content, Member, Of},
    verdict::{Consistency, Verdict},
};
use crate::{controllers::events::event_about, csi_snapshots::Kind};

/// On what a judgement is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum If {
    /// Whatever is there: who held knows.
    Always,
    /// Only if the content is as it was when it was judged: somebody else may know more.
    Unchanged,
}

/// While the API server is away, in seconds.
const PAUSES: [u64; 5] = [1, 2, 4, 8, 16];

/// On the content and on its snapshot, as one Event more. What cannot be written is told in the log: the Freeze has it, too.
pub(super) async fn judgement(
    gates: &Gates,
    content: &Content,
    held: Option<(&str, &FreezeStatus)>,
    verdict: &Verdict,
    condition: If,
) {
    let said = json!({"labels": {CONSISTENCY: verdict.consistency.word()}, "annotations": annotations(held, verdict)});
    let mut metadata = json!({"metadata": said});
    metadata["metadata"]["uid"] = json!(content.uid);
    if condition == If::Unchanged {
        metadata["metadata"]["resourceVersion"] = json!(content.version);
    }
    let contents = gates.0.kinds.all(Kind::Content, content.group);
    let on_content = || patched(&contents, &content.name, &metadata);
    let on_snapshot = || on_snapshot(gates, content.group, &content.snapshot, &said);
    // Whoever waits for the label finds the Event.
    let tell = || {
        let good = verdict.consistency == Consistency::Application;
        let uid = content.snapshot.uid.clone();
        event(gates, content.group, &content.snapshot, uid, good, verdict.reason, &verdict.message)
    };
    let written = match condition {
        // The snapshot first: once its content says it nobody looks again.
        If::Always => {
            tell().await;
            match again(on_snapshot).await {
                // Another of its name is there by now: that one is none of ours.
                Err(kube::Error::Api(status)) if status.code == 409 => again(on_content).await.map(drop),
                Ok(_) => again(on_content).await.map(drop),
                Err(error) => Err(error),
            }
        }
        // The content first: only there is it seen whether somebody else was faster.
        If::Unchanged => match again(on_content).await {
            Ok(_) => {
                tell().await;
                again(on_snapshot).await.map(drop)
            }
            Err(error) => Err(error),
        },
    };
    match written {
        Ok(()) => gates.0.app.metrics.judged(verdict.consistency.word()),
        // It has changed meanwhile, or is another one by now: whoever sees it so looks at it again.
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => warn!(content = content.name, %error, "what a copy is worth could not be written on it"),
    }
}

/// What stands on a snapshot before its cut is nobody's word: it was copied with it, and whoever waits for the word would believe it.
pub(super) async fn nothing_yet(gates: &Gates, group: Group, snapshot: Option<&ObjectMeta>) {
    let labelled = |snapshot: &&ObjectMeta| snapshot.labels.as_ref().is_some_and(|all| all.contains_key(CONSISTENCY));
    let Some(ObjectMeta { name: Some(name), namespace: Some(namespace), uid: Some(uid), .. }) =
        snapshot.filter(labelled)
    else {
        return;
    };
    let patch = json!({"metadata": {"uid": uid, "labels": {CONSISTENCY: null}}});
    if let Err(error) = patched(&gates.0.kinds.snapshots(group, namespace), name, &patch).await {
        warn!(name, %error, "a label that nobody has said could not be taken off");
    }
}

/// Tries again what the API server could not do at the moment.
async fn again<T, F>(work: impl Fn() -> F) -> Result<T, kube::Error>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    for pause in PAUSES {
        match work().await {
            Err(kube::Error::Api(status)) if status.code == 409 || status.code == 403 => {
                return Err(kube::Error::Api(status));
            }
            Err(error) => warn!(%error, "what a copy is worth could not be written; trying again"),
            done => return done,
        }
        sleep(Duration::from_secs(pause)).await;
    }
    work().await
}

/// What is gone needs no patch.
async fn patched(api: &Api<DynamicObject>, name: &str, patch: &Value) -> Result<Option<DynamicObject>, kube::Error> {
    match api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error),
    }
}

/// A member of a group is worth what its group is.
pub(super) async fn of_group(gates: &Gates, member: &Member, group: &Content) {
    let Some(cut) = &group.cut_group else { return };
    let said = json!({"labels": cut.said.labels, "annotations": cut.said.annotations});
    let mut metadata = said.clone();
    metadata["uid"] = json!(member.uid);
    // Its content is made before it, and is what says that this is done.
    let written = async {
        if on_snapshot(gates, Group::Single, &member.snapshot, &said).await?.is_some() {
            let contents = gates.0.kinds.all(Kind::Content, Group::Single);
            patched(&contents, &member.name, &json!({"metadata": metadata})).await?;
        }
        Ok::<_, kube::Error>(())
    };
    if let Err(error) = written.await {
        debug!(content = member.name, %error, "what a group is worth is not on its member yet");
    }
}

/// Answers its uid. Another of the same name is left alone: that is a conflict.
async fn on_snapshot(gates: &Gates, group: Group, of: &Of, said: &Value) -> Result<Option<String>, kube::Error> {
    let mut metadata = said.clone();
    if let Some(uid) = &of.uid {
        metadata["uid"] = json!(uid);
    }
    let snapshots = gates.0.kinds.snapshots(group, &of.namespace);
    let snapshot = patched(&snapshots, &of.name, &json!({"metadata": metadata})).await?;
    Ok(snapshot.and_then(|snapshot| snapshot.metadata.uid))
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
    Of { namespace, name, .. }: &Of,
    uid: Option<String>,
    good: bool,
    reason: &str,
    message: &str,
) {
    let Some(uid) = uid else { return };
    let kind = gates.0.kinds.resource(Kind::Snapshot, group);
    let about = ObjectReference {
        api_version: Some(kind.api_version),
        kind: Some(kind.kind),
        name: Some(name.clone()),
        namespace: Some(namespace.clone()),
        uid: Some(uid),
        ..ObjectReference::default()
    };
    let event = event_about(about, good, reason, message, Timestamp::now());
    gates.0.verbs.records.tell(vec![event]).await;
}
