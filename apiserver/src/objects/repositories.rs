//! What can be done with stored Repositories and Restores beside storing them: a check, a log, a look at what is made.

use api::RepositoryCheck;
use http::StatusCode;

use super::{Objects, snapshots::text};
use crate::{
    answer::{Answer, coded},
    asked::Asked,
    body,
    copies::Copies,
    error::ApiError,
    verbs::{
        Call,
        bodies::{answer, named, read},
    },
};

const CHECK: &str = "RepositoryCheck";

impl Objects {
    pub(super) async fn of_copies(&self, asked: &Asked<'_>, bytes: &[u8]) -> Result<Answer, ApiError> {
        let copies = self.copies.as_ref().ok_or_else(ApiError::no_such_path)?;
        let namespace = asked.target.namespace.as_deref().unwrap_or_default();
        match asked.target.subresource.as_deref() {
            Some("check") => check(copies, asked, namespace, bytes).await,
            Some("generate") => self.generate_restore(copies, asked, bytes).await,
            Some("log") => copies.restore_log(namespace, asked.name()).await.map(text),
            _ => Err(ApiError::no_such_path()),
        }
    }
}

async fn check(copies: &Copies, asked: &Asked<'_>, namespace: &str, bytes: &[u8]) -> Result<Answer, ApiError> {
    let call = Call {
        user: asked.user,
        namespace,
        name: asked.name(),
        dry_run: asked.parts.query.dry_run()?,
        validation: asked.parts.query.field_validation()?,
    };
    let (mut check, warnings) = read::<RepositoryCheck>(&call, body::decode(asked.content_type(), bytes)?, CHECK)?;
    named(&call, &check.metadata)?;
    if call.dry_run {
        return Err(ApiError::bad_request("check has no dry run: it changes nothing"));
    }
    check.status = Some(copies.check(namespace, call.name, check.spec.read_data).await?);
    let answered = answer(StatusCode::OK, &call, check, CHECK, warnings, |check, api_version, kind, metadata| {
        (check.api_version, check.kind, check.metadata) = (api_version, kind, metadata);
    })?;
    coded(answered.code, &answered.body, answered.warnings)
}
