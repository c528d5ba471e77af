//! The members of one freeze, as one: prepared together, acquired together, released only together.
//!
//! None is released before all have been proved (design section 4, invariant 6): a copy of one member then never knows
//! what another's does not. Members are worked on in parallel; one failure undoes all.

mod together;

use std::{sync::Arc, time::Duration};

use api::{Artifact, Level, Proof, Via};
use futures::future::{BoxFuture, join_all};
use together::{Together, Waits};
use tokio::time::{Instant, timeout};

use crate::{
    driver::{Acquired, Driver, Farewell, Held, Member, Moment, Plan, Prepared, Pulse, Released},
    error::Error,
    journal::UndoLog,
};

/// One member of one Database, and what is to be made true there.
#[derive(Clone, Debug)]
pub struct Target {
    /// The Database's name, in the namespace of the freeze.
    pub database: String,
    /// The member's name: its address, or its Pod.
    pub name: String,
    pub via: Via,
    pub driver: Arc<dyn Driver>,
    pub member: Member,
    pub plan: Plan,
    pub prepare_timeout: Duration,
    /// Thaw when more sessions than this wait for us.
    pub max_stalled_sessions: Option<u32>,
}

/// What went wrong, and at which Database.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) database: String,
    pub(crate) error: Error,
}

/// Members that hold, in the order of the targets.
#[derive(Debug)]
pub(crate) struct Group {
    members: Vec<Holding>,
    /// The first still point. At WriteBlocked that member's writers wait since.
    since: Instant,
}

#[derive(Debug)]
struct Holding {
    database: String,
    max_stalled_sessions: Option<u32>,
    held: Box<dyn Held>,
}

/// A group that was let go.
#[derive(Debug, Default)]
pub(crate) struct LetGo {
    /// In the order of the targets.
    pub(crate) artifacts: Vec<Vec<Artifact>>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) farewell: Farewell,
}

/// A backstop behind the driver's own deadline: a driver that overruns is dropped, and its connections with it.
const OVERRUN: Duration = Duration::from_millis(500);
/// How long undoing a group that did not come to hold may last; what it leaves is closed by dropping it.
const ABANDON: Duration = Duration::from_secs(2);

/// Connects to all, does what is slow, blocks nobody.
pub(crate) async fn prepare(
    targets: &[Target],
    undo: impl Fn(usize) -> Arc<dyn UndoLog>,
) -> Result<Vec<Box<dyn Prepared>>, Vec<Fault>> {
    let together = Together::of(targets.len(), None);
    let prepared = join_all(targets.iter().enumerate().map(|(at, target)| {
        let deadline = Instant::now() + target.prepare_timeout;
        let work = target.driver.prepare(&target.member, &target.plan, undo(at), deadline);
        together.go(target, within(target.prepare_timeout + OVERRUN, "preparing", work))
    }))
    .await;
    let (prepared, faults) = sort(targets, prepared);
    if faults.is_empty() {
        return Ok(prepared);
    }
    abandon(prepared).await;
    Err(faults)
}

/// Takes hold of all, in parallel. One failure lets go of all; so does a member that held for `max_frozen` while others were
/// still on their way.
pub(crate) async fn acquire(
    targets: &[Target],
    prepared: Vec<Box<dyn Prepared>>,
    max_frozen: Duration,
) -> Result<(Group, Vec<Acquired>), Vec<Fault>> {
    let together = Together::of(targets.len(), Some(max_frozen));
    let acquired = join_all(targets.iter().zip(prepared).map(|(target, prepared)| {
        let limit = target.plan.acquire_timeout + OVERRUN;
        together.go(target, within(limit, "taking hold", prepared.acquire()))
    }))
    .await;
    let (acquired, faults) = sort(targets, acquired);
    if !faults.is_empty() {
        join_all(acquired.into_iter().map(Waits::give_up)).await;
        return Err(faults);
    }
    let (held, acquired): (Vec<_>, Vec<_>) = acquired.into_iter().unzip();
    let members = targets.iter().zip(held).map(|(target, held)| Holding {
        database: target.database.clone(),
        max_stalled_sessions: target.max_stalled_sessions,
        held,
    });
    let since = acquired.iter().map(|acquired| acquired.frozen_at.instant).min();
    Ok((Group { members: members.collect(), since: since.unwrap_or_else(Instant::now) }, acquired))
}

/// Lets go of members that never held.
pub(crate) async fn abandon(prepared: Vec<Box<dyn Prepared>>) {
    join_all(prepared.into_iter().map(Waits::give_up)).await;
}

/// The instant from which on all hold, as their level means it.
///
/// Until Durable nobody is blocked: what was acknowledged before the *first* barrier began is in the copy of each. Under a
/// write block nothing is acknowledged any more at any of them once the *last* lock is granted.
pub(crate) fn frozen_at(level: Level, acquired: &[Acquired]) -> Moment {
    let points = acquired.iter().map(|acquired| acquired.frozen_at);
    let point = match level {
        Level::WriteBlocked => points.max_by_key(|point| point.instant),
        Level::Recoverable | Level::Durable => points.min_by_key(|point| point.instant),
    };
    point.unwrap_or_else(Moment::now)
}

