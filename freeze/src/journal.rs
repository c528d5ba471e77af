//! Where a freeze is written down. The journal is the truth after a crash: what would outlive the freezer is in it
//! before it is done.

use std::fmt;

use api::{FreezeSpec, FreezeStatus, Undo};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The `Freeze` object that a freeze is written to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FreezeName {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for FreezeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Stores the status of a freeze.
///
/// # Contract
/// `open` makes the object of a freeze that nobody declared; `write` stores the status of one that exists.
/// When either returns, the status survives the death of this process and of the machine's power. Writes of one freeze
/// come one after the other; only an `open` that its freeze gave up may overlap them, and is followed by one more `write`.
/// Writing a freeze whose object is gone, or not there yet, is `Gone`.
#[async_trait]
pub trait Journal: fmt::Debug + Send + Sync + 'static {
    async fn open(&self, freeze: &FreezeName, spec: &FreezeSpec, status: &FreezeStatus) -> Result<(), JournalError>;
    async fn write(&self, freeze: &FreezeName, status: &FreezeStatus) -> Result<(), JournalError>;

    /// Whether these Databases are this process's to hold still, told by its own clock and without waiting. It is asked right
    /// before a hold is taken: what was asked before that may have taken long, or the process have been stopped since.
    fn may_hold(&self, _namespace: &str, _databases: &[&str]) -> Result<(), JournalError> {
        Ok(())
    }
}

#[derive(Clone, Debug, Error, Serialize, Deserialize)]
pub enum JournalError {
    /// The object was deleted, or finished by another: nothing more is to be written.
    #[error("the Freeze object is gone, or finished by another")]
    Gone,
    /// Another process may hold what was asked for.
    #[error("another replica may have {0} by now")]
    NotOurs(String),
    #[error("{0}")]
    Unavailable(String),
}

/// One member's undo list, as its driver sees it.
///
/// # Contract
/// `intend` returns only when the item is stored, so the step may follow. `settled` may be lost in a crash: undoing
/// twice must be harmless.
#[async_trait]
pub trait UndoLog: fmt::Debug + Send + Sync {
    async fn intend(&self, undo: Undo) -> Result<(), JournalError>;
    async fn settled(&self, kind: &str) -> Result<(), JournalError>;
}
