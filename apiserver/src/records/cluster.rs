//! A cluster's API server as [`Records`]: custom resources, mirrored in memory.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::{Database, DatabaseStatus, Freeze, FreezeStatus, Phase};
use async_trait::async_trait;
use freeze::FreezeName;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use http::StatusCode;
use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{Event, Secret},
};
use kube::{
    Api, Client, Resource,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::debug;

pub(crate) use super::told::told;
use super::{Change, Following, Records, mirror::Mirror};
use crate::{
    error::{About, ApiError},
    resources::{DATABASES, FREEZES, SECRETS},
};

/// Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    databases: Mirror<Database>,
    freezes: Mirror<Freeze>,
    /// The version of each Freeze that we wrote last, until it is finished.
    seen: Arc<Mutex<HashMap<FreezeName, String>>>,
    tasks: TaskTracker,
    /// A mirror has ended.
    lost: CancellationToken,
}

/// How often a write that lost a race is tried again.
const TRIES: usize = 16;
/// How long a new Freeze is without a status at most.
const NEW: Duration = Duration::from_millis(100);
const AGAIN: Duration = Duration::from_secs(2);
/// Events that are written at once.
const TOGETHER: usize = 8;

impl Cluster {
    /// Begins to mirror, as tasks of `tasks` that end with `over`.
    pub fn begin(client: Client, watching: Client, tasks: &TaskTracker, over: &CancellationToken) -> Self {
        let cluster = Self {
            databases: Mirror::empty(),
            freezes: Mirror::empty(),
            seen: Arc::default(),
            tasks: tasks.clone(),
            lost: CancellationToken::new(),
            client,
        };
        let databases = cluster.databases.clone().run(Api::all(watching.clone())).boxed();
        let freezes = cluster.freezes.clone().run(Api::all(watching)).boxed();
        for mirror in [databases, freezes] {
            let (over, lost) = (over.clone(), cluster.lost.clone().drop_guard());
            tasks.spawn(async move {
                over.run_until_cancelled(mirror).await;
                drop(lost);
            });
        }
        cluster
    }

    /// Returns once everything was seen: before that, what is frozen is not known.
    pub async fn complete(&self) {
        tokio::join!(self.databases.complete(), self.freezes.complete());
    }

    fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn freezes_of(&self, name: &FreezeName) -> Api<Freeze> {
        self.of(&name.namespace)
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<FreezeName, String>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads which version it is now. 410 if another finished it otherwise, or has it: then there is nothing to write any more.
    async fn look_at(&self, name: &FreezeName, wanted: &FreezeStatus) -> Result<(), ApiError> {
        let now = self.freezes_of(name).get(&name.name).await;
        let now = now.map_err(|error| told(&error, FREEZES.about(&name.name)))?;
        let status = now.status.unwrap_or_default();
        let others = status.freezer.is_some() && status.freezer != wanted.freezer;
        if others || (status.phase.is_finished() && status.phase != wanted.phase) {
            self.seen().remove(name);
            return Err(ApiError::gone(format!("Freeze {name} is {}: another replica has written it", status.phase)));
        }
        if let Some(version) = now.metadata.resource_version {
            self.seen().insert(name.clone(), version);
        }
        Ok(())
    }

    /// The first status of a Freeze, a little after it was made: only as what follows its creation, so that whatever was written
    /// meanwhile stays.
    async fn write_first(self, name: FreezeName, status: FreezeStatus, version: Option<String>) {
        let Some(version) = version else { return };
        for pause in [NEW, AGAIN, AGAIN, AGAIN, AGAIN] {
            sleep(pause).await;
            if self.seen().get(&name) != Some(&version) {
                return;
            }
            match self.put_status(&name, &status, &version).await {
                Ok(next) => return self.follows(&name, &version, next),
                Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => return,
                Err(error) => debug!(freeze = %name, %error, "its first status was not written"),
            }
        }
    }

    /// Only on this version; answers the next. Of what is sent, an API server takes the status alone (apiextensions-apiserver
    /// `registry/customresource/status_strategy.go`); a patch would cost it more.
    async fn put_status(
        &self,
        name: &FreezeName,
        status: &FreezeStatus,
        version: &str,
    ) -> Result<Option<String>, kube::Error> {
        let kind = ApiResource::erase::<Freeze>(&());
        let mut freeze = DynamicObject::new(&name.name, &kind).data(json!({"status": status}));
        freeze.metadata.resource_version = Some(version.to_owned());
        let freezes: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), &name.namespace, &kind);
        let put = freezes.replace_status(&name.name, &PostParams::default(), &freeze).await?;
        Ok(put.metadata.resource_version)
    }

    /// A version that followed `old`, unless something newer is known.
    fn follows(&self, name: &FreezeName, old: &str, new: Option<String>) {
        let mut seen = self.seen();
        if let (Some(known), Some(new)) = (seen.get_mut(name), new)
            && known == old
        {
            *known = new;
        }
    }

    fn note(&self, name: &FreezeName, version: Option<String>, phase: Phase) {
        match version {
            Some(version) if !phase.is_finished() => drop(self.seen().insert(name.clone(), version)),
            _ => drop(self.seen().remove(name)),
        }
    }
}

