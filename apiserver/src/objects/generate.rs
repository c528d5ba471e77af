//! `generate` of `snapshots` and `restores`: what is made for one that is there, or for one that is sent, and is stored nowhere.

use std::sync::Arc;

use http::StatusCode;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

use super::{
    Objects,
    snapshots::{Stored, creation},
};
use crate::{
    answer::{Answer, coded},
    asked::Asked,
    body,
    copies::Copies,
    error::ApiError,
    meta,
    resources::{RESTORES, Resource, SNAPSHOTS},
    target::Verb,
};

impl Objects {
    pub(super) async fn generate_snapshot(
        &self,
        copies: &Copies,
        asked: &Asked<'_>,
        bytes: &[u8],
    ) -> Result<Answer, ApiError> {
        let (snapshot, warnings) = match asked.target.verb {
            Verb::Get => (copies.snapshot(namespace(asked), asked.name()).await?, Vec::new()),
            _ => self.sent(copies, &SNAPSHOTS, asked, bytes).await?,
        };
        coded(StatusCode::OK, &copies.generate_snapshot(&snapshot).await?, warnings)
    }

    pub(super) async fn generate_restore(
        &self,
        copies: &Copies,
        asked: &Asked<'_>,
        bytes: &[u8],
    ) -> Result<Answer, ApiError> {
        let (restore, warnings) = match asked.target.verb {
            Verb::Get => (copies.restore(namespace(asked), asked.name()).await?, Vec::new()),
            _ => self.sent(copies, &RESTORES, asked, bytes).await?,
        };
        coded(StatusCode::OK, &copies.generate_restore(&restore).await?, warnings)
    }

    /// As it would be stored now, by whoever asks. Which uid it would have nobody knows: what is made is named by one that is no object's.
    async fn sent<T: DeserializeOwned>(
        &self,
        copies: &Copies,
        resource: &'static Resource,
        asked: &Asked<'_>,
        bytes: &[u8],
    ) -> Result<(Arc<T>, Vec<String>), ApiError> {
        let mut body = body::decode(asked.content_type(), bytes)?;
        meta::fit(resource, &mut body.value, asked.target.namespace.as_deref(), Some(asked.name()))?;
        let target = creation(resource, asked.target);
        let asked = Asked { resource, target: &target, ..*asked };
        let mut written = self.declared(copies, &asked, body, Stored::Never).await?;
        written.object["metadata"]["uid"] = Value::String(Uuid::nil().to_string());
        let object = serde_json::from_value(written.object).map_err(ApiError::internal)?;
        Ok((Arc::new(object), written.warnings))
    }
}

fn namespace<'a>(asked: &Asked<'a>) -> &'a str {
    asked.target.namespace.as_deref().unwrap_or_default()
}
