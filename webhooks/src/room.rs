//! What may be in memory at once: reviews that arrive, what they are read into, and questions that wait for their answer. Whatever does
//! not fit is turned away at once: in a queue those who need little would stand behind those who need much, and never end.

use std::pin::pin;

use api::gate::GateRequest;
use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Body;
use thiserror::Error;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::review;

/// In bytes; with all of it taken, the process stays below the limit that deploy/ gives it.
#[derive(Debug)]
pub(crate) struct Room {
    beginnings: Semaphore,
    rests: Semaphore,
    values: Semaphore,
    waiting: Semaphore,
}

/// What a usual review is shorter than: so much of each has a room apart, which those who send long ones cannot fill.
const BEGINNING: usize = 32 * 1024;
const BEGINNINGS: usize = 8 * 1024 * 1024;
/// Of what is longer: two and a half of the longest.
const RESTS: usize = 8 * 1024 * 1024;
/// A review as values takes some times as much, for as long as it is decided on.
const VALUES: usize = 32 * 1024 * 1024;
const WAITING: usize = 24 * 1024 * 1024;
/// Of a usual question, with the task that waits for it.
const QUESTION: usize = 8 * 1024;

/// A place in one of them, until it is dropped.
pub(crate) type Taken<'r> = SemaphorePermit<'r>;

/// A body, and the room that it takes.
pub(crate) struct Arrived<'r> {
    pub(crate) bytes: Vec<u8>,
    _taken: [Option<Taken<'r>>; 2],
}

/// Why there is no body.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Unread {
    #[error("too many reviews at once; try again")]
    Full,
    #[error("the review did not arrive in time")]
    Slow,
    #[error("the review is longer than {} bytes", review::LONGEST)]
    TooLong,
    #[error("the review did not arrive whole: {0}")]
    Torn(String),
}

impl Room {
    pub(crate) fn new() -> Self {
        let [beginnings, rests, values, waiting] = [BEGINNINGS, RESTS, VALUES, WAITING].map(Semaphore::new);
        Self { beginnings, rests, values, waiting }
    }

    /// A whole body, if it is there by then. It takes room as it arrives: for what is only announced there is none.
    pub(crate) async fn read<B>(&self, body: B, by: Instant) -> Result<Arrived<'_>, Unread>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let is_long = |length: usize| length > review::LONGEST;
        if usize::try_from(body.size_hint().lower()).map_or(true, is_long) {
            return Err(Unread::TooLong);
        }
        let (mut body, mut bytes) = (pin!(body), Vec::new());
        let [mut beginning, mut rest] = [None, None];
        while let Some(frame) = timeout_at(by, body.frame()).await.map_err(|_| Unread::Slow)? {
            let frame = frame.map_err(|error| Unread::Torn(error.into().to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            let (had, has) = (bytes.len(), bytes.len() + data.len());
            if is_long(has) {
                return Err(Unread::TooLong);
            }
            let of_beginning = |length: usize| length.min(BEGINNING);
            take(&self.beginnings, of_beginning(has) - of_beginning(had), &mut beginning)?;
            take(&self.rests, (has - of_beginning(has)) - (had - of_beginning(had)), &mut rest)?;
            bytes.extend_from_slice(&data);
        }
        Ok(Arrived { bytes, _taken: [beginning, rest] })
    }

    /// To read these bytes into values, of which there will be so many copies.
    pub(crate) fn values(&self, bytes: &[u8], copies: usize) -> Result<Option<Taken<'_>>, Unread> {
        let mut taken = None;
        take(&self.values, copies * review::weight(bytes), &mut taken)?;
        Ok(taken)
    }

    /// To wait for the answer to this.
    pub(crate) fn waiting(&self, question: &GateRequest) -> Result<Option<Taken<'_>>, Unread> {
        let texts = question.volume_handles.iter().chain(&question.claims);
        let texts: usize = texts.map(|text| text.len() + 64).sum();
        let selector = question.selector.as_ref().map_or(0, |selector| review::weight(selector.to_string().as_bytes()));
        let mut taken = None;
        // Twice: as it is, and as it is sent.
        take(&self.waiting, QUESTION + 2 * (texts + selector), &mut taken)?;
        Ok(taken)
    }
}

/// More of it, beside what was taken before.
fn take<'r>(from: &'r Semaphore, bytes: usize, taken: &mut Option<Taken<'r>>) -> Result<(), Unread> {
    let more = u32::try_from(bytes).ok().and_then(|bytes| from.try_acquire_many(bytes).ok()).ok_or(Unread::Full)?;
    match taken {
        Some(taken) => taken.merge(more),
        None => *taken = Some(more),
    }
    Ok(())
}
