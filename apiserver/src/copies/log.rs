//! What runs said, for a while: the last lines of the last Snapshots and Restores.

use std::{
    collections::VecDeque,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use api::{LiveSnapshot, SnapshotMethod};
use jiff::Timestamp;
use lru::LruCache;

use super::Copies;
use crate::error::ApiError;

/// By the uid of what a run is of. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Log(Arc<Mutex<LruCache<String, VecDeque<String>>>>);

const OBJECTS: usize = 256;
const LINES: usize = 500;

impl Default for Log {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(NonZeroUsize::new(OBJECTS).unwrap_or(NonZeroUsize::MIN)))))
    }
}

impl Log {
    pub(crate) fn say(&self, uid: &str, line: &str) {
        let mut log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = log.get_or_insert_mut(uid.to_owned(), VecDeque::new);
        if lines.len() == LINES {
            lines.pop_front();
        }
        lines.push_back(format!("{:.3} {line}", Timestamp::now()));
    }

    fn text(&self, uid: &str) -> Option<String> {
        let log = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        log.peek(uid).map(|lines| lines.iter().flat_map(|line| [line, "\n"]).collect())
    }
}

impl Copies {
    pub(crate) fn log(&self, copy: &LiveSnapshot) -> String {
        if copy.spec.method == SnapshotMethod::VolumeSnapshot {
            return "VolumeSnapshots have no run that could say something: see the Snapshot's status and Events\n"
                .to_owned();
        }
        self.log_of(copy.metadata.uid.as_deref().unwrap_or_default())
    }

    pub(crate) async fn restore_log(&self, namespace: &str, name: &str) -> Result<String, ApiError> {
        let restore = self.restores.get(namespace, name).await?;
        Ok(self.log_of(restore.metadata.uid.as_deref().unwrap_or_default()))
    }

    fn log_of(&self, uid: &str) -> String {
        self.logs.text(uid).unwrap_or_else(|| "no run of it is remembered by this server\n".to_owned())
    }
}
