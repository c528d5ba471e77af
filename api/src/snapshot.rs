//! `Snapshot`: one restorable copy of one or several Databases, with its consistency and proof.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Engine, Level, Position, ToolUse, runner::RunnerTemplate};

/// One restorable copy.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "Snapshot",
    doc = "One restorable copy of one or several Databases, with its consistency and proof.",
    plural = "snapshots",
    singular = "snapshot",
    shortname = "spsnap",
    category = "stillpoint",
    namespaced,
    status = "SnapshotStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotSpec {
    /// The Databases that are copied, of the same namespace.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 253)))]
    pub databases: Vec<String>,
    /// How the copy is made.
    #[serde(default)]
    pub method: SnapshotMethod,
    /// The Repository that a dump goes to, of the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub repository: Option<String>,
    /// Of a dump: the DumpTool that makes it. Default: the server's own program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<ToolUse>,
    /// Of a VolumeSnapshot: its class. Default: the one that its driver's snapshots have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub volume_snapshot_class_name: Option<String>,
    /// Of a VolumeSnapshot: the class of the VolumeGroupSnapshot that cuts all claims at one instant. Default, of several claims: the one of
    /// their driver, where there is one and labels select these claims and no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub volume_group_snapshot_class_name: Option<String>,
    /// Of a VolumeSnapshot: what becomes of a copy that was not held. Default: as its namespace wants it, else `Keep`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_missed: Option<OnMissed>,
    /// For this long it may be tried. Default: a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604_800))]
    pub deadline_seconds: Option<u32>,
    /// Whether what was stored is removed with this object.
    #[serde(default, skip_serializing_if = "DeletionPolicy::is_default")]
    pub deletion_policy: DeletionPolicy,
    /// In a cluster: how the Pods of its runs are made, in place of what its Repository says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<RunnerTemplate>,
}

/// How a copy is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum SnapshotMethod {
    /// By the server's own dump program, or by a DumpTool, into a Repository.
    #[default]
    Dump,
    /// By CSI snapshots of the volumes that it has its data on, held for at their cut.
    VolumeSnapshot,
}

/// What becomes of a copy whose Databases were not held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnMissed {
    /// There is none: what was cut is removed.
    Fail,
    /// It is kept, and says what it is worth.
    Keep,
}

/// What becomes of what was stored when its Snapshot is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// It is removed.
    #[default]
    Delete,
    /// It stays in the catalogue.
    Retain,
}

/// Where it stands, and what it is worth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    pub phase: SnapshotPhase,
    /// Why it is where it is, and what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// Runs that were begun, this one included.
    #[serde(skip_serializing_if = "is_zero")]
    pub attempts: u32,
    /// Another run is not begun before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_run_at: Option<Time>,
    /// Runs that were begun to give locations what they lack.
    #[serde(skip_serializing_if = "is_zero")]
    pub replications: u32,
    /// Whether a run of it has come as far as to write: what it stored may be there, whatever was heard of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub begun: bool,
    /// While it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What it is worth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Everything that was acknowledged before `frozenAt` is in it, and nothing that began after `thawedAt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut_between: Option<CutBetween>,
    /// By database: where it stood, and what was stored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub contents: Vec<DatabaseCopy>,
    /// What was dumped, before deduplication and compression, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What was written that was not there already, bytes, in one location.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stored: Option<u64>,
    /// The repository's name for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<CopyAt>,
    /// What cuts all claims at one instant, where that is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_group_snapshot: Option<SnapshotGroup>,
    /// By claim: what was cut.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<SnapshotVolume>,
    /// What a person should know of it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Where a [`Snapshot`] stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum SnapshotPhase {
    /// Asked for; nothing was done yet.
    #[default]
    Pending,
    /// Its Databases are read, and the copy is written.
    Running,
    /// It can be restored; some location does not have it yet.
    Replicating,
    /// It can be restored, from every location.
    Ready,
    /// There is none.
    Failed,
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Progress {
    /// What is done now, for people.
    pub step: String,
    /// What was read of the dump.
    pub bytes: u64,
    /// About as much as it will be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    pub bytes_per_second: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_seconds: Option<u64>,
}

/// What a copy is worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Consistency {
    pub verdict: Verdict,
    /// What is true of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// How that is known, or why it is no better.
    pub reason: String,
}

