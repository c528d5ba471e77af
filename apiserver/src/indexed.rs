//! Keeps the [`Index`] as the cluster is: one watch of each kind that leads from a volume to a Database. Gates read it before a cut,
//! and agents are known by it. And what Namespaces say of their snapshots.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use api::Database;
use futures::{StreamExt, future::BoxFuture, pin_mut};
use k8s_openapi::api::{
    core::v1::{Namespace, PersistentVolume, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, Client, Resource, ResourceExt, runtime::watcher};
use serde::de::DeserializeOwned;
use tokio::{sync::watch, time::sleep};
use topology::{Index, Name};
use tracing::warn;

use crate::gates::policy::NamespacePolicy;

/// What stands where, as far as was seen. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Watched(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    index: RwLock<Index>,
    /// Of Namespaces that say nothing there is none.
    policies: Mutex<HashMap<String, NamespacePolicy>>,
    /// Kinds of which everything was seen once.
    seen: watch::Sender<usize>,
    /// Since when kinds cannot be followed.
    failing: Mutex<HashMap<String, Instant>>,
}

const KINDS: usize = 5;
/// What could not be followed for so long is too old: too much may have changed.
const OLD: Duration = Duration::from_secs(30);
/// Between two attempts to follow a kind, each twice as long as the one before, and up to half as long by chance.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(20)];

/// What the names of this cluster end in, as its Pods are told; what most are called where nobody says.
fn domain() -> String {
    let resolv = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let searched = resolv.lines().filter_map(|line| line.strip_prefix("search")).flat_map(str::split_whitespace);
    let mut domains = searched.filter_map(|domain| domain.strip_prefix("svc."));
    domains.next().unwrap_or("cluster.local").trim_end_matches('.').to_owned()
}

/// A kind that is kept, and where.
trait Indexed: Resource<DynamicType = ()> {
    fn put(&self, into: &Inner);
    fn remove(from: &Inner, name: &Name);
}

impl Watched {
    /// Of the cluster that this process is in.
    pub(crate) fn here() -> Self {
        Self::new(domain())
    }

    /// `domain`: what the names of this cluster end in.
    fn new(domain: String) -> Self {
        let index = RwLock::new(Index::new(domain));
        let (policies, failing) = Default::default();
        Self(Arc::new(Inner { index, policies, seen: watch::channel(0).0, failing }))
    }

    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.0.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a Namespace wants.
    pub(crate) fn policy(&self, namespace: &str) -> NamespacePolicy {
        self.0.policies().get(namespace).cloned().unwrap_or_default()
    }

    /// Namespaces that want no copy that is not consistent.
    pub(crate) fn required(&self) -> Vec<String> {
        self.0.policies().iter().filter(|(_, policy)| policy.required).map(|(name, _)| name.clone()).collect()
    }

    /// Whether everything was seen once: before that nothing follows from what is not there. What is too old is not known either.
    pub(crate) fn is_complete(&self) -> bool {
        *self.0.seen.borrow() == KINDS && !self.failing().values().any(|since| since.elapsed() >= OLD)
    }

    /// The Pods that are a Database's members and run.
    pub(crate) fn members(&self, namespace: &str, database: &Database) -> BTreeSet<String> {
        self.index().members(namespace, database)
    }

    /// Where a Pod is; `None`: it is not known.
    pub(crate) fn addresses_of(&self, namespace: &str, pod: &str) -> Option<Vec<IpAddr>> {
        self.index().addresses(namespace, pod)
    }

    /// Everything was seen once.
    #[cfg(test)]
    pub(crate) fn complete(&self) {
        self.0.seen.send_replace(KINDS);
    }

    #[cfg(test)]
    pub(crate) fn put_pod(&self, pod: &Pod) {
        pod.put(&self.0);
    }

    fn failing(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loops that never end.
    pub(crate) fn loops(&self, client: &Client) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        vec![
            ("volumes", Box::pin(self.clone().follow::<PersistentVolume>(client.clone()))),
            ("Namespaces", Box::pin(self.clone().follow::<Namespace>(client.clone()))),
            ("Pods", Box::pin(self.clone().follow::<Pod>(client.clone()))),
            ("Services", Box::pin(self.clone().follow::<Service>(client.clone()))),
            ("EndpointSlices", Box::pin(self.clone().follow::<EndpointSlice>(client.clone()))),
        ]
    }

