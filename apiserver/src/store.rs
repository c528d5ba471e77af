//! Where the objects of a standalone server are kept.
//!
//! ```text
//! Store::put, ::delete ─► one writer task ─► log (SQLite: append only, fsync) ─► memory ─► watchers
//! Store::get, ::list   ─► memory (encoded bytes)
//! ```
//! # Contract
//! Writes are atomic and totally ordered: every success has a revision greater than all before it. When a write returns,
//! it is on disk. A list and a watch from its revision together see every later event exactly once, in order. A watcher
//! that is too slow is ended, never waited for. [`tests`] proves it for both logs.

mod log;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    path::Path,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use serde_json::Value;
use thiserror::Error;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tracing::error;

pub use log::LogError;
use log::{Log, Row};

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

#[derive(Debug)]
struct Memory {
    objects: BTreeMap<Key, Stored>,
    revision: u64,
    history: VecDeque<Arc<Event>>,
    /// Watches from this revision on see everything.
    oldest: u64,
    channels: HashMap<&'static str, broadcast::Sender<Arc<Event>>>,
}

struct Job {
    key: Key,
    /// `None` deletes.
    object: Option<Value>,
    expect: Expect,
    answer: oneshot::Sender<Result<Stored, StoreError>>,
}

/// Writes that wait for the writer; more wait for room.
const JOBS: usize = 1024;
/// Writes that share one sync to disk.
const BATCH: usize = 256;
/// Events that a watcher may be behind before it is ended.
const BEHIND: usize = 4096;
/// Events that a new watch can start from.
const HISTORY: usize = 10_000;

