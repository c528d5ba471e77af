//! `Restore`: a copy brought back, into a server or to new claims.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error};

use crate::{Progress, ToolUse, runner::RunnerTemplate};

/// A copy brought back: a dump into a server, volumes to new claims.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "Restore",
    doc = "A copy brought back: a dump into a server, volumes to new claims.",
    plural = "restores",
    singular = "restore",
    shortname = "sprest",
    category = "stillpoint",
    namespaced,
    status = "RestoreStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSpec {
    /// Which copy.
    pub source: RestoreSource,
    /// The Database that a dump is restored into, of the same namespace. Absent: to new claims, of VolumeSnapshots.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(min = 1, max = 253))]
    pub database: String,
    /// Which databases inside the server; empty: all of the copy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    /// What becomes of databases of the same names that are there already.
    #[serde(default)]
    pub existing: ExistingPolicy,
    /// Whether roles, users and their grants are restored, too: those that are there already stay as they are.
    #[serde(default = "yes")]
    pub globals: bool,
    /// Of a copy that a DumpTool made: the one that restores it, and settings that are to be others than those it was made with. Default:
    /// that which made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<ToolUse>,
    /// The claims that are made of VolumeSnapshots. Absent: one of each, under `RESTORE-CLAIM`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub volumes: Vec<WantedClaim>,
    /// In a cluster: how the Pod of its run is made, in place of what its Repository says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<RunnerTemplate>,
}

/// One claim to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WantedClaim {
    /// Which claim's copy; may be left out where the Snapshot has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub claim: Option<String>,
    /// The new claim's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Default: that of the claim that was copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// As Kubernetes writes quantities. Default: as large as what was copied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub size: Option<String>,
}

/// Which copy is restored: exactly one of `snapshot`, `latest` and `asOf`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RestoreSource {
    /// The Repository that it is in; that of the Snapshot when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// A Snapshot's name, or the name of an entry of the catalogue (`kubectl get snapshots.live.stillpoint.dev`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// The newest of its Database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<bool>,
    /// The newest that was taken at this time or before; RFC 3339, with its zone.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "zoned")]
    pub as_of: Option<Time>,
    /// The Database whose copy it is; the target's name when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
}

/// What becomes of what is there already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExistingPolicy {
    /// Nothing may be there.
    #[default]
    Never,
    /// They may be there, with nothing in them.
    IfEmpty,
    /// They are replaced once their successors are whole.
    Replace,
}

/// How it goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestoreStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    pub phase: RestorePhase,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// `Complete`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// What was chosen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chosen: Option<ChosenCopy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
    /// What was restored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    /// The claims that are made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<RestoredVolume>,
    /// What state the target is in, where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// A claim that is made of a VolumeSnapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RestoredVolume {
    /// The claim that was copied.
    pub claim: String,
    /// The new one.
    pub name: String,
    pub volume_snapshot: String,
    /// Of the new one: another of its name is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// It has a volume.
    pub bound: bool,
}

/// The copy that was chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChosenCopy {
    /// Its name in the catalogue.
    pub snapshot: String,
    /// None of VolumeSnapshots.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repository: String,
    /// The repository's name for it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    pub taken_at: Option<Time>,
}

/// Where a [`Restore`] stands. It is never tried again by itself: what it found may not be what it left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum RestorePhase {
    #[default]
    Pending,
    Running,
    Complete,
    Failed,
}

// === impls ===

impl RestorePhase {
    pub fn is_finished(self) -> bool {
        matches!(self, Self::Complete | Self::Failed)
    }
}

impl std::fmt::Display for RestorePhase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Complete => "Complete",
            Self::Failed => "Failed",
        })
    }
}

/// Which copy a source means. Of several the newest that is not younger than what was asked for.
pub fn choose<'c, C>(
    copies: impl IntoIterator<Item = &'c C>,
    taken: impl Fn(&C) -> Timestamp,
    as_of: Option<Timestamp>,
) -> Option<&'c C> {
    copies.into_iter().filter(|copy| as_of.is_none_or(|as_of| taken(copy) <= as_of)).max_by_key(|copy| taken(copy))
}

/// A time that is not understood is told with one that is.
fn zoned<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Time>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    match text.parse::<Timestamp>() {
        Ok(at) => Ok(Some(Time(at))),
        Err(_) => Err(D::Error::custom(format!(
            "asOf: {text:?} is no time with a zone; write it as 2026-11-29T03:00:00+01:00 or 2026-11-29T02:00:00Z"
        ))),
    }
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_of_a_time_is_the_newest_that_is_not_younger() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        let copies = [at(10), at(30), at(20)];
        let chosen = |as_of: Option<i64>| choose(&copies, |copy| *copy, as_of.map(at)).copied();
        assert_eq!(chosen(None), Some(at(30)));
        assert_eq!(chosen(Some(29)), Some(at(20)), "never one that is younger");
        assert_eq!(chosen(Some(30)), Some(at(30)));
        assert_eq!(chosen(Some(9)), None);
        let zoned: Timestamp = "1970-01-01T01:00:20+01:00".parse().unwrap();
        assert_eq!(choose(&copies, |copy| *copy, Some(zoned)), Some(&at(20)), "a zone is heeded");
    }
}
