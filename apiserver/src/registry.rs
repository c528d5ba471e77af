//! The generic verbs over the store: create, get, list, update, patch, delete, with Kubernetes' semantics
//! (apiserver `registry/generic/registry/store.go`). Kinds differ by their [`Strategy`](crate::resources::Strategy) only.

use std::collections::BTreeSet;

use api::validate::{Cause, CauseKind};
use async_trait::async_trait;
use futures::future::join_all;
use jiff::Timestamp;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    body::Body,
    error::ApiError,
    meta,
    patch::Patch,
    query::{FieldValidation, Selection},
    resources::{NAMESPACES, Resource, Strategy},
    store::{Event, Expect, Key, Store, StoreError, Stored, Watch},
};

/// The objects of a standalone server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Registry {
    store: Store,
}

/// How a write is to be done.
#[derive(Clone, Copy)]
pub struct Write<'a> {
    pub dry_run: bool,
    pub validation: FieldValidation,
    /// The last word before an object is stored: whether its author may have it so.
    pub admit: &'a dyn Admit,
}

/// Whether an author may have an object stored.
#[async_trait]
pub trait Admit: Send + Sync {
    async fn admit(&self, object: &Value) -> Result<(), ApiError>;
}

/// An object that was written, and what its author should know.
#[derive(Debug)]
pub struct Written {
    pub object: Value,
    pub warnings: Vec<String>,
}

/// What a deletion came to.
#[derive(Debug)]
pub enum Deleted {
    Gone(Value),
    /// Finalizers hold it.
    Pending(Value),
}

/// `metav1.DeleteOptions`, as far as it means something here.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub dry_run: bool,
}

/// One page of a list.
#[derive(Debug)]
pub struct Page {
    pub items: Vec<(Key, Stored)>,
    pub revision: u64,
    /// Where the next page begins, and how many are left.
    pub next: Option<(Key, usize)>,
}

/// How often a write that lost a race is tried again; each try has seen the winner's object.
const TRIES: usize = 64;
/// Of one generated name; upstream tries 8 times.
const NAME_TRIES: usize = 8;

impl Registry {
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Ends when the store's writer has ended.
    pub async fn closed(&self) {
        self.store.closed().await;
    }

    pub fn revision(&self) -> u64 {
        self.store.revision()
    }

    // --- reading ---

    pub fn get(&self, resource: &Resource, namespace: Option<&str>, name: &str) -> Result<Stored, ApiError> {
        let key = key(strategy(resource)?, namespace, name);
        self.store.get(&key).ok_or_else(|| ApiError::not_found(resource.about(name)))
    }

    /// The objects that a selection selects, at most `limit`, after `after`.
    pub fn list(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        selection: &Selection,
        limit: Option<usize>,
        after: Option<&Key>,
    ) -> Result<Page, ApiError> {
        let (mut items, revision) = self.store.list(strategy(resource)?.key, namespace, after);
        let all = selection.labels.is_empty() && selection.fields.is_empty();
        if !all {
            items.retain(|(_, stored)| value(stored).is_some_and(|object| selected(selection, &object)));
        }
        let next = match limit {
            Some(limit) if limit > 0 && items.len() > limit => {
                let left = items.len() - limit;
                items.truncate(limit);
                items.last().map(|(key, _)| (key.clone(), left))
            }
            _ => None,
        };
        Ok(Page { items, revision, next })
    }

    /// Events after `revision`.
    pub fn watch(&self, resource: &Resource, revision: u64) -> Result<Watch, ApiError> {
        self.store.watch(strategy(resource)?.key, revision).map_err(|error| unwatchable(&error))
    }

    /// The state now and every event after it.
    pub fn list_and_watch(&self, resource: &Resource, namespace: Option<&str>) -> Result<(Page, Watch), ApiError> {
        let (items, revision, watch) =
            self.store.list_and_watch(strategy(resource)?.key, namespace).map_err(|error| unwatchable(&error))?;
        Ok((Page { items, revision, next: None }, watch))
    }

