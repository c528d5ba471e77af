//! Snapshots, from what was asked for to what can be restored. Each has one task at a time; what it does next is decided by
//! [`plan`], from the object alone and whether a run of it is here.
//!
//! Deleted at any point, it leaves nothing: a run is ended first, and what it had stored is forgotten.

mod change;
mod leftovers;
mod order;
mod plan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use api::{
    Snapshot, SnapshotMethod, SnapshotPhase, SnapshotStatus,
    conditions::reasons,
    runner::{FailedRun, ReplicateTask, Report, RunName, Task, UNTOUCHED},
};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{MissedTickBehavior, interval, sleep},
};
use tracing::debug;

use super::{
    Copies,
    hear::Heard,
    kept::who,
    runs::{NotBegun, Order, Running, keys, named},
    status,
};
use crate::{
    controllers::Turns,
    error::ApiError,
    records::Seen,
    resources::{Resource, SNAPSHOTS},
};
use order::{place, replication_of, replications_of, runs_of};
pub(super) use order::{run_now, template};
use plan::{Next, next};

/// Worked on at once; how many of them are runs is another bound ([`super::slots`]).
const AT_ONCE: usize = 256;
/// How often it is looked for what is due.
const LOOK: Duration = Duration::from_secs(2);
/// How long is waited after something could not be written.
const MOMENT: Duration = Duration::from_millis(500);
/// Of a server that is in no cluster.
pub(super) const NO_VOLUMES: &str =
    "VolumeSnapshots are taken in a cluster, and this server has none: say method: Dump, and a repository";
const KIND: &Resource = &SNAPSHOTS;

pub(super) async fn run(copies: Copies) {
    let turns = Turns::new(&copies.tasks, AT_ONCE, {
        let copies = copies.clone();
        move |(namespace, name): (String, String)| turn(copies.clone(), namespace, name)
    });
    let mut following = copies.snapshots.follow();
    // Of ten thousand nearly all are finished: only the others are looked at again.
    let mut unfinished: BTreeMap<(String, String), Arc<Snapshot>> = BTreeMap::new();
    let mut due = interval(LOOK);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            seen = following.next() => match seen {
                None => return,
                Some(Seen::There(snapshot)) => {
                    let (namespace, name, _) = who(&*snapshot);
                    if is_finished(&snapshot) || copies.is_of_volumes(&snapshot) {
                        unfinished.remove(&(namespace, name));
                    } else {
                        unfinished.insert((namespace.clone(), name.clone()), Arc::clone(&snapshot));
                        if copies.lead.is_ours() {
                            take(&turns, &snapshot, (namespace, name));
                        }
                    }
                }
                Some(Seen::Gone(snapshot)) => {
                    let (namespace, name, _) = who(&*snapshot);
                    unfinished.remove(&(namespace, name));
                }
            },
            _ = due.tick() => if copies.lead.is_ours() {
                for (name, snapshot) in &unfinished {
                    take(&turns, snapshot, name.clone());
                }
            },
        }
    }
}

/// Nothing is to be done about it but when it is deleted.
fn is_finished(snapshot: &Snapshot) -> bool {
    let phase = snapshot.status.as_ref().map(|status| status.phase).unwrap_or_default();
    phase.is_finished() && snapshot.metadata.deletion_timestamp.is_none()
}

fn take(turns: &Turns<(String, String)>, snapshot: &Snapshot, name: (String, String)) {
    if next(snapshot, Timestamp::now()) != Next::Nothing {
        turns.take(name);
    }
}

async fn turn(copies: Copies, namespace: String, name: String) {
    let Ok(snapshot) = copies.snapshots.get(&namespace, &name).await else { return };
    // It may have waited for its turn while another was chosen.
    if !copies.lead.is_ours() {
        return;
    }
    let done = match next(&snapshot, Timestamp::now()) {
        Next::Nothing => Ok(()),
        Next::Run if snapshot.spec.method == SnapshotMethod::VolumeSnapshot => copies.no_volumes(&snapshot).await,
        Next::Run => copies.dump(&snapshot).await,
        Next::Resume => copies.resume(&snapshot).await,
        Next::Replicate => copies.replicate(&snapshot).await,
        Next::Forget => copies.forget(&snapshot).await,
        Next::LetGo => copies.let_go(&snapshot).await,
    };
    if let Err(error) = done {
        debug!(namespace, name, message = %error.message, "not now; trying again");
        sleep(MOMENT).await;
    }
}

