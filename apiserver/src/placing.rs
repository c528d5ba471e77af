//! Where a verb is executed: here, or at the replica that has the Database; asked again while that changes.

use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::time::{Instant, sleep};

use crate::{
    answer::{AUDIT_ID, Answer, coded},
    asked::Asked,
    body::{self, Body},
    error::ApiError,
    objects::Objects,
    replicas::{Errand, HOPS, Place},
    verbs::Call,
};

/// How long another replica may take: a little less than the verb itself may (`app.rs`).
const FORWARD: Duration = Duration::from_secs(620);
/// How long a verb is tried while replicas come and go. Every verb may be tried again: it is told by the uid of its claim.
const SETTLE: Duration = Duration::from_secs(4);
const PAUSE: Duration = Duration::from_millis(100);

impl Objects {
    pub(crate) async fn verb(&self, asked: &Asked<'_>, verb: &str, bytes: &[u8]) -> Result<Answer, ApiError> {
        let body = body::decode(asked.content_type(), bytes)?;
        let hops = asked.parts.headers.get(HOPS).and_then(|hops| hops.to_str().ok()?.parse().ok()).unwrap_or(0);
        let began = Instant::now();
        loop {
            let answered = self.verb_once(asked, verb, body.clone(), bytes, hops).await;
            // Whoever sent it here tries again himself.
            if hops > 0 || !is_in_motion(&answered) || began.elapsed() > SETTLE || self.verbs.replicas.get().is_none() {
                return answered;
            }
            sleep(PAUSE).await;
        }
    }

    async fn verb_once(
        &self,
        asked: &Asked<'_>,
        verb: &str,
        body: Body,
        bytes: &[u8],
        hops: u32,
    ) -> Result<Answer, ApiError> {
        let call = Call {
            user: asked.user,
            namespace: asked.target.namespace.as_deref().unwrap_or_default(),
            name: asked.name(),
            dry_run: asked.parts.query.dry_run()?,
            validation: asked.parts.query.field_validation()?,
        };
        // While it is executed here, its members stay ours.
        let _owned = match self.verbs.place(verb, &call, &body, hops).await? {
            Place::Here(owned) => owned,
            Place::At(replica) => return self.send(asked, verb, bytes, &replica, hops).await,
        };
        let answered = self.verbs.run(verb, call, body).await?;
        coded(answered.code, &answered.body, answered.warnings)
    }

    /// To the replica that has the Database; its answer is ours.
    async fn send(
        &self,
        asked: &Asked<'_>,
        verb: &str,
        bytes: &[u8],
        replica: &str,
        hops: u32,
    ) -> Result<Answer, ApiError> {
        let Some(replicas) = self.verbs.replicas.get() else { return Err(ApiError::no_such_path()) };
        let namespace = asked.target.namespace.as_deref().unwrap_or_default();
        let path = format!("/apis/{}/namespaces/{namespace}/databases/{}/{verb}", api::LIVE_API_VERSION, asked.name());
        let query = asked.parts.query.encoded(&["dryRun", "fieldValidation"]);
        let errand = Errand {
            user: asked.user,
            path: format!("{path}{query}"),
            content_type: asked.content_type(),
            audit_id: asked.parts.headers.get(AUDIT_ID),
            body: Bytes::copy_from_slice(bytes),
            hops,
        };
        replicas.send(replica, errand, FORWARD).await
    }
}

/// Nothing was done, and in a moment it may be otherwise; another replica may have said so.
fn is_in_motion(answered: &Result<Answer, ApiError>) -> bool {
    match answered {
        Err(error) => error.is_in_motion(),
        Ok(Answer::Json { code: StatusCode::SERVICE_UNAVAILABLE, bytes, .. }) => {
            ApiError::retry_after_of(bytes).is_some()
        }
        Ok(_) => false,
    }
}
