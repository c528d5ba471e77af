//! Gates: what `stillpoint-webhooks` asks the apiserver before a snapshot may go on, and what it hears.
//!
//! ```text
//! kube-apiserver ──AdmissionReview──► stillpoint-webhooks ──POST /gates/v1alpha1 GateRequest──► apiserver
//!                                                         ◄────────────GateAnswer──────────────
//! ```
//! A gate is asked again whenever an admission comes again (a PATCH that met a conflict does), so whoever answers does so by
//! [`GateObject::uid`], as often as it is asked. Fields that one side does not know are ignored: the two are updated one after
//! the other. Everything has a bound, and whoever receives a request holds the sender to it ([`GateRequest::check`]).

pub mod atomic;
pub mod claim;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where gates are asked, by POST.
pub const PATH: &str = "/gates/v1alpha1";
/// The port that the apiserver's Service has for them.
pub const PORT: u16 = 8443;
/// The audience of the token that asks. A token for kube-apiserver is none for us, nor ours one for it.
pub const AUDIENCE: &str = "gates.stillpoint.dev";

/// The longest a name may be: of an object, a namespace, a class, a driver, a kind.
pub const LONGEST_NAME: usize = 253;
/// The longest a uid may be, of an object or of a claim; Kubernetes' own are 36.
pub const LONGEST_UID: usize = 128;
/// The longest a volume handle may be. CSI says 128 bytes, and drivers that put paths of resources in it say more.
pub const LONGEST_HANDLE: usize = 1024;
/// The longest a user's name may be; who has a longer one is told by its beginning.
pub const LONGEST_USER: usize = 512;
/// Volumes of one group.
pub const MOST_VOLUMES: usize = 256;
/// A label selector, as JSON.
pub const LONGEST_SELECTOR: usize = 16 * 1024;
/// A request or an answer, as JSON: 256 handles of the longest, and room.
pub const LONGEST_BODY: usize = 512 * 1024;
/// What people are told in one answer.
pub const MOST_WARNINGS: usize = 16;
/// The longest a warning may be (kube-apiserver advises so: `admission/v1` AdmissionResponse), in bytes.
pub const LONGEST_WARNING: usize = 120;
/// The longest message of a denial.
pub const LONGEST_MESSAGE: usize = 2048;
/// Audit annotations of one answer, and their longest value.
pub const MOST_AUDIT: usize = 16;
pub const LONGEST_AUDIT: usize = 1024;

/// On a VolumeSnapshotContent from right before the driver is called until it has answered (external-snapshotter
/// `pkg/utils/util.go`). Its snapshotter writes `yes`, and looks only whether it is there; the gate answers in its place with the
/// claim by which the Databases are held ([`claim`]). So mark and claim are one write, and no cut can have begun before the hold. An
/// annotation of its own would have the snapshotter call the driver once more at once (`ShouldEnqueueContentChange`).
pub const BEING_CREATED: &str = "snapshot.storage.kubernetes.io/volumesnapshot-being-created";
/// The same of a VolumeGroupSnapshotContent.
pub const GROUP_BEING_CREATED: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-created";
/// On the content of a member of a group snapshot: it was cut with its group.
pub const GROUP_MEMBER: &str = "groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle";
/// Owns the VolumeSnapshots that were cut with a group.
pub const GROUP_KIND: &str = "VolumeGroupSnapshot";
/// Annotation of whoever does not want a snapshot to be waited for; its one value is [`SKIP`].
pub const QUIESCE: &str = "stillpoint.dev/quiesce";
pub const SKIP: &str = "skip";
/// Label of a Namespace: [`REQUIRED`], or [`PREFERRED`], which is what is meant without it.
pub const POLICY: &str = "stillpoint.dev/snapshots";
/// No copy that is not consistent is taken: it waits, and then see [`ON_MISSED`].
pub const REQUIRED: &str = "Required";
/// Stillpoint is never in the way: what could not be held is taken all the same, and says so.
pub const PREFERRED: &str = "Preferred";
/// Annotation of a snapshot, or of its Namespace for all that say nothing: what becomes of a snapshot of a [`REQUIRED`] namespace
/// whose databases could not be held for [`DEADLINE_SECONDS`]. `Fail` (the default): it is never cut. `Keep`: it is cut as it is.
pub const ON_MISSED: &str = "stillpoint.dev/on-missed";
/// Annotation of the same two: since the snapshot was made.
pub const DEADLINE_SECONDS: &str = "stillpoint.dev/deadline-seconds";
/// Label of a snapshot and of its content: `application`, `partial`, `crash` or `unknown`.
pub const CONSISTENCY: &str = "stillpoint.dev/consistency";
/// Annotations beside it: one word, a sentence, the Freeze, its level, where each database stood (JSON), how long it held.
pub const REASON: &str = "stillpoint.dev/reason";
pub const MESSAGE: &str = "stillpoint.dev/message";
pub const FREEZE: &str = "stillpoint.dev/freeze";
pub const LEVEL: &str = "stillpoint.dev/level";
pub const POSITION: &str = "stillpoint.dev/position";
pub const FROZEN_MILLISECONDS: &str = "stillpoint.dev/frozen-milliseconds";
/// Annotation of a Database: PersistentVolumeClaims, with commas, that its Pods mount and that it has no data on. A copy without them
/// is whole.
pub const UNRELATED_CLAIMS: &str = "stillpoint.dev/unrelated-claims";
/// Label or annotation of a VolumeSnapshotClass or VolumeGroupSnapshotClass: `"true"` or `"false"`, whether its driver cuts as of one
/// instant, whatever our table of drivers says.
pub const ATOMIC: &str = "stillpoint.dev/atomic";
/// The API groups of single snapshots and of group snapshots.
pub const SNAPSHOTS: &str = "snapshot.storage.k8s.io";
pub const GROUP_SNAPSHOTS: &str = "groupsnapshot.storage.k8s.io";

