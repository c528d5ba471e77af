//! Where the objects of a standalone server are kept.
//!
//! ```text
//! Store::put, ::delete ─► one writer thread ─► log (SQLite: append only, fsync) ─► memory ─► watchers
//! Store::get, ::list   ─► memory (encoded bytes)
//! ```
//! # Contract
//! Writes are atomic and totally ordered: every success has a revision greater than all before it. When a write returns,
//! it is on disk; one that fails is refused, and nothing of it is seen in this process (after a crash it may be there: a sync
//! that reported a fault may have reached the disk). Whoever waits for a write may go away. A list and a
//! watch from its revision together see every later event exactly once, in order. A watcher that is too slow is ended, never
//! waited for. [`tests`] proves it for both logs.

mod log;
mod memory;
mod writer;

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    thread,
};

use bytes::Bytes;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::task::TaskTracker;

pub use log::LogError;
use log::{Found, Log};
use memory::Memory;
use writer::Job;

/// Which object. Ordered by resource, namespace, name: the order of lists.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// `PLURAL.GROUP`.
    pub resource: &'static str,
    /// Empty for what has no namespace.
    pub namespace: String,
    pub name: String,
}

/// An object as it is kept: JSON with its resourceVersion inside.
#[derive(Clone, Debug)]
pub struct Stored {
    pub revision: u64,
    pub bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Added,
    Modified,
    Deleted,
}

/// One write, as watchers see it. A deletion carries the last state, with the deletion's revision.
#[derive(Clone, Debug)]
pub struct Event {
    pub change: Change,
    pub key: Key,
    pub object: Stored,
    pub previous: Option<Stored>,
}

/// What must be true for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    At(u64),
}

#[derive(Clone, Debug, Error)]
pub enum StoreError {
    #[error("not found")]
    NotFound,
    #[error("exists")]
    Exists,
    #[error("modified")]
    Conflict,
    /// The revision is older than what is remembered.
    #[error("too old resource version: {wanted} ({oldest})")]
    Expired { wanted: u64, oldest: u64 },
    #[error("too large resource version: {wanted}, current: {current}")]
    Future { wanted: u64, current: u64 },
    #[error("the store cannot be written: {0}")]
    Unavailable(String),
}

/// The store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    memory: Arc<RwLock<Memory>>,
    jobs: mpsc::Sender<Job>,
}

/// Events of one resource, in order. Ends when the watcher is too slow, or the server stops.
#[derive(Debug)]
pub struct Watch {
    backlog: VecDeque<Arc<Event>>,
    live: broadcast::Receiver<Arc<Event>>,
}

/// Writes that wait for the writer; more wait for room.
const JOBS: usize = 1024;

impl Store {
    /// Opens the log at `path`, or begins one. The writer ends when the last `Store` is dropped; `tasks` waits for it.
    pub fn open(path: &Path, resources: &[&'static str], tasks: &TaskTracker) -> Result<Self, LogError> {
        let (log, found) = Log::open(path)?;
        let failed = |source| LogError::File { path: path.display().to_string(), source };
        Self::start(log, found, resources, tasks).map_err(failed)
    }

    /// A store that forgets when it is dropped.
    #[cfg(test)]
    pub fn in_memory(resources: &[&'static str], tasks: &TaskTracker) -> Self {
        let (log, found) = Log::none();
        Self::start(log, found, resources, tasks).expect("a thread")
    }

    fn start(log: Log, found: Found, resources: &[&'static str], tasks: &TaskTracker) -> io::Result<Self> {
        let memory = Arc::new(RwLock::new(Memory::new(found, resources)));
        let (jobs, queue) = mpsc::channel(JOBS);
        let (shared, running) = (Arc::clone(&memory), tasks.token());
        thread::Builder::new().name("store".to_owned()).spawn(move || {
            writer::run(&shared, log, queue);
            drop(running);
        })?;
        Ok(Self { memory, jobs })
    }

    /// Writes an object; the store puts its revision into `metadata.resourceVersion`.
    pub async fn put(&self, key: Key, object: Value, expect: Expect) -> Result<Stored, StoreError> {
        self.job(key, Some(object), expect).await
    }

    /// Removes an object; answers its last state with the deletion's revision.
    pub async fn delete(&self, key: Key, at: u64) -> Result<Stored, StoreError> {
        self.job(key, None, Expect::At(at)).await
    }

    pub fn get(&self, key: &Key) -> Option<Stored> {
        self.read().objects.get(key).cloned()
    }

    /// The objects of a resource, of one namespace or of all, after `after`; and the revision that this is the state of.
    pub fn list(
        &self,
        resource: &'static str,
        namespace: Option<&str>,
        after: Option<&Key>,
    ) -> (Vec<(Key, Stored)>, u64) {
        let memory = self.read();
        (memory.range(resource, namespace, after), memory.revision)
    }

    /// Ends when the writer has, which it must not while there is a `Store`.
    pub async fn closed(&self) {
        self.jobs.closed().await;
    }

    pub fn revision(&self) -> u64 {
        self.read().revision
    }

    /// Every event after `after`.
    pub fn watch(&self, resource: &'static str, after: u64) -> Result<Watch, StoreError> {
        let memory = self.read();
        memory.check(after)?;
        let backlog =
            memory.history.iter().filter(|event| event.object.revision > after && event.key.resource == resource);
        let backlog = backlog.cloned().collect();
        Ok(Watch { backlog, live: memory.subscribe(resource)? })
    }

    /// The state now, and every event after it, with nothing between.
    #[expect(clippy::type_complexity, reason = "a list and a watch, as both are elsewhere")]
    pub fn list_and_watch(
        &self,
        resource: &'static str,
        namespace: Option<&str>,
    ) -> Result<(Vec<(Key, Stored)>, u64, Watch), StoreError> {
        let memory = self.read();
        let watch = Watch { backlog: VecDeque::new(), live: memory.subscribe(resource)? };
        Ok((memory.range(resource, namespace, None), memory.revision, watch))
    }

    async fn job(&self, key: Key, object: Option<Value>, expect: Expect) -> Result<Stored, StoreError> {
        let (answer, waiting) = oneshot::channel();
        let stopped = || StoreError::Unavailable("nobody writes any more".to_owned());
        self.jobs.send(Job { key, object, expect, answer }).await.map_err(|_| stopped())?;
        waiting.await.map_err(|_| stopped())?
    }

    fn read(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// The next event. `None`: the watch is over; list again.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        match self.backlog.pop_front() {
            Some(event) => Some(event),
            None => self.live.recv().await.ok(),
        }
    }
}

#[cfg(test)]
mod tests;
