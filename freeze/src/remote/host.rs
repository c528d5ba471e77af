//! The agent's end of a link: it does what is asked at the one member that it stands beside.
//!
//! One task per hold, which owns what holds; it lets go when it is told to, when it is not told to keep it, when the link ends, and
//! when a freezer of a higher epoch comes.

mod entries;
mod hold;

use std::{
    collections::HashMap,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::agent::{Granted, Wish};
use futures::{Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    frames::{self, HERE},
    wire::{Down, Order, Reply, Term, Up},
};
use crate::{
    driver::{Driver, Member},
    error::Error,
    journal::JournalError,
};
use entries::Entries;
use hold::{Hold, Work};

/// Does what freezers order, at one member. Cheap to clone; all clones obey one epoch.
#[derive(Clone, Debug)]
pub struct Host {
    driver: Arc<dyn Driver>,
    member: Arc<Mutex<Member>>,
    epochs: Arc<Mutex<HashMap<String, watch::Sender<i64>>>>,
}

/// What one link has under way.
struct Session<'h> {
    host: &'h Host,
    up: mpsc::Sender<Up>,
    entries: Arc<Entries>,
    holds: HashMap<u64, Sender>,
    tasks: JoinSet<Option<u64>>,
    ended: CancellationToken,
    /// What was asked for in the Pod, and is not answered.
    wished: HashMap<u64, oneshot::Sender<Granted>>,
    next: u64,
}

/// To the task of a hold.
struct Sender {
    work: mpsc::Sender<Work>,
    forgotten: CancellationToken,
}

/// Frames that wait to be sent.
const WAITING: usize = 32;
/// Databases that lead to one server.
const MOST_DATABASES: usize = 256;
/// Holds of one link at once: a member has one, and another that is just ending.
const MOST_HOLDS: usize = 8;
/// And whatever else is asked.
const MOST_TASKS: usize = 64;
/// Behind a driver's own deadline.
const OVERRUN: Duration = Duration::from_millis(500);
/// How long letting go may take when a link ends; whatever is left then is closed by dropping it.
const LAST: Duration = Duration::from_secs(3);

impl Host {
    pub fn new(driver: Arc<dyn Driver>, member: Member) -> Self {
        Self { driver, member: Arc::new(Mutex::new(member)), epochs: Arc::default() }
    }

    /// Whom to be there, from the next order on: a password was changed.
    pub fn replace(&self, member: Member) {
        *self.member.lock().unwrap_or_else(PoisonError::into_inner) = member;
    }

    fn member(&self) -> Member {
        self.member.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Obeys what comes on `stream` until it ends or `stop`. When it returns nothing is held for it. `wishes`: what is asked for in the
    /// Pod, and whom to tell; `trusted` hears whose certificates replicas are going to show.
    pub async fn run(
        &self,
        stream: impl AsyncRead + AsyncWrite,
        mut wishes: mpsc::Receiver<(Wish, oneshot::Sender<Granted>)>,
        trusted: impl Fn(String),
        stop: CancellationToken,
    ) {
        let (from, to) = tokio::io::split(stream);
        let (from, to) = (pin!(from), pin!(to));
        let (up, sending) = mpsc::channel(WAITING);
        let here = async {
            loop {
                sleep(HERE).await;
                up.try_send(Up::Here).ok();
            }
        };
        let over = stop.child_token();
        let serving = self.serve(frames::received(from), up.clone(), &mut wishes, trusted, over.clone());
        let (mut serving, mut sent) = (pin!(serving), pin!(frames::sent(to, sending)));
        tokio::select! {
            () = &mut serving => {}
            () = &mut sent => {
                over.cancel();
                serving.await;
            }
            () = here => {}
        }
    }

    /// Obeys what comes down one link.
    async fn serve(
        &self,
        down: impl Stream<Item = Down>,
        up: mpsc::Sender<Up>,
        wishes: &mut mpsc::Receiver<(Wish, oneshot::Sender<Granted>)>,
        trusted: impl Fn(String),
        stop: CancellationToken,
    ) {
        let mut down = pin!(down);
        let mut session = Session {
            host: self,
            entries: Arc::new(Entries::to(up.clone())),
            up,
            holds: HashMap::new(),
            tasks: JoinSet::new(),
            ended: CancellationToken::new(),
            wished: HashMap::new(),
            next: 0,
        };
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = session.tasks.join_next() => {
                    if let Ok(Some(hold)) = ended {
                        session.holds.remove(&hold);
                    }
                }
                Some((wish, told)) = wishes.recv() => session.wish(wish, told).await,
                frame = down.next() => match frame {
                    Some(Down::Trust { bundle }) => trusted(bundle),
                    Some(frame) => session.take(frame).await,
                    None => break,
                },
            }
        }
        session.end().await;
    }

    /// Asks what holds nothing.
    async fn look(&self, order: Order, deadline: Instant) -> Result<Reply, Error> {
        let driver = &self.driver;
        match order {
            Order::Probe => driver.probe(&self.member(), deadline).await.map(Reply::Server),
            Order::Preflight { databases, plan } => {
                Ok(Reply::Preflight(driver.preflight(&self.with(databases), &plan, deadline).await))
            }
            Order::Recover { databases, undo, of } => {
                driver.recover(&self.with(databases), &undo, of.as_ref(), deadline).await.map(Reply::Recovered)
            }
            Order::Observe { freeze_uid } => {
                driver.observe(&self.member(), &freeze_uid, deadline).await.map(Reply::Observed)
            }
            Order::ThawAll => driver.thaw_all(&self.member(), deadline).await.map(Reply::Ended),
            // These have a task of their own.
            other => Err(Error::Lost { detail: format!("nothing is held that {other:?} could be about") }),
        }
    }

    /// The member, of which these databases are to be covered.
    fn with(&self, databases: Vec<String>) -> Member {
        Member { databases, ..self.member() }
    }

    /// From here on nobody of a lower epoch is obeyed about this Database.
    fn raise(&self, Term { database, epoch }: &Term) -> Result<watch::Receiver<i64>, Error> {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        if epochs.len() >= MOST_DATABASES && !epochs.contains_key(database) {
            return Err(busy());
        }
        let known = epochs.entry(database.clone()).or_insert_with(|| watch::Sender::new(i64::MIN));
        let mut highest = *epoch;
        known.send_if_modified(|known| {
            highest = (*known).max(*epoch);
            std::mem::replace(known, highest) != highest
        });
        if highest > *epoch {
            let who =
                format!("Database {database}: the order is of epoch {epoch}, and one of epoch {highest} was here");
            return Err(JournalError::NotOurs(who).into());
        }
        Ok(known.subscribe())
    }
}

