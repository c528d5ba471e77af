//! What is never stored: the verbs' bodies, and a Database as the freezer knows it now.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Artifact, Claim, Copy, Engine, Level, Phase, Position, Proof, TargetStatus};

/// `POST databases/{name}/quiesce`: asked in `spec`, answered in `status`. An empty body means the Database's defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Quiesce {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: QuiesceSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<QuiesceStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QuiesceSpec {
    /// What the claim is known by: repeat it and you get the same freeze. Default: one per user and Database.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy: Option<Copy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 21600))]
    pub ttl_seconds: Option<u32>,
    /// Other Databases of the namespace, held as one group at WriteBlocked: none is released before all were held.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 15))]
    pub with: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
    /// Answer when it holds (default), or at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait: Option<bool>,
    /// Why, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct QuiesceStatus {
    /// The `Freeze` that carries the claim. Absent in a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<String>,
    /// The claim's uid: give it to `renew` and `unquiesce`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    pub phase: Phase,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy: Option<Copy>,
    /// Where this Database stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    /// All members of the group, this Database included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetStatus>,
    /// This claim's still point.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<MicroTime>,
    /// When this claim lapses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<MicroTime>,
    /// Dry run: every check. Otherwise those that did not pass.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<Check>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// One named check of the preflight.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Check {
    /// The Database that was checked.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub database: String,
    /// Stable, kebab-case: `reachable`, `privilege-backup`, `blockers`, …
    pub name: String,
    pub result: CheckResult,
    /// What was seen.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// The condition reason that a `Fail` gives the Database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum CheckResult {
    Pass,
    Warn,
    /// A freeze would not hold what it promises: it is refused.
    Fail,
}

/// `POST databases/{name}/unquiesce`: ends the caller's claim. Nothing to end is not an error.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Unquiesce {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: UnquiesceSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<UnquiesceStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UnquiesceSpec {
    /// The claim to end. Default: the caller's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// `Stop` ends the data phase of a Files copy and keeps session and slot; `Thaw` (default) ends the claim.
    pub stage: Stage,
    /// End all claims, whoever they belong to. Needs `create databases/thaw`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub force: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Stage {
    Stop,
    #[default]
    Thaw,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct UnquiesceStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<MicroTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thawed_at: Option<MicroTime>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_milliseconds: Option<u64>,
    /// What a restore of a Files copy needs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
    /// Whether this Database's hold lasted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proof: Option<Proof>,
    /// All members of the group, this Database included.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<TargetStatus>,
    /// Who still wants it held.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub still_claimed_by: Vec<Claim>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// `POST databases/{name}/renew`: a later end for the caller's claim, never past the longest allowed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Renew {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: RenewSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<RenewStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RenewSpec {
    /// The claim to renew. Default: the caller's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// From now. Default: as long as the claim was given at first.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 21600))]
    pub ttl_seconds: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RenewStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub freeze: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<MicroTime>,
    /// Said when it got less than it asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A Database as the freezer knows it now: from memory only, no server is dialled to show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveDatabase {
    pub api_version: String,
    pub kind: String,
    pub metadata: ObjectMeta,
    pub status: LiveDatabaseStatus,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LiveDatabaseStatus {
    pub engine: Engine,
    pub endpoint: String,
    /// `Idle`, or the phase of the freeze that covers it.
    pub state: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub freeze: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy: Option<Copy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<Position>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<Claim>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<MicroTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<MicroTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remaining_milliseconds: Option<u64>,
    /// Sessions that waited for us at the last heartbeat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stalled_sessions: Option<u32>,
}

impl Check {
    /// A check that passed.
    pub fn pass(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(name, CheckResult::Pass, message)
    }

    /// A check that a freeze survives, and a person should know of.
    pub fn warn(name: impl Into<String>, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..Self::new(name, CheckResult::Warn, message) }
    }

    /// A check that refuses the freeze; `reason` is one of [`conditions::reasons`](crate::conditions::reasons).
    pub fn fail(name: impl Into<String>, reason: &str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), reason: Some(reason.to_owned()), ..Self::new(name, CheckResult::Fail, message) }
    }

    fn new(name: impl Into<String>, result: CheckResult, message: impl Into<String>) -> Self {
        Self { database: String::new(), name: name.into(), result, message: message.into(), fix: None, reason: None }
    }
}
