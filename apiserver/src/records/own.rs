//! The registry of a standalone server as [`Records`].

use std::sync::Arc;

use api::{Database, DatabaseStatus, Freeze, FreezeStatus};
use async_trait::async_trait;
use freeze::FreezeName;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Secret};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tracing::debug;

use super::{Change, Following, Records, Seen};
use crate::{
    controllers::{Observed, freeze::CREATED_BY},
    error::ApiError,
    registry::{DeleteOptions, Registry},
    resources::{DATABASES, EVENTS, FREEZES, Resource, SECRETS},
};

#[async_trait]
impl Records for Registry {
    async fn database(&self, namespace: &str, name: &str) -> Result<Arc<Database>, ApiError> {
        self.typed(&DATABASES, Some(namespace), name).map(Arc::new)
    }

    fn databases(&self, namespace: Option<&str>) -> Vec<Arc<Database>> {
        self.all(&DATABASES, namespace).into_iter().map(Arc::new).collect()
    }

    async fn freeze(&self, name: &FreezeName) -> Result<Arc<Freeze>, ApiError> {
        self.typed(&FREEZES, Some(&name.namespace), &name.name).map(Arc::new)
    }

    fn freezes(&self) -> Vec<Arc<Freeze>> {
        self.all(&FREEZES, None).into_iter().map(Arc::new).collect()
    }

    fn revision(&self) -> String {
        Self::revision(self).to_string()
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ApiError> {
        match self.typed(&SECRETS, Some(namespace), name) {
            Err(error) if error.code == 404 => Ok(None),
            found => found.map(Some),
        }
    }

    fn follow_databases(&self) -> Following<Database> {
        follow(self, &DATABASES)
    }

    fn follow_freezes(&self) -> Following<Freeze> {
        follow(self, &FREEZES)
    }

    async fn create_freeze(&self, freeze: &Freeze) -> Result<(), ApiError> {
        let namespace = freeze.metadata.namespace.as_deref().unwrap_or_default();
        self.create_with_status(&FREEZES, namespace, freeze).await.map(drop)
    }

    async fn write_status(&self, name: &FreezeName, status: &FreezeStatus) -> Result<(), ApiError> {
        self.update_status(&FREEZES, &name.namespace, &name.name, status).await.map(drop)
    }

    async fn change_freeze(&self, name: &FreezeName, change: Change<'_, FreezeStatus>) -> Result<(), ApiError> {
        changed(self, &FREEZES, &name.namespace, &name.name, change).await
    }

    async fn change_database(
        &self,
        namespace: &str,
        name: &str,
        change: Change<'_, DatabaseStatus>,
    ) -> Result<(), ApiError> {
        changed(self, &DATABASES, namespace, name, change).await
    }

    /// The registry does that when it is made.
    async fn keep(&self, _name: &FreezeName) -> Result<(), ApiError> {
        Ok(())
    }

    fn author(&self, freeze: &Freeze) -> Option<String> {
        freeze.metadata.annotations.as_ref()?.get(CREATED_BY).cloned()
    }

    async fn let_go(&self, name: &FreezeName) -> Result<(), ApiError> {
        self.remove_finalizer(&FREEZES, &name.namespace, &name.name, api::FINALIZER_THAW).await
    }

    async fn delete_freeze(&self, name: &FreezeName) -> Result<(), ApiError> {
        let (options, now) = (DeleteOptions::default(), Timestamp::now());
        self.delete(&FREEZES, Some(&name.namespace), &name.name, &options, now).await.map(drop)
    }

    async fn tell(&self, events: Vec<Event>) {
        let events = events.iter().map(|event| (event.metadata.namespace.as_deref(), event));
        for error in self.create_all(&EVENTS, events).await.into_iter().filter_map(Result::err) {
            debug!(message = %error.message, "an Event was not written");
        }
    }

    fn lost(&self) -> BoxFuture<'static, ()> {
        let registry = self.clone();
        async move { registry.closed().await }.boxed()
    }
}

pub(crate) fn follow<T: DeserializeOwned + Send + Sync + 'static>(
    registry: &Registry,
    resource: &'static Resource,
) -> Following<T> {
    let observed = Observed::<T>::new(registry.clone(), resource);
    stream::unfold(observed, |mut observed| async move {
        let (object, gone) = observed.next().await?;
        let object = Arc::new(object);
        Some((if gone { Seen::Gone(object) } else { Seen::There(object) }, observed))
    })
    .boxed()
}

pub(crate) async fn changed<S: Default + Serialize + DeserializeOwned>(
    registry: &Registry,
    resource: &Resource,
    namespace: &str,
    name: &str,
    change: Change<'_, S>,
) -> Result<(), ApiError> {
    // What this version does not know of a status is not there standalone: one binary writes and reads it.
    let change = |now: &mut Value| {
        let old = serde_json::from_value(now.clone()).unwrap_or_default();
        if let Some(new) = change(old).and_then(|new| serde_json::to_value(new).ok()) {
            *now = new;
        }
    };
    registry.change_status(resource, namespace, name, change).await.map(drop)
}
