//! Objects of one kind, as a controller of ours needs them: read, followed, their status changed, kept from going away.

mod cluster;
#[cfg(test)]
mod contract;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::{Serialize, de::DeserializeOwned};

pub(crate) use cluster::InCluster;

use crate::{
    error::ApiError,
    query::Selection,
    records::{Change, Following, changed, follow},
    registry::Registry,
    resources::Resource,
    store::{Key, Stored},
};

/// A stored kind with a status.
pub(crate) trait Kind: Serialize + DeserializeOwned + Send + Sync + 'static {
    type Status: Default + Serialize + DeserializeOwned + Send + Sync + 'static;
}

impl Kind for api::Repository {
    type Status = api::RepositoryStatus;
}

impl Kind for api::Snapshot {
    type Status = api::SnapshotStatus;
}

impl Kind for api::Restore {
    type Status = api::RestoreStatus;
}

#[async_trait]
pub(crate) trait Kept<K: Kind>: fmt::Debug + Send + Sync {
    async fn get(&self, namespace: &str, name: &str) -> Result<Arc<K>, ApiError>;
    /// As it was seen last, which may be a moment ago; also `None` where nothing was seen yet.
    async fn seen(&self, namespace: &str, name: &str) -> Option<Arc<K>>;
    /// Of one namespace, or of all.
    fn all(&self, namespace: Option<&str>) -> Vec<Arc<K>>;
    fn follow(&self) -> Following<K>;
    async fn change(&self, namespace: &str, name: &str, change: Change<'_, K::Status>) -> Result<(), ApiError>;
    /// Keeps one from going away before it is let go.
    async fn keep(&self, namespace: &str, name: &str, finalizer: &str) -> Result<(), ApiError>;
    /// Lets one go that is being deleted.
    async fn let_go(&self, namespace: &str, name: &str, finalizer: &str) -> Result<(), ApiError>;
}

/// Whether it is deleted, or being so. What was seen last is asked first: that costs nothing.
pub(crate) async fn is_unwanted<K: Kind + kube::Resource>(kept: &dyn Kept<K>, object: &K) -> bool {
    let (namespace, name, uid) = who(object);
    let is_gone = |now: &K| now.meta().uid.as_deref() != Some(&uid) || now.meta().deletion_timestamp.is_some();
    if kept.seen(&namespace, &name).await.is_some_and(|now| !is_gone(&now)) {
        return false;
    }
    match kept.get(&namespace, &name).await {
        Ok(now) => is_gone(&now),
        Err(error) => error.code == 404,
    }
}

/// Changes a status as long as it is the same object's, and where it stands so: whoever led meanwhile may have gone on. Whether it did.
pub(crate) async fn change_where<K: Kind + kube::Resource>(
    kept: &dyn Kept<K>,
    object: &K,
    is_so: impl Fn(&K::Status) -> bool + Send + Sync,
    change: impl Fn(K::Status) -> K::Status + Send + Sync,
) -> Result<bool, ApiError>
where
    K::Status: Clone + PartialEq,
{
    let (namespace, name, uid) = who(object);
    // Made anew under its name, it is somebody else's.
    if kept.get(&namespace, &name).await.is_ok_and(|now| now.meta().uid.as_deref() != Some(&uid)) {
        return Err(ApiError::gone(format!("{name} is another by now")));
    }
    let was_so = AtomicBool::new(false);
    let change = |status: K::Status| {
        was_so.store(is_so(&status), Ordering::Relaxed);
        let next = change(status.clone());
        (was_so.load(Ordering::Relaxed) && next != status).then_some(next)
    };
    kept.change(&namespace, &name, &change).await?;
    Ok(was_so.into_inner())
}

/// Those of a standalone server.
pub(crate) struct Own<K> {
    registry: Registry,
    resource: &'static Resource,
    /// What was read of an object, at which revision of it: a list of ten thousand is not read anew each time.
    read: Mutex<HashMap<Key, (u64, Arc<K>)>>,
}

impl<K: Kind> Own<K> {
    pub(crate) fn shared(registry: &Registry, resource: &'static Resource) -> Arc<dyn Kept<K>> {
        Arc::new(Self { registry: registry.clone(), resource, read: Mutex::default() })
    }
}

#[async_trait]
impl<K: Kind> Kept<K> for Own<K> {
    async fn get(&self, namespace: &str, name: &str) -> Result<Arc<K>, ApiError> {
        self.registry.typed(self.resource, Some(namespace), name).map(Arc::new)
    }

    async fn seen(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.get(namespace, name).await.ok()
    }

    fn all(&self, namespace: Option<&str>) -> Vec<Arc<K>> {
        let page = self.registry.list(self.resource, namespace, &Selection::default(), None, None);
        let items = page.map(|page| page.items).unwrap_or_default();
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if namespace.is_none() && read.len() > items.len() {
            let there: HashSet<&Key> = items.iter().map(|(key, _)| key).collect();
            read.retain(|key, _| there.contains(key));
        }
        let one = |(key, stored): (Key, Stored)| match read.get(&key) {
            Some((revision, object)) if *revision == stored.revision => Some(Arc::clone(object)),
            _ => {
                let object: Arc<K> = Arc::new(serde_json::from_slice(&stored.bytes).ok()?);
                read.insert(key, (stored.revision, Arc::clone(&object)));
                Some(object)
            }
        };
        items.into_iter().filter_map(one).collect()
    }

    fn follow(&self) -> Following<K> {
        follow(&self.registry, self.resource)
    }

    async fn change(&self, namespace: &str, name: &str, change: Change<'_, K::Status>) -> Result<(), ApiError> {
        changed(&self.registry, self.resource, namespace, name, change).await
    }

    /// The registry does that when it is made.
    async fn keep(&self, _namespace: &str, _name: &str, _finalizer: &str) -> Result<(), ApiError> {
        Ok(())
    }

    async fn let_go(&self, namespace: &str, name: &str, finalizer: &str) -> Result<(), ApiError> {
        self.registry.remove_finalizer(self.resource, namespace, name, finalizer).await
    }
}

impl<K> fmt::Debug for Own<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Own").field(&self.resource.plural).finish()
    }
}

/// With this object goes what is made for it.
pub(crate) fn owner<K: kube::Resource<DynamicType = ()>>(object: &K) -> OwnerReference {
    let (_, name, uid) = who(object);
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name,
        uid,
        controller: Some(true),
        ..OwnerReference::default()
    }
}

/// Who an object is: its namespace, name and uid.
pub(crate) fn who<K: kube::Resource>(object: &K) -> (String, String, String) {
    let ObjectMeta { namespace, name, uid, .. } = object.meta();
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    (text(namespace), text(name), text(uid))
}
