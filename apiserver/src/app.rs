//! The request pipeline, top to bottom, one function per stage. The stage's output is the next stage's input.
//!
//! ```text
//! (Request, Peer) ─► Target ─► User ─► Permitted<Target> ─► Form ─► Answer ─► Response
//!                    400/404   401     403                  406     (objects.rs, verbs.rs, discovery.rs, …)
//! ```
//! One wrapper owns the request's id, deadline, body limit, panic, metrics and the rendering of errors; handlers return
//! a `Result`.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use certs::Peer;
use futures::FutureExt;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, info_span};

use crate::{
    answer::{AUDIT_ID, Answer, AnswerBody, Parts, json_answer},
    auth::{Authenticator, Authorizer, authorize},
    copies, documents,
    error::ApiError,
    health::{self, Check, Condition},
    metrics::{self, Metrics},
    negotiate::{self, Form},
    objects::Objects,
    query::Query,
    resources::Served,
    target::{Target, target},
};

/// Everything that a request may need. One per server.
#[derive(Debug)]
pub struct App {
    pub served: Served,
    pub authenticator: Arc<dyn Authenticator>,
    pub authorizer: Arc<dyn Authorizer>,
    pub objects: Objects,
    pub metrics: Arc<Metrics>,
    /// What else has to be so before it is ready.
    pub(crate) conditions: Vec<Arc<Condition>>,
    /// Set when shutdown begins: no longer ready, watches end.
    pub stopping: CancellationToken,
}

/// Upstream's limit of a body.
const BODY: usize = 3 * 1024 * 1024;
/// Upstream's deadline of what does not watch.
const DEADLINE: Duration = Duration::from_secs(60);
/// Of verbs that take longer.
const LONGER: [(&str, Duration); 2] = [
    // The longest that a Database may give preparing and taking hold (600 s and 15 s), and something for ourselves.
    ("quiesce", Duration::from_secs(630)),
    ("check", copies::LONGEST_CHECK),
];
/// Above this, gzip pays (apiserver `responsewriters/writers.go`).
const GZIP_ABOVE: usize = 128 * 1024;

