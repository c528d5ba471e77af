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
    /// Kinds that cannot be followed now, and since when.
    broken: Mutex<HashMap<String, Instant>>,
}

const KINDS: usize = 5;
/// A watch that is broken is begun again within seconds; beyond this too much may have changed.
const OLD: Duration = Duration::from_secs(30);

/// A kind that an [`Index`] is made of.
trait Indexed: Resource<DynamicType = ()> {
    fn put(&self, index: &mut Index);
    fn remove(index: &mut Index, name: &Name);
}

impl Watched {
    pub(super) fn new() -> Self {
        Self(Arc::new(Inner { index: RwLock::default(), seen: watch::channel(0).0, broken: Mutex::default() }))
    }

    pub(super) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether everything was seen once: before that nothing follows from what is not there. What is too old is not known either.
    pub(super) fn is_complete(&self) -> bool {
        *self.0.seen.borrow() == KINDS && self.broken().values().all(|since| since.elapsed() < OLD)
    }

    fn broken(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.broken.lock().unwrap_or_else(PoisonError::into_inner)
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
            match &event {
                Ok(_) => drop(self.broken().remove(&*K::kind(&()))),
                Err(_) => drop(self.broken().entry(K::kind(&()).into_owned()).or_insert_with(Instant::now)),
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
