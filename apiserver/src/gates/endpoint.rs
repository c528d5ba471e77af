//! Where gates are asked: a port of our own, for whoever shows a token of the webhooks' account that is meant for us.

use std::{sync::Arc, time::Duration};

use api::gate;
use bytes::Bytes;
use certs::{Bound, Limits, Peer};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use rustls::ServerConfig;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Gates;
use crate::auth::Authenticator;

/// A gate waits no longer, whatever it is told.
const LONGEST: Duration = Duration::from_secs(30);

/// Serves until `over`. `asker`: the user who may ask.
pub(crate) async fn serve(
    bound: Bound,
    tls: ServerConfig,
    gates: Gates,
    authenticator: Arc<dyn Authenticator>,
    asker: String,
    over: CancellationToken,
) {
    let service = move |request, peer| {
        let (gates, authenticator, asker) = (gates.clone(), Arc::clone(&authenticator), asker.clone());
        async move {
            let answered = answer(&gates, authenticator.as_ref(), &asker, request, peer).await;
            let (code, bytes) = match answered {
                Ok(bytes) => (StatusCode::OK, bytes),
                Err((code, why)) => {
                    tracing::warn!(%code, why, "a gate was not asked as it should be");
                    (code, Bytes::from(json!({"message": why}).to_string()))
                }
            };
            let mut response: Response<Full<Bytes>> = Response::new(Full::new(bytes));
            *response.status_mut() = code;
            response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
            response
        }
    };
    bound.serve(tls, service, Limits::default(), over).await;
}

async fn answer(
    gates: &Gates,
    authenticator: &dyn Authenticator,
    asker: &str,
    request: Request<Incoming>,
    peer: Peer,
) -> Result<Bytes, (StatusCode, String)> {
    let arrived = Instant::now();
    let (mut parts, body) = request.into_parts();
    if parts.uri.path() != gate::PATH || parts.method != Method::POST {
        return Err((StatusCode::NOT_FOUND, format!("gates are asked by POST {}", gate::PATH)));
    }
    let user = authenticator.authenticate(&peer, &mut parts.headers, Timestamp::now()).await;
    let user = user.map_err(|error| (error.code, error.message))?;
    if user.name != asker {
        return Err((StatusCode::FORBIDDEN, format!("gates are asked by {asker}, and this is {}", user.name)));
    }
    let bytes = Limited::new(body, gate::LONGEST_BODY).collect().await;
    let bytes = bytes.map_err(|error| (StatusCode::PAYLOAD_TOO_LARGE, error.to_string()))?.to_bytes();
    let request: gate::GateRequest =
        serde_json::from_slice(&bytes).map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    request.check().map_err(|why| (StatusCode::BAD_REQUEST, why))?;
    let limit = Duration::from_millis(request.deadline_milliseconds).min(LONGEST);
    let answer = gates.ask(&request, arrived + limit).await;
    let bytes = serde_json::to_vec(&answer).map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?;
    Ok(Bytes::from(bytes))
}
