//! Snapshots and Restores that are made for a caller of ours, who was asked what a policy asks of who declares them himself.

use kube::{
    Api,
    api::{ApiResource, DynamicObject, PostParams},
};

use crate::{
    body::Body,
    copies::Copies,
    error::ApiError,
    meta,
    records::cluster::told,
    registry::{Write, Written, checked},
    resources::Resource,
};

impl Copies {
    /// As a custom resource of the cluster.
    pub(crate) async fn declare(
        &self,
        resource: &'static Resource,
        namespace: &str,
        body: Body,
        write: Write<'_>,
    ) -> Result<Written, ApiError> {
        let (Some(storage), Some(strategy)) = (&self.storage, resource.strategy()) else {
            return Err(ApiError::no_such_path());
        };
        let mut object = body.value;
        object["metadata"]["namespace"] = namespace.into();
        if let Some(base) = meta::wants_a_name(&object).map(str::to_owned) {
            object["metadata"]["name"] = meta::generated(&base).into();
        }
        let (object, warnings) = checked(resource, strategy, object, None, body.duplicates, write)?;
        write.admit.admit(&object).await?;
        let object: DynamicObject = serde_json::from_value(object).map_err(ApiError::internal)?;
        let kind = ApiResource {
            group: resource.group.to_owned(),
            version: resource.version.to_owned(),
            api_version: resource.api_version(),
            kind: resource.kind.to_owned(),
            plural: resource.plural.to_owned(),
        };
        let objects: Api<DynamicObject> = Api::namespaced_with(storage.client.clone(), namespace, &kind);
        let name = object.metadata.name.clone().unwrap_or_default();
        let params = PostParams { dry_run: write.dry_run, ..PostParams::default() };
        let made = objects.create(&params, &object).await.map_err(|error| told(&error, resource.about(&name)))?;
        Ok(Written { object: serde_json::to_value(made).map_err(ApiError::internal)?, warnings })
    }
}