#[async_trait]
impl Records for Cluster {
    /// One that was made a moment ago may not be mirrored yet, so it is asked for.
    async fn database(&self, namespace: &str, name: &str) -> Result<Arc<Database>, ApiError> {
        if let Some(database) = self.databases.get(namespace, name) {
            return Ok(database);
        }
        let found = self.of::<Database>(namespace).get(name).await;
        found.map(Arc::new).map_err(|error| told(&error, DATABASES.about(name)))
    }

    fn databases(&self, namespace: Option<&str>) -> Vec<Arc<Database>> {
        self.databases.all(namespace)
    }

    async fn freeze(&self, name: &FreezeName) -> Result<Arc<Freeze>, ApiError> {
        if let Some(freeze) = self.freezes.get(&name.namespace, &name.name) {
            return Ok(freeze);
        }
        let found = self.freezes_of(name).get(&name.name).await;
        found.map(Arc::new).map_err(|error| told(&error, FREEZES.about(&name.name)))
    }

    fn freezes(&self) -> Vec<Arc<Freeze>> {
        self.freezes.all(None)
    }

    fn revision(&self) -> String {
        self.databases.revision()
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ApiError> {
        let found = self.of::<Secret>(namespace).get_opt(name).await;
        found.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 403 => ApiError::unavailable(format!(
                "Stillpoint may not read Secrets in namespace {namespace}; let it: kubectl still enable {namespace}"
            )),
            _ => told(&error, SECRETS.about(name)),
        })
    }

    fn follow_databases(&self) -> Following<Database> {
        self.databases.follow()
    }

    fn follow_freezes(&self) -> Following<Freeze> {
        self.freezes.follow()
    }

    /// An API server takes no status with a new object: what it is now is written a little later, unless something newer was.
    /// Most freezes hold by then, and are spared a write that they would wait for.
    async fn create_freeze(&self, freeze: &Freeze) -> Result<(), ApiError> {
        let name = FreezeName {
            namespace: freeze.metadata.namespace.clone().unwrap_or_default(),
            name: freeze.metadata.name.clone().unwrap_or_default(),
        };
        let made = self.freezes_of(&name).create(&PostParams::default(), freeze).await;
        let made = made.map_err(|error| told(&error, FREEZES.about(&name.name)))?;
        self.note(&name, made.metadata.resource_version, Phase::Pending);
        if let Some(status) = freeze.status.clone() {
            let version = self.seen().get(&name).cloned();
            self.tasks.spawn(self.clone().write_first(name, status, version));
        }
        Ok(())
    }

    /// One request, without reading first, while nobody else has written: the status of a Freeze has one writer, and one that was
    /// believed dead, and whose Freeze was finished by another, must not write it anew.
    async fn write_status(&self, name: &FreezeName, status: &FreezeStatus) -> Result<(), ApiError> {
        let about = FREEZES.about(&name.name);
        for _ in 0..TRIES {
            let Some(seen) = self.seen().get(name).cloned() else {
                self.look_at(name, status).await?;
                continue;
            };
            match self.put_status(name, status, &seen).await {
                Ok(next) => {
                    self.note(name, next, status.phase);
                    return Ok(());
                }
                // What is there now says whether we may go on.
                Err(kube::Error::Api(answer)) if answer.code == 409 => {
                    self.look_at(name, status).await?;
                }
                Err(error) => return Err(told(&error, about)),
            }
        }
        Err(ApiError::modified(about))
    }

    async fn change_freeze(&self, name: &FreezeName, change: Change<'_, FreezeStatus>) -> Result<(), ApiError> {
        let apply = |freeze: &mut Freeze| match change(freeze.status.clone().unwrap_or_default()) {
            Some(status) => {
                freeze.status = Some(status);
                true
            }
            None => false,
        };
        changed(&self.freezes_of(name), &name.name, FREEZES.about(&name.name), apply).await
    }

    async fn change_database(
        &self,
        namespace: &str,
        name: &str,
        change: Change<'_, DatabaseStatus>,
    ) -> Result<(), ApiError> {
        let apply = |database: &mut Database| match change(database.status.clone().unwrap_or_default()) {
            Some(status) => {
                database.status = Some(status);
                true
            }
            None => false,
        };
        changed(&self.of::<Database>(namespace), name, DATABASES.about(name), apply).await
    }

    async fn keep(&self, name: &FreezeName) -> Result<(), ApiError> {
        let about = FREEZES.about(&name.name);
        finalized(&self.freezes_of(name), &name.name, about, api::FINALIZER_THAW, true).await
    }

    fn author(&self, _freeze: &Freeze) -> Option<String> {
        None
    }

    async fn let_go(&self, name: &FreezeName) -> Result<(), ApiError> {
        let about = FREEZES.about(&name.name);
        match finalized(&self.freezes_of(name), &name.name, about, api::FINALIZER_THAW, false).await {
            Err(error) if error.code == StatusCode::NOT_FOUND => Ok(()),
            other => other,
        }
    }

    async fn delete_freeze(&self, name: &FreezeName) -> Result<(), ApiError> {
        let deleted = self.freezes_of(name).delete(&name.name, &DeleteParams::default()).await;
        deleted.map(drop).map_err(|error| told(&error, FREEZES.about(&name.name)))
    }

    async fn tell(&self, events: Vec<Event>) {
        let write = |event: Event| async move {
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            if let Err(error) = self.of::<Event>(&namespace).create(&PostParams::default(), &event).await {
                debug!(%namespace, %error, "an Event was not written");
            }
        };
        stream::iter(events).for_each_concurrent(TOGETHER, write).await;
    }

    fn lost(&self) -> BoxFuture<'static, ()> {
        self.lost.clone().cancelled_owned().boxed()
    }
}