impl Session<'_> {
    async fn take(&mut self, frame: Down) {
        match frame {
            // Trust is not a session's.
            Down::Here | Down::Trust { .. } => {}
            Down::Granted { number, granted } => {
                if let Some(told) = self.wished.remove(&number) {
                    told.send(*granted).ok();
                }
            }
            Down::Entered { number, result } => self.entries.are(number, result),
            Down::Forget { hold } => {
                if let Some(hold) = self.holds.get(&hold) {
                    hold.forgotten.cancel();
                }
            }
            Down::Order { number, limit, order } => {
                let deadline = Instant::now() + limit;
                if let Err(refused) = self.order(number, *order, deadline) {
                    self.up.send(Up::Answer { number, result: Err(refused) }).await.ok();
                }
            }
        }
    }

    async fn wish(&mut self, wish: Wish, told: oneshot::Sender<Granted>) {
        self.wished.retain(|_, told| !told.is_closed());
        let number = self.next;
        self.next += 1;
        self.wished.insert(number, told);
        // Whoever waits hears when it is dropped.
        self.up.send(Up::Wish { number, wish }).await.ok();
    }

    fn order(&mut self, number: u64, order: Order, deadline: Instant) -> Result<(), Error> {
        let Some(hold) = order.hold() else {
            if self.tasks.len() >= MOST_TASKS {
                return Err(busy());
            }
            let (host, up) = (self.host.clone(), self.up.clone());
            self.tasks.spawn(async move {
                let looked = timeout_at(deadline + OVERRUN, host.look(order, deadline)).await;
                let limit = deadline.saturating_duration_since(Instant::now());
                let result = looked.unwrap_or(Err(Error::Timeout { doing: "asking the server".into(), limit }));
                up.send(Up::Answer { number, result }).await.ok();
                None
            });
            return Ok(());
        };
        if let Order::Prepare { term, databases, plan, .. } = order {
            if self.holds.len() >= MOST_HOLDS || self.holds.contains_key(&hold) {
                return Err(busy());
            }
            let fence = self.host.raise(&term)?;
            let forgotten = self.ended.child_token();
            let (work, working) = mpsc::channel(1);
            let task = Hold {
                driver: Arc::clone(&self.host.driver),
                up: self.up.clone(),
                undo: self.entries.of(hold),
                forgotten: forgotten.clone(),
                fence,
                epoch: term.epoch,
            };
            let member = self.host.with(databases);
            self.tasks.spawn(async move {
                task.run(number, member, plan, deadline, working).await;
                Some(hold)
            });
            self.holds.insert(hold, Sender { work, forgotten });
            return Ok(());
        }
        let lost = || Error::Lost { detail: "the agent holds nothing of this freeze any more".to_owned() };
        let holding = self.holds.get(&hold).ok_or_else(lost)?;
        holding.work.try_send(Work { number, order, deadline }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => busy(),
            mpsc::error::TrySendError::Closed(_) => lost(),
        })
    }

    async fn end(mut self) {
        self.ended.cancel();
        self.holds.clear();
        let over = Instant::now() + LAST + OVERRUN;
        while let Ok(Some(_)) = timeout_at(over, self.tasks.join_next()).await {}
    }
}

fn busy() -> Error {
    Error::Server { doing: "taking an order".into(), detail: "the agent has too much to do already".to_owned() }
}
