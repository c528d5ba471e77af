//! All objects of one kind of a cluster, in memory, kept as a watch says. Whoever follows it sees every object, then every
//! change; whoever is too slow sees every object again.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use futures::{StreamExt, pin_mut, stream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Resource,
    runtime::{WatchStreamExt, watcher},
};
use serde::de::DeserializeOwned;
use tokio::sync::{broadcast, mpsc, watch};
use tracing::warn;

use super::{
    Following, Seen,
    readable::{Readable, Unread, tell_of},
};

/// The copy in memory. Cheap to clone.
pub(crate) struct Mirror<K>(Arc<Shared<K>>);

struct Shared<K> {
    state: RwLock<State<K>>,
    changes: broadcast::Sender<Change<K>>,
    /// Everything was seen once.
    complete: watch::Sender<bool>,
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    /// What a list after a break has shown so far; what is not in it at its end is gone.
    listed: Option<BTreeMap<Key, Arc<K>>>,
    /// The newest resourceVersion that was seen.
    revision: String,
}

type Key = (String, String);

/// What followers are told. What is there they look up, so that of what is there only the newest version is kept.
enum Change<K> {
    There(Key),
    Gone(Arc<K>),
}

/// Without what nobody here reads, and what would be most of an object in memory; of what is written back (a Lease), an API server
/// that is sent no managedFields keeps what it has. A copy has no room to spare in its lists, where one that was just read has room
/// for four of anything.
fn lighten<K: Resource + Clone>(object: &mut K) {
    object.meta_mut().managed_fields = None;
    if let Some(annotations) = &mut object.meta_mut().annotations {
        annotations.remove(LAST_APPLIED);
    }
    *object = object.clone();
}

const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Changes that a follower may be behind.
const BEHIND: usize = 4096;
/// Objects that cannot be read, and of which no Event is written yet.
const UNTOLD: usize = 64;