impl Copies {
    /// One run, to its end.
    async fn dump(&self, snapshot: &Snapshot) -> Result<(), ApiError> {
        let run = run_now(snapshot);
        if let Some(found) = self.stored_before(snapshot).await {
            self.unlock(snapshot).await;
            self.change(snapshot, |status| status::dumped(status, found.clone(), Timestamp::now())).await?;
            self.tell(KIND, snapshot, true, "Stored", "an earlier run of it had stored it, and could not say so").await;
            return Ok(());
        }
        let Some(_slot) = self.slot_for(snapshot).await else { return Ok(()) };
        let (namespace, name, _) = who(snapshot);
        self.snapshots.keep(&namespace, &name, api::FINALIZER_SNAPSHOT).await?;
        let number = run.over.len() + 1;
        let is_next =
            |status: &SnapshotStatus| status.phase == SnapshotPhase::Pending && status.attempts as usize + 1 == number;
        // Somebody else may have led meanwhile, and have begun it.
        if !self.change_where(snapshot, is_next, |status| status::begun(status, Timestamp::now())).await? {
            return Ok(());
        }
        let order = match self.order(snapshot, run).await {
            Ok(order) => order,
            Err(failed) => return self.failed(snapshot, &failed).await,
        };
        if let Err(failed) = self.may_read_secrets(&order).await {
            return self.failed(snapshot, &failed).await;
        }
        self.still_leads()?;
        match self.runs.begin(order).await {
            Ok(running) => {
                self.tell(KIND, snapshot, true, "Started", &format!("run {number} of the dump")).await;
                self.follow(snapshot, running).await
            }
            Err(NotBegun::Refused(error)) => self.failed(snapshot, &not_begun(error)).await,
            // Whether it was will be seen.
            Err(NotBegun::Unknown(error)) => Err(error),
        }
    }

    /// Waits for one. `None`: it is not wanted any more.
    async fn slot_for(&self, snapshot: &Snapshot) -> Option<OwnedSemaphorePermit> {
        let message = format!("{} dumps go on already; it waits for its turn", self.dumping.most());
        let said = |status| SnapshotStatus { message: Some(message.clone()), ..status };
        self.slot(&self.dumping, &*self.snapshots, snapshot, self.change(snapshot, said)).await
    }

    /// A run that was begun by whoever led before; it may be gone.
    async fn resume(&self, snapshot: &Snapshot) -> Result<(), ApiError> {
        let (namespace, _, _) = who(snapshot);
        let Some(name) = runs_of(snapshot).pop() else { return self.failed(snapshot, &died(GONE)).await };
        match self.runs.resume(&namespace, &name).await? {
            Some(running) => self.follow(snapshot, running).await,
            None => self.failed(snapshot, &died(GONE)).await,
        }
    }

    /// A run of the dump, to its end. What it has said is written before it is let go.
    async fn follow(&self, snapshot: &Snapshot, mut running: Running) -> Result<(), ApiError> {
        let started = snapshot.status.as_ref().and_then(|status| status.started_at.as_ref()).map(|at| at.0);
        let deadline = snapshot.spec.deadline(started.unwrap_or_else(Timestamp::now));
        match self.hear(snapshot, &mut running, deadline).await? {
            Heard::Said(Report::Dumped(dumped)) => {
                let message = format!(
                    "{}: {} bytes, {} of them new, in {}",
                    dumped.consistency.verdict,
                    dumped.size(),
                    dumped.stored,
                    dumped.whole.join(", ")
                );
                self.has_changed(snapshot);
                let done = |status| status::dumped(status, (*dumped).clone(), Timestamp::now());
                let is_news = self.change_where(snapshot, is_open, done).await?;
                running.end().await;
                if is_news {
                    self.tell(KIND, snapshot, true, "Stored", &message).await;
                }
                Ok(())
            }
            Heard::Said(Report::Failed(failed)) => {
                self.failed(snapshot, &failed).await?;
                running.end().await;
                Ok(())
            }
            Heard::Unwanted => {
                running.end().await;
                Ok(())
            }
            Heard::TooLate => {
                running.end().await;
                self.failed(snapshot, &too_late()).await
            }
            Heard::Said(_) | Heard::Nothing => {
                running.end().await;
                self.failed(snapshot, &died("the run ended without a word")).await
            }
        }
    }

    /// There is nothing here that could take VolumeSnapshots.
    async fn no_volumes(&self, snapshot: &Snapshot) -> Result<(), ApiError> {
        let (reason, message) = (reasons::UNSUPPORTED.to_owned(), NO_VOLUMES.to_owned());
        self.failed(snapshot, &FailedRun { reason, message, again: false, target: None }).await
    }

    /// Gives locations what they lack; one run after the other.
    async fn replicate(&self, snapshot: &Snapshot) -> Result<(), ApiError> {
        let status = snapshot.status.clone().unwrap_or_default();
        let to: Vec<String> = status.locations.iter().filter(|at| !at.stored).map(|at| at.name.clone()).collect();
        let (namespace, _, uid) = who(snapshot);
        // Whoever led before may have begun one.
        if let Some(running) = self.runs.resume(&namespace, &replication_of(&uid, status.replications)).await? {
            return self.follow_replication(snapshot, running, &to).await;
        }
        let Some(_slot) = self.slot_for(snapshot).await else { return Ok(()) };
        let name = snapshot.spec.repository.clone().unwrap_or_default();
        let repository = self.repositories.get(&namespace, &name).await?;
        let secrets = keys(repository.spec.secrets());
        let is_next =
            |now: &SnapshotStatus| now.phase == SnapshotPhase::Replicating && now.replications == status.replications;
        if !self.change_where(snapshot, is_next, status::replicating).await? {
            return Ok(());
        }
        // One at a time: any other is over.
        let over = vec![replications_of(&uid)];
        let run = RunName { name: replication_of(&uid, status.replications + 1), over };
        let id = status.id.unwrap_or_default();
        let task = ReplicateTask { run, repository: repository.spec.clone(), id, to: to.clone() };
        let place = place(snapshot, &repository, Vec::new(), None);
        let order = Order { name: task.run.name.clone(), task: Task::Replicate(Box::new(task)), secrets, place };
        self.still_leads()?;
        match self.runs.begin(order).await {
            Ok(running) => self.follow_replication(snapshot, running, &to).await,
            Err(NotBegun::Refused(error)) => self.replicated(snapshot, &to, not(&to, &error.message)).await,
            Err(NotBegun::Unknown(error)) => Err(error),
        }
    }

