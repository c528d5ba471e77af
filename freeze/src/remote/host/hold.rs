//! One hold: the task that owns it, and by which it ends in time.

use std::{sync::Arc, time::Duration};

use api::Incarnation;
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    super::{
        clock::Uptime,
        wire::{Frozen, Order, Reply, Up},
    },
    LAST, OVERRUN,
    entries::OfHold,
};
use crate::{
    driver::{Acquired, Driver, Farewell, Held, Member, Plan, Prepared, Recovered},
    error::Error,
    journal::UndoLog,
};

/// What a task of a hold works with.
pub(super) struct Hold {
    pub(super) driver: Arc<dyn Driver>,
    pub(super) up: mpsc::Sender<Up>,
    pub(super) undo: Arc<OfHold>,
    /// Nobody waits for it any more, or the link is gone.
    pub(super) forgotten: CancellationToken,
    /// The highest epoch that was here.
    pub(super) fence: watch::Receiver<i64>,
    pub(super) epoch: i64,
}

/// An order about it.
pub(super) struct Work {
    pub(super) number: u64,
    pub(super) order: Order,
    pub(super) deadline: Instant,
}

/// How far it is.
enum Stage {
    Prepared(Box<dyn Prepared>),
    Held(Box<dyn Held>),
    /// Nothing is held, and why.
    Over(String),
}

/// The hold as its task has it.
struct Kept {
    stage: Stage,
    /// When it ends unless somebody keeps it.
    until: Uptime,
    /// What it was told last to last for.
    ttl: Duration,
    farewell: Farewell,
}

/// An order was carried out.
enum After {
    GoOn,
    Ended,
}

impl Hold {
    /// Prepares, then does what it is told. When it returns nothing is held.
    pub(super) async fn run(
        self,
        number: u64,
        member: Member,
        plan: Plan,
        deadline: Instant,
        mut work: mpsc::Receiver<Work>,
    ) {
        let preparing = self.driver.prepare(&member, &plan, Arc::clone(&self.undo) as _, deadline);
        let prepared = tokio::select! {
            biased;
            () = self.forgotten.cancelled() => return,
            prepared = timeout_at(deadline + OVERRUN, preparing) => prepared.unwrap_or_else(|_| Err(late("preparing"))),
        };
        let (result, prepared) = match prepared {
            Ok(prepared) => {
                let (server, warnings) = (prepared.server().clone(), prepared.warnings());
                (Ok(Reply::Prepared { server: server.clone(), warnings }), Some((server, prepared)))
            }
            Err(error) => (Err(error), None),
        };
        self.answer(number, result).await;
        let Some((server, prepared)) = prepared else { return };
        let ttl = plan.server_ttl;
        let until = Uptime::now().after(ttl);
        let mut kept = Kept { stage: Stage::Prepared(prepared), until, ttl, farewell: Farewell::default() };
        let mut fence = self.fence.clone();
        loop {
            let holds = !matches!(kept.stage, Stage::Over(_));
            tokio::select! {
                biased;
                () = self.forgotten.cancelled() => break,
                () = raised(&mut fence, self.epoch), if holds => {
                    kept.let_go("another freezer has this member now").await;
                    self.undo(&member, &server.incarnation).await;
                }
                () = kept.until.reached(), if holds => {
                    kept.let_go(&format!("nobody kept it within {} s", kept.ttl.as_secs_f64())).await;
                    self.undo(&member, &server.incarnation).await;
                }
                next = work.recv() => match next {
                    None => break,
                    Some(work) => match self.work(work, &mut kept).await {
                        After::GoOn => {}
                        After::Ended => break,
                    },
                },
            }
        }
        kept.let_go("its freezer is gone").await;
        self.undo(&member, &server.incarnation).await;
        std::mem::take(&mut kept.farewell).say().await;
    }

    /// Undoes what a hold left that could not be let go well. Whoever reads the journal would do the same later: once is enough, and
    /// twice is harmless.
    async fn undo(&self, member: &Member, of: &Incarnation) {
        for undo in self.undo.left() {
            let deadline = Instant::now() + LAST;
            match timeout_at(deadline + OVERRUN, self.driver.recover(member, &undo, Some(of), deadline)).await {
                Ok(Ok(Recovered::Undone)) => drop(self.undo.settled(&undo.kind).await),
                other => warn!(kind = undo.kind, ?other, "what a freeze left is still to be undone"),
            }
        }
    }

    async fn work(&self, work: Work, kept: &mut Kept) -> After {
        let Work { number, order, deadline } = work;
        let last = matches!(order, Order::Release { .. } | Order::Abandon { .. });
        let done = tokio::select! {
            biased;
            () = self.forgotten.cancelled() => None,
            done = timeout_at(deadline + OVERRUN, kept.carry_out(order, deadline)) => Some(done),
        };
        let Some(done) = done else { return After::Ended };
        let result = done.unwrap_or_else(|_| {
            // Whatever was under way is in no state that anybody knows.
            kept.stage = Stage::Over("it took too long".to_owned());
            Err(late("carrying out an order"))
        });
        self.answer(number, result).await;
        if last { After::Ended } else { After::GoOn }
    }

