//! Restores, from what was asked for to how it ended. One run each, never a second: what it found may not be what it left.

mod order;
mod target;

use std::time::Duration;

use api::{
    ChosenCopy, Restore, RestorePhase, RestoreStatus,
    conditions::{self, reasons, types},
    runner::{FailedRun, Report, UNTOUCHED},
};
use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{MissedTickBehavior, interval},
};
use tracing::debug;

use super::{
    Copies,
    hear::{Event, Heard, Hearing},
    kept::{change_where, who},
    runs::{NotBegun, Running},
    snapshots::not_begun,
};
use crate::{controllers::Turns, error::ApiError, records::Seen, resources::RESTORES};
use order::Planned;
pub(super) use target::Claimed;

/// Worked on at once; how many of them are runs is another bound ([`super::slots`]).
const AT_ONCE: usize = 256;
/// Of a target, where the run did not say what it left.
const UNKNOWN: &str = "unknown: see what is in it before you restore again";
/// For so long a Restore waits for what cannot be read now: a server, a Repository.
const PATIENCE: SignedDuration = SignedDuration::from_hours(1);
/// How often it is looked for what nobody works on.
const LOOK: Duration = Duration::from_secs(5);
pub(super) async fn run(copies: Copies) {
    let turns = Turns::new(&copies.tasks, AT_ONCE, {
        let copies = copies.clone();
        move |(namespace, name): (String, String)| turn(copies.clone(), namespace, name)
    });
    each(&copies, &turns, LOOK, |restore| !copies.is_to_claims(restore)).await;
}

/// Those that are not finished have their turn where it is ours to lead: when they change, and again and again, for whoever leads from
/// now on goes on with what another has begun.
pub(super) async fn each(
    copies: &Copies,
    turns: &Turns<(String, String)>,
    every: Duration,
    is_one: impl Fn(&Restore) -> bool,
) {
    let mut following = copies.restores.follow();
    let mut due = interval(every);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let take = |restore: &Restore| {
        let finished = restore.status.as_ref().is_some_and(|status| status.phase.is_finished());
        if !finished && copies.lead.is_ours() && is_one(restore) {
            let (namespace, name, _) = who(restore);
            turns.take((namespace, name));
        }
    };
    loop {
        tokio::select! {
            next = following.next() => match next {
                None => return,
                Some(Seen::There(restore)) => take(&restore),
                Some(Seen::Gone(_)) => {}
            },
            _ = due.tick() => copies.restores.all(None).iter().for_each(|one| take(one)),
        }
    }
}

async fn turn(copies: Copies, namespace: String, name: String) {
    let Ok(restore) = copies.restores.get(&namespace, &name).await else { return };
    if !copies.lead.is_ours() {
        return;
    }
    if restore.metadata.deletion_timestamp.is_some() {
        copies.cancel(&restore).await;
        return;
    }
    let done = match restore.status.clone().unwrap_or_default().phase {
        RestorePhase::Pending => copies.bring_back(&restore).await,
        RestorePhase::Running => copies.resume_restore(&restore).await,
        RestorePhase::Complete | RestorePhase::Failed => Ok(()),
    };
    if let Err(error) = done {
        debug!(namespace, name, message = %error.message, "a Restore's status was not written");
    }
}

impl Copies {
    /// Whether it is of volumes, which are brought back elsewhere.
    pub(super) fn is_to_claims(&self, restore: &Restore) -> bool {
        self.storage.is_some() && restore.spec.database.is_empty()
    }

