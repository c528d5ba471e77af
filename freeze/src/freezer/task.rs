//! The life of one freeze. The task owns everything that holds: when it ends, or is dropped, nothing holds any more.
//!
//! ```text
//! take hold (prepare ∥ open the journal, acquire, write Frozen) ─► hold (heartbeats, claims, lease) ─► let go (prove,
//! release, write) ─► undo what outlived the sessions, for ever ─► gone
//! ```

mod holding;
mod letting_go;
mod taking;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use api::{Check, Claim, Copy, FreezeSpec, FreezeStatus, Level, Phase, Stage};
use jiff::Timestamp;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use super::{
    Answer, AnsweredWhen, COMMANDS, CannotJoin, Ended, Ending, Granted, Handle, Inner, Member, Refused, Request,
    Vitals,
    outcome::{Finish, blank},
    recorder::{Recorder, write_until_done},
};
use crate::{
    claims::{Claimant, Claims, Wish},
    driver::{Moment, Plan},
    error::Error,
    group::{Fault, Target},
    journal::{FreezeName, JournalError},
    lease,
};

/// What a freeze is asked.
#[derive(Debug)]
pub(super) enum Command {
    Join { claimant: Claimant, wish: Wish, answered: AnsweredWhen, answer: Answer },
    End { uid: String, stage: Stage, answer: oneshot::Sender<Option<Result<Ended, Refused>>> },
    Renew { uid: String, ttl: Option<Duration>, answer: oneshot::Sender<Option<Granted>> },
    Thaw { ending: Ending, answer: oneshot::Sender<Ended> },
}

#[derive(Debug)]
pub(super) struct Task {
    inner: Arc<Inner>,
    freeze: FreezeName,
    spec: Option<FreezeSpec>,
    accepted: Option<Arc<Notify>>,
    members: Arc<[Member]>,
    level: Level,
    copy: Copy,
    targets: Vec<Target>,
    max_frozen: Duration,
    recorder: Arc<Recorder>,
    vitals: Arc<Vitals>,
    /// Boxed, since a channel has room for 32 from the beginning (tokio `mpsc::block`), and most freezes are sent one or two.
    commands: mpsc::Receiver<Box<Command>>,
    /// Taken from there, and not done yet.
    deferred: VecDeque<Command>,
    claims: Claims,
    /// Callers that wait for their claim to hold.
    waiting: Vec<Waiter>,
    /// Callers whose claims have a later end that is not written yet.
    renewed: Vec<(String, oneshot::Sender<Option<Granted>>)>,
    /// Callers that wait for the end.
    leaving: Vec<Leaver>,
    warnings: Vec<Check>,
    /// The journal does not know yet how it ended.
    unwritten: bool,
    /// While it holds: when every server heard of us last, and when it shall next.
    last_pulse: Instant,
    next_beat: Instant,
}

#[derive(Debug)]
struct Waiter {
    uid: String,
    answered: AnsweredWhen,
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
/// How long letting go may last; after it, connections are simply closed.
const RELEASE: Duration = Duration::from_secs(1);
/// How long sessions that hold nothing stay open after the answer.
const ASIDE: Duration = Duration::from_millis(20);
/// How long ending the data phase may last: `pg_backup_stop` writes a checkpoint record and switches WAL.
const STOP: Duration = Duration::from_secs(30);

impl Task {
    pub(super) fn new(inner: Arc<Inner>, request: &Request, members: Arc<[Member]>, answer: Answer) -> (Self, Handle) {
        let made = Moment::now();
        let now = made.at;
        let mut claims = Claims::default();
        claims.add(request.claimant.clone(), request.ttl, made);
        let status = FreezeStatus {
            phase: Phase::Preparing,
            freezer: Some(inner.identity.clone()),
            epoch: Some(inner.epoch),
            databases: Some(
                request.targets.iter().map(|target| target.database.as_str()).collect::<Vec<_>>().join(","),
            ),
            level: Some(request.level),
            claims: claims.show(made.instant, now),
            targets: request.targets.iter().map(blank).collect(),
            mark: request.targets.first().map(|target| target.plan.freeze_uid.clone()),
            requested_at: Some(api::micro_time(now)),
            ..FreezeStatus::default()
        };
        let recorder = Recorder::new(request.freeze.clone(), Arc::clone(&inner.journal), status);
        let (sender, commands) = mpsc::channel(COMMANDS);
        let vitals = Vitals::new();
        vitals.admit(&request.claimant);
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
            accepted: request.accepted.clone(),
            members,
            level: request.level,
            copy: request.copy,
            targets: request.targets.iter().map(within).collect(),
            max_frozen: request.max_frozen,
            recorder,
            vitals,
            commands,
            deferred: VecDeque::new(),
            waiting: vec![Waiter {
                uid: request.claimant.uid.clone(),
                answered: request.answered,
                answer,
                existing: false,
            }],
            renewed: Vec::new(),
            leaving: Vec::new(),
            claims,
            warnings: Vec::new(),
            unwritten: false,
            last_pulse: Instant::now(),
            next_beat: Instant::now(),
        };
        (task, handle)
    }

    pub(super) async fn run(mut self) {
        info!(freeze = %self.freeze, level = %self.level, copy = %self.copy, "freeze begins");
        let (held, finish) = match self.take_hold().await {
            Ok((group, hard_end)) => self.hold(group, hard_end).await,
            Err(not_held) => not_held,
        };
        let farewell = self.let_go(held, finish).await;
        // Whoever was answered comes first: ending a session is work for the server, and nobody waits for it.
        sleep(ASIDE).await;
        timeout(RELEASE, farewell.say()).await.ok();
        self.undo_the_rest().await;
        if self.unwritten {
            write_until_done(&self.freeze, || self.recorder.write(|_| ())).await;
        }
    }

    fn forced(&mut self, ending: Ending, answer: oneshot::Sender<Ended>) -> Finish {
        self.leaving.push(Leaver::Forced(answer));
        match ending {
            Ending::Forced { by } => Finish::Forced(by),
            Ending::Withdrawn { why } => Finish::Withdrawn(why),
        }
    }

    /// A claim that was ended while somebody waited for it holds for nobody.
    fn dismiss_withdrawn(&mut self) {
        let (waiting, withdrawn) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiter| self.claims.is_alive(&waiter.uid));
        self.waiting = waiting;
        for Waiter { answer, .. } in withdrawn {
            answer.send(Err(Refused::Withdrawn { freeze: self.freeze.clone() })).ok();
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

    fn conflict(&self, why: CannotJoin) -> Refused {
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
        self.inner.table().forget(&self.vitals, &self.members);
    }
}
