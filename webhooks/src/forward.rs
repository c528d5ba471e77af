//! Asks the apiserver at a gate, and says why if there is no answer. Never waits beyond the deadline.

use std::{sync::Arc, time::Duration};

use api::gate::{self, GateAnswer, GateRequest};
use bytes::Bytes;
use http::{
    Request, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue},
};
use http_body_util::{BodyExt, Full, Limited};
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use crate::{
    answer::cut,
    connection::{Connection, Kept, Upstream},
    credentials::Credentials,
    unanswered::Unanswered,
};

/// Asks; all questions share one connection.
pub struct Forwarder {
    connection: Connection,
    credentials: Arc<Credentials>,
}

/// An answer of the last moment has this long to reach us.
const WAY_BACK: Duration = Duration::from_millis(300);
/// Of what a refusal says.
const LONGEST_REFUSAL: usize = 200;

impl Forwarder {
    pub fn new(upstream: Upstream, credentials: Arc<Credentials>) -> Self {
        Self { connection: Connection::new(upstream), credentials }
    }

    /// Asks until `deadline`. A gate answers by the object's uid, so a question whose connection was lost is asked once more, on
    /// another.
    pub async fn ask(&self, request: &GateRequest, deadline: Instant) -> Result<GateAnswer, Unanswered> {
        timeout_at(deadline, self.ask_twice(request, deadline)).await.unwrap_or(Err(Unanswered::Late))
    }

    async fn ask_twice(&self, request: &GateRequest, deadline: Instant) -> Result<GateAnswer, Unanswered> {
        let trusted = self.credentials.apiserver().ok_or(Unanswered::Unprepared("authority"))?;
        let token = self.credentials.token().ok_or(Unanswered::Unprepared("token"))?;
        let kept = self.connection.get(&trusted, None).await?;
        let (number, is_old) = (kept.number, kept.is_old);
        match self.exchange(kept, &token, request, deadline).await {
            Err(Unanswered::Lost(_)) if is_old => {
                let another = self.connection.get(&trusted, Some(number)).await?;
                self.exchange(another, &token, request, deadline).await
            }
            answer => answer,
        }
    }

    async fn exchange(
        &self,
        mut kept: Kept,
        token: &HeaderValue,
        request: &GateRequest,
        deadline: Instant,
    ) -> Result<GateAnswer, Unanswered> {
        let request = Request::post(format!("https://{}{}", self.connection.name(), gate::PATH))
            .header(AUTHORIZATION, token)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body(request, deadline)?))
            .map_err(|error| Unanswered::Unreachable(error.to_string()))?;
        let lost = |error: &dyn std::fmt::Display| Unanswered::Lost(error.to_string());
        kept.sender.ready().await.map_err(|error| lost(&error))?;
        let response = kept.sender.send_request(request).await.map_err(|error| lost(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), gate::LONGEST_BODY).collect().await;
        read(status, &body.map_err(|error| lost(&error))?.to_bytes())
    }
}

impl std::fmt::Debug for Forwarder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forwarder").field("to", &self.connection.name()).finish_non_exhaustive()
    }
}

/// As it is sent now. Nothing else of it is kept while the answer is waited for.
fn body(request: &GateRequest, deadline: Instant) -> Result<Bytes, Unanswered> {
    let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(WAY_BACK);
    let deadline_milliseconds = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let request = GateRequest { deadline_milliseconds, ..request.clone() };
    serde_json::to_vec(&request).map(Bytes::from).map_err(|error| Unanswered::Unreadable(error.to_string()))
}

/// What the apiserver answered. Pure.
fn read(status: StatusCode, body: &[u8]) -> Result<GateAnswer, Unanswered> {
    if status == StatusCode::OK {
        return serde_json::from_slice(body).map_err(|error| Unanswered::Unreadable(error.to_string()));
    }
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = said["message"].as_str().or(status.canonical_reason()).unwrap_or_default();
    Err(Unanswered::Refused { code: status.as_u16(), message: cut(message, LONGEST_REFUSAL) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_200_with_an_answer_is_one() {
        assert_eq!(read(StatusCode::OK, br#"{"decision":"Allow"}"#), Ok(GateAnswer::allow()));
        assert!(matches!(read(StatusCode::OK, b"{}"), Err(Unanswered::Unreadable(_))));
        let said = |status, body: &[u8]| read(status, body).unwrap_err().to_string();
        assert_eq!(said(StatusCode::UNAUTHORIZED, b""), "stillpoint-apiserver answered 401: Unauthorized");
        let status = br#"{"kind":"Status","message":"it is leaving"}"#;
        assert_eq!(said(StatusCode::SERVICE_UNAVAILABLE, status), "stillpoint-apiserver answered 503: it is leaving");
    }

    proptest! {
        #[test]
        fn whatever_is_answered_it_is_read_or_it_is_said_why_not(code in 200_u16..600, body in any::<Vec<u8>>()) {
            let status = StatusCode::from_u16(code).unwrap();
            prop_assert!(read(status, &body).is_ok() == (status == StatusCode::OK && serde_json::from_slice::<GateAnswer>(&body).is_ok()));
        }
    }
}
