//! The life of one freeze. The task owns everything that holds: when it ends, or is dropped, nothing holds any more.
//!
//! ```text
//! take hold (prepare ∥ open the journal, acquire, write Frozen) ─► hold (heartbeats, claims, lease) ─► let go (prove,
//! release, write) ─► undo what outlived the sessions, for ever ─► gone
//! ```

use std::{sync::Arc, time::Duration};

use api::{Check, Claim, Copy, FreezeSpec, FreezeStatus, Level, Phase, Proof, Stage, conditions::reasons};
use jiff::Timestamp;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{error, info, warn};

use super::{
    Answer, COMMANDS, Ended, Ending, Granted, Handle, Inner, Member, Refused, Request, Vitals,
    outcome::{Finish, blank, conclude, keep, milliseconds, prove, report},
    recorder::Recorder,
    undo::{undo_until_done, write_until_done},
};
use crate::{
    claims::{Claimant, Claims, Wish, may_join},
    driver::{Acquired, Farewell, Plan},
    error::Error,
    group::{self, Fault, Group, LetGo, Target},
    journal::{FreezeName, JournalError},
    lease::{self, LONGEST_SERVER_TTL},
};

/// What a freeze is asked.
#[derive(Debug)]
pub(super) enum Command {
    Join { claimant: Claimant, wish: Wish, answer: Answer },
    End { uid: String, stage: Stage, answer: oneshot::Sender<Option<Result<Ended, Refused>>> },
    Renew { uid: String, ttl: Option<Duration>, answer: oneshot::Sender<Option<Granted>> },
    Thaw { ending: Ending, answer: oneshot::Sender<Ended> },
}

#[derive(Debug)]
pub(super) struct Task {
    inner: Arc<Inner>,
    freeze: FreezeName,
    spec: Option<FreezeSpec>,
    members: Arc<[Member]>,
    level: Level,
    copy: Copy,
    targets: Vec<Target>,
    max_frozen: Duration,
    recorder: Arc<Recorder>,
    vitals: Arc<Vitals>,
    commands: mpsc::Receiver<Command>,
    claims: Claims,
    /// Callers that wait for their claim to hold.
    waiting: Vec<Waiter>,
    /// Callers that wait for the end.
    leaving: Vec<Leaver>,
    warnings: Vec<Check>,
    /// The journal does not know yet how it ended.
    unwritten: bool,
    /// While it holds: when the sessions are told next that we are there.
    next_beat: Instant,
}

#[derive(Debug)]
struct Waiter {
    uid: String,
    answer: Answer,
    /// The claim was there before this request.
    existing: bool,
}

#[derive(Debug)]
enum Leaver {
    Claim(oneshot::Sender<Option<Result<Ended, Refused>>>),
    Forced(oneshot::Sender<Ended>),
}

/// How long proving may last: a thaw does not wait longer for it.
const PROVE: Duration = Duration::from_secs(2);
/// How far beyond the lease it may reach: the server lets go by itself soon after.
const PROVE_BEYOND: Duration = Duration::from_millis(200);
/// How long letting go may last; after it, connections are simply closed.
const RELEASE: Duration = Duration::from_secs(1);
/// How long sessions that hold nothing stay open after the answer.
const ASIDE: Duration = Duration::from_millis(20);
/// How long a further still point for late claims may last.
const BARRIER: Duration = Duration::from_secs(2);
/// How long ending the data phase may last: `pg_backup_stop` writes a checkpoint record and switches WAL.
const STOP: Duration = Duration::from_secs(30);

impl Task {
    pub(super) fn new(inner: Arc<Inner>, request: &Request, members: Arc<[Member]>, answer: Answer) -> (Self, Handle) {
        let now = Timestamp::now();
        let mut claims = Claims::default();
        claims.add(request.claimant.clone(), request.ttl, now);
        let status = FreezeStatus {
            phase: Phase::Preparing,
            freezer: Some(inner.identity.clone()),
            epoch: Some(inner.epoch),
            level: Some(request.level),
            claims: claims.show(Instant::now(), now),
            targets: request.targets.iter().map(blank).collect(),
            mark: request.targets.first().map(|target| target.plan.freeze_uid.clone()),
            requested_at: Some(api::micro_time(now)),
            ..FreezeStatus::default()
        };
        let recorder = Recorder::new(request.freeze.clone(), Arc::clone(&inner.journal), status);
        let (sender, commands) = mpsc::channel(COMMANDS);
        let vitals = Vitals::new();
        // Also before the first heartbeat the server must not be more patient than the lease is long.
        let server_ttl = lease::server_ttl(request.ttl);
        let within = |target: &Target| Target { plan: Plan { server_ttl, ..target.plan.clone() }, ..target.clone() };
        let handle = Handle {
            freeze: request.freeze.clone(),
            members: Arc::clone(&members),
            copy: request.copy,
            commands: sender,
            shown: recorder.watch(),
            vitals: Arc::clone(&vitals),
        };
        let task = Self {
            inner,
            freeze: request.freeze.clone(),
            spec: request.spec.clone(),
            members,
            level: request.level,
            copy: request.copy,
            targets: request.targets.iter().map(within).collect(),
            max_frozen: request.max_frozen,
            recorder,
            vitals,
            commands,
            waiting: vec![Waiter { uid: request.claimant.uid.clone(), answer, existing: false }],
            leaving: Vec::new(),
            claims,
            warnings: Vec::new(),
            unwritten: false,
            next_beat: Instant::now(),
        };
        (task, handle)
    }

