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
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use jiff::Timestamp;
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant as Deadline, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use crate::{
    answer::Answer,
    credentials::Credentials,
    deadline,
    decide::{Decision, Door, Ours, decide},
    forward::Forwarder,
    metrics::{Metrics, Outcome, name},
    review::{self, ReturnAddress, decode, encode},
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
    /// KiB of bodies that are being read.
    room: Semaphore,
}

/// Reviews at once: one that waits for a freeze holds some KiB, for 28 s at most. A snapshotter asks for ten at a time (`--worker-threads`).
const PLACES: usize = 1024;
/// Of bodies: two of the longest at once, or a thousand usual ones. Their values take some times as much.
const ROOM_KIB: usize = 8 * 1024;

/// No review's answer: kube-apiserver goes by the webhook's `failurePolicy`. It goes to whoever sent the request.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
enum Fault {
    #[error("show a client certificate of the authority that this server was given")]
    Unknown,
    #[error("too many reviews at once; try again")]
    Busy,
    #[error("the review did not arrive in time")]
    Slow,
    #[error("the review is longer than {} bytes", review::LONGEST)]
    TooLong,
    #[error("the review did not arrive whole: {0}")]
    Torn(String),
    #[error(transparent)]
    Unreadable(#[from] review::Unreadable),
    #[error("an error of ours; the log says more")]
    Ours,
}

impl App {
    pub fn new(ours: Ours, forwarder: Forwarder, credentials: Arc<Credentials>, stopping: CancellationToken) -> Self {
        let (places, room) = (Semaphore::new(PLACES), Semaphore::new(ROOM_KIB));
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
        let _place = self.places.try_acquire().map_err(|_| Fault::Busy)?;
        let deadline = Deadline::now() + deadline::of(request.uri().query());
        let (to, decision) = self.decide(door, request, deadline).await?;
        let (outcome, answer) = match (decision, door) {
            (Decision::Allow(why), _) => {
                debug!(gate = name(door).0, why, "passed");
                (Outcome::Passed, Answer::allowed())
            }
            (Decision::Ask(request), _) => self.ask(&request, deadline).await,
            (Decision::Unaskable(why), Door::Gate { gate, required }) => unheld(gate, required, &why),
            (Decision::Unaskable(why), Door::OwnKinds) => (Outcome::FailedOpen, Answer::warned(why)),
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
        let body = request.into_body();
        let longest = u64::try_from(review::LONGEST).unwrap_or(u64::MAX);
        let length = body.size_hint().upper().unwrap_or(longest);
        if length > longest {
            return Err(Fault::TooLong);
        }
        let kib = u32::try_from(length.div_ceil(1024)).map_err(|_| Fault::TooLong)?;
        let room = timeout_at(deadline, self.room.acquire_many(kib.max(1))).await;
        let _room = room.map_err(|_| Fault::Busy)?.map_err(|_| Fault::Ours)?;
        let body = timeout_at(deadline, Limited::new(body, review::LONGEST).collect()).await;
        let body = body.map_err(|_| Fault::Slow)?.map_err(|error| {
            if error.is::<LengthLimitError>() { Fault::TooLong } else { Fault::Torn(error.to_string()) }
        })?;
        let review = decode(&body.to_bytes())?;
        Ok((review.to, decide(door, &review.request, &self.ours)))
    }

    async fn ask(&self, request: &GateRequest, deadline: Deadline) -> (Outcome, Answer) {
        let GateRequest { gate, object, required, dry_run, .. } = request;
        let began = Instant::now();
        let answer = self.forwarder.ask(request, deadline).await;
        let took = began.elapsed();
        let (outcome, answer) = match answer {
            Ok(answer) => {
                let answer = Answer::from(answer);
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
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::Slow => StatusCode::REQUEST_TIMEOUT,
            Self::TooLong => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Torn(_) | Self::Unreadable(_) => StatusCode::BAD_REQUEST,
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