/// What a tool that gives up at the first error goes on after: it is kube-apiserver's own word for "try again" (kanister
/// `pkg/kube/snapshot/snapshot.go` waits on when an error of a VolumeSnapshot reads so). It ends the message of a denial.
pub const TRY_AGAIN: &str =
    "the object has been modified; please apply your changes to the latest version and try again";
/// When it is worth it: an apiserver that was lost has a successor by then.
pub const RETRY_AFTER_SECONDS: u32 = 2;

/// Which of the three places is asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Gate {
    /// A snapshot is being declared: what will happen, as warnings. Nothing is held.
    Preflight,
    /// The driver is called as soon as this is answered: hold still.
    Cut,
    /// The same, for drivers whose snapshotter does not tell when: the content is being made, and the driver called some time
    /// after.
    Content,
}

/// Single snapshots, or groups of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Group {
    /// VolumeSnapshot and VolumeSnapshotContent.
    Single,
    /// VolumeGroupSnapshot and VolumeGroupSnapshotContent.
    Group,
}

/// What is admitted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateObject {
    pub group: Group,
    /// None of a content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    pub name: String,
    pub uid: String,
}

/// Another object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectRef {
    pub namespace: String,
    pub name: String,
    /// A content that waits for its snapshot to be made has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// What a gate asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateRequest {
    pub gate: Gate,
    pub object: GateObject,
    /// Of a content: the snapshot that it is the content of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<ObjectRef>,
    /// Of a content: the CSI driver that makes the cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The VolumeSnapshotClass or VolumeGroupSnapshotClass, if one is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
    /// Of a content: the volumes that are cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volume_handles: Vec<String>,
    /// Of a VolumeSnapshot: the PersistentVolumeClaims that are named.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<String>,
    /// Of a VolumeGroupSnapshot: the LabelSelector of its claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Value>,
    /// Whose request is admitted.
    #[serde(default)]
    pub user: String,
    /// Nothing may be held: `--dry-run=server`. The verdict is told as it would be.
    #[serde(default)]
    pub dry_run: bool,
    /// The namespace wants no copy that is not consistent: what cannot be held is denied.
    #[serde(default)]
    pub required: bool,
    /// From when the request has arrived: an answer after that is heard by nobody.
    pub deadline_milliseconds: u64,
}

/// Whether the admission goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GateDecision {
    Allow,
    /// As `metav1.Status` has it.
    #[serde(rename_all = "camelCase")]
    Deny {
        /// Of HTTP.
        code: u16,
        /// One word, as `metav1.StatusReason`.
        reason: String,
        /// What is in the way, and what to do.
        message: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_seconds: Option<u32>,
    },
}

/// What a gate hears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GateAnswer {
    pub decision: GateDecision,
    /// For whoever made the request; kubectl prints them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// For kube-apiserver's audit log: `freeze`, `engine`, ….
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub audit: BTreeMap<String, String>,
    /// What the mark of the content that is admitted is to say: it is held by this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<String>,
}

impl Group {
    /// The annotation by which a snapshotter says that it is about to cut.
    pub fn mark(self) -> &'static str {
        match self {
            Self::Single => BEING_CREATED,
            Self::Group => GROUP_BEING_CREATED,
        }
    }
}

impl GateAnswer {
    /// Nothing to say.
    pub fn allow() -> Self {
        Self { decision: GateDecision::Allow, warnings: Vec::new(), audit: BTreeMap::new(), claim: None }
    }
}

