//! The freezer's end of a link: orders go down, answers come up, and what an order wants written down is written here.

use std::{
    collections::HashMap,
    fmt,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use api::agent::{Granted, Wish};
use futures::{FutureExt, Stream, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    frames,
    wire::{Down, Entry, Order, Reply, Up},
};
use crate::{
    error::Error,
    journal::{JournalError, UndoLog},
};

/// Told of each order: which, what came of it, and after how long.
pub type Told = Arc<dyn Fn(&'static str, Outcome, Duration) + Send + Sync>;

/// What came of an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Done,
    /// The agent, or its server, could not.
    Failed,
    /// Its time was over before it was answered.
    Late,
    /// The agent has gone.
    Gone,
}

/// One agent, as long as its stream lasts. Cheap to clone; all clones are one link.
#[derive(Clone)]
pub struct Link(Arc<Inner>);

struct Inner {
    /// For people.
    agent: String,
    told: Told,
    down: mpsc::Sender<Down>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Result<Reply, Error>>>>,
    logs: Mutex<HashMap<u64, Arc<dyn UndoLog>>>,
    gone: CancellationToken,
}

/// Why an order has no answer.
pub(super) enum Unanswered {
    /// The link is gone, or goes.
    Gone,
    Late(Duration),
}

/// Frames that wait to be sent. One freeze asks one thing at a time.
const WAITING: usize = 32;
/// What an agent may want written down, or done, at once.
const MOST_ENTRIES: usize = 32;
/// An answer of the last moment has so long to come.
const WAY_BACK: Duration = Duration::from_millis(100);

impl Link {
    /// A link to `agent`, and what has to be sent to it.
    pub fn new(agent: String, told: Told) -> (Self, mpsc::Receiver<Down>) {
        let (down, sending) = mpsc::channel(WAITING);
        let (next, waiting, logs) = Default::default();
        (Self(Arc::new(Inner { agent, told, down, next, waiting, logs, gone: CancellationToken::new() })), sending)
    }

    /// Lives on `stream` until it ends or the link is closed. `grant`: does what somebody in the Pod asks for.
    pub async fn run(
        &self,
        stream: impl AsyncRead + AsyncWrite,
        sending: mpsc::Receiver<Down>,
        grant: impl Fn(Wish) -> BoxFuture<'static, Granted>,
    ) {
        let (from, to) = tokio::io::split(stream);
        let (from, to) = (pin!(from), pin!(to));
        tokio::select! {
            () = self.serve(frames::received(from), grant) => {}
            () = frames::sent(to, sending) => {}
        }
        self.end();
    }

    /// Takes what comes up, until it ends or the link is closed; then every order that waits is told that the agent is gone.
    async fn serve(&self, up: impl Stream<Item = Up>, grant: impl Fn(Wish) -> BoxFuture<'static, Granted>) {
        let mut up = pin!(up);
        let mut entries: FuturesUnordered<BoxFuture<'_, ()>> = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                () = self.0.gone.cancelled() => break,
                Some(()) = entries.next() => {}
                frame = up.next() => match frame {
                    None => break,
                    // Who does not take it now has other things to take.
                    Some(Up::Here) => drop(self.0.down.try_send(Down::Here)),
                    Some(Up::Answer { number, result }) => {
                        if let Some(asked) = self.0.waiting().remove(&number) {
                            asked.send(result).ok();
                        }
                    }
                    Some(Up::Entry { number, hold, entry }) => entries.push(self.enter(number, hold, entry).boxed()),
                    Some(Up::Wish { number, .. }) if entries.len() >= MOST_ENTRIES => {
                        let why = "too much is asked for at once".to_owned();
                        self.tell(Down::Granted { number, granted: Box::new(Granted::Refused { why }) }).await;
                    }
                    Some(Up::Wish { number, wish }) => {
                        let granted = grant(wish);
                        entries.push(async move { self.tell(Down::Granted { number, granted: Box::new(granted.await) }).await }.boxed());
                    }
                },
            }
        }
    }

    fn end(&self) {
        self.close();
        self.0.waiting().clear();
        self.0.logs().clear();
    }

    /// Ends it.
    pub fn close(&self) {
        self.0.gone.cancel();
    }

    /// Returns when it is over.
    pub async fn closed(&self) {
        self.0.gone.cancelled().await;
    }

    pub fn is_closed(&self) -> bool {
        self.0.gone.is_cancelled()
    }

    /// Whether both are one link.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whom it leads to.
    pub fn agent(&self) -> &str {
        &self.0.agent
    }

    /// A number that nothing of this link had.
    pub(super) fn number(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends an order, and waits until `deadline` for its answer. The agent has a little less time, so that it is the one who says
    /// what took so long. Safe to cancel: an answer that nobody waits for is dropped.
    pub(super) async fn ask(&self, order: Order, deadline: Instant) -> Result<Result<Reply, Error>, Unanswered> {
        let (began, name) = (Instant::now(), order.name());
        let limit = deadline.saturating_duration_since(began);
        let (number, (answer, answered)) = (self.number(), oneshot::channel());
        self.0.waiting().insert(number, answer);
        // Forgotten again when nobody waits any more.
        let _waiting = Waiting { link: self, number };
        let asked = async {
            let order =
                Down::Order { number, limit: limit.saturating_sub(WAY_BACK.min(limit / 4)), order: Box::new(order) };
            self.0.down.send(order).await.map_err(|_| Unanswered::Gone)?;
            answered.await.map_err(|_| Unanswered::Gone)
        };
        let answer = tokio::select! {
            biased;
            answer = timeout_at(deadline, asked) => answer.unwrap_or(Err(Unanswered::Late(limit))),
            () = self.0.gone.cancelled() => Err(Unanswered::Gone),
        };
        let outcome = match &answer {
            Ok(Ok(_)) => Outcome::Done,
            Ok(Err(_)) => Outcome::Failed,
            Err(Unanswered::Late(_)) => Outcome::Late,
            Err(Unanswered::Gone) => Outcome::Gone,
        };
        (self.0.told)(name, outcome, began.elapsed());
        answer
    }

    /// A hold begins: what its orders want written down goes into `log`.
    pub(super) fn open(&self, log: Arc<dyn UndoLog>) -> Hold {
        let number = self.number();
        self.0.logs().insert(number, log);
        Hold { link: self.clone(), number, ended: false }
    }

    async fn enter(&self, number: u64, hold: u64, entry: Entry) {
        let log = self.0.logs().get(&hold).cloned();
        let result = match (log, entry) {
            (None, _) => Err(JournalError::Gone),
            (Some(log), Entry::Intend(undo)) => log.intend(undo).await,
            (Some(log), Entry::Settled(kind)) => log.settled(&kind).await,
        };
        self.tell(Down::Entered { number, result }).await;
    }

    /// Whoever cannot be told is gone.
    async fn tell(&self, frame: Down) {
        self.0.down.send(frame).await.ok();
    }

    /// Tells whose certificates replicas are going to show.
    pub async fn trust(&self, bundle: String) {
        self.tell(Down::Trust { bundle }).await;
    }
}

/// A hold at the agent. Dropped, the agent forgets it.
pub(super) struct Hold {
    link: Link,
    pub(super) number: u64,
    ended: bool,
}

impl Hold {
    pub(super) fn link(&self) -> &Link {
        &self.link
    }

    /// The agent has let go of it.
    pub(super) fn ended(mut self) {
        self.ended = true;
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.link.0.logs().remove(&self.number);
        // What cannot be sent at once might never be: the link's end is as good.
        if !self.ended && self.link.0.down.try_send(Down::Forget { hold: self.number }).is_err() {
            self.link.close();
        }
    }
}

struct Waiting<'l> {
    link: &'l Link,
    number: u64,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.link.0.waiting().remove(&self.number);
    }
}

// === impls ===

impl Inner {
    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Result<Reply, Error>>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn logs(&self) -> MutexGuard<'_, HashMap<u64, Arc<dyn UndoLog>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("agent", &self.0.agent).finish_non_exhaustive()
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("link", &self.link).field("number", &self.number).finish_non_exhaustive()
    }
}
