//! From a request to its answer: which door, who may, read, decide, ask, answer.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use api::gate::{Gate, GateRequest};
use bytes::Bytes;
use certs::Peer;
use futures::FutureExt;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::Full;
use hyper::body::Body;
use jiff::Timestamp;
use thiserror::Error;
use tokio::{sync::Semaphore, time::Instant as Deadline};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    answer::Answer,
    credentials::{Credentials, Trusted},
    deadline,
    decide::{Door, decide},
    decision::Decision,
    forward::Forwarder,
    inject::AUDIT,
    metrics::{Metrics, Outcome, name},
    ours::Ours,
    review::{self, ReturnAddress, decode, encode},
    room::{Room, Unread},
};

/// Everything that answers.
#[derive(Debug)]
pub struct App {
    ours: Ours,
    forwarder: Forwarder,
    credentials: Arc<Credentials>,
    metrics: Metrics,
    stopping: CancellationToken,
    /// Reviews at once.
    places: Semaphore,
    room: Room,
}

/// Reviews at once: one that waits for a freeze holds some KiB, for 28 s at most. A snapshotter asks for ten at a time (`--worker-threads`).
const PLACES: usize = 1024;
/// For a review to arrive, however long its sender would wait for the answer: kube-apiserver has all of it when it begins to send.
const ARRIVAL: Duration = Duration::from_secs(2);

