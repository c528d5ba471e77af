//! What a snapshot says of itself: a part of the snapshot file, written last, and a file in its tree that any tool can read.

use api::{Consistency, CutBetween, DatabaseCopy};
use serde::{Deserialize, Serialize};

/// A copy, as it is known without any cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Raised when a reader of before would misunderstand it.
    pub version: u32,
    /// The object that asked for it.
    pub snapshot: Origin,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_between: Option<CutBetween>,
    pub contents: Vec<DatabaseCopy>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The `Snapshot` that asked for a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Origin {
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl Manifest {
    /// The newest that we write, and understand.
    pub const VERSION: u32 = 1;

    /// What was dumped, bytes.
    pub fn size(&self) -> u64 {
        self.contents.iter().flat_map(|copy| &copy.files).map(|file| file.size).sum()
    }
}

/// Its file in the tree.
pub(crate) const FILE: &str = "manifest.json";

/// How the programs begin that wrote what has a manifest.
pub(crate) const PROGRAM: &str = "stillpoint ";