    /// A watch that breaks is begun again. One that cannot be begun is followed by a new list, after pauses that grow: that it
    /// succeeds is told then, and what is gone meanwhile it does not show.
    async fn follow<K>(self, client: Client)
    where
        K: Indexed + Clone + fmt::Debug + DeserializeOwned + Send + 'static,
    {
        let kind = K::kind(&());
        let (mut known, mut complete, mut pause) = (HashSet::new(), false, PAUSES[0]);
        loop {
            let events = watcher(Api::<K>::all(client.clone()), watcher::Config::default());
            pin_mut!(events);
            let mut listed = None;
            while let Some(event) = events.next().await {
                match event {
                    Ok(event) => {
                        // That a list begins is said before it is asked for.
                        if !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
                            self.failing().remove(&*kind);
                            pause = PAUSES[0];
                        }
                        if self.take::<K>(event, &mut known, &mut listed) && !std::mem::replace(&mut complete, true) {
                            self.0.seen.send_modify(|seen| *seen += 1);
                        }
                    }
                    Err(error) => {
                        warn!(%kind, %error, "objects cannot be followed now; trying again");
                        // Whatever else ends a watch is followed by another.
                        if let watcher::Error::InitialListFailed(_) | watcher::Error::WatchStartFailed(_) = error {
                            break;
                        }
                        sleep(PAUSES[0]).await;
                    }
                }
            }
            self.failing().entry(kind.clone().into_owned()).or_insert_with(Instant::now);
            sleep(pause.mul_f64(rand::random_range(1.0..1.5))).await;
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    /// Answers whether everything has been seen now.
    fn take<K: Indexed>(
        &self,
        event: watcher::Event<K>,
        known: &mut HashSet<Name>,
        listed: &mut Option<HashSet<Name>>,
    ) -> bool {
        match event {
            watcher::Event::Init => *listed = Some(HashSet::new()),
            watcher::Event::InitApply(object) => {
                known.insert(name(&object));
                listed.get_or_insert_default().insert(name(&object));
                object.put(&self.0);
            }
            watcher::Event::InitDone => {
                let there = listed.take().unwrap_or_default();
                for gone in known.extract_if(|name| !there.contains(name)) {
                    K::remove(&self.0, &gone);
                }
                return true;
            }
            watcher::Event::Apply(object) => {
                known.insert(name(&object));
                object.put(&self.0);
            }
            watcher::Event::Delete(object) => {
                known.remove(&name(&object));
                K::remove(&self.0, &name(&object));
            }
        }
        false
    }
}

impl Inner {
    fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn policies(&self) -> MutexGuard<'_, HashMap<String, NamespacePolicy>> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Indexed for Namespace {
    fn put(&self, into: &Inner) {
        match NamespacePolicy::read(&self.metadata) {
            policy if policy == NamespacePolicy::default() => into.policies().remove(&self.name_any()),
            policy => into.policies().insert(self.name_any(), policy),
        };
    }

    fn remove(from: &Inner, name: &Name) {
        from.policies().remove(&name.1);
    }
}

impl Indexed for PersistentVolume {
    fn put(&self, into: &Inner) {
        into.write().put_volume(self);
    }

    fn remove(from: &Inner, name: &Name) {
        from.write().remove_volume(&name.1);
    }
}

impl Indexed for Pod {
    fn put(&self, into: &Inner) {
        into.write().put_pod(self);
    }

    fn remove(from: &Inner, name: &Name) {
        from.write().remove_pod(name);
    }
}

impl Indexed for Service {
    fn put(&self, into: &Inner) {
        into.write().put_service(self);
    }

    fn remove(from: &Inner, name: &Name) {
        from.write().remove_service(name);
    }
}

impl Indexed for EndpointSlice {
    fn put(&self, into: &Inner) {
        into.write().put_slice(self);
    }

    fn remove(from: &Inner, name: &Name) {
        from.write().remove_slice(name);
    }
}

fn name(object: &impl Resource<DynamicType = ()>) -> Name {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use watcher::Event::{Apply, Init, InitApply, InitDone};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_kind_is_too_old_from_when_it_cannot_be_followed_until_a_list_comes() {
        let watched = Watched::new("cluster.local".to_owned());
        watched.0.seen.send_replace(KINDS);
        assert!(watched.is_complete());
        let old = Instant::now().checked_sub(OLD).unwrap();
        watched.failing().insert("Pod".to_owned(), Instant::now());
        assert!(watched.is_complete(), "not yet");
        watched.failing().insert("Pod".to_owned(), old);
        assert!(!watched.is_complete());
        watched.failing().remove("Pod");
        assert!(watched.is_complete());
    }

    #[test]
    fn what_a_new_list_does_not_show_is_gone() {
        let watched = Watched::new("cluster.local".to_owned());
        let namespace = |name: &str| -> Namespace {
            let labels = json!({api::gate::POLICY: api::gate::REQUIRED});
            serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap()
        };
        let (mut known, mut listed) = Default::default();
        let mut take = |event| watched.take(event, &mut known, &mut listed);
        assert!(!take(Init) && !take(InitApply(namespace("a"))) && take(InitDone) && !take(Apply(namespace("b"))));
        let mut required = watched.required();
        required.sort();
        assert_eq!(required, ["a", "b"]);
        assert!(!take(Init) && !take(InitApply(namespace("b"))) && take(InitDone));
        assert_eq!(watched.required(), ["b"]);
    }
}