/// No review's answer: kube-apiserver goes by the webhook's `failurePolicy`. It goes to whoever sent the request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
enum Fault {
    #[error("show a client certificate of the authority that this server was given")]
    Unknown,
    #[error(transparent)]
    Unread(#[from] Unread),
    #[error(transparent)]
    Unreadable(#[from] review::Unreadable),
    #[error("an error of ours; the log says more")]
    Ours,
}

impl App {
    pub fn new(ours: Ours, forwarder: Forwarder, credentials: Arc<Credentials>, stopping: CancellationToken) -> Self {
        let (places, room) = (Semaphore::new(PLACES), Room::new());
        Self { ours, forwarder, credentials, metrics: Metrics::new(), stopping, places, room }
    }

    /// Answers whatever is asked.
    pub async fn serve<B>(self: Arc<Self>, request: Request<B>, peer: Peer) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let door = Door::of(request.uri().path());
        match (request.method(), request.uri().path(), door) {
            (&Method::POST, _, Some(door)) => self.review(door, request, &peer).await,
            (_, _, Some(_)) => plain(StatusCode::METHOD_NOT_ALLOWED, "post an AdmissionReview"),
            (&Method::GET | &Method::HEAD, "/readyz", None) if self.stopping.is_cancelled() => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "stopping")
            }
            (&Method::GET | &Method::HEAD, "/livez" | "/healthz" | "/readyz", None) => plain(StatusCode::OK, "ok"),
            (&Method::GET, "/metrics", None) => match self.metrics.text(self.credentials.expires()) {
                Ok(text) => with_type(StatusCode::OK, "application/openmetrics-text; version=1.0.0", text.into()),
                Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written"),
            },
            _ => plain(StatusCode::NOT_FOUND, "there is nothing here"),
        }
    }

    async fn review<B>(&self, door: Door, request: Request<B>, peer: &Peer) -> Response<Full<Bytes>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (began, now) = (Instant::now(), Timestamp::now());
        let answered = AssertUnwindSafe(self.answer(door, request, peer, now)).catch_unwind().await;
        let (outcome, response) = match answered.unwrap_or(Err(Fault::Ours)) {
            Ok((outcome, body)) => (outcome, with_type(StatusCode::OK, "application/json", body.into())),
            Err(fault) => {
                let peer = peer.address;
                match fault {
                    Fault::Ours => error!(%peer, "a review was not answered: an error of ours"),
                    _ => warn!(%peer, %fault, "a review was not answered"),
                }
                (Outcome::Unanswered, plain(fault.code(), &fault.to_string()))
            }
        };
        self.metrics.review(door, outcome, began.elapsed(), now);
        response
    }

    async fn answer<B>(
        &self,
        door: Door,
        request: Request<B>,
        peer: &Peer,
        now: Timestamp,
    ) -> Result<(Outcome, Vec<u8>), Fault>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if !self.credentials.admits(&peer.certificates, now) {
            return Err(Fault::Unknown);
        }
        let _place = self.places.try_acquire().map_err(|_| Unread::Full)?;
        let deadline = Deadline::now() + deadline::of(request.uri().query());
        let (to, decision) = self.decide(door, request, deadline).await?;
        let (outcome, answer) = match (decision, door) {
            (Decision::Allow(why), _) => {
                debug!(gate = name(door).0, why, "passed");
                (Outcome::Passed, Answer::allowed())
            }
            (Decision::Spare(why), _) => {
                debug!(gate = name(door).0, why, "left alone");
                (Outcome::Passed, Answer::allowed())
            }
            (Decision::Injected(answer), _) => (Outcome::Injected, answer),
            (Decision::Skipped(answer), _) => (Outcome::Skipped, answer),
            (Decision::Ask(request), _) => self.ask(&request, deadline).await,
            (Decision::Unaskable(why), Door::Gate { gate, required }) => unheld(gate, required, &why),
            (Decision::Unaskable(why), _) => (Outcome::FailedOpen, Answer::warned(why)),
            (Decision::Answer(answer), _) => (judged(&answer), answer),
        };
        Ok((outcome, encode(&to, &answer)))
    }

    /// The review is gone when this returns: what waits for a freeze is only what is asked.
    async fn decide<B>(
        &self,
        door: Door,
        request: Request<B>,
        deadline: Deadline,
    ) -> Result<(ReturnAddress, Decision), Fault>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let arrived = self.room.read(request.into_body(), deadline.min(Deadline::now() + ARRIVAL)).await?;
        let _values = self.room.values(&arrived.bytes, door.copies())?;
        let review = decode(&arrived.bytes)?;
        let authority = self.credentials.apiserver();
        let decision = decide(door, &review.request, &self.ours, authority.as_deref().map(Trusted::pem));
        if let Decision::Injected(answer) | Decision::Skipped(answer) = &decision {
            let namespace = review.request.namespace();
            let name = ["/metadata/name", "/metadata/generateName"].iter().find_map(|at| review.request.text(at));
            let (done, dry_run) = (answer.audit.get(AUDIT), review.request.dry_run);
            info!(namespace, name, done, dry_run, "a pod asks for an agent");
        }
        Ok((review.to, decision))
    }

    async fn ask(&self, request: &GateRequest, deadline: Deadline) -> (Outcome, Answer) {
        let GateRequest { gate, object, required, dry_run, .. } = request;
        let Ok(_waiting) = self.room.waiting(request) else {
            warn!(?gate, uid = object.uid, "not asked: too much waits for its answer");
            return unheld(*gate, *required, "too much waits for its answer");
        };
        let began = Instant::now();
        let answer = self.forwarder.ask(request, deadline).await;
        let took = began.elapsed();
        let (outcome, answer) = match answer {
            Ok(answer) => {
                let answer = Answer::to(request, answer);
                (judged(&answer), answer)
            }
            Err(why) => {
                warn!(?gate, uid = object.uid, %why, detail = ?why, "the apiserver was asked in vain");
                unheld(*gate, *required, &why.to_string())
            }
        };
        let milliseconds = Duration::as_millis(&took);
        info!(?gate, name = object.name, uid = object.uid, required, dry_run, ?outcome, milliseconds, "asked");
        (outcome, answer)
    }
}

impl Fault {
    fn code(&self) -> StatusCode {
        match self {
            Self::Unknown => StatusCode::UNAUTHORIZED,
            Self::Unread(Unread::Full) => StatusCode::SERVICE_UNAVAILABLE,
            Self::Unread(Unread::Slow) => StatusCode::REQUEST_TIMEOUT,
            Self::Unread(Unread::TooLong) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unread(Unread::Torn(_)) | Self::Unreadable(_) => StatusCode::BAD_REQUEST,
            Self::Ours => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

fn judged(answer: &Answer) -> Outcome {
    if answer.is_allowed() { Outcome::Allowed } else { Outcome::Denied }
}

fn unheld(gate: Gate, required: bool, why: &str) -> (Outcome, Answer) {
    let outcome = if required { Outcome::FailedClosed } else { Outcome::FailedOpen };
    (outcome, Answer::unheld(gate, required, why))
}

fn plain(code: StatusCode, text: &str) -> Response<Full<Bytes>> {
    with_type(code, "text/plain; charset=utf-8", format!("{text}\n").into())
}

fn with_type(code: StatusCode, content_type: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}