    async fn bring_back(&self, restore: &Restore) -> Result<(), ApiError> {
        let _target = match self.claim_target(restore) {
            Ok(claim) => claim,
            Err(why) => return self.restore_waits(restore, &format!("{why}; it waits for its turn")).await,
        };
        let Some(_slot) = self.slot_for_restore(restore).await else { return Ok(()) };
        let planned = match self.restore_order(restore).await {
            Ok(planned) => self.may_read_secrets(&planned.order).await.map(|()| planned),
            failed => failed,
        };
        let Planned { order, chosen, warnings } = match planned {
            Ok(planned) => planned,
            Err(failed) if failed.again && is_young(restore) => {
                return self.restore_waits(restore, &format!("{}; trying again", failed.message)).await;
            }
            Err(failed) => return self.restore_failed(restore, failed).await,
        };
        let message = told(&chosen);
        let begun = |mut status: RestoreStatus| {
            let now = Timestamp::now();
            status.phase = RestorePhase::Running;
            status.message = None;
            status.chosen = Some(chosen.clone());
            status.warnings.clone_from(&warnings);
            status.started_at = Some(Time(now));
            complete(&mut status, false, reasons::IN_PROGRESS, "", now);
            status
        };
        // Somebody else may have led meanwhile, and have begun it: it is never done twice.
        if !self.change_restore_where(restore, |status| status.phase == RestorePhase::Pending, begun).await? {
            return Ok(());
        }
        self.tell(&RESTORES, restore, true, "Started", &message).await;
        self.still_leads()?;
        match self.runs.begin(order).await {
            Ok(running) => self.follow_restore(restore, running, &message).await,
            Err(NotBegun::Refused(error)) => {
                let target = Some(UNTOUCHED.to_owned());
                self.restore_failed(restore, FailedRun { target, ..not_begun(error) }).await
            }
            // Whether it was will be seen.
            Err(NotBegun::Unknown(error)) => Err(error),
        }
    }

    /// Waits for one. `None`: it is not wanted any more.
    async fn slot_for_restore(&self, restore: &Restore) -> Option<OwnedSemaphorePermit> {
        let message = format!("{} Restores go on already; it waits for its turn", self.restoring.most());
        self.slot(&self.restoring, &*self.restores, restore, self.restore_waits(restore, &message)).await
    }

    /// One that was begun by whoever led before; it may be gone.
    async fn resume_restore(&self, restore: &Restore) -> Result<(), ApiError> {
        let (namespace, _, uid) = who(restore);
        let _target = self.claim_target(restore);
        if let Some(running) = self.runs.resume(&namespace, &uid).await? {
            let chosen = restore.status.as_ref().and_then(|status| status.chosen.clone()).unwrap_or_default();
            return self.follow_restore(restore, running, &told(&chosen)).await;
        }
        let failed = FailedRun {
            reason: reasons::RUNNER_DIED.to_owned(),
            message: "the process that did it is gone; see what is in the target before you restore again".to_owned(),
            again: false,
            target: Some("unknown: PostgreSQL's databases are as they were until the restore takes their names; MariaDB's, and what a DumpTool restores, may be restored in part".to_owned()),
        };
        self.restore_failed(restore, failed).await
    }

    /// One that is being deleted does nothing any more.
    async fn cancel(&self, restore: &Restore) {
        let (namespace, name, uid) = who(restore);
        match self.runs.resume(&namespace, &uid).await {
            Ok(Some(running)) => running.end().await,
            Ok(None) => {}
            Err(error) => debug!(namespace, name, message = %error.message, "a run of a Restore that goes may go on"),
        }
    }

    /// A run, to its end. What it has said is written before it is let go.
    async fn follow_restore(&self, restore: &Restore, mut running: Running, message: &str) -> Result<(), ApiError> {
        let failed = match self.hear_restore(restore, &mut running).await? {
            Heard::Said(Report::Restored(restored)) => {
                let done = |mut status: RestoreStatus| {
                    let now = Timestamp::now();
                    status.phase = RestorePhase::Complete;
                    status.finished_at = Some(Time(now));
                    status.progress = None;
                    status.databases.clone_from(&restored.databases);
                    status.warnings.extend(restored.warnings.iter().cloned());
                    complete(&mut status, true, reasons::OK, "", now);
                    status
                };
                let is_news = self.change_restore_where(restore, is_open, done).await?;
                running.end().await;
                if is_news {
                    let message = format!("{} of {message}", restored.databases.join(", "));
                    self.tell(&RESTORES, restore, true, "Complete", &message).await;
                }
                return Ok(());
            }
            Heard::Unwanted => {
                running.end().await;
                return Ok(());
            }
            Heard::Said(Report::Failed(failed)) => failed,
            Heard::Said(_) | Heard::Nothing | Heard::TooLate => FailedRun {
                reason: reasons::RUNNER_DIED.to_owned(),
                message: "the run ended without a word".to_owned(),
                again: false,
                target: None,
            },
        };
        self.restore_failed(restore, failed).await?;
        running.end().await;
        Ok(())
    }