    async fn answer(&self, number: u64, result: Result<Reply, Error>) {
        self.up.send(Up::Answer { number, result }).await.ok();
    }
}

impl Kept {
    async fn carry_out(&mut self, order: Order, deadline: Instant) -> Result<Reply, Error> {
        match order {
            Order::Keep { server_ttl, .. } => {
                self.prepared()?.keep(server_ttl, deadline).await?;
                self.keep(server_ttl);
                Ok(Reply::Done)
            }
            Order::Acquire { .. } => {
                let prepared = match self.take() {
                    Stage::Prepared(prepared) => prepared,
                    other => return Err(self.lost(other)),
                };
                let (held, acquired) = prepared.acquire().await?;
                self.stage = Stage::Held(held);
                self.keep(self.ttl);
                Ok(Reply::Acquired(frozen(acquired)))
            }
            Order::Abandon { .. } => match self.take() {
                Stage::Prepared(prepared) => prepared.abandon(deadline).await.map(|()| Reply::Done),
                other => Err(self.lost(other)),
            },
            Order::Heartbeat { server_ttl, .. } => {
                let pulse = self.held()?.heartbeat(server_ttl, deadline).await?;
                self.keep(server_ttl);
                Ok(Reply::Pulse(pulse))
            }
            Order::Barrier { .. } => self.held()?.barrier(deadline).await.map(frozen).map(Reply::Acquired),
            Order::Stop { .. } => self.held()?.stop(deadline).await.map(Reply::Artifacts),
            Order::Prove { .. } => self.held()?.prove(deadline).await.map(Reply::Proof),
            Order::Release { .. } => match self.take() {
                Stage::Held(held) => {
                    let released = held.release(deadline).await?;
                    self.farewell.and(released.farewell);
                    Ok(Reply::Artifacts(released.artifacts))
                }
                other => Err(self.lost(other)),
            },
            other => Err(Error::Lost { detail: format!("{other:?} is not about a hold") }),
        }
    }

    /// From now on it lasts so long.
    fn keep(&mut self, ttl: Duration) {
        (self.ttl, self.until) = (ttl, Uptime::now().after(ttl));
    }

    /// Whatever it is becomes nothing, unless it is put back.
    fn take(&mut self) -> Stage {
        std::mem::replace(&mut self.stage, Stage::Over("an order about it did not come to its end".to_owned()))
    }

    fn prepared(&mut self) -> Result<&mut Box<dyn Prepared>, Error> {
        match &mut self.stage {
            Stage::Prepared(prepared) => Ok(prepared),
            Stage::Held(_) => Err(Error::Lost { detail: "it is held already".to_owned() }),
            Stage::Over(why) => Err(Error::Lost { detail: why.clone() }),
        }
    }

    fn held(&mut self) -> Result<&mut Box<dyn Held>, Error> {
        match &mut self.stage {
            Stage::Held(held) => Ok(held),
            Stage::Prepared(_) => Err(Error::Lost { detail: "it was never held".to_owned() }),
            Stage::Over(why) => Err(Error::Lost { detail: why.clone() }),
        }
    }

    /// Puts back what an order was not about.
    fn lost(&mut self, stage: Stage) -> Error {
        let detail = match &stage {
            Stage::Prepared(_) => "it was never held".to_owned(),
            Stage::Held(_) => "it is held already".to_owned(),
            Stage::Over(why) => why.clone(),
        };
        self.stage = stage;
        Error::Lost { detail }
    }

    /// Ends it as well as can be: whatever cannot be undone in time is closed by dropping it, and is in the journal.
    async fn let_go(&mut self, why: &str) {
        let deadline = Instant::now() + LAST;
        let ended = match std::mem::replace(&mut self.stage, Stage::Over(why.to_owned())) {
            Stage::Over(_) => return,
            Stage::Prepared(prepared) => timeout(LAST + OVERRUN, prepared.abandon(deadline)).await,
            Stage::Held(held) => match timeout(LAST + OVERRUN, held.release(deadline)).await {
                Ok(Ok(released)) => {
                    self.farewell.and(released.farewell);
                    Ok(Ok(()))
                }
                Ok(Err(error)) => Ok(Err(error)),
                Err(late) => Err(late),
            },
        };
        match ended {
            Ok(Ok(())) => info!(why, "let go"),
            Ok(Err(error)) => warn!(why, %error, "let go by closing its sessions"),
            Err(_) => warn!(why, "letting go took too long; its sessions are closed"),
        }
    }
}

/// A freezer of a higher epoch was here.
async fn raised(fence: &mut watch::Receiver<i64>, epoch: i64) {
    if fence.wait_for(|highest| *highest > epoch).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn frozen(acquired: Acquired) -> Frozen {
    let Acquired { frozen_at, position, ended_sessions } = acquired;
    Frozen { age: frozen_at.instant.elapsed(), position, ended_sessions }
}

fn late(doing: &'static str) -> Error {
    Error::Timeout { doing: doing.into(), limit: OVERRUN }
}
