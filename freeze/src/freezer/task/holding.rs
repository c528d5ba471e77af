//! Holding: heartbeats, claims that come and go, the lease. Every wait ends with the lease, and any doubt about the hold ends it.

use std::time::Duration;

use api::Stage;
use jiff::Timestamp;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tracing::warn;

use super::{
    super::{
        Answer, AnsweredWhen, COMMANDS, Ended, Refused,
        outcome::{Finish, keep, prove},
    },
    Command, Leaver, PROVE, STOP, Task, Waiter,
};
use crate::{
    claims::{Claimant, Wish, may_join},
    driver::Moment,
    error::Error,
    group::{self, Fault, Group},
    lease::{self, LONGEST_SERVER_TTL},
};

/// How long a further still point for late claims may last: longer than an engine's own barrier may take (MariaDB without the
/// right to flush waits up to 2.5 s), shorter than the server's patience.
const BARRIER: Duration = Duration::from_secs(3);

impl Task {
    /// Until the last claim ends or lapses, the hold is lost, or somebody says thaw.
    pub(super) async fn hold(&mut self, mut group: Group, hard_end: Instant) -> (Option<Group>, Finish) {
        self.next_beat = Instant::now() + lease::pause(lease::left(self.lease_end(hard_end), Instant::now()));
        let thaw = self.inner.thaw.clone();
        self.last_pulse = Instant::now();
        loop {
            if Instant::now() >= hard_end {
                // Before any claim is granted, or given a still point for which there is no time.
                return (Some(group), Finish::Expired);
            }
            match self.settle_claims(&mut group, hard_end).await {
                Ok(None) => {}
                Ok(Some(finish)) => return (Some(group), finish),
                Err(fault) => return (Some(group), Finish::Lost(fault)),
            }
            let next_lapse = self.claims.next_lapse().unwrap_or(hard_end);
            tokio::select! {
                biased;
                () = thaw.cancelled() => return (Some(group), Finish::Shutdown),
                () = sleep_until(next_lapse) => {
                    self.claims.lapse(Instant::now(), Timestamp::now());
                    if self.claims.is_empty() {
                        return (Some(group), Finish::Expired);
                    }
                    self.show_claims().await;
                }
                // Before commands: however many there are, the server hears of us in time.
                () = sleep_until(self.next_beat) => {
                    let lease = self.lease_end(hard_end);
                    let ttl = lease::server_ttl(lease::left(lease, Instant::now()));
                    // Past this instant the server has ended the session by itself: no answer can save the hold.
                    let deadline = (self.last_pulse + LONGEST_SERVER_TTL).min(lease);
                    match group.heartbeat(ttl, deadline).await {
                        Ok(stalled) => self.vitals.set_stalled(stalled),
                        Err(_) if Instant::now() >= lease => {
                            self.claims.lapse(Instant::now(), Timestamp::now());
                            return (Some(group), Finish::Expired);
                        }
                        Err(fault) => return (Some(group), Finish::Lost(fault)),
                    }
                    self.last_pulse = Instant::now();
                    self.next_beat = self.last_pulse + lease::pause(ttl);
                }
                command = self.commands.recv() => {
                    let Some(command) = command else { return (Some(group), Finish::Shutdown) };
                    match self.while_holding(*command, &mut group, hard_end).await {
                        Ok(None) => {}
                        Ok(Some(finish)) => return (Some(group), finish),
                        Err(fault) => return (Some(group), Finish::Lost(fault)),
                    }
                }
            }
        }
    }

    /// Takes what is queued, so that many claims that come and go together share one barrier and one proof.
    async fn settle_claims(&mut self, group: &mut Group, hard_end: Instant) -> Result<Option<Finish>, Fault> {
        for _ in 0..COMMANDS {
            let next = self.deferred.pop_front().or_else(|| self.commands.try_recv().ok().map(|command| *command));
            let Some(command) = next else { break };
            if let Some(finish) = self.while_holding(command, group, hard_end).await? {
                return Ok(Some(finish));
            }
        }
        if self.claims.any_waiting() {
            self.still_point(group, hard_end).await?;
        }
        self.answer_renewed().await;
        self.answer_granted().await;
        if self.claims.is_empty() {
            return Ok(Some(Finish::Released));
        }
        self.answer_leaving(group).await?;
        Ok(None)
    }

    async fn while_holding(
        &mut self,
        command: Command,
        group: &mut Group,
        hard_end: Instant,
    ) -> Result<Option<Finish>, Fault> {
        match command {
            Command::Join { claimant, wish, answered, answer } => {
                self.join(claimant, wish, answered, answer, hard_end);
            }
            Command::Renew { uid, ttl, answer } => {
                if self.claims.renew(&uid, ttl, Instant::now(), hard_end).is_none() {
                    answer.send(None).ok();
                    return Ok(None);
                }
                // The server still counts down to the old end.
                self.next_beat = Instant::now();
                self.renewed.push((uid, answer));
            }
            Command::Thaw { ending, answer } => return Ok(Some(self.forced(ending, answer))),
            Command::End { uid, stage: Stage::Stop, answer } => self.stop(&uid, answer, group).await?,
            Command::End { uid, stage: Stage::Thaw, answer } => {
                if !self.claims.is_alive(&uid) {
                    // Ended before: the same answer again, and nothing is done.
                    answer.send(self.known(&uid).then(|| Ok(self.ended()))).ok();
                    return Ok(None);
                }
                self.claims.end(&uid, Timestamp::now());
                self.leaving.push(Leaver::Claim(answer));
            }
        }
        Ok(None)
    }