    pub(super) async fn run(mut self) {
        info!(freeze = %self.freeze, level = %self.level, copy = %self.copy, "freeze begins");
        let (held, finish) = match self.take_hold().await {
            Ok((group, hard_end)) => self.hold(group, hard_end).await,
            Err(finish) => (None, finish),
        };
        let farewell = self.let_go(held, finish).await;
        // Whoever was answered comes first: ending a session is work for the server, and nobody waits for it.
        sleep(ASIDE).await;
        timeout(RELEASE, farewell.say()).await.ok();
        self.undo_the_rest().await;
        if self.unwritten {
            write_until_done(&self.freeze, &self.recorder).await;
        }
    }

    // --- taking hold ---

    /// Cancellation: a claim's end or a thaw drops the work in progress, and its connections with it.
    async fn take_hold(&mut self) -> Result<(Group, Instant), Finish> {
        let work = take(self.targets.clone(), self.spec.clone(), Arc::clone(&self.recorder));
        tokio::pin!(work);
        let thaw = self.inner.thaw.clone();
        let (group, acquired, warnings) = loop {
            tokio::select! {
                biased;
                () = thaw.cancelled() => return Err(Finish::Shutdown),
                taken = &mut work => break taken.map_err(Finish::Failed)?,
                Some(command) = self.commands.recv() => {
                    if let Some(finish) = self.while_taking(command) {
                        return Err(finish);
                    }
                }
            }
        };
        self.warnings = warnings;
        self.record_frozen(group, acquired).await
    }

    /// It holds: grants the claims that were made before the still point, and writes it down.
    async fn record_frozen(&mut self, group: Group, acquired: Vec<Acquired>) -> Result<(Group, Instant), Finish> {
        let (now, at) = (Instant::now(), Timestamp::now());
        let hard_end = now + self.max_frozen;
        let frozen_at = acquired.iter().map(|acquired| acquired.frozen_at).max().unwrap_or(at);
        self.claims.grant(frozen_at, now, hard_end);
        let claims = self.claims.show(now, at);
        let expires_at = self.expires_at(now, at, hard_end);
        self.vitals.set_lease(Some(self.claims.end_of_lease().unwrap_or(hard_end)));
        let written = self.recorder.write(|status| {
            status.phase = Phase::Frozen;
            status.frozen_at = Some(api::micro_time(frozen_at));
            status.expires_at = Some(api::micro_time(expires_at));
            status.claims = claims;
            for (target, acquired) in status.targets.iter_mut().zip(acquired) {
                target.position = Some(acquired.position);
                target.ended_sessions = acquired.ended_sessions;
            }
            conclude(status, reasons::OK, "holds", at);
        });
        if let Err(journal) = written.await {
            let gone = group.release(Instant::now() + RELEASE).await;
            report(&self.freeze, &gone.faults);
            return Err(Finish::Failed(vec![self.fault(journal.into())]));
        }
        info!(freeze = %self.freeze, "frozen");
        Ok((group, hard_end))
    }