    /// Everything of a kind, typed; what cannot be read is left out.
    pub fn all<T: DeserializeOwned>(&self, resource: &Resource, namespace: Option<&str>) -> Vec<T> {
        let page = self.list(resource, namespace, &Selection::default(), None, None);
        let items = page.map(|page| page.items).unwrap_or_default();
        items.iter().filter_map(|(_, stored)| serde_json::from_slice(&stored.bytes).ok()).collect()
    }

    /// One object, typed.
    pub fn typed<T: DeserializeOwned>(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<T, ApiError> {
        let stored = self.get(resource, namespace, name)?;
        serde_json::from_slice(&stored.bytes).map_err(ApiError::internal)
    }

    // --- writing ---

    pub async fn create(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        body: Body,
        write: Write<'_>,
        now: Timestamp,
    ) -> Result<Written, ApiError> {
        let strategy = strategy(resource)?;
        let mut object = body.value;
        meta::prepare_for_create(resource, &mut object, namespace, None, now)?;
        let base = meta::wants_a_name(&object).map(str::to_owned);
        self.namespace_takes(resource, namespace)?;
        for _ in 0..NAME_TRIES {
            let mut object = object.clone();
            if let Some(base) = &base {
                object["metadata"]["name"] = meta::generated(base).into();
            }
            let (object, warnings) = checked(resource, strategy, object, None, body.duplicates.clone(), write)?;
            write.admit.admit(&object).await?;
            let key = key(strategy, namespace, name_of(&object));
            if write.dry_run {
                if self.store.get(&key).is_some() {
                    return Err(ApiError::already_exists(resource.about(&key.name)));
                }
                return Ok(Written { object, warnings });
            }
            match self.store.put(key.clone(), object, Expect::Absent).await {
                Ok(stored) => {
                    return Ok(Written { object: parse(&stored)?, warnings });
                }
                Err(StoreError::Exists) if base.is_some() => {}
                Err(error) => return Err(unwritten(resource, &key.name, &error)),
            }
        }
        let base = base.unwrap_or_default();
        Err(ApiError::conflict(
            resource.about(&base),
            "the server was not able to generate a unique name for the object",
        ))
    }

    /// `PUT`. The body's resourceVersion must be the stored one's.
    pub async fn update(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        status: bool,
        body: Body,
        write: Write<'_>,
    ) -> Result<Written, ApiError> {
        let mut object = body.value;
        meta::fit(resource, &mut object, namespace, Some(name))?;
        let wanted = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        if wanted.is_empty() {
            let message = "must be specified for an update".to_owned();
            let cause = Cause { field: "metadata.resourceVersion".into(), kind: CauseKind::Invalid, message };
            return Err(resource.invalid(name, &[cause]));
        }
        let duplicates = body.duplicates;
        self.change(resource, namespace, name, status, write, duplicates, Some(&wanted), |_| Ok(object.clone())).await
    }

    /// `PATCH`. Tried again when somebody was faster, unless the patch itself names a resourceVersion.
    pub async fn patch(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        status: bool,
        patch: &Patch,
        write: Write<'_>,
    ) -> Result<Written, ApiError> {
        let wanted = match patch {
            Patch::Merge(value) => value["metadata"]["resourceVersion"].as_str().map(str::to_owned),
            Patch::Json(_) => None,
        };
        self.change(resource, namespace, name, status, write, Vec::new(), wanted.as_deref(), |old| {
            let mut object = patch.apply(resource, old)?;
            meta::fit(resource, &mut object, namespace, Some(name))?;
            Ok(object)
        })
        .await
    }

    /// Sets the status of an object of ours, whatever happened to it since it was read.
    pub async fn update_status<S: Serialize>(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        status: &S,
    ) -> Result<Value, ApiError> {
        let status = serde_json::to_value(status).map_err(ApiError::internal)?;
        self.change_status(resource, namespace, name, |now| now.clone_from(&status)).await
    }

    /// Changes a part of a status that others change too. No admission: we are the system.
    pub async fn change_status(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        change: impl Fn(&mut Value),
    ) -> Result<Value, ApiError> {
        let written = self
            .change(resource, Some(namespace), name, true, SYSTEM, Vec::new(), None, |old| {
                let mut object = old.clone();
                change(&mut object["status"]);
                Ok(object)
            })
            .await?;
        Ok(written.object)
    }

    /// Makes an object of ours, status included, in one write.
    pub async fn create_with_status<T: Serialize>(
        &self,
        resource: &Resource,
        namespace: &str,
        object: &T,
    ) -> Result<Value, ApiError> {
        let (key, object) = ours(resource, Some(namespace), object)?;
        let stored = self.insert(resource, key, object).await?;
        parse(&stored)
    }

    /// Makes many, each for itself. All are ready before the first is written, so that they share a sync to disk.
    pub async fn create_all<T: Serialize>(
        &self,
        resource: &Resource,
        objects: impl Iterator<Item = (Option<&str>, T)>,
    ) -> Vec<Result<(), ApiError>> {
        let ready: Vec<_> = objects.map(|(namespace, object)| ours(resource, namespace, &object)).collect();
        join_all(ready.into_iter().map(|ready| async {
            let (key, object) = ready?;
            self.insert(resource, key, object).await.map(drop)
        }))
        .await
    }

    async fn insert(&self, resource: &Resource, key: Key, object: Value) -> Result<Stored, ApiError> {
        let name = key.name.clone();
        self.store.put(key, object, Expect::Absent).await.map_err(|error| unwritten(resource, &name, &error))
    }

    /// Takes a finalizer of ours off; the object is gone when it was the last of a deletion.
    pub async fn remove_finalizer(
        &self,
        resource: &Resource,
        namespace: &str,
        name: &str,
        finalizer: &str,
    ) -> Result<(), ApiError> {
        let changed = self
            .change(resource, Some(namespace), name, false, SYSTEM, Vec::new(), None, |old| {
                let mut object = old.clone();
                let left: Vec<&str> = meta::finalizers(old).into_iter().filter(|other| *other != finalizer).collect();
                object["metadata"]["finalizers"] = json!(left);
                Ok(object)
            })
            .await;
        match changed {
            Err(error) if error.code == 404 => Ok(()),
            other => other.map(drop),
        }
    }

    pub async fn delete(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        options: &DeleteOptions,
        now: Timestamp,
    ) -> Result<Deleted, ApiError> {
        let key = key(strategy(resource)?, namespace, name);
        for _ in 0..TRIES {
            let stored = self.store.get(&key).ok_or_else(|| ApiError::not_found(resource.about(name)))?;
            let mut object = parse(&stored)?;
            preconditions(resource, name, &object, options)?;
            let held =
                !meta::finalizers(&object).is_empty() || (resource.kind == NAMESPACES.kind && self.has_contents(name));
            if options.dry_run {
                return Ok(if held { Deleted::Pending(object) } else { Deleted::Gone(object) });
            }
            let result = if !held {
                self.store.delete(key.clone(), stored.revision).await.and_then(|last| Ok(Deleted::Gone(reread(&last)?)))
            } else if !object["metadata"]["deletionTimestamp"].is_null() {
                return Ok(Deleted::Pending(object));
            } else {
                object["metadata"]["deletionTimestamp"] = meta::seconds(now);
                object["metadata"]["deletionGracePeriodSeconds"] = 0.into();
                let put = self.store.put(key.clone(), object, Expect::At(stored.revision)).await;
                put.and_then(|last| Ok(Deleted::Pending(reread(&last)?)))
            };
            match result {
                Err(StoreError::Conflict) => {}
                other => return other.map_err(|error| unwritten(resource, name, &error)),
            }
        }
        Err(ApiError::modified(resource.about(name)))
    }

    /// Whether a namespace still has objects of any kind.
    pub fn has_contents(&self, namespace: &str) -> bool {
        !self.contents(namespace).is_empty()
    }

    /// What a namespace has: resource and name.
    pub fn contents(&self, namespace: &str) -> Vec<(&'static Resource, String)> {
        let namespaced =
            crate::resources::Served::Standalone.resources().iter().copied().filter(|resource| resource.namespaced);
        let kept = namespaced.filter_map(|resource| Some((resource, resource.strategy()?.key)));
        kept.flat_map(|(resource, key)| {
            let (items, _) = self.store.list(key, Some(namespace), None);
            items.into_iter().map(move |(key, _)| (resource, key.name))
        })
        .collect()
    }

    /// Reads, changes, checks and writes, until nobody was faster.
    #[expect(clippy::too_many_arguments, reason = "every one is a different part of a write")]
    async fn change(
        &self,
        resource: &Resource,
        namespace: Option<&str>,
        name: &str,
        status: bool,
        write: Write<'_>,
        duplicates: Vec<String>,
        wanted: Option<&str>,
        next: impl Fn(&Value) -> Result<Value, ApiError>,
    ) -> Result<Written, ApiError> {
        let strategy = strategy(resource)?;
        let key = key(strategy, namespace, name);
        for _ in 0..TRIES {
            let stored = self.store.get(&key).ok_or_else(|| ApiError::not_found(resource.about(name)))?;
            let old = parse(&stored)?;
            if wanted.is_some_and(|wanted| old["metadata"]["resourceVersion"] != *wanted) {
                return Err(ApiError::modified(resource.about(name)));
            }
            let mut object = next(&old)?;
            meta::prepare_for_update(resource, &mut object, &old, status)?;
            let (mut object, warnings) = checked(resource, strategy, object, Some(&old), duplicates.clone(), write)?;
            object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
            if !status {
                write.admit.admit(&object).await?;
            }
            if write.dry_run || object == old {
                return Ok(Written { object, warnings });
            }
            let over = !old["metadata"]["deletionTimestamp"].is_null() && meta::finalizers(&object).is_empty();
            let result = if over && resource.kind != NAMESPACES.kind {
                self.store.delete(key.clone(), stored.revision).await
            } else {
                self.store.put(key.clone(), object, Expect::At(stored.revision)).await
            };
            match result {
                Ok(stored) => {
                    return Ok(Written { object: parse(&stored)?, warnings });
                }
                Err(StoreError::Conflict) if wanted.is_none() => {}
                Err(error) => return Err(unwritten(resource, name, &error)),
            }
        }
        Err(ApiError::modified(resource.about(name)))
    }

    /// Namespace lifecycle: nothing new in a namespace that is not, or is about not to be.
    fn namespace_takes(&self, resource: &Resource, namespace: Option<&str>) -> Result<(), ApiError> {
        let Some(namespace) = namespace.filter(|_| resource.namespaced) else {
            return Ok(());
        };
        let found = self.get(&NAMESPACES, None, namespace)?;
        if parse(&found)?["metadata"]["deletionTimestamp"].is_null() {
            return Ok(());
        }
        let message = format!("unable to create new content in namespace {namespace} because it is being terminated");
        Err(ApiError::forbidden(resource.about(""), message.clone()).because(
            "NamespaceTerminating",
            "metadata.namespace",
            message,
        ))
    }
}

/// Writes of ours: nothing is asked, nothing is warned of.
const SYSTEM: Write<'static> = Write { dry_run: false, validation: FieldValidation::Ignore, admit: &Ourselves };

struct Ourselves;

#[async_trait]
impl Admit for Ourselves {
    async fn admit(&self, _object: &Value) -> Result<(), ApiError> {
        Ok(())
    }
}

/// An object of ours as it is stored, status included.
fn ours<T: Serialize>(resource: &Resource, namespace: Option<&str>, object: &T) -> Result<(Key, Value), ApiError> {
    let strategy = strategy(resource)?;
    let mut object = serde_json::to_value(object).map_err(ApiError::internal)?;
    let status = object["status"].take();
    meta::prepare_for_create(resource, &mut object, namespace, None, Timestamp::now())?;
    object["status"] = status;
    let (object, _) = checked(resource, strategy, object, None, Vec::new(), SYSTEM)?;
    Ok((key(strategy, namespace, name_of(&object)), object))
}

/// Whether an event concerns a watcher of this namespace; and the object before, if the watcher could see it.
pub fn concerns(event: &Event, namespace: Option<&str>) -> bool {
    namespace.is_none_or(|namespace| event.key.namespace == namespace)
}

pub fn selected(selection: &Selection, object: &Value) -> bool {
    selection.labels.matches(object) && selection.fields.matches(object)
}

pub fn value(stored: &Stored) -> Option<Value> {
    serde_json::from_slice(&stored.bytes).ok()
}

/// Decodes, finds what does not belong, validates.
pub(crate) fn checked(
    resource: &Resource,
    strategy: &Strategy,
    object: Value,
    old: Option<&Value>,
    duplicates: Vec<String>,
    write: Write<'_>,
) -> Result<(Value, Vec<String>), ApiError> {
    let name = name_of(&object).to_owned();
    let (mut object, unknown) = (strategy.decode)(object).map_err(|error| {
        ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: {error}",
            resource.kind, resource.version, resource.kind
        ))
    })?;
    let unknown: BTreeSet<String> = unknown.into_iter().collect();
    let mut strange: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
    strange.extend(duplicates.iter().map(|path| format!("duplicate field {path:?}")));
    if write.validation == FieldValidation::Strict && !strange.is_empty() {
        return Err(ApiError::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
            resource.kind,
            resource.version,
            resource.kind,
            strange.join(", ")
        )));
    }
    if write.validation == FieldValidation::Ignore {
        strange.clear();
    }
    if let Some(object) = object.as_object_mut()
        && object.get("status").is_some_and(Value::is_null)
    {
        object.remove("status");
    }
    let mut causes = meta::validate(&object);
    causes.extend((strategy.validate)(&object, old));
    if causes.is_empty() { Ok((object, strange)) } else { Err(resource.invalid(&name, &causes)) }
}