/// Reads, changes, and writes the status unless somebody was faster; then again.
pub(crate) async fn changed<K>(
    api: &Api<K>,
    name: &str,
    about: About<'_>,
    apply: impl Fn(&mut K) -> bool,
) -> Result<(), ApiError>
where
    K: Resource + Clone + Serialize + DeserializeOwned + std::fmt::Debug,
{
    for _ in 0..TRIES {
        let mut object = api.get(name).await.map_err(|error| told(&error, about))?;
        if !apply(&mut object) {
            return Ok(());
        }
        let written = api.replace_status(name, &PostParams::default(), &object).await;
        match written.map_err(|error| told(&error, about)) {
            Ok(_) => return Ok(()),
            Err(error) if error.code == StatusCode::CONFLICT => {}
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::modified(about))
}

/// Has an object this finalizer from now on, or not any more; of the others none is lost.
pub(crate) async fn finalized<K>(
    api: &Api<K>,
    name: &str,
    about: About<'_>,
    finalizer: &str,
    is_there: bool,
) -> Result<(), ApiError>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    for _ in 0..TRIES {
        let object = api.get(name).await.map_err(|error| told(&error, about))?;
        let old = object.meta().finalizers.clone().unwrap_or_default();
        let mut new: Vec<String> = old.iter().filter(|other| *other != finalizer).cloned().collect();
        if is_there {
            new.push(finalizer.to_owned());
        }
        if new.len() == old.len() {
            return Ok(());
        }
        let patch = json!({"metadata": {"resourceVersion": object.meta().resource_version, "finalizers": new}});
        let patched = api.patch(name, &PatchParams::default(), &Patch::Merge::<Value>(patch)).await;
        match patched.map_err(|error| told(&error, about)) {
            Ok(_) => return Ok(()),
            Err(error) if error.code == StatusCode::CONFLICT => {}
            Err(error) => return Err(error),
        }
    }
    Err(ApiError::modified(about))
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}
