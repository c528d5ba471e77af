//! `Freeze`: one still point, and the journal of it. What a person declares is in `spec`; what a freezer did, and what
//! must be undone if it dies, is in `status`.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    Copy, Desired, Engine, Level, Phase, Position,
    conditions::{self, reasons, types},
};

/// A still point held on one member of each of one or several Databases.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "Freeze",
    doc = "A still point held on one member of each of one or several Databases.",
    plural = "freezes",
    singular = "freeze",
    shortname = "spfz",
    category = "stillpoint",
    namespaced,
    status = "FreezeStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct FreezeSpec {
    /// What to hold. Two or more are a group: none is released before all have been held, at WriteBlocked.
    #[schemars(length(min = 1, max = 16))]
    pub targets: Vec<FreezeTarget>,
    /// Default: the highest of the targets' own; WriteBlocked for a group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    #[serde(default)]
    pub copy: Copy,
    /// How long it lasts unless ended before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 21600))]
    pub ttl_seconds: Option<u32>,
    /// `Thawed` ends it; a finished freeze is never taken again.
    #[serde(default)]
    pub desired: Desired,
    /// Why, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub reason: Option<String>,
}

/// One member of one Database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FreezeTarget {
    /// A Database of the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub database: String,
    /// The member, when the Database has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

/// What became of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FreezeStatus {
    pub phase: Phase,
    /// The process that executes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freezer: Option<String>,
    /// Fencing: a freezer of a lower epoch has no say any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<i64>,
    /// What marks its sessions inside the servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
    /// What it holds, as people read it: `orders,billing`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub databases: Option<String>,
    /// Whether it is proved that the hold lasted, at every target; absent while nobody has looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proved: Option<bool>,
    /// The level in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Who wants it held, ended claims included once it is finished.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claim>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetStatus>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<MicroTime>,
    /// At Durable, every commit acknowledged before this instant (the freezer's clock) is in an atomic copy that is taken once the
    /// freeze is `Frozen`: the barrier begins at this instant, and ends before that phase is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<MicroTime>,
    /// When it ends by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<MicroTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thawed_at: Option<MicroTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_milliseconds: Option<u64>,
    /// Why it failed, expired or was lost, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `Frozen`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// One party that wants the freeze.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    pub kind: ClaimKind,
    /// The user's or the object's name.
    pub name: String,
    /// What the claim is known by; the caller may choose it.
    pub uid: String,
    /// Who asked.
    pub user: String,
    pub since: MicroTime,
    /// This claim's own still point: a late claim gets a barrier of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<MicroTime>,
    /// When this claim lapses.
    pub until: MicroTime,
    /// When it was ended by its owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<MicroTime>,
}

/// From when a freeze begins to end until its claims are told so.
const ENDING: Duration = Duration::from_secs(1);

impl Claim {
    /// Whether its owner ended it, and not whatever ended the freeze, which ends all that are left.
    pub fn was_let_go(&self, of: &FreezeStatus) -> bool {
        let Some(ended) = &self.ended_at else { return false };
        let frozen = conditions::find(&of.conditions, types::FROZEN);
        let released = of.phase == Phase::Thawed && frozen.is_some_and(|frozen| frozen.reason == reasons::RELEASED);
        let before_it = || of.thawed_at.as_ref().is_some_and(|thawed| ended.0 < thawed.0 - ENDING);
        !of.phase.is_finished() || released || before_it()
    }
}

/// What kind of party a claim belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClaimKind {
    /// A caller of the verb.
    User,
    /// A `Freeze` that somebody declared.
    Freeze,
}

/// What happened at one member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    pub database: String,
    pub engine: Engine,
    /// Its address; its Pod, where the agent in that holds it.
    pub member: String,
    /// Who holds it.
    #[serde(default, skip_serializing_if = "Via::is_default")]
    pub via: Via,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    /// What would outlive the freezer and has not been undone yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub undo: Vec<Undo>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// Sessions that were ended to take hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ended_sessions: Vec<String>,
}

/// Which way a server is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Via {
    /// By sessions of the API server's own, over the network.
    #[default]
    Network,
    /// By the agent in its Pod.
    Agent,
}

/// One run of one server: a restart, a failover or another server is another incarnation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Incarnation {
    /// PostgreSQL: system identifier. MariaDB: `server_id@hostname:datadir`, for it has no server uuid.
    pub server: String,
    /// Where it says that it runs, by which it is known whose data it has: PostgreSQL's `inet_server_addr()`, MariaDB's `@@hostname`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// When it started, by its own clock.
    pub started_at: String,
    /// PostgreSQL: the timeline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeline: Option<u32>,
    /// In recovery, or read only as a replica.
    #[serde(default)]
    pub replica: bool,
}

/// One thing that would outlive the freezer, written down before it is done. Unknown kinds are kept as they are and
/// are never reported as undone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
pub struct Undo {
    /// The form of `data`.
    pub version: u32,
    /// What it is; each engine knows its own.
    pub kind: String,
    /// What is needed to undo it.
    #[serde(flatten)]
    pub data: serde_json::Map<String, Value>,
}

/// What a restore needs beside the copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    pub kind: ArtifactKind,
    /// The file that the restore must write, relative to the data directory; or the name of a value.
    pub name: String,
    pub content: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ArtifactKind {
    /// PostgreSQL's `backup_label`: without it, a file copy starts and is silently wrong.
    BackupLabel,
    /// PostgreSQL's `tablespace_map`.
    TablespaceMap,
    /// First and last WAL segment that the copy needs, `FIRST LAST`.
    WalRange,
}

/// Whether the still point held, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Proof {
    pub held: bool,
    pub kind: ProofKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Position>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Position>,
    pub incarnation: Incarnation,
    /// Why not, or what the proof cannot see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a proof is made of; the strongest that the engine and the level give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProofKind {
    /// No transaction that the freeze's snapshot could not see has committed (PostgreSQL, WriteBlocked).
    NoCommit,
    /// The binary log stands where it stood (MariaDB with a binary log, WriteBlocked).
    PositionEqual,
    /// The same session, of the same incarnation, held from beginning to end.
    SessionHeld,
}

impl Via {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it so")]
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
