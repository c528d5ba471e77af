//! What a cluster asks by policy, asked here: whoever names a Secret must be allowed to read it; whoever declares a Freeze
//! must be allowed to quiesce what it holds.

use api::{Database, FreezeSpec};
use async_trait::async_trait;
use serde_json::Value;

use crate::{
    asked::Asked,
    auth::{self, Authorizer},
    error::ApiError,
    registry::Admit,
    resources::{DATABASES, FREEZES, SECRETS},
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
        let Self { authorizer, verbs, asked } = self;
        let namespace = asked.target.namespace.as_deref().unwrap_or_default();
        if asked.resource.kind == DATABASES.kind
            && let Ok(database) = serde_json::from_value::<Database>(object.clone())
        {
            for name in crate::targets::secret_names(&database) {
                let target = ResourceTarget {
                    verb: Verb::Get,
                    group: String::new(),
                    version: SECRETS.version.to_owned(),
                    namespace: Some(namespace.to_owned()),
                    resource: SECRETS.plural.to_owned(),
                    name: Some(name.to_owned()),
                    subresource: None,
                };
                auth::ask(*authorizer, asked.user, (&target).into()).await?;
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
