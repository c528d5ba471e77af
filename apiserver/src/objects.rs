//! Requests for resources: from a permitted target to the registry or the verbs, and back to bytes.

mod generate;
mod lists;
mod repositories;
mod snapshots;

use std::{collections::HashMap, sync::Arc, time::Duration};

use api::{Database, Freeze};
use bytes::Bytes;
use freeze::FreezeView;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Author,
    answer::{Answer, Parts, json_answer},
    asked::Asked,
    auth::{Authorizer, User},
    body::{self, Body},
    controllers,
    copies::Copies,
    error::ApiError,
    meta,
    negotiate::Form,
    patch::Patch,
    registry::{DeleteOptions, Deleted, Registry, value},
    resources::{FREEZES, NAMESPACES, Resource, SNAPSHOTS, Served, Storage, live},
    target::{ResourceTarget, Verb},
    verbs::Verbs,
    watching,
};
use lists::{Continue, KUBECTL_CHUNK, MOST_ROWS, check_list_version, concatenate, partial_list, streamed};

/// How long a list may wait for a version that is not known yet, as in upstream's watch cache (apiserver `storage/cacher`).
const CATCH_UP: Duration = Duration::from_secs(3);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A Database, in its namespace.
type Member = (String, String);

/// Serves every resource of the table.
#[derive(Debug)]
pub struct Objects {
    pub served: Served,
    /// What is kept here, if anything is.
    pub registry: Option<Registry>,
    pub verbs: Verbs,
    /// Where copies are taken, if they are here.
    pub(crate) copies: Option<Copies>,
    pub authorizer: Arc<dyn Authorizer>,
}

impl Objects {
    pub(crate) async fn serve(
        &self,
        user: &User,
        target: ResourceTarget,
        parts: &Parts<'_>,
        bytes: Bytes,
        now: Timestamp,
        stopping: &CancellationToken,
    ) -> Result<Answer, ApiError> {
        let resource =
            self.served.find(&target.group, &target.version, &target.resource).ok_or_else(ApiError::no_such_path)?;
        served(resource, &target)?;
        let asked = Asked { user, resource, target: &target, parts, now };
        if resource.kind == live::SNAPSHOTS.kind {
            return self.live_snapshots(&asked, &bytes).await;
        }
        if resource.kind == live::REPOSITORIES.kind || resource.kind == live::RESTORES.kind {
            return self.of_copies(&asked, &bytes).await;
        }
        if let Some(verb) = target.subresource.as_deref().filter(|name| *name != "status") {
            return self.verb(&asked, verb, &bytes).await;
        }
        let kept = match (&resource.storage, target.verb) {
            (Storage::Live, Verb::Get) => return self.get_live(&asked).await,
            (Storage::Live, _) => return self.list_live(&asked).await,
            (Storage::Kept(_), _) => self.registry.as_ref().ok_or_else(ApiError::no_such_path)?,
        };
        match target.verb {
            Verb::Get => Self::get(kept, &asked),
            Verb::List => Self::list(kept, &asked),
            Verb::Watch => watching::watch(kept, &asked, stopping.clone()),
            Verb::Create => self.create(kept, &asked, &bytes).await,
            Verb::Update => self.update(kept, &asked, &bytes).await,
            Verb::Patch => self.patch(kept, &asked, &bytes).await,
            Verb::Delete => Self::delete(kept, &asked, &bytes).await,
            Verb::DeleteCollection => Self::delete_collection(kept, &asked, &bytes).await,
        }
    }

    // --- live views ---

    async fn get_live(&self, asked: &Asked<'_>) -> Result<Answer, ApiError> {
        let namespace = asked.target.namespace.as_deref().unwrap_or_default();
        let database = self.verbs.records.database(namespace, asked.name()).await.map_err(|error| {
            if error.code == 404 { ApiError::not_found(asked.resource.about(asked.name())) } else { error }
        })?;
        asked.one(&self.live(&database, &self.elsewhere(Some(namespace)))?)
    }