impl<K> Mirror<K>
where
    K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    pub(crate) fn empty() -> Self {
        let state = State { objects: BTreeMap::new(), listed: None, revision: "1".to_owned() };
        Self(Arc::new(Shared {
            state: RwLock::new(state),
            changes: broadcast::channel(BEHIND).0,
            complete: watch::channel(false).0,
        }))
    }

    /// Follows the API server for ever; a watch that breaks is begun again, with pauses that grow.
    pub(crate) async fn run(self, api: Api<Readable<K>>) {
        self.run_of(api, watcher::Config::default()).await;
    }

    /// Only of those that `which` says.
    pub(crate) async fn run_of(self, api: Api<Readable<K>>, which: watcher::Config) {
        let (tell, told) = mpsc::channel(UNTOLD);
        tokio::join!(self.follow_of(api.clone(), which, tell), tell_of::<K>(api.into_client(), told));
    }

    async fn follow_of(self, api: Api<Readable<K>>, which: watcher::Config, tell: mpsc::Sender<Box<Unread>>) {
        let events = watcher(api, which).default_backoff();
        pin_mut!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => {
                    if let Some(unread) = self.take(event) {
                        let ObjectMeta { namespace, name, .. } = &unread.metadata;
                        warn!(kind = %K::kind(&()), ?namespace, ?name, why = unread.why, "an object cannot be read; it is left out");
                        // Nobody waits for this: what there is no room for is in the log.
                        tell.try_send(unread).ok();
                    }
                }
                Err(error) => warn!(kind = %K::kind(&()), %error, "objects cannot be followed now; trying again"),
            }
        }
    }

    /// Whether everything was seen once.
    pub(crate) fn is_complete(&self) -> bool {
        *self.0.complete.borrow()
    }

    /// Returns once everything was seen.
    pub(crate) async fn complete(&self) {
        self.0.complete.subscribe().wait_for(|complete| *complete).await.ok();
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.read().objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn all(&self, namespace: Option<&str>) -> Vec<Arc<K>> {
        let state = self.read();
        let wanted = |((of, _), _): &(&Key, &Arc<K>)| namespace.is_none_or(|namespace| namespace == of);
        state.objects.iter().filter(wanted).map(|(_, object)| Arc::clone(object)).collect()
    }

    pub(crate) fn revision(&self) -> String {
        self.read().revision.clone()
    }

    pub(crate) fn follow(&self) -> Following<K> {
        let mirror = Self(Arc::clone(&self.0));
        let begun: (VecDeque<Seen<Arc<K>>>, Option<broadcast::Receiver<_>>) = (VecDeque::new(), None);
        stream::unfold((mirror, begun), |(mirror, (mut listed, mut changes))| async move {
            loop {
                if let Some(next) = listed.pop_front() {
                    return Some((next, (mirror, (listed, changes))));
                }
                match &mut changes {
                    Some(receiver) => match receiver.recv().await {
                        Ok(Change::Gone(object)) => return Some((Seen::Gone(object), (mirror, (listed, changes)))),
                        // If it is gone again, that is told, too.
                        Ok(Change::There((namespace, name))) => {
                            if let Some(object) = mirror.get(&namespace, &name) {
                                return Some((Seen::There(object), (mirror, (listed, changes))));
                            }
                        }
                        // Too slow: from the beginning.
                        Err(broadcast::error::RecvError::Lagged(_)) => changes = None,
                        Err(broadcast::error::RecvError::Closed) => return None,
                    },
                    None => {
                        // Under one lock, so that nothing is missed in between.
                        let state = mirror.read();
                        listed = state.objects.values().cloned().map(Seen::There).collect();
                        changes = Some(mirror.0.changes.subscribe());
                    }
                }
            }
        })
        .boxed()
    }

    /// Answers the object if it cannot be read: it is as if it were not there.
    fn take(&self, event: watcher::Event<Readable<K>>) -> Option<Box<Unread>> {
        let mut state = self.write();
        match event {
            watcher::Event::Init => state.listed = Some(BTreeMap::new()),
            watcher::Event::InitApply(Readable(Ok(mut object))) => {
                lighten(&mut object);
                state.note(object.meta());
                let object = Arc::new(object);
                if let Some(listed) = &mut state.listed {
                    listed.insert(key(object.meta()), Arc::clone(&object));
                }
                self.there(&mut state, object);
            }
            watcher::Event::InitDone => {
                let listed = state.listed.take().unwrap_or_default();
                let gone: Vec<Key> = state.objects.keys().filter(|key| !listed.contains_key(*key)).cloned().collect();
                for key in gone {
                    self.gone(&mut state, &key);
                }
                drop(state);
                self.0.complete.send_replace(true);
            }
            watcher::Event::Apply(Readable(Ok(mut object))) => {
                lighten(&mut object);
                state.note(object.meta());
                self.there(&mut state, Arc::new(object));
            }
            watcher::Event::Delete(Readable(Ok(mut object))) => {
                lighten(&mut object);
                state.note(object.meta());
                let key = key(object.meta());
                state.objects.insert(key.clone(), Arc::new(object));
                self.gone(&mut state, &key);
            }
            watcher::Event::Delete(Readable(Err(unread))) => {
                state.note(&unread.metadata);
                self.gone(&mut state, &key(&unread.metadata));
            }
            watcher::Event::InitApply(Readable(Err(unread))) | watcher::Event::Apply(Readable(Err(unread))) => {
                state.note(&unread.metadata);
                self.gone(&mut state, &key(&unread.metadata));
                return Some(unread);
            }
        }
        None
    }

    fn there(&self, state: &mut State<K>, object: Arc<K>) {
        let key = key(object.meta());
        let old = state.objects.insert(key.clone(), Arc::clone(&object));
        let version = |object: &K| object.meta().resource_version.clone();
        // A list after a break shows again what was seen.
        if old.is_none_or(|old| version(&old) != version(&object)) {
            self.0.changes.send(Change::There(key)).ok();
        }
    }

    fn gone(&self, state: &mut State<K>, key: &Key) {
        if let Some(object) = state.objects.remove(key) {
            self.0.changes.send(Change::Gone(object)).ok();
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State<K>> {
        self.0.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<K>> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> State<K> {
    /// Keeps the newest version: they are numbers that grow, whatever else upstream reserves for itself.
    fn note(&mut self, seen: &ObjectMeta) {
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        if let Some(version) = &seen.resource_version
            && number(version) > number(&self.revision)
        {
            self.revision.clone_from(version);
        }
    }
}

fn key(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        match self {
            Self::There(key) => Self::There(key.clone()),
            Self::Gone(object) => Self::Gone(Arc::clone(object)),
        }
    }
}

impl<K> Clone for Mirror<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> fmt::Debug for Mirror<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mirror").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use api::Database;
    use serde_json::json;

    use super::*;

    fn database(name: &str, version: u64) -> Readable<Database> {
        of_engine(name, version, "PostgreSQL")
    }

    fn of_engine(name: &str, version: u64, engine: &str) -> Readable<Database> {
        serde_json::from_value(json!({
            "apiVersion": api::API_VERSION, "kind": "Database",
            "metadata": {"name": name, "namespace": "ns", "resourceVersion": version.to_string()},
            "spec": {"engine": engine, "endpoint": {"host": "db"}},
        }))
        .unwrap()
    }

    fn told(seen: &Seen<Arc<Database>>) -> String {
        match seen {
            Seen::There(object) => object.metadata.name.clone().unwrap(),
            Seen::Gone(object) => format!("-{}", object.metadata.name.clone().unwrap()),
        }
    }

    async fn next(following: &mut Following<Database>, count: usize) -> Vec<String> {
        following.by_ref().take(count).map(|seen| told(&seen)).collect().await
    }

    #[tokio::test]
    async fn a_list_after_a_break_tells_what_changed_and_what_is_gone_and_nothing_twice() {
        let mirror = Mirror::<Database>::empty();
        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(database("a", 1)),
            watcher::Event::InitApply(database("b", 2)),
        ] {
            mirror.take(event);
        }
        assert!(!*mirror.0.complete.borrow());
        mirror.take(watcher::Event::InitDone);
        mirror.complete().await;
        let mut following = mirror.follow();
        assert_eq!(next(&mut following, 2).await, ["a", "b"]);
        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(database("a", 1)),
            watcher::Event::InitApply(database("c", 7)),
        ] {
            mirror.take(event);
        }
        assert!(mirror.get("ns", "b").is_some(), "until the list is whole, what was there is there");
        mirror.take(watcher::Event::InitDone);
        assert_eq!(next(&mut following, 2).await, ["c", "-b"]);
        assert_eq!((mirror.all(Some("ns")).len(), mirror.all(Some("other")).len()), (2, 0));
        assert_eq!(mirror.revision(), "7");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_as_if_it_were_not_there_and_nothing_else_is_hidden() {
        let mirror = Mirror::<Database>::empty();
        let told = [
            watcher::Event::Init,
            watcher::Event::InitApply(database("a", 1)),
            watcher::Event::InitApply(of_engine("bad", 2, "Abacus")),
            watcher::Event::InitApply(database("z", 3)),
            watcher::Event::InitDone,
        ]
        .map(|event| mirror.take(event).map(|unread| unread.why));
        let [None, None, Some(why), None, None] = told else { panic!("{told:?}") };
        assert!(why.starts_with("spec.engine: unknown variant `Abacus`"), "{why}");
        assert!(mirror.is_complete());
        let mut following = mirror.follow();
        assert_eq!(next(&mut following, 2).await, ["a", "z"]);
        // One becomes so, is mended, and goes.
        assert!(mirror.take(watcher::Event::Apply(of_engine("a", 4, "Abacus"))).is_some());
        assert_eq!(next(&mut following, 1).await, ["-a"]);
        assert!(mirror.take(watcher::Event::Apply(database("a", 5))).is_none());
        assert_eq!(next(&mut following, 1).await, ["a"]);
        assert!(mirror.take(watcher::Event::Delete(of_engine("bad", 6, "Abacus"))).is_none());
        assert_eq!((mirror.all(None).len(), mirror.revision()), (2, "6".to_owned()));
    }

    #[tokio::test]
    async fn who_is_late_sees_the_newest_and_of_what_is_gone_only_that() {
        let mirror = Mirror::<Database>::empty();
        let mut following = mirror.follow();
        mirror.take(watcher::Event::Apply(database("first", 1)));
        assert_eq!(next(&mut following, 1).await, ["first"]);
        for event in [
            watcher::Event::Apply(database("a", 2)),
            watcher::Event::Apply(database("b", 3)),
            watcher::Event::Delete(database("b", 4)),
            watcher::Event::Apply(database("a", 5)),
        ] {
            mirror.take(event);
        }
        let seen: Vec<_> = following.by_ref().take(3).collect().await;
        assert_eq!(seen.iter().map(told).collect::<Vec<_>>(), ["a", "-b", "a"]);
        let Seen::There(newest) = &seen[0] else { panic!("{}", told(&seen[0])) };
        assert_eq!(newest.metadata.resource_version.as_deref(), Some("5"));
    }

    #[tokio::test]
    async fn who_is_too_slow_sees_everything_again() {
        let mirror = Mirror::<Database>::empty();
        mirror.take(watcher::Event::Apply(database("a", 1)));
        let mut following = mirror.follow();
        assert_eq!(next(&mut following, 1).await, ["a"]);
        for version in 2..(BEHIND as u64 + 10) {
            mirror.take(watcher::Event::Apply(database("a", version)));
        }
        mirror.take(watcher::Event::Apply(database("z", 1)));
        assert_eq!(next(&mut following, 2).await, ["a", "z"]);
    }
}
