//! `POST repositories/{name}/check` of `live.stillpoint.dev`: whether all that a repository should have is there, and as it was written.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::CheckResult;

/// Asked in `spec`, answered in `status`. An empty body reads no data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RepositoryCheck {
    #[serde(skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    pub metadata: ObjectMeta,
    pub spec: RepositoryCheckSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<RepositoryCheckStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RepositoryCheckSpec {
    /// Whether every byte is read and hashed, too: that takes as long as reading all of it. Else names, sizes, indexes and trees.
    pub read_data: bool,
}

/// What was found. Each location is looked at for itself: what another has does not help it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryCheckStatus {
    /// `Fail` when something cannot be restored from some location, or one could not be looked at.
    pub result: CheckResult,
    /// The locations that were looked at.
    pub locations: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<RepositoryFinding>,
    /// There were so many more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub omitted: u64,
    /// When it began, and how long it took.
    pub checked_at: Time,
    pub milliseconds: u64,
}

/// Something that is wrong, or odd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryFinding {
    pub location: String,
    /// `Fail`: something cannot be restored from there.
    pub result: CheckResult,
    pub message: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