impl App {
    /// The one wrapper.
    pub async fn serve(self: Arc<Self>, request: Request<Incoming>, peer: Peer) -> Response<AnswerBody> {
        let began = Instant::now();
        let id = request.headers().get(AUDIT_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        let id = id.filter(|id| id.len() <= 64).unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let (mut parts, body) = request.into_parts();
        // What is sent on to another replica is found in its log, too.
        if let Ok(value) = HeaderValue::from_str(&id) {
            parts.headers.insert(AUDIT_ID, value);
        }
        let query = Query::parse(parts.uri.query());
        let asked = target(&parts.method, parts.uri.path(), query.is_true("watch"));
        let label = label(self.served, asked.as_ref().ok());
        let deadline =
            LONGER.iter().find(|(verb, _)| *verb == label.subresource).map_or(DEADLINE, |(_, longer)| *longer);
        let span = info_span!("request", method = %parts.method, path = parts.uri.path(), audit_id = %id);
        // On loopback it would cost both ends more than it saves.
        let accepts = parts
            .headers
            .get(header::ACCEPT_ENCODING)
            .is_some_and(|value| value.as_bytes().windows(4).any(|w| w == b"gzip"));
        let gzip = accepts && !peer.address.ip().is_loopback();
        let work = async {
            let answer = timeout(deadline, self.answer(asked, &mut parts, query, body, &peer)).await;
            let late = || format!("the request did not finish within {} s", deadline.as_secs());
            answer.unwrap_or_else(|_| Err(ApiError::timeout(late())))
        };
        let answer = AssertUnwindSafe(work.instrument(span.clone())).catch_unwind().await;
        let answer = answer.unwrap_or_else(|_| Err(ApiError::internal("a handler panicked")));
        let mut response = span.in_scope(|| render(answer, gzip));
        if let Ok(value) = HeaderValue::from_str(&id) {
            response.headers_mut().insert(AUDIT_ID, value);
        }
        self.metrics.request(label, response.status().as_u16(), began.elapsed().as_secs_f64());
        response
    }

    async fn answer(
        &self,
        asked: Result<Target, ApiError>,
        parts: &mut http::request::Parts,
        query: Query,
        body: Incoming,
        peer: &Peer,
    ) -> Result<Answer, ApiError> {
        let target = asked?;
        let now = Timestamp::now();
        if let Target::Health(health) = &target {
            return health::answer(health, &self.checks(health.probe), &query);
        }
        let user = self.authenticator.authenticate(peer, &mut parts.headers, now).await?;
        let target = authorize(self.authorizer.as_ref(), &user, target, &parts.method, &query).await?.into_inner();
        let accept = parts.headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let form = match &target {
            // Their own types, checked where they are served.
            Target::OpenApiV2 | Target::OpenApiV3(_) | Target::Metrics => Form::Object,
            _ => negotiate::form(accept)?,
        };
        let parts = Parts { headers: &parts.headers, query, form };
        match target {
            Target::Health(health) => health::answer(&health, &self.checks(health.probe), &parts.query),
            Target::Metrics => self.metrics(),
            Target::Version => json_answer(&version()),
            Target::Discovery(document) => documents::discover(self.served, &document, &parts),
            Target::OpenApiV2 => documents::openapi_v2(self.served, accept, parts.headers),
            Target::OpenApiV3(wanted) => documents::openapi_v3(self.served, wanted.as_ref(), &parts, now),
            Target::Resource(resource) => {
                let bytes = read(body).await?;
                self.objects.serve(&user, resource, &parts, bytes, now, &self.stopping).await
            }
        }
    }

    /// Readiness ends at once when shutdown begins, and begins when it is known whom to trust; liveness is neither's affair.
    fn checks(&self, probe: &str) -> Vec<Check> {
        let conditions = self.conditions.iter().filter(|_| probe == "readyz").map(|condition| condition.check());
        let ready = checks(
            probe,
            self.stopping.is_cancelled(),
            self.objects.verbs.recovered.is_cancelled(),
            self.authenticator.ready(),
        );
        let lease = self.objects.verbs.replicas.get().filter(|_| probe == "readyz");
        let lease = lease.map(|replicas| ("lease", replicas.is_believed_alive()));
        ready.into_iter().chain(lease).chain(conditions).collect()
    }

    fn metrics(&self) -> Result<Answer, ApiError> {
        let frozen =
            self.objects.verbs.freezer.views().iter().filter(|view| view.status.phase == api::Phase::Frozen).count();
        let text = self.metrics.text(frozen).map_err(ApiError::internal)?;
        let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        Ok(text_answer(StatusCode::OK, content_type, text))
    }
}

fn checks(probe: &str, stopping: bool, recovered: bool, authentication: Result<(), String>) -> Vec<Check> {
    if probe != "readyz" {
        return vec![health::PING];
    }
    if let Err(why) = &authentication {
        debug!(why, "not ready: it is not known yet whom to trust");
    }
    vec![health::PING, ("shutdown", !stopping), ("storage", recovered), ("authentication", authentication.is_ok())]
}

fn text_answer(code: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Answer {
    Answer::Other { code, content_type, bytes: text.into(), headers: Vec::new() }
}

async fn read(body: Incoming) -> Result<Bytes, ApiError> {
    match Limited::new(body, BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::too_large(BODY)),
        Err(error) => Err(ApiError::bad_request(format!("the body could not be read: {error}"))),
    }
}

/// Clients read the minor version to know what they may ask for.
fn version() -> Value {
    json!({
        "major": "1", "minor": "34", "gitVersion": concat!("v1.34.0+stillpoint-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "", "goVersion": "", "compiler": "rustc",
        "platform": "linux/amd64",
    })
}

fn render(answer: Result<Answer, ApiError>, gzip: bool) -> Response<AnswerBody> {
    let retry_after = match &answer {
        Err(error) => error.retry_after(),
        Ok(Answer::Json { code, bytes, .. }) if code.is_server_error() => ApiError::retry_after_of(bytes),
        Ok(_) => None,
    };
    let answer = answer.unwrap_or_else(|error| {
        if error.code.is_server_error() {
            error!(code = error.code.as_u16(), message = %error.message, internal = error.internal, "request failed");
        } else {
            debug!(code = error.code.as_u16(), message = %error.message, internal = error.internal, "request refused");
        }
        Answer::Json { code: error.code, bytes: Bytes::from(error.status().to_string()), warnings: Vec::new() }
    });
    let (code, content_type, bytes, headers, warnings) = match answer {
        Answer::Stream(body) => return stream(body),
        Answer::Json { code, bytes, warnings } => (code, "application/json", bytes, Vec::new(), warnings),
        Answer::Other { code, content_type, bytes, headers } => (code, content_type, bytes, headers, Vec::new()),
    };
    let zipped = (gzip && bytes.len() > GZIP_ABOVE).then(|| compress(&bytes)).flatten();
    let encoded = zipped.is_some();
    let mut response = Response::new(full(zipped.unwrap_or(bytes)));
    *response.status_mut() = code;
    let map = response.headers_mut();
    map.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(seconds) = retry_after {
        map.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if !headers.iter().any(|(name, _)| name == header::CACHE_CONTROL) {
        map.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    }
    if encoded {
        map.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        map.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    }
    for (name, value) in headers {
        if let Ok(value) = HeaderValue::from_str(&value) {
            map.append(name, value);
        }
    }
    for warning in warnings.iter().take(16) {
        let text: String = warning.chars().filter(|c| !c.is_control()).take(256).collect();
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{text}\"")) {
            map.append(header::WARNING, value);
        }
    }
    response
}

fn stream(body: AnswerBody) -> Response<AnswerBody> {
    let mut response = Response::new(body);
    let map = response.headers_mut();
    map.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    map.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

fn full(bytes: Bytes) -> AnswerBody {
    Full::new(bytes).boxed_unsync()
}

/// Level 4, as upstream. Writing to memory does not fail; if it did, the plain bytes would do.
fn compress(bytes: &[u8]) -> Option<Bytes> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::with_capacity(bytes.len() / 4), flate2::Compression::new(4));
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

/// What a request was for, in words that come from our own tables only.
fn label(served: Served, target: Option<&Target>) -> metrics::Request {
    let none = metrics::Request { verb: "", group: "", resource: "", subresource: "" };
    let Some(Target::Resource(target)) = target else {
        return none;
    };
    let Some(resource) = served.find(&target.group, &target.version, &target.resource) else {
        return none;
    };
    let wanted = target.subresource.as_deref();
    let subresource = resource.subresources.iter().find(|subresource| Some(subresource.name) == wanted);
    metrics::Request {
        verb: target.verb.word(),
        group: resource.group,
        resource: resource.plural,
        subresource: subresource.map_or("", |subresource| subresource.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_waits_for_authentication_and_ends_with_shutdown_and_liveness_heeds_neither() {
        let unknown = || Err("the ConfigMap was not read yet".to_owned());
        let cases = [
            ("readyz", false, true, Ok(()), None),
            ("readyz", false, true, unknown(), Some("authentication")),
            ("readyz", false, false, Ok(()), Some("storage")),
            ("readyz", true, false, Ok(()), Some("shutdown")),
            ("livez", true, false, unknown(), None),
            ("healthz", true, false, unknown(), None),
        ];
        for (path, stopping, recovered, authentication, wanted) in cases {
            let checks = checks(path, stopping, recovered, authentication);
            let failed = checks.iter().find(|(_, well)| !well).map(|(name, _)| *name);
            assert_eq!(failed, wanted, "{path} {stopping} {recovered}");
        }
    }
}