    async fn follow_replication(
        &self,
        snapshot: &Snapshot,
        mut running: Running,
        to: &[String],
    ) -> Result<(), ApiError> {
        // However long the dump had: what is missing is given until it is there.
        let deadline = snapshot.spec.deadline(Timestamp::now());
        let results = match self.hear(snapshot, &mut running, deadline).await? {
            Heard::Said(Report::Replicated(results)) => results,
            Heard::Said(Report::Failed(failed)) => not(to, &failed.message),
            Heard::Unwanted => {
                running.end().await;
                return Ok(());
            }
            Heard::Said(_) | Heard::Nothing => not(to, "the run ended without a word"),
            Heard::TooLate => not(to, "it was not done within spec.deadlineSeconds"),
        };
        self.replicated(snapshot, to, results).await?;
        running.end().await;
        Ok(())
    }

    /// By location: why it does not have it still.
    async fn replicated(
        &self,
        snapshot: &Snapshot,
        to: &[String],
        results: Vec<(String, Option<String>)>,
    ) -> Result<(), ApiError> {
        let is_done = results.iter().all(|(_, why)| why.is_none());
        self.has_changed(snapshot);
        self.change(snapshot, |status| status::replicated(status, &results, Timestamp::now())).await?;
        if is_done {
            self.tell(KIND, snapshot, true, "Replicated", &format!("{} has it now", to.join(", "))).await;
        }
        Ok(())
    }

    async fn failed(&self, snapshot: &Snapshot, failed: &FailedRun) -> Result<(), ApiError> {
        let (namespace, name, uid) = who(snapshot);
        let now = Timestamp::now();
        let snapshot = self.snapshots.get(&namespace, &name).await?;
        if who(&*snapshot).2 != uid || !is_open(&snapshot.status.clone().unwrap_or_default()) {
            return Ok(());
        }
        let last = status::is_last(&snapshot, failed, now);
        if last {
            self.unlock(&snapshot).await;
        }
        self.logs.say(&uid, &format!("failed: {}: {}", failed.reason, failed.message));
        if self.change_where(&snapshot, is_open, |status| status::failed(status, failed, last, now)).await? {
            self.tell(KIND, &*snapshot, false, &failed.reason, &failed.message).await;
        }
        Ok(())
    }

    /// A namespace that we were not let into is told at once, and not by a run that comes to nothing. What is not in a Secret the run tells.
    pub(super) async fn may_read_secrets(&self, order: &Order) -> Result<(), FailedRun> {
        let values = self.depot.values(&order.place.namespace, named(&order.secrets)).await;
        values.map(drop).map_err(|error| FailedRun {
            reason: reasons::CREDENTIALS_MISSING.to_owned(),
            again: error.code.is_server_error(),
            message: error.message,
            target: Some(UNTOUCHED.to_owned()),
        })
    }

    /// What follows on what was written may be done by who leads alone.
    pub(super) fn still_leads(&self) -> Result<(), ApiError> {
        let another = || ApiError::unavailable("another replica leads now, and hears how it goes");
        self.lead.is_ours().then_some(()).ok_or_else(another)
    }
}

/// Whether it can become something still.
fn is_open(status: &SnapshotStatus) -> bool {
    matches!(status.phase, SnapshotPhase::Pending | SnapshotPhase::Running)
}

fn not(locations: &[String], why: &str) -> Vec<(String, Option<String>)> {
    locations.iter().map(|name| (name.clone(), Some(why.to_owned()))).collect()
}

const GONE: &str = "the process that took it is gone";

/// Nothing was done yet.
pub(super) fn not_begun(error: ApiError) -> FailedRun {
    FailedRun { reason: reasons::NOT_STARTED.to_owned(), message: error.message, again: true, target: None }
}

fn died(message: &str) -> FailedRun {
    FailedRun { reason: reasons::RUNNER_DIED.to_owned(), message: message.to_owned(), again: true, target: None }
}

fn too_late() -> FailedRun {
    let message = "it was not done within spec.deadlineSeconds".to_owned();
    FailedRun { reason: reasons::DEADLINE_EXCEEDED.to_owned(), message, again: false, target: None }
}