impl GateRequest {
    /// Whether every text and list is within its bound, and what is wrong if not.
    pub fn check(&self) -> Result<(), String> {
        let mut names = vec![("object.name", &self.object.name)];
        names.extend(self.object.namespace.as_ref().map(|namespace| ("object.namespace", namespace)));
        names.extend(self.driver.as_ref().map(|driver| ("driver", driver)));
        names.extend(self.class.as_ref().map(|class| ("class", class)));
        names.extend(self.claims.iter().map(|claim| ("claims", claim)));
        let mut uids = vec![("object.uid", &self.object.uid)];
        if let Some(snapshot) = &self.snapshot {
            names.extend([("snapshot.namespace", &snapshot.namespace), ("snapshot.name", &snapshot.name)]);
            uids.extend(snapshot.uid.as_ref().map(|uid| ("snapshot.uid", uid)));
        }
        let handles = self.volume_handles.iter().map(|handle| ("volumeHandles", handle));
        let texts = names.into_iter().map(|(field, text)| (field, text, LONGEST_NAME));
        let texts = texts.chain(uids.into_iter().map(|(field, text)| (field, text, LONGEST_UID)));
        let texts = texts.chain(handles.map(|(field, text)| (field, text, LONGEST_HANDLE)));
        for (field, text, longest) in texts {
            if text.is_empty() || text.len() > longest {
                return Err(format!("{field} has {} bytes; must be 1 to {longest}", text.len()));
            }
        }
        if self.user.len() > LONGEST_USER {
            return Err(format!("user has {} bytes; at most {LONGEST_USER}", self.user.len()));
        }
        if self.selector.as_ref().is_some_and(|selector| selector.to_string().len() > LONGEST_SELECTOR) {
            return Err(format!("selector is too long; at most {LONGEST_SELECTOR} bytes"));
        }
        for (field, count) in [("volumeHandles", self.volume_handles.len()), ("claims", self.claims.len())] {
            if count > MOST_VOLUMES {
                return Err(format!("{field} are {count}; at most {MOST_VOLUMES}"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cut(more: Value) -> GateRequest {
        let mut request = json!({
            "gate": "Cut", "object": {"group": "Single", "name": "snapcontent-1", "uid": "u-1"},
            "snapshot": {"namespace": "shop", "name": "nightly", "uid": "u-0"},
            "driver": "csi.example", "volumeHandles": ["vol-1"], "user": "system:serviceaccount:csi:snapshotter",
            "deadlineMilliseconds": 27500,
        });
        let fields = more.as_object().cloned().unwrap_or_default();
        fields.into_iter().for_each(|(key, value)| request[key] = value);
        serde_json::from_value(request).unwrap()
    }

    #[test]
    fn what_a_later_version_adds_is_ignored_and_what_it_leaves_out_is_a_default() {
        let request = cut(json!({"fromTheFuture": {"a": 1}}));
        assert_eq!((request.required, request.dry_run, request.class.clone()), (false, false, None));
        let again: GateRequest = serde_json::from_value(serde_json::to_value(&request).unwrap()).unwrap();
        assert_eq!(again, request);
        let answer: GateAnswer = serde_json::from_value(json!({"decision": "Allow", "mood": "good"})).unwrap();
        assert_eq!(answer, GateAnswer::allow());
        let denied = json!({"decision": {"Deny": {"code": 409, "reason": "Conflict", "message": "later",
            "retryAfterSeconds": 2}}});
        let answer: GateAnswer = serde_json::from_value(denied.clone()).unwrap();
        assert_eq!(serde_json::to_value(answer).unwrap(), denied);
    }

    #[test]
    fn every_bound_is_held() {
        assert_eq!(cut(json!({})).check(), Ok(()));
        let long = |bytes: usize| "x".repeat(bytes + 1);
        for (more, field) in [
            (json!({"object": {"group": "Single", "name": "", "uid": "u"}}), "object.name"),
            (json!({"object": {"group": "Single", "name": "n", "uid": long(LONGEST_UID)}}), "object.uid"),
            (json!({"driver": long(LONGEST_NAME)}), "driver"),
            (json!({"class": long(LONGEST_NAME)}), "class"),
            (json!({"claims": [long(LONGEST_NAME)]}), "claims"),
            (json!({"volumeHandles": [long(LONGEST_HANDLE)]}), "volumeHandles"),
            (json!({"volumeHandles": vec!["v"; MOST_VOLUMES + 1]}), "volumeHandles"),
            (json!({"snapshot": {"namespace": "n", "name": long(LONGEST_NAME)}}), "snapshot.name"),
            (json!({"user": long(LONGEST_USER)}), "user"),
            (json!({"selector": {"matchLabels": {"a": long(LONGEST_SELECTOR)}}}), "selector"),
        ] {
            let wrong = cut(more).check().unwrap_err();
            assert!(wrong.starts_with(field), "{field}: {wrong}");
        }
    }
}