    fn while_taking(&mut self, command: Command) -> Option<Finish> {
        match command {
            Command::Join { claimant, wish, answer } => {
                match may_join((self.level, self.copy), wish, self.max_frozen) {
                    // The same claim, waited for twice, is not a second data phase.
                    Err(why) if !self.claims.is_alive(&claimant.uid) => {
                        answer.send(Err(self.conflict(why))).ok();
                    }
                    _ => self.admit(claimant, wish, answer),
                }
                None
            }
            Command::End { uid, stage: Stage::Thaw, answer } => {
                if !self.claims.end(&uid, Timestamp::now()) {
                    answer.send(None).ok();
                    return None;
                }
                self.leaving.push(Leaver::Claim(answer));
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

    // --- holding ---

    /// Until the last claim ends or lapses, the hold is lost, or somebody says thaw.
    async fn hold(&mut self, mut group: Group, hard_end: Instant) -> (Option<Group>, Finish) {
        self.next_beat = Instant::now() + lease::pause(lease::left(self.lease_end(hard_end), Instant::now()));
        let thaw = self.inner.thaw.clone();
        let mut last_pulse = Instant::now();
        loop {
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
                command = self.commands.recv() => {
                    let Some(command) = command else { return (Some(group), Finish::Shutdown) };
                    match self.while_holding(command, &mut group, hard_end).await {
                        Ok(None) => {}
                        Ok(Some(finish)) => return (Some(group), finish),
                        Err(fault) => return (Some(group), Finish::Lost(fault)),
                    }
                }
                () = sleep_until(self.next_beat) => {
                    let lease = self.lease_end(hard_end);
                    let ttl = lease::server_ttl(lease::left(lease, Instant::now()));
                    // Past this instant the server has ended the session by itself: no answer can save the hold.
                    let deadline = (last_pulse + LONGEST_SERVER_TTL).min(lease);
                    match group.heartbeat(ttl, deadline).await {
                        Ok(stalled) => self.vitals.set_stalled(stalled),
                        Err(_) if Instant::now() >= lease => {
                            self.claims.lapse(Instant::now(), Timestamp::now());
                            return (Some(group), Finish::Expired);
                        }
                        Err(fault) => return (Some(group), Finish::Lost(fault)),
                    }
                    last_pulse = Instant::now();
                    self.next_beat = last_pulse + lease::pause(ttl);
                }
            }
        }
    }

    /// Takes what is queued, so that many claims that come and go together share one barrier and one proof.
    async fn settle_claims(&mut self, group: &mut Group, hard_end: Instant) -> Result<Option<Finish>, Fault> {
        for _ in 0..COMMANDS {
            let Ok(command) = self.commands.try_recv() else { break };
            if let Some(finish) = self.while_holding(command, group, hard_end).await? {
                return Ok(Some(finish));
            }
        }
        if self.claims.any_waiting() {
            self.still_point(group, hard_end).await?;
        }
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
            Command::Join { claimant, wish, answer } => self.join(claimant, wish, answer, hard_end),
            Command::Renew { uid, ttl, answer } => {
                let renewed = self.claims.renew(&uid, ttl, Instant::now(), hard_end);
                // The server still counts down to the old end.
                self.next_beat = Instant::now();
                self.show_claims().await;
                answer.send(renewed.and_then(|_| self.granted(&uid, true))).ok();
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
        self.recorder.show(|status| prove(status, proofs)).await;
        self.show_claims().await;
        self.dismiss_leaving();
        Ok(())
    }

    fn dismiss_leaving(&mut self) {
        for leaver in std::mem::take(&mut self.leaving) {
            match leaver {
                Leaver::Claim(answer) => drop(answer.send(Some(Ok(self.ended())))),
                Leaver::Forced(answer) => drop(answer.send(self.ended())),
            }
        }
    }

    fn join(&mut self, claimant: Claimant, wish: Wish, answer: Answer, hard_end: Instant) {
        if self.claims.is_alive(&claimant.uid) {
            return self.admit(claimant, wish, answer);
        }
        let left = lease::left(hard_end, Instant::now());
        match may_join((self.level, self.copy), wish, left) {
            Ok(()) => self.admit(claimant, wish, answer),
            Err(why) => {
                answer.send(Err(self.conflict(why))).ok();
            }
        }
    }

    fn admit(&mut self, claimant: Claimant, wish: Wish, answer: Answer) {
        let uid = claimant.uid.clone();
        let existing = !self.claims.add(claimant, wish.ttl, Timestamp::now());
        self.waiting.push(Waiter { uid, answer, existing });
    }

    /// One further still point for all claims that wait for one, those in the queue included.
    async fn still_point(&mut self, group: &mut Group, hard_end: Instant) -> Result<(), Fault> {
        let acquired = group.barrier(self.within_lease(BARRIER)).await?;
        let frozen_at = acquired.iter().map(|acquired| acquired.frozen_at).max().unwrap_or_else(Timestamp::now);
        self.claims.grant(frozen_at, Instant::now(), hard_end);
        self.show_claims().await;
        Ok(())
    }

    /// Tells those who wait that their claim holds. A claim that nobody waits for any more is nobody's: it ends.
    async fn answer_granted(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let (granted, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiter| self.claims.is_granted(&waiter.uid));
        self.waiting = waiting;
        let (mut heard, mut unheard) = (Vec::new(), Vec::new());
        for Waiter { uid, answer, existing } in granted {
            let Some(grant) = self.granted(&uid, existing) else {
                continue;
            };
            if answer.send(Ok(grant)).is_ok() {
                heard.push(uid);
            } else {
                unheard.push(uid);
            }
        }
        for uid in unheard.iter().filter(|uid| !heard.contains(uid)) {
            warn!(freeze = %self.freeze, claim = %uid, "whoever asked is gone; the claim ends");
            self.claims.end(uid, Timestamp::now());
        }
        if !unheard.is_empty() {
            self.show_claims().await;
        }
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

    // --- letting go ---

    /// Proves what can be proved, releases everything, writes how it ended, and answers everybody who waits. What is left
    /// to do holds nothing.
    async fn let_go(&mut self, group: Option<Group>, finish: Finish) -> Farewell {
        self.recorder.show(|status| status.phase = Phase::Thawing).await;
        let (mut proofs, mut gone) = (Vec::new(), LetGo::default());
        let mut finish = finish;
        let held = group.is_some();
        if let Some(mut group) = group {
            // Only a claim that is still wanted is proved: a lapsed or lost one must not keep writers waiting.
            if matches!(finish, Finish::Released) {
                match self.last_proof(&mut group).await {
                    Ok(all) => proofs = all,
                    Err(fault) => finish = Finish::Lost(fault),
                }
            }
            gone = group.release(Instant::now() + RELEASE).await;
        }
        let at = Timestamp::now();
        report(&self.freeze, &gone.faults);
        let (phase, reason, message) = finish.tell(held);
        let causes = finish.causes();
        self.claims.end_all(at);
        let claims = self.claims.show(Instant::now(), at);
        let change = |status: &mut FreezeStatus| {
            status.phase = phase;
            status.claims.clone_from(&claims);
            status.message = Some(message.clone());
            if held {
                status.thawed_at = Some(api::micro_time(at));
                status.frozen_milliseconds = status.frozen_at.as_ref().map(|frozen| milliseconds(frozen.0, at));
            }
            prove(status, proofs.clone());
            keep(status, gone.artifacts.clone());
            conclude(status, reason, &message, at);
        };
        // A thaw does not wait for the journal: what is thawed is thawed. The record follows as soon as it can.
        if let Err(journal) = self.recorder.write(change).await {
            error!(freeze = %self.freeze, error = %journal, "the end of the freeze is not written yet");
            self.recorder.show(change).await;
            self.unwritten = true;
        }
        info!(freeze = %self.freeze, %phase, %message, "freeze ended");
        self.vitals.set_lease(None);
        let status = self.recorder.shown();
        self.inner.table().remember(&self.freeze, &status);
        if status.targets.iter().all(|target| target.undo.is_empty()) {
            self.inner.table().forget(&self.freeze, &self.members);
        }
        self.answer_everybody(&finish, &causes);
        // Whoever still asks is not kept waiting while the rest is undone.
        self.commands.close();
        while self.commands.try_recv().is_ok() {}
        gone.farewell
    }

    /// A Files copy without its label and WAL range is no copy, so its data phase is ended here, with the patience that this
    /// takes, if nobody ended it before.
    async fn last_proof(&mut self, group: &mut Group) -> Result<Vec<Proof>, Fault> {
        if self.copy == Copy::Files {
            let artifacts = group.stop(self.within_lease(STOP)).await?;
            self.recorder.show(|status| keep(status, artifacts)).await;
        }
        let lease = self.vitals.lease().unwrap_or_else(Instant::now);
        group.prove((Instant::now() + PROVE).min(lease + PROVE_BEYOND)).await
    }

    fn answer_everybody(&mut self, finish: &Finish, causes: &[Check]) {
        let status = self.recorder.shown();
        for waiter in self.waiting.drain(..) {
            let refused = match finish {
                Finish::Released | Finish::Withdrawn(_) | Finish::Forced(_) => {
                    Refused::Withdrawn { freeze: self.freeze.clone() }
                }
                Finish::Shutdown => Refused::Stopping,
                _ => Refused::NotHeld {
                    freeze: self.freeze.clone(),
                    status: Arc::clone(&status),
                    causes: causes.to_vec(),
                },
            };
            waiter.answer.send(Err(refused)).ok();
        }
        self.dismiss_leaving();
    }

    /// What outlived the sessions is undone until it is undone; meanwhile no other freeze may take these members.
    async fn undo_the_rest(&mut self) {
        let targets: Vec<_> = self.targets.iter().cloned().map(Some).collect();
        undo_until_done(&self.freeze, &targets, &self.recorder).await;
    }

    // --- small things ---

    fn forced(&mut self, ending: Ending, answer: oneshot::Sender<Ended>) -> Finish {
        self.leaving.push(Leaver::Forced(answer));
        match ending {
            Ending::Forced { by } => Finish::Forced(by),
            Ending::Withdrawn { why } => Finish::Withdrawn(why),
        }
    }

    fn lease_end(&self, hard_end: Instant) -> Instant {
        self.claims.end_of_lease().unwrap_or(hard_end)
    }

    /// No step lasts longer than the lease, whatever it is given.
    fn within_lease(&self, limit: Duration) -> Instant {
        let deadline = Instant::now() + limit;
        self.vitals.lease().map_or(deadline, |lease| deadline.min(lease))
    }

    async fn show_claims(&self) {
        let (now, at) = (Instant::now(), Timestamp::now());
        let end = self.claims.end_of_lease();
        self.vitals.set_lease(end);
        let claims = self.claims.show(now, at);
        let change = |status: &mut FreezeStatus| {
            status.claims.clone_from(&claims);
            if let Some(end) = end {
                status.expires_at = Some(api::micro_time(crate::claims::date(end, now, at)));
            }
        };
        if let Err(error) = self.recorder.write(change).await {
            warn!(freeze = %self.freeze, %error, "the claims are not written yet");
            self.recorder.show(change).await;
        }
    }

    fn expires_at(&self, now: Instant, at: Timestamp, hard_end: Instant) -> Timestamp {
        crate::claims::date(self.claims.end_of_lease().unwrap_or(hard_end), now, at)
    }

    fn known(&self, uid: &str) -> bool {
        self.recorder.shown().claims.iter().any(|claim| claim.uid == uid)
    }

    fn granted(&self, uid: &str, existing: bool) -> Option<Granted> {
        let status = self.recorder.shown();
        let claim = status.claims.iter().rev().find(|claim| claim.uid == uid)?.clone();
        Some(Granted { freeze: self.freeze.clone(), claim, status, existing, warnings: self.warnings.clone() })
    }

    fn ended(&self) -> Ended {
        let status = self.recorder.shown();
        let alive = |claim: &&Claim| claim.ended_at.is_none() && !status.phase.is_finished();
        let still_claimed_by = status.claims.iter().filter(alive).cloned().collect();
        Ended { freeze: self.freeze.clone(), still_claimed_by, status }
    }

    fn conflict(&self, why: super::CannotJoin) -> Refused {
        Refused::Conflict { freeze: self.freeze.clone(), status: self.recorder.shown(), why }
    }

    fn refused(&self, faults: Vec<Fault>) -> Refused {
        let causes = faults.iter().map(Fault::cause).collect();
        Refused::NotHeld { freeze: self.freeze.clone(), status: self.recorder.shown(), causes }
    }

    fn not_written(&self, error: JournalError) -> Refused {
        self.refused(vec![self.fault(error.into())])
    }

    fn fault(&self, error: Error) -> Fault {
        Fault { database: self.members.first().map(|(_, database)| database.clone()).unwrap_or_default(), error }
    }
}

impl Drop for Task {
    /// Also when the task panics: a member must never stay taken by a freeze that nobody runs.
    fn drop(&mut self) {
        self.inner.table().forget(&self.freeze, &self.members);
    }
}

/// Prepares all while the journal is told of the freeze, then acquires all.
async fn take(
    targets: Vec<Target>,
    spec: Option<FreezeSpec>,
    recorder: Arc<Recorder>,
) -> Result<(Group, Vec<Acquired>, Vec<Check>), Vec<Fault>> {
    // Held before preparing starts, so that no undo item can be written before the object exists.
    let opening = recorder.opening().await;
    let (opened, prepared) =
        tokio::join!(opening.open(spec.as_ref()), group::prepare(&targets, |at| recorder.undo_of(at)));
    let prepared = prepared?;
    if let Err(error) = opened {
        group::abandon(prepared).await;
        let database = targets.first().map(|target| target.database.clone()).unwrap_or_default();
        return Err(vec![Fault { database, error: error.into() }]);
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
    let (group, acquired) = group::acquire(&targets, prepared).await?;
    Ok((group, acquired, warnings))
}
