//! The verbs of `databases` as our own account calls them, wherever the Database is held: what a gate asks of the freezer.

use api::Quiesce;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Gates, Inner};
use crate::{
    answer::{Answer, Parts},
    negotiate::Form,
    query::Query,
    target::{ResourceTarget, Verb},
};

impl Gates {
    /// What came of it.
    pub(super) async fn quiesce(
        &self,
        namespace: &str,
        database: &str,
        quiesce: &Quiesce,
        dry_run: bool,
    ) -> Result<Answered, Refusal> {
        self.verb(namespace, database, "quiesce", quiesce, dry_run).await
    }

    /// Until when the claim lives on, from now; `None`: it does not.
    pub(super) async fn renew(&self, namespace: &str, database: &str, uid: &str) -> Result<Option<Timestamp>, Refusal> {
        let renewed = self.verb(namespace, database, "renew", &json!({"spec": {"uid": uid}}), false).await?;
        let until = renewed.body["status"]["expiresAt"].as_str().and_then(|until| until.parse().ok());
        Ok(until.filter(|_| renewed.code == StatusCode::OK))
    }

    /// Ends a claim, or one that is being made.
    pub(super) async fn unquiesce(&self, namespace: &str, database: &str, uid: &str) -> Result<(), Refusal> {
        self.verb(namespace, database, "unquiesce", &json!({"spec": {"uid": uid}}), false).await.map(drop)
    }

    /// A verb as our own account, sent on to the replica that has the Database.
    async fn verb(
        &self,
        namespace: &str,
        database: &str,
        verb: &str,
        body: &(impl Serialize + Sync),
        dry_run: bool,
    ) -> Result<Answered, Refusal> {
        let target = ResourceTarget {
            verb: Verb::Create,
            group: api::LIVE_GROUP.to_owned(),
            version: api::VERSION.to_owned(),
            namespace: Some(namespace.to_owned()),
            resource: "databases".to_owned(),
            name: Some(database.to_owned()),
            subresource: Some(verb.to_owned()),
        };
        let headers = HeaderMap::new();
        let query = Query::parse(dry_run.then_some("dryRun=All"));
        let parts = Parts { headers: &headers, query, form: Form::Object };
        let unreadable = |error: serde_json::Error| Refusal::Final(error.to_string());
        let bytes = Bytes::from(serde_json::to_vec(body).map_err(unreadable)?);
        let Inner { app, us, stopping, .. } = &*self.0;
        match app.objects.serve(us, target, &parts, bytes, Timestamp::now(), stopping).await {
            Ok(Answer::Json { code, bytes, warnings }) => {
                Ok(Answered { code, body: serde_json::from_slice(&bytes).map_err(unreadable)?, warnings })
            }
            Ok(_) => Err(Refusal::Final("the verb answered in a form that is not its own".to_owned())),
            Err(error) => Ok(Answered { code: error.code, body: error.status(), warnings: Vec::new() }),
        }
    }
}

/// What a verb answered.
pub(super) struct Answered {
    pub(super) code: StatusCode,
    /// The object, or the Status.
    pub(super) body: Value,
    pub(super) warnings: Vec<String>,
}

/// Why a verb did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Others hold it in another way, or somebody takes over: it may be otherwise in a moment.
    Busy(String),
    /// Trying again now would only stall writers once more.
    Final(String),
}

impl Refusal {
    pub(super) fn read(code: StatusCode, status: &Value) -> Self {
        let why = status["message"].as_str().unwrap_or("no reason was given").to_owned();
        let causes = status["details"]["causes"].as_array().into_iter().flatten();
        let claimed = causes.into_iter().any(|cause| cause["reason"] == "Claimed");
        // Whoever knows that it will be otherwise says when; whatever else is unavailable is so for long.
        let is_busy = claimed || (code.is_server_error() && status["details"]["retryAfterSeconds"].is_number());
        if is_busy { Self::Busy(why) } else { Self::Final(why) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_otherwise_in_a_moment_is_tried_again() {
        let claimed = json!({"message": "m", "details": {"causes": [{"reason": "Claimed"}]}});
        let blocked = json!({"message": "m", "details": {"causes": [{"reason": "Blocked"}]}});
        let m = || "m".to_owned();
        assert_eq!(Refusal::read(StatusCode::CONFLICT, &claimed), Refusal::Busy(m()));
        let moves = json!({"message": "m", "details": {"retryAfterSeconds": 1}});
        assert_eq!(Refusal::read(StatusCode::SERVICE_UNAVAILABLE, &moves), Refusal::Busy(m()));
        assert_eq!(Refusal::read(StatusCode::SERVICE_UNAVAILABLE, &json!({"message": "m"})), Refusal::Final(m()));
        assert_eq!(Refusal::read(StatusCode::CONFLICT, &blocked), Refusal::Final(m()));
        assert_eq!(Refusal::read(StatusCode::FORBIDDEN, &json!({"message": "m"})), Refusal::Final(m()));
    }
}