impl Pulse {
    /// Not more sessions wait for us than the Database allows, as far as that can be seen.
    pub(crate) fn within(self, most: Option<u32>) -> Result<Self, Error> {
        match (self.stalled_sessions, most) {
            (Some(stalled), Some(most)) if stalled > most => Err(Error::TooManyStalled { stalled, most }),
            _ => Ok(self),
        }
    }
}

impl Group {
    /// The first still point of a member: what a freeze may last counts from it.
    pub(crate) fn since(&self) -> Instant {
        self.since
    }

    /// All still hold; answers how many sessions wait for us, where that can be seen. One that does not ends all.
    pub(crate) async fn heartbeat(&mut self, server_ttl: Duration, deadline: Instant) -> Result<Option<u32>, Fault> {
        let pulses = join_all(self.members.iter_mut().map(|member| async {
            let work = member.held.heartbeat(server_ttl, deadline);
            let pulse = by(deadline, "the heartbeat", work).await.map_err(lost);
            let pulse = pulse.and_then(|pulse| pulse.within(member.max_stalled_sessions));
            pulse
                .map(|pulse| pulse.stalled_sessions)
                .map_err(|error| Fault { database: member.database.clone(), error })
        }))
        .await;
        // Each to its end: one whose answer is awaited is not to be lost for another's fault.
        let pulses = pulses.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(pulses.into_iter().flatten().reduce(|a, b| a + b))
    }

    /// A further still point of all.
    pub(crate) async fn barrier(&mut self, deadline: Instant) -> Result<Vec<Acquired>, Fault> {
        self.each("the barrier", deadline, |held| held.barrier(deadline)).await
    }

    /// Ends the data phase of a Files copy.
    pub(crate) async fn stop(&mut self, deadline: Instant) -> Result<Vec<Vec<Artifact>>, Fault> {
        self.each("ending the data phase", deadline, |held| held.stop(deadline)).await
    }

    /// Whether all held all the time.
    pub(crate) async fn prove(&mut self, deadline: Instant) -> Result<Vec<Proof>, Fault> {
        self.each("the proof", deadline, |held| held.prove(deadline)).await
    }

    /// Lets go of all; nothing holds any more, whatever went wrong.
    pub(crate) async fn release(self, deadline: Instant) -> LetGo {
        let released = join_all(self.members.into_iter().map(|member| async move {
            let result = by(deadline + OVERRUN, "letting go", member.held.release(deadline)).await;
            result.map_err(|error| Fault { database: member.database, error })
        }))
        .await;
        let mut gone = LetGo::default();
        for released in released {
            match released {
                Ok(Released { artifacts, farewell }) => {
                    gone.artifacts.push(artifacts);
                    gone.farewell.and(farewell);
                }
                Err(fault) => {
                    gone.artifacts.push(Vec::new());
                    gone.faults.push(fault);
                }
            }
        }
        gone
    }

    /// One step at all members in parallel; a step that fails is a lost hold.
    async fn each<T>(
        &mut self,
        doing: &'static str,
        deadline: Instant,
        step: impl for<'a> Fn(&'a mut dyn Held) -> BoxFuture<'a, Result<T, Error>>,
    ) -> Result<Vec<T>, Fault> {
        let steps: Vec<_> = self
            .members
            .iter_mut()
            .map(|member| {
                let work = by(deadline, doing, step(member.held.as_mut()));
                let database = &member.database;
                async move { work.await.map_err(|error| Fault { database: database.clone(), error: lost(error) }) }
            })
            .collect();
        join_all(steps).await.into_iter().collect()
    }
}

/// Whatever goes wrong on the session that holds, the hold can no longer be trusted.
fn lost(error: Error) -> Error {
    match error {
        Error::Lost { .. } | Error::Incarnation { .. } | Error::TooManyStalled { .. } | Error::Unsupported { .. } => {
            error
        }
        other => Error::Lost { detail: other.to_string() },
    }
}

async fn within<T>(
    limit: Duration,
    doing: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    timeout(limit, work).await.unwrap_or(Err(Error::Timeout { doing: doing.into(), limit }))
}

async fn by<T>(
    deadline: Instant,
    doing: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    within(deadline.saturating_duration_since(Instant::now()), doing, work).await
}

/// `None` let go because another failed.
fn sort<T>(targets: &[Target], results: Vec<Result<Option<T>, Error>>) -> (Vec<T>, Vec<Fault>) {
    let (mut done, mut faults) = (Vec::new(), Vec::new());
    for (target, result) in targets.iter().zip(results) {
        match result {
            Ok(value) => done.extend(value),
            Err(error) => faults.push(Fault { database: target.database.clone(), error }),
        }
    }
    (done, faults)
}