    /// Those who leave while others stay have made their copy: their proof is due now, one for all of them.
    async fn answer_leaving(&mut self, group: &mut Group) -> Result<(), Fault> {
        if self.leaving.is_empty() {
            return Ok(());
        }
        let proofs = group.prove(self.within_lease(PROVE)).await?;
        self.last_pulse = Instant::now();
        self.recorder.show(|status| prove(status, proofs)).await;
        self.show_claims().await;
        self.dismiss_leaving();
        Ok(())
    }

    pub(super) fn dismiss_leaving(&mut self) {
        for leaver in std::mem::take(&mut self.leaving) {
            match leaver {
                Leaver::Claim(answer) => drop(answer.send(Some(Ok(self.ended())))),
                Leaver::Forced(answer) => drop(answer.send(self.ended())),
            }
        }
    }

    fn join(&mut self, claimant: Claimant, wish: Wish, answered: AnsweredWhen, answer: Answer, hard_end: Instant) {
        let left = lease::left(hard_end, Instant::now());
        match may_join((self.level, self.copy), wish, left) {
            // The same claim again is no second one, whatever it asks for.
            Err(why) if !self.claims.is_alive(&claimant.uid) => {
                answer.send(Err(self.conflict(why))).ok();
            }
            _ => self.admit(claimant, wish, answered, answer),
        }
    }

    pub(super) fn admit(&mut self, claimant: Claimant, wish: Wish, answered: AnsweredWhen, answer: Answer) {
        let uid = claimant.uid.clone();
        self.vitals.admit(&claimant);
        let existing = !self.claims.add(claimant, wish.ttl, Moment::now());
        self.waiting.push(Waiter { uid, answered, answer, existing });
    }

    /// One further still point for all claims that wait for one, those in the queue included. Their leases are their own: the
    /// end of somebody else's does not hurry it.
    async fn still_point(&mut self, group: &mut Group, hard_end: Instant) -> Result<(), Fault> {
        let acquired = group.barrier((Instant::now() + BARRIER).min(hard_end)).await?;
        self.last_pulse = Instant::now();
        let frozen_at = group::frozen_at(self.level, &acquired);
        self.claims.grant(frozen_at, Instant::now(), hard_end);
        if self.waits_until_held() {
            let claims = self.claims.show(Instant::now(), Timestamp::now());
            self.recorder.show(|status| status.claims = claims).await;
            self.answer_held();
        }
        self.show_claims().await;
        Ok(())
    }

    /// One write for all who renewed together.
    async fn answer_renewed(&mut self) {
        if self.renewed.is_empty() {
            return;
        }
        self.show_claims().await;
        for (uid, answer) in std::mem::take(&mut self.renewed) {
            answer.send(self.granted(&uid, true)).ok();
        }
    }

    /// Tells those who wait that their claim holds. A claim that nobody waits for any more is nobody's: it ends.
    async fn answer_granted(&mut self) {
        self.dismiss_withdrawn();
        if self.tell_granted(|_| true) {
            self.show_claims().await;
        }
    }

    /// Whether somebody waits until it holds, and not for the journal.
    pub(super) fn waits_until_held(&self) -> bool {
        self.waiting.iter().any(|waiter| waiter.answered == AnsweredWhen::Held)
    }

    /// Tells those, by what is shown already; what follows from it is written next.
    pub(super) fn answer_held(&mut self) {
        self.dismiss_withdrawn();
        self.tell_granted(|waiter| waiter.answered == AnsweredWhen::Held);
    }

    /// Answers whether somebody did not hear it, whose claim has ended for that.
    fn tell_granted(&mut self, whom: impl Fn(&Waiter) -> bool) -> bool {
        let waiting = std::mem::take(&mut self.waiting);
        let granted = |waiter: &Waiter| whom(waiter) && self.claims.is_granted(&waiter.uid);
        let (granted, waiting): (Vec<_>, Vec<_>) = waiting.into_iter().partition(granted);
        self.waiting = waiting;
        let mut unheard = Vec::new();
        for Waiter { uid, answer, existing, .. } in granted {
            let Some(grant) = self.granted(&uid, existing) else {
                continue;
            };
            if answer.send(Ok(grant)).is_ok() {
                self.claims.heard(&uid);
            } else {
                unheard.push(uid);
            }
        }
        let waits = |uid: &String| self.waiting.iter().any(|waiter| waiter.uid == *uid);
        unheard.retain(|uid| !self.claims.was_heard(uid) && !waits(uid));
        for uid in &unheard {
            warn!(freeze = %self.freeze, claim = %uid, "whoever asked is gone; the claim ends");
            self.claims.end(uid, Timestamp::now());
        }
        !unheard.is_empty()
    }

    /// Ends the data phase of a Files copy; session and slot stay.
    async fn stop(
        &mut self,
        uid: &str,
        answer: oneshot::Sender<Option<Result<Ended, Refused>>>,
        group: &mut Group,
    ) -> Result<(), Fault> {
        if !self.claims.is_alive(uid) {
            answer.send(None).ok();
            return Ok(());
        }
        match group.stop(self.within_lease(STOP)).await {
            Ok(artifacts) => {
                let written = self.recorder.write(|status| keep(status, artifacts)).await;
                answer.send(Some(written.map(|()| self.ended()).map_err(|error| self.not_written(error)))).ok();
                Ok(())
            }
            Err(Fault { database, error: error @ Error::Unsupported { .. } }) => {
                answer.send(Some(Err(self.refused(vec![Fault { database, error }])))).ok();
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }
}