    /// All of them at once: a view is small, and there is no `continue` to go on from.
    async fn list_live(&self, asked: &Asked<'_>) -> Result<Answer, ApiError> {
        // What another replica listed may be news to this one, for a moment.
        let late = Instant::now() + CATCH_UP;
        while asked.parts.query.number("resourceVersion")?.is_some_and(|wanted| wanted > self.revision())
            && Instant::now() < late
        {
            sleep(LOOK_AGAIN).await;
        }
        check_list_version(asked, self.revision())?;
        if asked.parts.query.get("continue").map(Continue::decode).transpose()?.is_some() {
            return Err(ApiError::expired("this list has no pages: list from the beginning"));
        }
        let databases = self.verbs.records.databases(asked.target.namespace.as_deref());
        let selection = asked.selection()?;
        let elsewhere = self.elsewhere(asked.target.namespace.as_deref());
        let shown = databases.iter().map(|database| self.live(database, &elsewhere));
        let selected =
            shown.filter(|object| object.as_ref().map_or(true, |object| crate::registry::selected(&selection, object)));
        let list = json!({"resourceVersion": self.verbs.records.revision()});
        match asked.parts.form {
            Form::Table => asked.table(&selected.collect::<Result<Vec<_>, _>>()?, list),
            Form::PartialObjectMetadata => partial_list(&selected.collect::<Result<Vec<_>, _>>()?, &list),
            _ => streamed(asked.resource, &list, selected),
        }
    }

    /// What a list of live views is the state of.
    fn revision(&self) -> u64 {
        self.verbs.records.revision().parse().unwrap_or_default()
    }

    fn live(&self, database: &Database, elsewhere: &HashMap<Member, FreezeView>) -> Result<Value, ApiError> {
        let namespace = database.metadata.namespace.clone().unwrap_or_default();
        let name = database.metadata.name.clone().unwrap_or_default();
        let view = self.verbs.freezer.view(&namespace, &name);
        let view = view.or_else(|| elsewhere.get(&(namespace, name)).cloned());
        serde_json::to_value(live::show(database, view)).map_err(ApiError::internal)
    }

    /// What other replicas hold, as their journals say.
    fn elsewhere(&self, namespace: Option<&str>) -> HashMap<Member, FreezeView> {
        if self.verbs.replicas.get().is_none() {
            return HashMap::new();
        }
        let freezes = self.verbs.records.freezes();
        let inside =
            |freeze: &Arc<Freeze>| namespace.is_none_or(|wanted| freeze.metadata.namespace.as_deref() == Some(wanted));
        freezes
            .iter()
            .filter(|freeze| inside(freeze))
            .flat_map(|freeze| live::views(freeze, Timestamp::now()))
            .collect()
    }

    // --- stored objects ---

    fn get(kept: &Registry, asked: &Asked<'_>) -> Result<Answer, ApiError> {
        let stored = kept.get(asked.resource, asked.target.namespace.as_deref(), asked.name())?;
        match asked.parts.form {
            Form::Object | Form::AggregatedDiscovery => {
                Ok(Answer::Json { code: StatusCode::OK, bytes: stored.bytes, warnings: Vec::new() })
            }
            _ => asked.one(&value(&stored).unwrap_or_default()),
        }
    }

