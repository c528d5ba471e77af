//! Taking hold: all members prepared while the journal is told of the freeze, acquired together, and written down before
//! anybody is told, but for those who go by the journal in the end. Whatever ends it undoes all.

use std::{sync::Arc, time::Duration};

use api::{Check, FreezeSpec, FreezeStatus, Phase, Stage, conditions::reasons};
use jiff::Timestamp;
use tokio::{sync::Notify, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::info;

use super::{
    super::{
        outcome::{Finish, conclude, report},
        recorder::Recorder,
    },
    COMMANDS, Command, Leaver, RELEASE, Task,
};
use crate::{
    claims::may_join,
    driver::Acquired,
    error::Error,
    group::{self, Fault, Group, Target},
    journal::JournalError,
    lease::{self, LONGEST_SERVER_TTL},
};

/// How it ended, with what may still hold of it.
type NotHeld = (Option<Group>, Finish);

/// Taking hold always takes some of what was asked for.
const NOT_WORTH_TELLING: Duration = Duration::from_secs(1);

impl Task {
    /// Cancellation: a claim's end or a thaw drops the work in progress, and its connections with it.
    pub(super) async fn take_hold(&mut self) -> Result<(Group, Instant), NotHeld> {
        let (spec, accepted) = (self.spec.clone(), self.accepted.take());
        let taking = Taking { targets: self.targets.clone(), max_frozen: self.max_frozen, spec, accepted };
        let work = taking.take(Arc::clone(&self.recorder), self.inner.tasks.clone());
        tokio::pin!(work);
        let thaw = self.inner.thaw.clone();
        let (group, acquired, warnings) = loop {
            tokio::select! {
                biased;
                () = thaw.cancelled() => return Err((None, Finish::Shutdown)),
                taken = &mut work => break taken.map_err(|faults| (None, Finish::Failed(faults)))?,
                Some(command) = self.commands.recv() => {
                    if let Some(finish) = self.while_taking(*command) {
                        return Err((None, finish));
                    }
                }
            }
        };
        self.warnings = warnings;
        self.record_frozen(group, acquired).await
    }

    /// It holds: grants the claims that were made before the still point, and writes it down.
    async fn record_frozen(&mut self, group: Group, acquired: Vec<Acquired>) -> Result<(Group, Instant), NotHeld> {
        let (now, at) = (Instant::now(), Timestamp::now());
        let hard_end = group.since() + self.max_frozen;
        if now >= hard_end {
            return Err((None, self.give_up(group, Error::TooSlow { limit: self.max_frozen }).await));
        }
        self.warn_of_the_time_that_is_left(lease::left(hard_end, now));
        let frozen_at = group::frozen_at(self.level, &acquired);
        self.claims.grant(frozen_at, now, hard_end);
        self.vitals.holds(now);
        let claims = self.claims.show(now, at);
        let expires_at = self.expires_at(now, at, hard_end);
        self.vitals.set_lease(Some(self.claims.end_of_lease().unwrap_or(hard_end)));
        let frozen = |status: &mut FreezeStatus| {
            status.phase = Phase::Frozen;
            status.frozen_at = Some(api::micro_time(frozen_at.at));
            status.expires_at = Some(api::micro_time(expires_at));
            status.claims = claims;
            for (target, acquired) in status.targets.iter_mut().zip(acquired) {
                target.position = Some(acquired.position);
                target.ended_sessions = acquired.ended_sessions;
            }
            conclude(status, reasons::OK, "holds", at);
        };
        if self.waits_until_held() {
            let databases: Vec<&str> = self.members.iter().map(|(_, database)| database.as_str()).collect();
            if let Err(journal) = self.recorder.may_hold(&databases) {
                return Err((None, self.give_up(group, journal.into()).await));
            }
            self.recorder.show(frozen).await;
            self.answer_held();
            if let Err(journal) = self.write_behind().await {
                // Somebody was told that it holds: it is lost to him.
                let fault = self.fault(journal.into());
                return Err((Some(group), Finish::Lost(fault)));
            }
        } else if let Err(journal) = self.recorder.write(frozen).await {
            return Err((None, self.give_up(group, journal.into()).await));
        }
        info!(freeze = %self.freeze, "frozen");
        Ok((group, hard_end))
    }

    /// Writes down what is shown. What is asked meanwhile is done after it; but an end of all does not wait for it: then the end is
    /// written instead.
    async fn write_behind(&mut self) -> Result<(), JournalError> {
        let claims = self.claims.show(Instant::now(), Timestamp::now());
        let recorder = Arc::clone(&self.recorder);
        let write = async move { recorder.write(|status| status.claims = claims).await };
        tokio::pin!(write);
        let thaw = self.inner.thaw.clone();
        loop {
            tokio::select! {
                biased;
                written = &mut write => return written,
                () = thaw.cancelled() => return Ok(()),
                Some(command) = self.commands.recv(), if self.deferred.len() < COMMANDS => {
                    let ends = self.deferred.is_empty() && self.ends_all(&command);
                    self.deferred.push_back(*command);
                    if ends {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn ends_all(&self, command: &Command) -> bool {
        match command {
            Command::Thaw { .. } => true,
            Command::End { uid, stage: Stage::Thaw, .. } => self.claims.is_only(uid),
            _ => false,
        }
    }

    /// Lets go of what nobody was told of.
    async fn give_up(&self, group: Group, why: Error) -> Finish {
        let gone = group.release(Instant::now() + RELEASE).await;
        report(&self.freeze, &gone.faults);
        Finish::Failed(vec![self.fault(why)])
    }

    /// A group that took its time has used up some of what its claims asked for.
    fn warn_of_the_time_that_is_left(&mut self, left: Duration) {
        if let Some(asked) = self.claims.longest_ttl().filter(|asked| *asked > left + NOT_WORTH_TELLING) {
            self.warnings.push(Check::warn(
                "time",
                format!(
                    "{} s were asked for, and only {} s are left of the longest it may last",
                    asked.as_secs(),
                    left.as_secs()
                ),
                "raise spec.freeze.maxFrozenSeconds, or freeze fewer Databases together",
            ));
        }
    }

    fn while_taking(&mut self, command: Command) -> Option<Finish> {
        match command {
            Command::Join { claimant, wish, answered, answer } => {
                match may_join((self.level, self.copy), wish, self.max_frozen) {
                    // The same claim, waited for twice, is not a second data phase.
                    Err(why) if !self.claims.is_alive(&claimant.uid) => {
                        answer.send(Err(self.conflict(why))).ok();
                    }
                    _ => self.admit(claimant, wish, answered, answer),
                }
                None
            }
            Command::End { uid, stage: Stage::Thaw, answer } => {
                if !self.claims.end(&uid, Timestamp::now()) {
                    answer.send(None).ok();
                    return None;
                }
                self.leaving.push(Leaver::Claim(answer));
                self.dismiss_withdrawn();
                self.claims.is_empty().then_some(Finish::Released)
            }
            Command::End { answer, .. } => {
                answer.send(None).ok();
                None
            }
            Command::Renew { answer, .. } => {
                answer.send(None).ok();
                None
            }
            Command::Thaw { ending, answer } => Some(self.forced(ending, answer)),
        }
    }
}

/// What a freeze needs to come to hold.
struct Taking {
    targets: Vec<Target>,
    max_frozen: Duration,
    spec: Option<FreezeSpec>,
    accepted: Option<Arc<Notify>>,
}

impl Taking {
    /// Prepares all while the journal is told of the freeze, then acquires all.
    async fn take(
        self,
        recorder: Arc<Recorder>,
        tasks: TaskTracker,
    ) -> Result<(Group, Vec<Acquired>, Vec<Check>), Vec<Fault>> {
        let Self { targets, max_frozen, spec, accepted } = self;
        // Held before preparing starts, so that no undo item can be written before the object exists.
        let opening = recorder.opening().await;
        let open = async {
            let opened = opening.open(spec, &tasks).await;
            if let (Ok(()), Some(accepted)) = (&opened, accepted) {
                accepted.notify_one();
            }
            opened
        };
        let (opened, prepared) = tokio::join!(open, group::prepare(&targets, |at| recorder.undo_of(at)));
        let prepared = prepared?;
        let first = || targets.first().map(|target| target.database.clone()).unwrap_or_default();
        if let Err(error) = opened {
            group::abandon(prepared).await;
            return Err(vec![Fault { database: first(), error: error.into() }]);
        }
        let incarnations: Vec<_> = prepared.iter().map(|prepared| prepared.server().incarnation.clone()).collect();
        let warnings = targets.iter().zip(&prepared).flat_map(|(target, prepared)| {
            let name = |check| Check { database: target.database.clone(), ..check };
            prepared.warnings().into_iter().map(name)
        });
        let warnings = warnings.collect();
        recorder
            .show(|status| {
                status.phase = Phase::Acquiring;
                for (target, incarnation) in status.targets.iter_mut().zip(incarnations) {
                    target.incarnation = Some(incarnation);
                }
            })
            .await;
        let databases: Vec<&str> = targets.iter().map(|target| target.database.as_str()).collect();
        if let Err(error) = recorder.may_hold(&databases) {
            group::abandon(prepared).await;
            return Err(vec![Fault { database: first(), error: error.into() }]);
        }
        let (mut group, acquired) = group::acquire(&targets, prepared, max_frozen).await?;
        if targets.len() > 1 {
            // One may have waited for the slowest for longer than its server is patient.
            let (now, end) = (Instant::now(), group.since() + max_frozen);
            let patience = targets.iter().map(|target| target.plan.server_ttl).min().unwrap_or(LONGEST_SERVER_TTL);
            let patience = patience.min(lease::server_ttl(lease::left(end, now)));
            if let Err(fault) = group.heartbeat(patience, end.min(now + patience)).await {
                let gone = group.release(Instant::now() + RELEASE).await;
                return Err(std::iter::once(fault).chain(gone.faults).collect());
            }
        }
        Ok((group, acquired, warnings))
    }
}