impl Store {
    /// Opens the log at `path`, or begins one. The writer ends when the last `Store` is dropped.
    pub async fn open(path: &Path, resources: &[&'static str], tasks: &TaskTracker) -> Result<Self, LogError> {
        let (log, rows) = Log::open(path).await?;
        Ok(Self::start(log, rows, resources, tasks))
    }

    /// A store that forgets when it is dropped.
    #[cfg(test)]
    pub fn in_memory(resources: &[&'static str], tasks: &TaskTracker) -> Self {
        Self::start(Log::none(), Vec::new(), resources, tasks)
    }

    fn start(log: Log, rows: Vec<Row>, resources: &[&'static str], tasks: &TaskTracker) -> Self {
        let channels = resources.iter().map(|resource| (*resource, broadcast::channel(BEHIND).0)).collect();
        let mut memory = Memory {
            objects: BTreeMap::new(),
            revision: log::FIRST_REVISION,
            history: VecDeque::new(),
            oldest: log::FIRST_REVISION,
            channels,
        };
        for row in rows {
            memory.revision = memory.revision.max(row.revision);
            let resource = resources.iter().find(|resource| **resource == row.resource);
            if let (Some(resource), Some(bytes)) = (resource, row.object) {
                let key = Key { resource, namespace: row.namespace, name: row.name };
                memory.objects.insert(key, Stored { revision: row.revision, bytes: bytes.into() });
            }
        }
        memory.oldest = memory.revision;
        let memory = Arc::new(RwLock::new(memory));
        let (jobs, queue) = mpsc::channel(JOBS);
        tasks.spawn(write(Arc::clone(&memory), log, queue));
        Self { memory, jobs }
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
        let stopped = || StoreError::Unavailable("the server is stopping".to_owned());
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

impl Memory {
    fn range(&self, resource: &'static str, namespace: Option<&str>, after: Option<&Key>) -> Vec<(Key, Stored)> {
        let first = Key { resource, namespace: namespace.unwrap_or_default().to_owned(), name: String::new() };
        let from = match after {
            Some(key) if *key >= first => Bound::Excluded(key.clone()),
            _ => Bound::Included(first),
        };
        self.objects
            .range((from, Bound::Unbounded))
            .take_while(|(key, _)| {
                key.resource == resource && namespace.is_none_or(|namespace| key.namespace == namespace)
            })
            .map(|(key, stored)| (key.clone(), stored.clone()))
            .collect()
    }

    fn check(&self, after: u64) -> Result<(), StoreError> {
        if after < self.oldest {
            return Err(StoreError::Expired { wanted: after, oldest: self.oldest });
        }
        if after > self.revision {
            return Err(StoreError::Future { wanted: after, current: self.revision });
        }
        Ok(())
    }

    fn subscribe(&self, resource: &'static str) -> Result<broadcast::Receiver<Arc<Event>>, StoreError> {
        self.channels.get(resource).map(broadcast::Sender::subscribe).ok_or(StoreError::NotFound)
    }

    /// Makes a write visible, and tells watchers.
    fn publish(&mut self, event: Event) {
        self.revision = event.object.revision;
        match event.change {
            Change::Deleted => self.objects.remove(&event.key),
            Change::Added | Change::Modified => self.objects.insert(event.key.clone(), event.object.clone()),
        };
        let event = Arc::new(event);
        if let Some(channel) = self.channels.get(event.key.resource) {
            // Nobody watching is no error.
            channel.send(Arc::clone(&event)).ok();
        }
        self.history.push_back(event);
        while self.history.len() > HISTORY {
            self.oldest = self.history.pop_front().map_or(self.oldest, |event| event.object.revision);
        }
    }
}

/// The only task that writes: what is queued shares one sync to disk, then becomes visible, in order.
async fn write(memory: Arc<RwLock<Memory>>, mut log: Log, mut queue: mpsc::Receiver<Job>) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let decided = decide(&memory.read().unwrap_or_else(PoisonError::into_inner), &mut batch);
        let rows: Vec<Row> = decided.iter().map(|(event, _)| Row::of(event)).collect();
        let written = if rows.is_empty() { Ok(()) } else { log.append(&rows).await };
        if let Err(error) = &written {
            error!(%error, "writing the log failed; the writes are refused");
        }
        let mut memory: RwLockWriteGuard<'_, Memory> = memory.write().unwrap_or_else(PoisonError::into_inner);
        for (event, answer) in decided {
            match &written {
                Ok(()) => {
                    let stored = event.object.clone();
                    memory.publish(event);
                    answer.send(Ok(stored)).ok();
                }
                Err(error) => drop(answer.send(Err(StoreError::Unavailable(error.to_string())))),
            }
        }
    }
}

/// Which of the jobs happen, given all before them in the batch; the others are answered here.
fn decide(memory: &Memory, batch: &mut Vec<Job>) -> Vec<(Event, oneshot::Sender<Result<Stored, StoreError>>)> {
    let mut ahead: HashMap<Key, Option<Stored>> = HashMap::new();
    let mut revision = memory.revision;
    let mut decided = Vec::with_capacity(batch.len());
    for Job { key, object, expect, answer } in batch.drain(..) {
        let current = ahead.get(&key).cloned().unwrap_or_else(|| memory.objects.get(&key).cloned());
        match event(key, object, expect, current, revision + 1) {
            Ok(event) => {
                revision += 1;
                let now = (event.change != Change::Deleted).then(|| event.object.clone());
                ahead.insert(event.key.clone(), now);
                decided.push((event, answer));
            }
            Err(error) => drop(answer.send(Err(error))),
        }
    }
    decided
}

fn event(
    key: Key,
    object: Option<Value>,
    expect: Expect,
    current: Option<Stored>,
    revision: u64,
) -> Result<Event, StoreError> {
    let encode = |mut value: Value| -> Result<Stored, StoreError> {
        value["metadata"]["resourceVersion"] = Value::String(revision.to_string());
        let bytes = serde_json::to_vec(&value).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Stored { revision, bytes: bytes.into() })
    };
    match (expect, current, object) {
        (Expect::Absent, Some(_), _) => Err(StoreError::Exists),
        (Expect::Absent, None, Some(object)) => {
            Ok(Event { change: Change::Added, key, object: encode(object)?, previous: None })
        }
        (Expect::Absent | Expect::At(_), None, _) => Err(StoreError::NotFound),
        (Expect::At(at), Some(current), _) if current.revision != at => Err(StoreError::Conflict),
        (Expect::At(_), Some(current), Some(object)) => {
            Ok(Event { change: Change::Modified, key, object: encode(object)?, previous: Some(current) })
        }
        (Expect::At(_), Some(current), None) => {
            let last =
                serde_json::from_slice(&current.bytes).map_err(|error| StoreError::Unavailable(error.to_string()))?;
            Ok(Event { change: Change::Deleted, key, object: encode(last)?, previous: Some(current) })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RESOURCE: &str = "things.test";

    fn key(name: &str) -> Key {
        Key { resource: RESOURCE, namespace: "ns".into(), name: name.into() }
    }

    fn thing(n: u64) -> Value {
        json!({"metadata": {}, "n": n})
    }

    /// What every store must do, whatever its log.
    async fn contract(store: Store) {
        let first = store.put(key("a"), thing(1), Expect::Absent).await.unwrap();
        assert!(matches!(store.put(key("a"), thing(2), Expect::Absent).await, Err(StoreError::Exists)));
        let mut watch = store.watch(RESOURCE, first.revision).unwrap();
        let second = store.put(key("a"), thing(2), Expect::At(first.revision)).await.unwrap();
        assert!(second.revision > first.revision);
        assert!(matches!(store.put(key("a"), thing(3), Expect::At(first.revision)).await, Err(StoreError::Conflict)));
        assert!(matches!(store.delete(key("b"), 1).await, Err(StoreError::NotFound)));
        let gone = store.delete(key("a"), second.revision).await.unwrap();
        assert!(store.get(&key("a")).is_none());
        let seen = [watch.next().await.unwrap(), watch.next().await.unwrap()];
        assert_eq!(seen.each_ref().map(|event| event.change), [Change::Modified, Change::Deleted]);
        assert_eq!(seen[1].object.revision, gone.revision);
        assert!(matches!(store.watch(RESOURCE, gone.revision + 1), Err(StoreError::Future { .. })));
    }

    #[tokio::test]
    async fn memory_keeps_the_contract() {
        contract(Store::in_memory(&[RESOURCE], &TaskTracker::new())).await;
    }

    #[tokio::test]
    async fn sqlite_keeps_the_contract_and_what_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("objects.db");
        let tasks = TaskTracker::new();
        let store = Store::open(&path, &[RESOURCE], &tasks).await.unwrap();
        contract(store.clone()).await;
        let kept = store.put(key("kept"), thing(7), Expect::Absent).await.unwrap();
        drop(store);
        tasks.close();
        tasks.wait().await;
        let again = Store::open(&path, &[RESOURCE], &TaskTracker::new()).await.unwrap();
        assert_eq!(again.get(&key("kept")).unwrap().bytes, kept.bytes);
        assert!(again.get(&key("a")).is_none());
        assert!(again.put(key("next"), thing(8), Expect::Absent).await.unwrap().revision > kept.revision);
    }

    #[tokio::test]
    async fn replaying_events_gives_the_final_list_whatever_the_writers_do() {
        let store = Store::in_memory(&[RESOURCE], &TaskTracker::new());
        let (_, revision, mut watch) = store.list_and_watch(RESOURCE, None).unwrap();
        let writers = (0..8).map(|writer| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..100 {
                    let key = key(&format!("{writer}-{}", n % 7));
                    match store.get(&key) {
                        None => store.put(key, thing(n), Expect::Absent).await.map(drop),
                        Some(found) if n % 3 == 0 => store.delete(key, found.revision).await.map(drop),
                        Some(found) => store.put(key, thing(n), Expect::At(found.revision)).await.map(drop),
                    }
                    .unwrap();
                }
            })
        });
        futures::future::join_all(writers).await;
        let (list, end) = store.list(RESOURCE, None, None);
        let mut replayed = BTreeMap::new();
        let mut last = revision;
        while last < end {
            let event = watch.next().await.unwrap();
            assert!(event.object.revision > last);
            last = event.object.revision;
            match event.change {
                Change::Deleted => replayed.remove(&event.key),
                _ => replayed.insert(event.key.clone(), event.object.bytes.clone()),
            };
        }
        let list: BTreeMap<_, _> = list.into_iter().map(|(key, stored)| (key, stored.bytes)).collect();
        assert_eq!(list, replayed);
    }
}