fn preconditions(resource: &Resource, name: &str, object: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    let checks = [("UID", "uid", &options.uid), ("ResourceVersion", "resourceVersion", &options.resource_version)];
    for (what, field, wanted) in checks {
        if let Some(wanted) = wanted
            && object["metadata"][field] != wanted.as_str()
        {
            let found = object["metadata"][field].as_str().unwrap_or_default();
            let message =
                format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}");
            return Err(ApiError::conflict(resource.about(name), message));
        }
    }
    Ok(())
}

fn strategy(resource: &Resource) -> Result<&Strategy, ApiError> {
    resource.strategy().ok_or_else(|| ApiError::internal("a live resource has no strategy"))
}

fn key(strategy: &Strategy, namespace: Option<&str>, name: &str) -> Key {
    Key { resource: strategy.key, namespace: namespace.unwrap_or_default().to_owned(), name: name.to_owned() }
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

fn parse(stored: &Stored) -> Result<Value, ApiError> {
    serde_json::from_slice(&stored.bytes).map_err(ApiError::internal)
}

fn reread(stored: &Stored) -> Result<Value, StoreError> {
    serde_json::from_slice(&stored.bytes).map_err(|error| StoreError::Unavailable(error.to_string()))
}

fn unwritten(resource: &Resource, name: &str, error: &StoreError) -> ApiError {
    match error {
        StoreError::NotFound => ApiError::not_found(resource.about(name)),
        StoreError::Exists => ApiError::already_exists(resource.about(name)),
        StoreError::Conflict => ApiError::modified(resource.about(name)),
        other => ApiError {
            internal: Some(other.to_string()),
            ..ApiError::unavailable("the object could not be stored; try again")
        },
    }
}

fn unwatchable(error: &StoreError) -> ApiError {
    match error {
        StoreError::Expired { .. } => ApiError::expired(error.to_string()),
        StoreError::Future { .. } => {
            ApiError::timeout(error.to_string()).because("ResourceVersionTooLarge", "", "Too large resource version")
        }
        other => ApiError::internal(other),
    }
}
