//! What is read and watched: the objects as encoded bytes, the newest events, and who watches. Nothing is in here that the
//! log does not have.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    ops::Bound,
    sync::Arc,
};

use tokio::sync::broadcast;

use super::{
    Change, Event, Key, StoreError, Stored,
    log::{Found, Row},
};

#[derive(Debug)]
pub(super) struct Memory {
    pub(super) objects: BTreeMap<Key, Stored>,
    pub(super) revision: u64,
    pub(super) history: VecDeque<Arc<Event>>,
    /// Watches from this revision on see everything.
    oldest: u64,
    channels: HashMap<&'static str, broadcast::Sender<Arc<Event>>>,
}

/// Events that a watcher may be behind before it is ended.
const BEHIND: usize = 4096;
/// Events that a new watch can start from.
const HISTORY: usize = 10_000;

impl Memory {
    /// What the log had. Kinds that are not in `resources` any more are left where they are.
    pub(super) fn new(found: Found, resources: &[&'static str]) -> Self {
        let mut objects = BTreeMap::new();
        for Row { revision, resource, namespace, name, object } in found.rows {
            if let Some(resource) = resources.iter().find(|known| **known == resource) {
                objects.insert(Key { resource, namespace, name }, Stored { revision, bytes: object.into() });
            }
        }
        let channels = resources.iter().map(|resource| (*resource, broadcast::channel(BEHIND).0)).collect();
        let revision = found.revision;
        Self { objects, revision, history: VecDeque::new(), oldest: revision, channels }
    }

    pub(super) fn range(
        &self,
        resource: &'static str,
        namespace: Option<&str>,
        after: Option<&Key>,
    ) -> Vec<(Key, Stored)> {
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

    pub(super) fn check(&self, after: u64) -> Result<(), StoreError> {
        if after < self.oldest {
            return Err(StoreError::Expired { wanted: after, oldest: self.oldest });
        }
        if after > self.revision {
            return Err(StoreError::Future { wanted: after, current: self.revision });
        }
        Ok(())
    }

    pub(super) fn subscribe(&self, resource: &'static str) -> Result<broadcast::Receiver<Arc<Event>>, StoreError> {
        self.channels.get(resource).map(broadcast::Sender::subscribe).ok_or(StoreError::NotFound)
    }

    /// Makes a write visible, and tells watchers.
    pub(super) fn publish(&mut self, event: Event) {
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
