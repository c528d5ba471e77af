//! What a gate asks of the freezer, and what a refusal means.

use api::Quiesce;
use http::StatusCode;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use super::Gates;
use crate::own_account::Answered;

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

    async fn verb(
        &self,
        namespace: &str,
        database: &str,
        verb: &str,
        body: &(impl Serialize + Sync),
        dry_run: bool,
    ) -> Result<Answered, Refusal> {
        self.0.own.verb(namespace, database, verb, body, dry_run).await.map_err(Refusal::Final)
    }
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
