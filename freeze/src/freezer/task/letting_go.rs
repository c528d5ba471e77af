//! Letting go: proved if it is still wanted, released whatever happens, written down, and everybody answered.

use std::{sync::Arc, time::Duration};

use api::{Check, Copy, FreezeStatus, Phase, Proof};
use jiff::Timestamp;
use tokio::time::Instant;
use tracing::{error, info};

use super::{
    super::{
        Refused,
        outcome::{Finish, conclude, keep, milliseconds, prove, report},
        undo::Undoing,
    },
    PROVE, RELEASE, STOP, Task,
};
use crate::{
    driver::Farewell,
    group::{Fault, Group, LetGo},
};

/// How far beyond the lease it may reach: the server lets go by itself soon after.
const PROVE_BEYOND: Duration = Duration::from_millis(200);

impl Task {
    /// Proves what can be proved, releases everything, writes how it ended, and answers everybody who waits. What is left
    /// to do holds nothing.
    pub(super) async fn let_go(&mut self, group: Option<Group>, finish: Finish) -> Farewell {
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
        let (phase, reason, mut message) = finish.tell(held);
        if !gone.faults.is_empty() {
            message += "; letting go was not confirmed everywhere: the server ends what is left within 5 s";
        }
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
            // What an earlier claim was told is no word on how the freeze ended.
            status.targets.iter_mut().for_each(|target| target.proof = None);
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
            self.inner.table().forget(&self.vitals, &self.members);
        }
        self.answer_everybody(&finish, &causes);
        // Whoever still asks is not kept waiting while the rest is undone.
        self.deferred.clear();
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
        // Dropped, they are told that no claim of theirs holds.
        self.renewed.clear();
        for waiter in self.waiting.drain(..) {
            let refused = match finish {
                Finish::Released | Finish::Withdrawn(_) | Finish::Forced(_) => {
                    Refused::Withdrawn { freeze: self.freeze.clone() }
                }
                Finish::Shutdown => Refused::Stopping { begun: Some(self.freeze.clone()) },
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
    pub(super) async fn undo_the_rest(&mut self) {
        let directory = self.inner.directory.as_ref();
        let (freeze, known, recorder) = (&self.freeze, &self.targets, &self.recorder);
        Undoing { freeze, directory, known, recorder }.until_done().await;
    }
}