/// What a copy is worth, in a word; the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// All of it is of one still point that was proved.
    #[serde(rename = "application")]
    Application,
    /// Some of it is, or not all of it is of the same one.
    #[serde(rename = "partial")]
    Partial,
    /// It was not held, or not all the time: as after a power cut.
    #[serde(rename = "crash")]
    Crash,
    /// Nobody can tell.
    #[serde(rename = "unknown")]
    Unknown,
}

/// The VolumeGroupSnapshot of a [`Snapshot`], of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotGroup {
    pub name: String,
    pub class_name: String,
    /// The labels of its claims, and of no others.
    pub match_labels: BTreeMap<String, String>,
    /// Another one of its name is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
}

/// What was cut of one claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotVolume {
    /// The PersistentVolumeClaim.
    pub claim: String,
    /// The Databases that have data on it.
    pub databases: Vec<String>,
    /// The Pod that wrote to it.
    pub pod: String,
    /// The VolumeSnapshot, of the same namespace. Of a group it has a name when it is cut.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub volume_snapshot: String,
    /// Of the VolumeSnapshot: another one of its name is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The CSI driver's name for it: it was cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handle: Option<String>,
    pub ready_to_use: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_at: Option<Time>,
    /// What it is worth by itself, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// The Freeze that held for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<String>,
    /// What the driver, or whoever makes VolumeSnapshots, said last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What a claim that is made of it has to be like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub access_modes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_mode: Option<String>,
    /// As Kubernetes writes quantities.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<String>,
}

/// When it was cut, by the clock of whoever held the Databases still.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CutBetween {
    pub frozen_at: MicroTime,
    pub thawed_at: MicroTime,
}

/// What was copied of one Database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseCopy {
    pub database: String,
    pub engine: Engine,
    /// The server's version.
    pub version: String,
    /// The program that dumped it, as it names itself; none of volumes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub tool: String,
    /// The DumpTool that made it, with all of its settings; none of the server's own program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dump_tool: Option<ToolUse>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<DumpFile>,
}

/// One file of a dump.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DumpFile {
    /// Below the snapshot's root, as restic shows it.
    pub path: String,
    pub format: DumpFormat,
    /// The database inside the server; absent where it is of the whole server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// Bytes.
    pub size: u64,
    /// Lower-case hexadecimal.
    pub sha256: String,
}

/// What is in a file of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DumpFormat {
    /// `pg_dump -Fc`; for `pg_restore`.
    PostgreSQLCustom,
    /// Roles, their memberships and tablespaces; for `psql`.
    PostgreSQLGlobals,
    /// `mariadb-dump`; for `mariadb`.
    MariaDBSql,
    /// Users, roles and grants; for `mariadb`.
    MariaDBUsers,
    /// What a DumpTool wrote; for that one.
    Tool,
}

/// Whether a location has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CopyAt {
    pub name: String,
    pub stored: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
}

/// Keeps a Snapshot until what it stored is removed, or is to stay.
pub const FINALIZER_SNAPSHOT: &str = "stillpoint.dev/snapshot";

// === impls ===

impl SnapshotPhase {
    /// Whether nothing will change it but its deletion.
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Ready | Self::Failed)
    }

    /// Whether it can be restored.
    pub fn is_restorable(self) -> bool {
        matches!(self, Self::Ready | Self::Replicating)
    }
}

impl std::fmt::Display for SnapshotPhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Replicating => "Replicating",
            Self::Ready => "Ready",
            Self::Failed => "Failed",
        })
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Application => "application",
            Self::Partial => "partial",
            Self::Crash => "crash",
            Self::Unknown => "unknown",
        })
    }
}

impl Verdict {
    /// Of the word on a VolumeSnapshot.
    pub fn of(word: &str) -> Option<Self> {
        [Self::Application, Self::Partial, Self::Crash, Self::Unknown]
            .into_iter()
            .find(|verdict| verdict.to_string() == word)
    }

    /// Whether somebody held for it, and proved it.
    pub fn was_held(self) -> bool {
        matches!(self, Self::Application | Self::Partial)
    }
}

impl DeletionPolicy {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it so")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl SnapshotSpec {
    /// Until when it may be tried.
    pub fn deadline(&self, started: Timestamp) -> Timestamp {
        let longest = Duration::from_secs(u64::from(self.deadline_seconds.unwrap_or(24 * 3600)));
        started.checked_add(longest).unwrap_or(Timestamp::MAX)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it so")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}
