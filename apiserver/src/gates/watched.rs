//! Keeps the [`Index`] as the cluster is: one watch of each kind that leads from a volume to a Database.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use futures::{StreamExt, future::BoxFuture, pin_mut};
use k8s_openapi::api::{
    core::v1::{Namespace, PersistentVolume, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tracing::warn;

use super::index::{Index, Name};

/// What stands where, as far as was seen. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Watched(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    index: RwLock<Index>,
    /// Kinds of which everything was seen once.
    seen: watch::Sender<usize>,
    /// Kinds that could not be followed.
    failures: Mutex<HashMap<String, Failures>>,
}

/// Attempts to follow a kind that failed, one after the other. That one succeeds is not told before something changes, so they are
/// over when no other comes.
#[derive(Clone, Copy, Debug)]
struct Failures {
    first: Instant,
    last: Instant,
}

const KINDS: usize = 5;
/// What could not be followed for so long is too old: too much may have changed.
const OLD: Duration = Duration::from_secs(30);
/// Attempts are made at least so often (kube-runtime, `default_backoff`: 30 s at most, and what it adds by chance).
const ATTEMPTS: Duration = Duration::from_secs(75);

impl Failures {
    fn add(&mut self, now: Instant) {
        if now.duration_since(self.last) > ATTEMPTS {
            self.first = now;
        }
        self.last = now;
    }

    fn are_long(&self, now: Instant) -> bool {
        self.last.duration_since(self.first) >= OLD && now.duration_since(self.last) <= ATTEMPTS
    }
}

/// A kind that an [`Index`] is made of.
trait Indexed: Resource<DynamicType = ()> {
    fn put(&self, index: &mut Index);
    fn remove(index: &mut Index, name: &Name);
}

impl Watched {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner { index: RwLock::default(), seen: watch::channel(0).0, failures: Mutex::default() }))
    }

    pub(super) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether everything was seen once: before that nothing follows from what is not there. What is too old is not known either.
    pub(super) fn is_complete(&self) -> bool {
        *self.0.seen.borrow() == KINDS && !self.failures().values().any(|failures| failures.are_long(Instant::now()))
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<String, Failures>> {
        self.0.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loops that never end.
    pub(super) fn loops(&self, client: &Client) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        vec![
            ("volumes", Box::pin(self.clone().follow::<PersistentVolume>(client.clone()))),
            ("Namespaces", Box::pin(self.clone().follow::<Namespace>(client.clone()))),
            ("Pods", Box::pin(self.clone().follow::<Pod>(client.clone()))),
            ("Services", Box::pin(self.clone().follow::<Service>(client.clone()))),
            ("EndpointSlices", Box::pin(self.clone().follow::<EndpointSlice>(client.clone()))),
        ]
    }

    /// A watch that breaks is begun again, with pauses that grow; what is gone meanwhile the next list does not show.
    async fn follow<K>(self, client: Client)
    where
        K: Indexed + Clone + fmt::Debug + DeserializeOwned + Send + 'static,
    {
        let events = watcher(Api::<K>::all(client), watcher::Config::default()).default_backoff();
        pin_mut!(events);
        let (mut known, mut listed): (HashSet<Name>, Option<HashSet<Name>>) = (HashSet::new(), None);
        let mut complete = false;
        while let Some(event) = events.next().await {
            if let Err(watcher::Error::InitialListFailed(_) | watcher::Error::WatchStartFailed(_)) = &event {
                let now = Instant::now();
                let kind = K::kind(&()).into_owned();
                self.failures().entry(kind).or_insert(Failures { first: now, last: now }).add(now);
            }
            match event {
                Ok(watcher::Event::Init) => listed = Some(HashSet::new()),
                Ok(watcher::Event::InitApply(object)) => {
                    known.insert(name(&object));
                    listed.get_or_insert_default().insert(name(&object));
                    object.put(&mut self.write());
                }
                Ok(watcher::Event::InitDone) => {
                    let there = listed.take().unwrap_or_default();
                    let mut index = self.write();
                    for gone in known.extract_if(|name| !there.contains(name)) {
                        K::remove(&mut index, &gone);
                    }
                    drop(index);
                    if !std::mem::replace(&mut complete, true) {
                        self.0.seen.send_modify(|seen| *seen += 1);
                    }
                }
                Ok(watcher::Event::Apply(object)) => {
                    known.insert(name(&object));
                    object.put(&mut self.write());
                }
                Ok(watcher::Event::Delete(object)) => {
                    known.remove(&name(&object));
                    K::remove(&mut self.write(), &name(&object));
                }
                Err(error) => warn!(kind = %K::kind(&()), %error, "objects cannot be followed now; trying again"),
            }
        }
    }

    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.0.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Indexed for Namespace {
    fn put(&self, index: &mut Index) {
        index.put_namespace(self);
    }

    fn remove(index: &mut Index, name: &Name) {
        index.remove_namespace(&name.1);
    }
}

impl Indexed for PersistentVolume {
    fn put(&self, index: &mut Index) {
        index.put_volume(self);
    }

    fn remove(index: &mut Index, name: &Name) {
        index.remove_volume(&name.1);
    }
}

impl Indexed for Pod {
    fn put(&self, index: &mut Index) {
        index.put_pod(self);
    }

    fn remove(index: &mut Index, name: &Name) {
        index.remove_pod(name);
    }
}

impl Indexed for Service {
    fn put(&self, index: &mut Index) {
        index.put_service(self);
    }

    fn remove(index: &mut Index, name: &Name) {
        index.remove_service(name);
    }
}

impl Indexed for EndpointSlice {
    fn put(&self, index: &mut Index) {
        index.put_slice(self);
    }

    fn remove(index: &mut Index, name: &Name) {
        index.remove_slice(name);
    }
}

fn name(object: &impl Resource<DynamicType = ()>) -> Name {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_too_old_only_while_attempts_to_follow_it_fail() {
        let began = Instant::now();
        let at = |second: u64| began + Duration::from_secs(second);
        let mut failures = Failures { first: at(0), last: at(0) };
        assert!(!failures.are_long(at(1)));
        failures.add(at(20));
        assert!(!failures.are_long(at(20)));
        failures.add(at(40));
        assert!(failures.are_long(at(41)));
        // No other came: one succeeded, and nothing has changed since.
        assert!(!failures.are_long(at(40) + ATTEMPTS + Duration::from_secs(1)));
        failures.add(at(300));
        assert!(!failures.are_long(at(301)), "these are others");
    }
}
