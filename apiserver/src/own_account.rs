//! The verbs of `databases` as our own account calls them, wherever the Database is held: for a cut, or for whoever asks in a Pod.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::{
    answer::{Answer, Parts},
    app::App,
    auth::User,
    negotiate::Form,
    query::Query,
    target::ResourceTarget,
};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct OwnAccount {
    app: Arc<App>,
    pub(crate) user: User,
    stopping: CancellationToken,
}

/// What a verb answered.
pub(crate) struct Answered {
    pub(crate) code: StatusCode,
    /// The object, or the Status.
    pub(crate) body: Value,
    pub(crate) warnings: Vec<String>,
}

impl OwnAccount {
    /// `namespace`: where we are installed.
    pub(crate) fn new(app: Arc<App>, namespace: &str, stopping: CancellationToken) -> Self {
        let user = User {
            name: api::install::account_user(namespace),
            groups: ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"]
                .map(str::to_owned)
                .into(),
            ..User::default()
        };
        Self { app, user, stopping }
    }

    /// A verb, sent on to the replica that has the Database. Whatever the verb says is an answer; an error is that it could not be
    /// asked.
    pub(crate) async fn verb(
        &self,
        namespace: &str,
        database: &str,
        verb: &str,
        body: &(impl Serialize + Sync),
        dry_run: bool,
    ) -> Result<Answered, String> {
        let target = ResourceTarget::verb_of(namespace, database, verb);
        let headers = HeaderMap::new();
        let query = Query::parse(dry_run.then_some("dryRun=All"));
        let parts = Parts { headers: &headers, query, form: Form::Object };
        let unreadable = |error: serde_json::Error| error.to_string();
        let bytes = Bytes::from(serde_json::to_vec(body).map_err(unreadable)?);
        let Self { app, user, stopping } = self;
        match app.objects.serve(user, target, &parts, bytes, Timestamp::now(), stopping).await {
            Ok(Answer::Json { code, bytes, warnings }) => {
                Ok(Answered { code, body: serde_json::from_slice(&bytes).map_err(unreadable)?, warnings })
            }
            Ok(_) => Err("the verb answered in a form that is not its own".to_owned()),
            Err(error) => Ok(Answered { code: error.code, body: error.status(), warnings: Vec::new() }),
        }
    }
}
