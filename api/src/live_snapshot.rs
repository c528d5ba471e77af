//! `snapshots` of `live.stillpoint.dev/v1alpha1`: what really is in repositories and storage, also what this server has no object for.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Consistency, CutBetween, DatabaseCopy, SnapshotMethod, SnapshotVolume};

/// One copy that is there, or that is being made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveSnapshot {
    pub api_version: String,
    pub kind: String,
    /// Its name is its Snapshot's, where there is one; else the repository's name and the begin of the copy's.
    pub metadata: ObjectMeta,
    pub spec: LiveSnapshotSpec,
    pub status: LiveSnapshotStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveSnapshotSpec {
    pub databases: Vec<String>,
    #[serde(default)]
    pub method: SnapshotMethod,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveSnapshotStatus {
    /// How it is known.
    pub known: KnownBy,
    /// `Ready` for what is in a repository; else the phase of its Snapshot.
    pub phase: String,
    /// The Snapshot that asked for it, `NAMESPACE/NAME`, wherever that was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_as: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken_at: Option<Time>,
    /// The repository's name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The locations that have it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_between: Option<CutBetween>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contents: Vec<DatabaseCopy>,
    /// Bytes, before deduplication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// By claim: what was cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<SnapshotVolume>,
    /// Of a foreign one: what is in it, and the program that wrote it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
}

/// How a copy is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum KnownBy {
    /// There is a Snapshot of it here.
    Snapshot,
    /// It is in a repository, and this server has no object for it: another one took it, or the object is gone.
    Repository,
    /// A newer Stillpoint wrote it: restore it with that.
    Newer,
    /// Another program wrote it; it can be downloaded, and not restored into a server.
    Foreign,
}