    /// Follows a run to its end; its progress is shown meanwhile. An error: it goes on, and is heard elsewhere.
    async fn hear_restore(&self, restore: &Restore, running: &mut Running) -> Result<Heard, ApiError> {
        // Its Job has one, and nothing else does.
        let mut hearing = Hearing::new(self, running, Timestamp::MAX);
        loop {
            let progress = match hearing.next(self, &*self.restores, restore).await? {
                Event::Progress(progress) => progress,
                Event::Over(heard) => return Ok(heard),
            };
            let shown = |status| RestoreStatus { progress: Some(progress.clone()), ..status };
            if self.change_restore_where(restore, is_open, shown).await.is_ok() {
                hearing.has_written(&progress);
            }
        }
    }

    /// Nothing is done yet; what is in the way may go.
    async fn restore_waits(&self, restore: &Restore, message: &str) -> Result<(), ApiError> {
        let said = |status| RestoreStatus { message: Some(message.to_owned()), ..status };
        self.change_restore_where(restore, |status| status.phase == RestorePhase::Pending, said).await.map(drop)
    }

    pub(super) async fn restore_failed(&self, restore: &Restore, failed: FailedRun) -> Result<(), ApiError> {
        let done = |mut status: RestoreStatus| {
            let now = Timestamp::now();
            status.phase = RestorePhase::Failed;
            status.finished_at = Some(Time(now));
            status.progress = None;
            status.message = Some(failed.message.clone());
            status.target = failed.target.clone().or_else(|| Some(UNKNOWN.to_owned()));
            complete(&mut status, false, &failed.reason, &failed.message, now);
            status
        };
        if !self.change_restore_where(restore, is_open, done).await? {
            return Ok(());
        }
        self.logs.say(&who(restore).2, &format!("failed: {}: {}", failed.reason, failed.message));
        self.tell(&RESTORES, restore, false, &failed.reason, &failed.message).await;
        Ok(())
    }

    pub(super) async fn change_restore(
        &self,
        restore: &Restore,
        change: impl Fn(RestoreStatus) -> RestoreStatus + Send + Sync,
    ) -> Result<(), ApiError> {
        self.change_restore_where(restore, |_| true, change).await.map(drop)
    }

    /// And only where it stands so: whoever led meanwhile may have gone on. Whether it did.
    async fn change_restore_where(
        &self,
        restore: &Restore,
        is_so: impl Fn(&RestoreStatus) -> bool + Send + Sync,
        change: impl Fn(RestoreStatus) -> RestoreStatus + Send + Sync,
    ) -> Result<bool, ApiError> {
        let generation = restore.metadata.generation;
        let change = |status| RestoreStatus { observed_generation: generation, ..change(status) };
        change_where(&*self.restores, restore, is_so, change).await
    }
}

/// Whether it can become something still.
fn is_open(status: &RestoreStatus) -> bool {
    !status.phase.is_finished()
}

fn is_young(restore: &Restore) -> bool {
    let made = restore.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |made| made.0);
    Timestamp::now().duration_since(made) < PATIENCE
}

fn told(chosen: &ChosenCopy) -> String {
    format!("copy {} of Repository {}", chosen.snapshot, chosen.repository)
}

pub(super) fn complete(status: &mut RestoreStatus, is: bool, reason: &str, message: &str, now: Timestamp) {
    conditions::set_condition(&mut status.conditions, types::COMPLETE, is, reason, message, None, now);
}
