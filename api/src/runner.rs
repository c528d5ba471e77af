//! What a runner of dumps and restores is told, and what it says: one JSON document in its environment, one per line on its output.
//! The same in a Job and in a child process.

pub mod job;
mod template;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use template::{RunnerTemplate, Scratch};

use crate::{Consistency, CutBetween, DatabaseCopy, DatabaseSpec, DumpToolSpec, RepositorySpec};

/// What a runner is to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Task {
    Dump(Box<DumpTask>),
    Replicate(Box<ReplicateTask>),
    Restore(Box<RestoreTask>),
}

/// A run of a `Snapshot`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DumpTask {
    pub run: RunName,
    pub snapshot: ObjectName,
    pub databases: Vec<TaskDatabase>,
    /// Absent: by the servers' own programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<TaskTool>,
    pub repository: RepositorySpec,
    /// About as many bytes as the last one had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_bytes: Option<u64>,
}

/// Gives locations what they lack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ReplicateTask {
    pub run: RunName,
    pub repository: RepositorySpec,
    /// The repository's name for the snapshot.
    pub id: String,
    pub to: Vec<String>,
}

/// A run of a `Restore`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RestoreTask {
    pub repository: RepositorySpec,
    /// The repository's name for the snapshot.
    pub id: String,
    /// Which Database of the snapshot.
    pub from: String,
    pub to: TaskDatabase,
    /// Of a copy that a DumpTool made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<TaskTool>,
    /// Databases inside the server; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    pub existing: crate::ExistingPolicy,
    #[serde(default)]
    pub globals: bool,
}

/// Which attempt this is, and which are over; with a hyphen at its end, all whose names begin so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunName {
    pub name: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub over: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectName {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

/// A Database as it was declared when the run began.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskDatabase {
    pub name: String,
    pub spec: DatabaseSpec,
}

/// A DumpTool as it was declared when the run began, and how it is set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TaskTool {
    pub name: String,
    pub spec: DumpToolSpec,
    /// All of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
}

/// One line of a runner's output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Report {
    /// For people.
    Log(String),
    Progress {
        step: String,
        bytes: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        total: Option<u64>,
    },
    Dumped(Box<Dumped>),
    /// Each location that was to be given something, and why it was not.
    Replicated(Vec<(String, Option<String>)>),
    Restored(Restored),
    Failed(FailedRun),
}

/// A copy that can be restored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Dumped {
    pub id: String,
    pub consistency: Consistency,
    pub cut_between: CutBetween,
    pub contents: Vec<DatabaseCopy>,
    /// Bytes written to each location.
    pub stored: u64,
    /// The locations that have it.
    pub whole: Vec<String>,
    /// The others, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

impl Dumped {
    /// What was dumped, bytes.
    pub fn size(&self) -> u64 {
        self.contents.iter().flat_map(|copy| &copy.files).map(|file| file.size).sum()
    }
}

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Restored {
    pub databases: Vec<String>,
    pub bytes: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Why there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FailedRun {
    /// One of [`reasons`](crate::conditions::reasons).
    pub reason: String,
    pub message: String,
    /// It may well go better in a while.
    pub again: bool,
    /// Of a restore: what state the target is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// The variable that holds the [`Task`].
pub const TASK: &str = "STILLPOINT_TASK";
/// The variable that names the directory of Secrets: `SECRET/KEY`, as volumes of Secrets are mounted.
pub const SECRETS: &str = "STILLPOINT_SECRETS";
/// The variable that names the directory that has room for files of tools. Absent: that of temporary files.
pub const SCRATCH: &str = "STILLPOINT_SCRATCH";
/// The variable that says that the runner ends when its standard input does.
pub const WITH_PARENT: &str = "STILLPOINT_ENDS_WITH_INPUT";
/// Variables for whoever starts one (manual of glibc, "Memory Allocation Tunables"). Its threads hand packs and chunks on to each other:
/// with an arena for each thread, and with what is freed kept for later, that is tens of MiB that nobody uses. Told so, it gives
/// large blocks back at once, which costs a tenth of its time.
pub const ALLOCATION: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "524288"), ("MALLOC_TRIM_THRESHOLD_", "1048576")];
/// What is said of a target that a restore has not touched.
pub const UNTOUCHED: &str = "as it was: nothing was touched";
/// The step of a dump in which it writes: from then on something may be stored.
pub const DUMPING: &str = "dumping";
/// No line of output is longer.
pub const LONGEST_LINE: usize = 1 << 20;
