//! Custom resources as [`Kept`]: mirrored in memory, written through the cluster's API server. What this version does not know of a
//! status is lost when it writes one, so the CRDs' version is looked at before (`aggregated/skew.rs`).

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use http::StatusCode;
use k8s_openapi::NamespaceResourceScope;
use kube::{Api, Client, core::object::HasStatus};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Kept, Kind};
use crate::{
    error::ApiError,
    records::{
        Change, Following, Mirror,
        cluster::{changed, finalized, told},
    },
    resources::Resource,
};

/// A kind that is a custom resource.
pub(crate) trait Custom:
    Kind
    + kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + HasStatus<Status = <Self as Kind>::Status>
    + Clone
    + fmt::Debug
{
}

impl<K> Custom for K where
    K: Kind
        + kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + HasStatus<Status = <K as Kind>::Status>
        + Clone
        + fmt::Debug
{
}

/// Those of a cluster.
pub(crate) struct InCluster<K> {
    client: Client,
    resource: &'static Resource,
    mirror: Mirror<K>,
}

impl<K: Custom> InCluster<K> {
    /// Begins to mirror, as a task of `tasks` that ends with `over`.
    pub(crate) fn begin(
        client: Client,
        watching: Client,
        resource: &'static Resource,
        tasks: &TaskTracker,
        over: &CancellationToken,
    ) -> Arc<dyn Kept<K>> {
        let mirror = Mirror::empty();
        let (following, over) = (mirror.clone().run(Api::all(watching)), over.clone());
        tasks.spawn(async move { over.run_until_cancelled(following).await });
        Arc::new(Self { client, resource, mirror })
    }

    fn of(&self, namespace: &str) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }
}

#[async_trait]
impl<K: Custom> Kept<K> for InCluster<K> {
    /// What is decided next is decided by what is stored now: the mirror may not have seen yet what we wrote ourselves.
    async fn get(&self, namespace: &str, name: &str) -> Result<Arc<K>, ApiError> {
        let found = self.of(namespace).get(name).await;
        found.map(Arc::new).map_err(|error| told(&error, self.resource.about(name)))
    }

    async fn seen(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.mirror.get(namespace, name)
    }

    fn all(&self, namespace: Option<&str>) -> Vec<Arc<K>> {
        self.mirror.all(namespace)
    }

    fn follow(&self) -> Following<K> {
        self.mirror.follow()
    }

    async fn change(
        &self,
        namespace: &str,
        name: &str,
        change: Change<'_, <K as Kind>::Status>,
    ) -> Result<(), ApiError> {
        let apply = |object: &mut K| match change(object.status_mut().take().unwrap_or_default()) {
            Some(status) => {
                *object.status_mut() = Some(status);
                // An API server keeps what it has of it.
                object.meta_mut().managed_fields = None;
                true
            }
            None => false,
        };
        changed(&self.of(namespace), name, self.resource.about(name), apply).await
    }

    async fn keep(&self, namespace: &str, name: &str, finalizer: &str) -> Result<(), ApiError> {
        finalized(&self.of(namespace), name, self.resource.about(name), finalizer, true).await
    }

    async fn let_go(&self, namespace: &str, name: &str, finalizer: &str) -> Result<(), ApiError> {
        match finalized(&self.of(namespace), name, self.resource.about(name), finalizer, false).await {
            Err(error) if error.code == StatusCode::NOT_FOUND => Ok(()),
            other => other,
        }
    }
}

impl<K> fmt::Debug for InCluster<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("InCluster").field(&self.resource.plural).finish()
    }
}
