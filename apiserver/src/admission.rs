//! What a cluster asks by policy, asked here: whoever names a Secret must be allowed to read it; whoever declares a Freeze
//! must be allowed to quiesce what it holds; whoever has a copy restored, to do that by the verb; whoever says how Pods are made, to
//! make them.

use api::{Database, FreezeSpec, Repository, RestoreSpec, SnapshotSpec};
use async_trait::async_trait;
use k8s_openapi::{Resource as _, api::batch::v1::Job};
use serde_json::Value;

use crate::{
    asked::Asked,
    auth::{self, Authorizer},
    error::ApiError,
    registry::Admit,
    resources::{DATABASES, FREEZES, REPOSITORIES, RESTORES, SECRETS, SNAPSHOTS, live},
    target::{ResourceTarget, Verb},
    verbs::Verbs,
};

/// Whoever writes an object.
pub(crate) struct Author<'a> {
    pub(crate) authorizer: &'a dyn Authorizer,
    pub(crate) verbs: &'a Verbs,
    pub(crate) asked: &'a Asked<'a>,
}

#[async_trait]
impl Admit for Author<'_> {
    async fn admit(&self, object: &Value) -> Result<(), ApiError> {
        let Self { verbs, asked, .. } = self;
        let namespace = asked.target.namespace.as_deref().unwrap_or_default();
        if !object["spec"]["runner"].is_null() {
            self.may_make_pods(namespace).await?;
        }
        if asked.resource.kind == DATABASES.kind
            && let Ok(database) = serde_json::from_value::<Database>(object.clone())
        {
            self.may_read(namespace, &crate::targets::secret_names(&database)).await?;
        }
        if asked.resource.kind == REPOSITORIES.kind
            && let Ok(repository) = serde_json::from_value::<Repository>(object.clone())
        {
            let names: Vec<&str> = repository.spec.secrets().into_iter().map(|(name, _)| name).collect();
            self.may_read(namespace, &names).await?;
        }
        if asked.resource.kind == SNAPSHOTS.kind
            && let Ok(spec) = serde_json::from_value::<SnapshotSpec>(object["spec"].clone())
        {
            for database in &spec.databases {
                verbs.may_quiesce(asked.user, namespace, database).await?;
            }
        }
        if asked.resource.kind == RESTORES.kind
            && let Ok(spec) = serde_json::from_value::<RestoreSpec>(object["spec"].clone())
        {
            self.may_restore(namespace, spec.source.snapshot.as_deref()).await?;
            // To new claims nothing of any server's is touched.
            if !spec.database.is_empty() {
                verbs.may_quiesce(asked.user, namespace, &spec.database).await?;
            }
        }
        if asked.resource.kind == FREEZES.kind
            && let Ok(spec) = serde_json::from_value::<FreezeSpec>(object["spec"].clone())
        {
            for target in &spec.targets {
                verbs.may_quiesce(asked.user, namespace, &target.database).await?;
            }
        }
        Ok(())
    }
}

impl Author<'_> {
    /// Secrets that it would have us read.
    async fn may_read(&self, namespace: &str, secrets: &[&str]) -> Result<(), ApiError> {
        for name in secrets {
            let target = ResourceTarget {
                verb: Verb::Get,
                group: String::new(),
                version: SECRETS.version.to_owned(),
                namespace: Some(namespace.to_owned()),
                resource: SECRETS.plural.to_owned(),
                name: Some((*name).to_owned()),
                subresource: None,
            };
            auth::ask(self.authorizer, self.asked.user, (&target).into()).await?;
        }
        Ok(())
    }

    /// A copy by its name; what is chosen by time may be any.
    async fn may_restore(&self, namespace: &str, copy: Option<&str>) -> Result<(), ApiError> {
        let target = ResourceTarget {
            verb: Verb::Create,
            group: live::SNAPSHOTS.group.to_owned(),
            version: live::SNAPSHOTS.version.to_owned(),
            namespace: Some(namespace.to_owned()),
            resource: live::SNAPSHOTS.plural.to_owned(),
            name: copy.map(str::to_owned),
            subresource: Some("restore".to_owned()),
        };
        auth::ask(self.authorizer, self.asked.user, (&target).into()).await
    }

    /// `spec.runner` is a Pod of anybody's image with the Database's password in it, and we make it for whoever asked.
    async fn may_make_pods(&self, namespace: &str) -> Result<(), ApiError> {
        let jobs = ResourceTarget {
            verb: Verb::Create,
            group: Job::GROUP.to_owned(),
            version: Job::VERSION.to_owned(),
            namespace: Some(namespace.to_owned()),
            resource: Job::URL_PATH_SEGMENT.to_owned(),
            name: None,
            subresource: None,
        };
        auth::ask(self.authorizer, self.asked.user, (&jobs).into()).await.map_err(|error| ApiError {
            message: format!("spec.runner says how Pods are made, so leave it out, or have create on jobs (batch) granted to you: {}", error.message),
            ..error
        })
    }
}
