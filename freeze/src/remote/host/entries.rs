//! What holds of a link want written down, and have not heard of yet.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use api::Undo;
use async_trait::async_trait;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::super::wire::{Entry, Up};
use crate::journal::{JournalError, UndoLog};

type Written = oneshot::Sender<Result<(), JournalError>>;

/// Entries on their way to the freezer's journal, and back.
pub(super) struct Entries {
    up: mpsc::Sender<Up>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, Written>>,
}

/// The log of one hold.
pub(super) struct OfHold {
    entries: Arc<Entries>,
    hold: u64,
    /// Intended, and not settled.
    open: Mutex<Vec<Undo>>,
}

/// A journal writes within a second or not at all (`freezer/recorder.rs`); the way there and back comes on top.
const PATIENCE: Duration = Duration::from_secs(2);

impl Entries {
    pub(super) fn to(up: mpsc::Sender<Up>) -> Self {
        Self { up, next: AtomicU64::new(0), waiting: Mutex::default() }
    }

    pub(super) fn of(self: &Arc<Self>, hold: u64) -> Arc<OfHold> {
        Arc::new(OfHold { entries: Arc::clone(self), hold, open: Mutex::default() })
    }

    /// What became of one.
    pub(super) fn are(&self, number: u64, result: Result<(), JournalError>) {
        if let Some(written) = self.waiting().remove(&number) {
            written.send(result).ok();
        }
    }

    async fn enter(&self, hold: u64, entry: Entry) -> Result<(), JournalError> {
        let (number, (written, hears)) = (self.next.fetch_add(1, Ordering::Relaxed), oneshot::channel());
        self.waiting().insert(number, written);
        let _waiting = Waiting { entries: self, number };
        let gone = |what: &str| JournalError::Unavailable(format!("the freezer {what}"));
        let told = async {
            self.up.send(Up::Entry { number, hold, entry }).await.map_err(|_| gone("is gone"))?;
            hears.await.map_err(|_| gone("is gone"))?
        };
        timeout(PATIENCE, told).await.unwrap_or_else(|_| Err(gone("did not answer in time")))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Written>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OfHold {
    /// What may have been done, and was not undone.
    pub(super) fn left(&self) -> Vec<Undo> {
        self.open().clone()
    }

    fn open(&self) -> MutexGuard<'_, Vec<Undo>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl UndoLog for OfHold {
    async fn intend(&self, undo: Undo) -> Result<(), JournalError> {
        self.entries.enter(self.hold, Entry::Intend(undo.clone())).await?;
        self.open().push(undo);
        Ok(())
    }

    async fn settled(&self, kind: &str) -> Result<(), JournalError> {
        self.open().retain(|undo| undo.kind != kind);
        self.entries.enter(self.hold, Entry::Settled(kind.to_owned())).await
    }
}

struct Waiting<'e> {
    entries: &'e Entries,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.entries.waiting().remove(&self.number);
    }
}

impl fmt::Debug for OfHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OfHold").field("hold", &self.hold).finish_non_exhaustive()
    }
}
