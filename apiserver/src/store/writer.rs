//! The one thread that writes: what is queued shares one sync to disk, then becomes visible and is answered, in order.
//!
//! A thread of its own, and not whoever has something to write: a disk that hangs then stops this thread only, and a freeze
//! that waits for its journal can still reach its deadline.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use serde_json::Value;
use tokio::sync::{mpsc, oneshot};
use tracing::error;

use super::{Change, Event, Expect, Key, StoreError, Stored, log::Log, memory::Memory};

pub(super) struct Job {
    pub(super) key: Key,
    /// `None` deletes.
    pub(super) object: Option<Value>,
    pub(super) expect: Expect,
    pub(super) answer: Answer,
}

pub(super) type Answer = oneshot::Sender<Result<Stored, StoreError>>;

/// Writes that share one sync to disk.
const BATCH: usize = 256;

/// Writes until nobody is left who could want something written.
pub(super) fn run(memory: &RwLock<Memory>, mut log: Log, mut queue: mpsc::Receiver<Job>) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.blocking_recv_many(&mut batch, BATCH) > 0 {
        write(memory, &mut log, &mut batch);
        // After the answers: nobody waits for it who has written already.
        log.tidy();
    }
}

fn write(memory: &RwLock<Memory>, log: &mut Log, batch: &mut Vec<Job>) {
    let decided = decide(&memory.read().unwrap_or_else(PoisonError::into_inner), batch);
    let written = log.append(decided.iter().map(|(event, _)| event));
    if let Err(error) = &written {
        error!(%error, "writing the log failed; the writes are refused");
    }
    let mut answers = Vec::with_capacity(decided.len());
    {
        let mut memory = memory.write().unwrap_or_else(PoisonError::into_inner);
        for (event, answer) in decided {
            let result = match &written {
                Ok(()) => Ok(event.object.clone()),
                Err(error) => Err(StoreError::Unavailable(error.to_string())),
            };
            if result.is_ok() {
                memory.publish(event);
            }
            answers.push((answer, result));
        }
    }
    // Without the lock: whoever is woken reads at once. That he no longer waits is no error.
    for (answer, result) in answers {
        answer.send(result).ok();
    }
}

/// Which of the jobs happen, given all before them in the batch; the others are answered here.
fn decide(memory: &Memory, batch: &mut Vec<Job>) -> Vec<(Event, Answer)> {
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