    fn list(kept: &Registry, asked: &Asked<'_>) -> Result<Answer, ApiError> {
        let query = &asked.parts.query;
        check_list_version(asked, kept.revision())?;
        let token = query.get("continue").map(Continue::decode).transpose()?;
        let selection = asked.selection()?;
        let limit = query.number("limit")?.and_then(|limit| usize::try_from(limit).ok());
        let after = token.as_ref().map(|token| token.after(asked.resource));
        let namespace = asked.target.namespace.as_deref();
        let page_of = |limit| kept.list(asked.resource, namespace, &selection, limit, after.as_ref());
        let whole = asked.parts.form == Form::Table && limit.is_some_and(|limit| limit >= KUBECTL_CHUNK);
        let page = match whole.then(|| page_of(None)).transpose()? {
            Some(page) if page.items.len() <= MOST_ROWS => page,
            _ => page_of(limit)?,
        };
        let revision = token.map_or(page.revision, |token| token.revision);
        let mut list = json!({"resourceVersion": revision.to_string()});
        if let Some((key, left)) = &page.next {
            list["continue"] =
                Continue { revision, namespace: key.namespace.clone(), name: key.name.clone() }.encode().into();
            if selection.labels.is_empty() && selection.fields.is_empty() {
                list["remainingItemCount"] = (*left).into();
            }
        }
        match asked.parts.form {
            Form::Table => {
                let objects: Vec<Value> = page.items.iter().filter_map(|(_, stored)| value(stored)).collect();
                asked.table(&objects, list)
            }
            Form::PartialObjectMetadata => {
                let objects: Vec<Value> = page.items.iter().filter_map(|(_, stored)| value(stored)).collect();
                partial_list(&objects, &list)
            }
            _ => Ok(Answer::Json {
                code: StatusCode::OK,
                bytes: concatenate(asked.resource, &page, &list),
                warnings: Vec::new(),
            }),
        }
    }

    async fn create(&self, kept: &Registry, asked: &Asked<'_>, bytes: &[u8]) -> Result<Answer, ApiError> {
        let mut body = body::decode(asked.content_type(), bytes)?;
        if body.value.is_null() {
            return Err(ApiError::bad_request(format!("the body must be a {} object", asked.resource.kind)));
        }
        declare(asked.resource, &mut body, asked.user);
        let author = Author { authorizer: self.authorizer.as_ref(), verbs: &self.verbs, asked };
        let write = asked.write(&author)?;
        let namespace = asked.target.namespace.as_deref();
        let written = kept.create(asked.resource, namespace, body, write, asked.now).await?;
        asked.written(&written.object, StatusCode::CREATED, written.warnings)
    }

    async fn update(&self, kept: &Registry, asked: &Asked<'_>, bytes: &[u8]) -> Result<Answer, ApiError> {
        let body = body::decode(asked.content_type(), bytes)?;
        let author = Author { authorizer: self.authorizer.as_ref(), verbs: &self.verbs, asked };
        let write = asked.write(&author)?;
        let namespace = asked.target.namespace.as_deref();
        let written = kept.update(asked.resource, namespace, asked.name(), asked.status(), body, write).await?;
        asked.written(&written.object, StatusCode::OK, written.warnings)
    }

    async fn patch(&self, kept: &Registry, asked: &Asked<'_>, bytes: &[u8]) -> Result<Answer, ApiError> {
        let strategic = asked.resource.strategy().is_some_and(|strategy| strategy.strategic_as_merge);
        let patch = Patch::decode(asked.content_type(), bytes, strategic)?;
        let author = Author { authorizer: self.authorizer.as_ref(), verbs: &self.verbs, asked };
        let write = asked.write(&author)?;
        let namespace = asked.target.namespace.as_deref();
        let written = kept.patch(asked.resource, namespace, asked.name(), asked.status(), &patch, write).await?;
        asked.written(&written.object, StatusCode::OK, written.warnings)
    }

