//! `DumpTool`: a program that dumps a database, and perhaps restores it, where the server's own is not what is wanted.
//!
//! It is of the whole cluster, and for those to write who administer that: its commands run beside every Database whose Snapshot names it.
//! Whoever takes a Snapshot chooses one, and its settings, and nothing else of what is run.

pub mod command;
mod settings;

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Engine;
pub use settings::{MOST_VALUE, Unset};

/// What is said to whoever has a tool restore and does not say that it may.
pub const REPLACES: &str = "restores into whatever is there, which only it can look at: set spec.existing: Replace";

/// A program that dumps, and perhaps restores.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "DumpTool",
    doc = "A program that dumps databases, and perhaps restores them, in place of the servers' own.",
    plural = "dumptools",
    singular = "dumptool",
    shortname = "sptool",
    category = "stillpoint",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct DumpToolSpec {
    /// The engines whose Databases it dumps. Empty: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub engines: Vec<Engine>,
    /// In a cluster: the image that its commands run in. Default: that of any dump, the Database's own Pod's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub image: Option<String>,
    pub dump: ToolDump,
    /// Absent: its copies can be downloaded, and are restored by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore: Option<ToolRestore>,
    /// What a Snapshot may say of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub settings: Vec<ToolSetting>,
}

/// How it dumps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolDump {
    /// The program and its arguments; no shell reads them. `$(HOST)`, `$(PORT)`, `$(USERNAME)`, `$(PASSWORD_FILE)`, `$(CA_FILE)`,
    /// `$(CLIENT_FILE)`, `$(DATABASES)`, `$(SCRATCH)` and `$(settings.NAME)` are filled in; `$$(` is `$(`. Only what it exits with 0 is a copy.
    #[schemars(length(min = 1, max = 64), inner(length(max = 16384)))]
    pub command: Vec<String>,
    /// Where it writes what is kept.
    #[serde(default)]
    pub output: ToolOutput,
    /// What the file is called that its standard output becomes. Default: `dump`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub file: Option<String>,
}

/// Where a dump is written by its command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ToolOutput {
    /// To its standard output: one file, read as it comes.
    #[default]
    Stdout,
    /// To files below `$(SCRATCH)`, which are read when it has ended.
    Directory,
}

/// How it restores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolRestore {
    /// As that of the dump.
    #[schemars(length(min = 1, max = 64), inner(length(max = 16384)))]
    pub command: Vec<String>,
    /// Where it finds the copy. Default: where the dump has written it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<ToolInput>,
}

/// Where a copy is found by the command that restores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ToolInput {
    /// On its standard input.
    Stdin,
    /// Below `$(SCRATCH)`, as files.
    Directory,
}

/// One thing that a Snapshot may say of how it is dumped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolSetting {
    /// Lower-case letters, digits and hyphens, a letter first.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub description: Option<String>,
    /// Absent: every Snapshot has to say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub default: Option<String>,
    /// A regular expression that the whole of a value matches. Default: letters, digits and `._,:=@%+/-`, none of which means
    /// anything to a shell, and no hyphen first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub pattern: Option<String>,
}

/// Which DumpTool, and how it is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ToolUse {
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// By the names that the DumpTool gives them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32), inner(length(max = 1024)))]
    pub settings: BTreeMap<String, String>,
}

// === impls ===

impl DumpToolSpec {
    /// Whether it is made for servers of this kind.
    pub fn dumps(&self, engine: Engine) -> bool {
        self.engines.is_empty() || self.engines.contains(&engine)
    }

    /// Whether the command needs room for files: that which dumps, or that which restores.
    pub fn writes_files(&self, restores: bool) -> bool {
        match (&self.restore, restores) {
            (Some(restore), true) => self.input(restore) == ToolInput::Directory || uses_scratch(&restore.command),
            _ => self.dump.output == ToolOutput::Directory || uses_scratch(&self.dump.command),
        }
    }

    /// Where the copy is for the command that restores it.
    pub fn input(&self, restore: &ToolRestore) -> ToolInput {
        restore.input.unwrap_or(match self.dump.output {
            ToolOutput::Stdout => ToolInput::Stdin,
            ToolOutput::Directory => ToolInput::Directory,
        })
    }
}

impl ToolDump {
    /// What the file is called that the standard output becomes.
    pub fn file(&self) -> &str {
        self.file.as_deref().unwrap_or("dump")
    }
}

fn uses_scratch(command: &[String]) -> bool {
    command::uses(command, command::Variable::Scratch)
}