    async fn delete(kept: &Registry, asked: &Asked<'_>, bytes: &[u8]) -> Result<Answer, ApiError> {
        let options = delete_options(asked, bytes)?;
        let name = asked.name();
        if asked.resource.kind == NAMESPACES.kind && name == "default" {
            return Err(ApiError::forbidden(
                asked.resource.about(name),
                "namespaces \"default\" is forbidden: this namespace may not be deleted",
            ));
        }
        let namespace = asked.target.namespace.as_deref();
        match kept.delete(asked.resource, namespace, name, &options, asked.now).await? {
            Deleted::Gone(object) => json_answer(&json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                "details": {"name": name, "group": asked.resource.group, "kind": asked.resource.plural, "uid": object["metadata"]["uid"]},
            })),
            Deleted::Pending(object) => json_answer(&object),
        }
    }

    async fn delete_collection(kept: &Registry, asked: &Asked<'_>, bytes: &[u8]) -> Result<Answer, ApiError> {
        if asked.resource.namespaced && asked.target.namespace.is_none() {
            return Err(ApiError::method_not_allowed("delete", asked.resource.about("")));
        }
        let options = delete_options(asked, bytes)?;
        let namespace = asked.target.namespace.as_deref();
        let page = kept.list(asked.resource, namespace, &asked.selection()?, None, None)?;
        for (key, _) in &page.items {
            match kept.delete(asked.resource, namespace, &key.name, &options, asked.now).await {
                Err(error) if error.code == 404 => {}
                other => drop(other?),
            }
        }
        let list = json!({"resourceVersion": page.revision.to_string()});
        Ok(Answer::Json {
            code: StatusCode::OK,
            bytes: concatenate(asked.resource, &page, &list),
            warnings: Vec::new(),
        })
    }
}

/// 404 for what is not there, 405 for what it cannot.
fn served(resource: &'static Resource, target: &ResourceTarget) -> Result<(), ApiError> {
    let about = resource.about(target.name.as_deref().unwrap_or_default());
    let verbs = match target.subresource.as_deref() {
        None => resource.verbs,
        Some(name) => match resource.subresources.iter().find(|subresource| subresource.name == name) {
            Some(subresource) => subresource.verbs,
            None => return Err(ApiError::no_such_path()),
        },
    };
    if resource.namespaced != target.namespace.is_some() {
        let everywhere = matches!(target.verb, Verb::List | Verb::Watch) && target.name.is_none();
        if !resource.namespaced || !everywhere {
            return Err(ApiError::method_not_allowed(target.verb.word(), about));
        }
    }
    let named_create = target.verb == Verb::Create && target.subresource.is_none() && target.name.is_some();
    if !verbs.contains(&target.verb) || named_create {
        return Err(ApiError::method_not_allowed(target.verb.word(), about));
    }
    Ok(())
}

fn delete_options(asked: &Asked<'_>, bytes: &[u8]) -> Result<DeleteOptions, ApiError> {
    let body = body::decode(Some("application/json"), bytes)?.value;
    let preconditions = &body["preconditions"];
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let in_body = body["dryRun"].as_array().is_some_and(|dry| dry.iter().any(|value| value == "All"));
    Ok(DeleteOptions {
        uid: text(&preconditions["uid"]),
        resource_version: text(&preconditions["resourceVersion"]),
        dry_run: asked.parts.query.dry_run()? || in_body,
    })
}

/// What has to be taken care of before it goes away stays until that is done; a declared Freeze carries who declared it.
fn declare(resource: &Resource, body: &mut Body, user: &User) {
    let finalizer = match resource.kind {
        kind if kind == FREEZES.kind => api::FINALIZER_THAW,
        kind if kind == SNAPSHOTS.kind => api::FINALIZER_SNAPSHOT,
        _ => return,
    };
    if !body.value["metadata"].is_object() {
        body.value["metadata"] = json!({});
    }
    let mut finalizers: Vec<String> = meta::finalizers(&body.value).into_iter().map(str::to_owned).collect();
    if !finalizers.iter().any(|other| other == finalizer) {
        finalizers.push(finalizer.to_owned());
    }
    let metadata = &mut body.value["metadata"];
    metadata["finalizers"] = json!(finalizers);
    if resource.kind == FREEZES.kind {
        if !metadata["annotations"].is_object() {
            metadata["annotations"] = json!({});
        }
        metadata["annotations"][controllers::freeze::CREATED_BY] = user.name.as_str().into();
    }
}
