//! Snapshots, from what was asked for to what can be restored. Each has one task at a time; what it does next is decided by
//! [`plan`], from the object alone and whether a run of it is here.
//!
//! Deleted at any point, it leaves nothing: a run is ended first, and what it had stored is forgotten.

mod order;
mod plan;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use api::{
    Snapshot, SnapshotMethod, SnapshotStatus,
    conditions::reasons,
    runner::{DUMPING, Dumped, FailedRun, ReplicateTask, Report, RunName, Task},
};
use futures::StreamExt;
use jiff::Timestamp;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::debug;

use super::{
    Copies,
    kept::who,
    runs::{Order, Running, keys},
    status,
};
use crate::{
    controllers::Turns,
    error::ApiError,
    records::Seen,
    resources::{Resource, SNAPSHOTS},
};
pub(super) use order::run_now;
use order::{place, replications_of, runs_of};
use plan::{Next, next};

/// Dumps at once: each is a process, and a load for its database.
const AT_ONCE: usize = 4;
/// How often it is looked for what is due.
const LOOK: Duration = Duration::from_secs(2);
/// How often it is looked whether a Snapshot whose run goes on was deleted.
const STILL_WANTED: Duration = Duration::from_millis(500);
/// How long is waited after a repository did not do what it should.
const AGAIN: Duration = Duration::from_secs(5);
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
        Next::LetGo => {
            copies.unlock(&snapshot).await;
            copies.snapshots.let_go(&namespace, &name, api::FINALIZER_SNAPSHOT).await
        }
    };
    if let Err(error) = done {
        debug!(namespace, name, message = %error.message, "not now; trying again");
        sleep(STILL_WANTED).await;
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
        let (namespace, name, _) = who(snapshot);
        self.snapshots.keep(&namespace, &name, api::FINALIZER_SNAPSHOT).await?;
        self.change(snapshot, |status| status::begun(status, Timestamp::now())).await?;
        let number = run.over.len() + 1;
        let order = match self.order(snapshot, run).await {
            Ok(order) => order,
            Err(failed) => return self.failed(snapshot, &failed).await,
        };
        match self.runs.begin(order).await {
            Ok(running) => {
                self.tell(KIND, snapshot, true, "Started", &format!("run {number} of the dump")).await;
                self.follow(snapshot, running).await
            }
            Err(error) => self.failed(snapshot, &not_begun(error)).await,
        }
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

    /// A run of the dump, to its end.
    async fn follow(&self, snapshot: &Snapshot, running: Running) -> Result<(), ApiError> {
        let (namespace, name, uid) = who(snapshot);
        match self.hear(snapshot, running).await? {
            Some(Report::Dumped(dumped)) => {
                let message = format!(
                    "{}: {} bytes, {} of them new, in {}",
                    dumped.consistency.verdict,
                    dumped.size(),
                    dumped.stored,
                    dumped.whole.join(", ")
                );
                self.has_changed(snapshot);
                self.change(snapshot, |status| status::dumped(status, (*dumped).clone(), Timestamp::now())).await?;
                self.tell(KIND, snapshot, true, "Stored", &message).await;
                Ok(())
            }
            Some(Report::Failed(failed)) => self.failed(snapshot, &failed).await,
            // It is being deleted.
            None if self.is_unwanted(&namespace, &name, &uid).await => Ok(()),
            _ => self.failed(snapshot, &died("the run ended without a word")).await,
        }
    }

    /// There is nothing here that could take VolumeSnapshots.
    async fn no_volumes(&self, snapshot: &Snapshot) -> Result<(), ApiError> {
        let (reason, message) = (reasons::UNSUPPORTED.to_owned(), NO_VOLUMES.to_owned());
        self.failed(snapshot, &FailedRun { reason, message, again: false, target: None }).await
    }

    async fn replicate(&self, snapshot: &Snapshot) -> Result<(), ApiError> {
        let status = snapshot.status.clone().unwrap_or_default();
        let to: Vec<String> = status.locations.iter().filter(|at| !at.stored).map(|at| at.name.clone()).collect();
        let (namespace, _, uid) = who(snapshot);
        let name = snapshot.spec.repository.clone().unwrap_or_default();
        let repository = self.repositories.get(&namespace, &name).await?;
        let secrets = keys(repository.spec.secrets());
        let id = status.id.unwrap_or_default();
        // One at a time: any other is over.
        let all = replications_of(&uid);
        let run = RunName { name: format!("{all}{}", Timestamp::now().as_millisecond()), over: vec![all] };
        let task = ReplicateTask { run, repository: repository.spec.clone(), id, to: to.clone() };
        let place = place(snapshot, &repository, Vec::new());
        let order = Order { name: task.run.name.clone(), task: Task::Replicate(Box::new(task)), secrets, place };
        let running = self.runs.begin(order).await?;
        let results = match self.hear(snapshot, running).await? {
            Some(Report::Replicated(results)) => results,
            Some(Report::Failed(failed)) => {
                to.iter().map(|name| (name.clone(), Some(failed.message.clone()))).collect()
            }
            _ => return Ok(()),
        };
        let is_done = results.iter().all(|(_, why)| why.is_none());
        self.has_changed(snapshot);
        self.change(snapshot, |status| status::replicated(status, &results, Timestamp::now())).await?;
        if is_done {
            self.tell(KIND, snapshot, true, "Replicated", &format!("{} has it now", to.join(", "))).await;
        }
        // Some location is still not well: others have their turn meanwhile.
        sleep(if is_done { Duration::ZERO } else { Duration::from_secs(10) }).await;
        Ok(())
    }

    /// What a run before has stored, of which nobody heard: it died, or we did.
    async fn stored_before(&self, snapshot: &Snapshot) -> Option<Dumped> {
        let status = snapshot.status.as_ref()?;
        if !status.begun {
            return None;
        }
        let (namespace, _, uid) = who(snapshot);
        let name = snapshot.spec.repository.clone()?;
        let repository = self.repositories.get(&namespace, &name).await.ok()?;
        let entries = self.depot.look(&namespace, &name, &repository.spec).await.entries;
        let locations: Vec<String> = repository.spec.locations.iter().map(|location| location.name.clone()).collect();
        entries.iter().rev().find_map(|entry| status::of_entry(entry, &uid, &locations))
    }

    /// No run of it will follow: what locks the last ones may have left is removed now, or is stale in half an hour.
    async fn unlock(&self, snapshot: &Snapshot) {
        if snapshot.status.as_ref().is_none_or(|status| !status.begun) {
            return;
        }
        let (namespace, name, uid) = who(snapshot);
        let of = snapshot.spec.repository.clone().unwrap_or_default();
        let Ok(repository) = self.repositories.get(&namespace, &of).await else { return };
        let over = runs_of(snapshot).into_iter().chain([replications_of(&uid)]).collect();
        if let Err(closed) = self.depot.unlock(&namespace, &of, &repository.spec, over).await {
            debug!(namespace, name, message = closed.message, "a lock of a dead run may be left");
        }
    }

    /// What was stored goes with its Snapshot: also by a run that nobody heard of again.
    async fn forget(&self, snapshot: &Snapshot) -> Result<(), ApiError> {
        let (namespace, name, uid) = who(snapshot);
        let id = snapshot.status.as_ref().and_then(|status| status.id.clone());
        let of = snapshot.spec.repository.clone().unwrap_or_default();
        let forgotten = match self.repositories.get(&namespace, &of).await {
            // Nobody could say any more where it is.
            Err(error) if error.code == 404 => Ok(()),
            Err(error) => return Err(error),
            Ok(repository) => {
                self.unlock(snapshot).await;
                self.depot.remove(&namespace, &of, &repository.spec, id, uid).await
            }
        };
        match forgotten {
            Ok(()) => self.snapshots.let_go(&namespace, &name, api::FINALIZER_SNAPSHOT).await,
            Err(closed) => {
                let message = format!(
                    "it cannot be removed from Repository {of}: {}; trying again. To leave it there, set spec.deletionPolicy: Retain",
                    closed.message
                );
                let said = |status: SnapshotStatus| SnapshotStatus { message: Some(message.clone()), ..status };
                self.change(snapshot, said).await?;
                sleep(AGAIN).await;
                Ok(())
            }
        }
    }

    async fn failed(&self, snapshot: &Snapshot, failed: &FailedRun) -> Result<(), ApiError> {
        let (namespace, name, _) = who(snapshot);
        let now = Timestamp::now();
        let snapshot = self.snapshots.get(&namespace, &name).await?;
        let last = status::is_last(&snapshot, failed, now);
        if last {
            self.unlock(&snapshot).await;
        }
        self.logs.say(&who(&*snapshot).2, &format!("failed: {}: {}", failed.reason, failed.message));
        self.change(&snapshot, |status| status::failed(status, failed, last, now)).await?;
        self.tell(KIND, &*snapshot, false, &failed.reason, &failed.message).await;
        Ok(())
    }

    /// Follows a run to its end; its progress is shown meanwhile. `None`: it said nothing at its end, or is not wanted any more.
    async fn hear(&self, snapshot: &Snapshot, mut running: Running) -> Result<Option<Report>, ApiError> {
        let (namespace, name, uid) = who(snapshot);
        let mut pace = status::Pace::default();
        let mut wanted = interval(STILL_WANTED);
        let mut last = None;
        let started = snapshot.status.as_ref().and_then(|status| status.started_at.as_ref()).map(|at| at.0);
        let deadline = snapshot.spec.deadline(started.unwrap_or_else(Timestamp::now));
        loop {
            tokio::select! {
                report = running.reports.recv() => match report {
                    None => return Ok(last),
                    Some(Report::Log(line)) => self.logs.say(&uid, &line),
                    Some(Report::Progress { step, bytes, total }) => {
                        let progress = pace.progress(step, bytes, total, Timestamp::now());
                        let writes = progress.step == DUMPING;
                        let shown = |status: SnapshotStatus| SnapshotStatus {
                            begun: status.begun || writes,
                            progress: Some(progress.clone()),
                            ..status
                        };
                        self.change(snapshot, shown).await.ok();
                    }
                    Some(report) => last = Some(report),
                },
                _ = wanted.tick() => {
                    if !self.lead.is_ours() {
                        return Err(ApiError::unavailable("another replica leads now, and hears how it goes"));
                    }
                    if self.is_unwanted(&namespace, &name, &uid).await {
                        running.end().await;
                        return Ok(None);
                    }
                    if last.is_none() && Timestamp::now() > deadline {
                        running.end().await;
                        return Ok(Some(Report::Failed(FailedRun {
                            reason: reasons::DEADLINE_EXCEEDED.to_owned(),
                            message: "it was not done within spec.deadlineSeconds".to_owned(),
                            again: false,
                            target: None,
                        })));
                    }
                }
            }
        }
    }

    async fn is_unwanted(&self, namespace: &str, name: &str, uid: &str) -> bool {
        match self.snapshots.get(namespace, name).await {
            Ok(now) => now.metadata.uid.as_deref() != Some(uid) || now.metadata.deletion_timestamp.is_some(),
            Err(error) => error.code == 404,
        }
    }

    /// Made anew under its name, it is somebody else's.
    async fn is_another(&self, snapshot: &Snapshot) -> bool {
        let (namespace, name, uid) = who(snapshot);
        self.snapshots.get(&namespace, &name).await.is_ok_and(|now| now.metadata.uid.as_deref() != Some(&uid))
    }

    /// There is more or less in its Repository than somebody has seen.
    fn has_changed(&self, snapshot: &Snapshot) {
        let (namespace, _, _) = who(snapshot);
        self.depot.has_changed(&namespace, snapshot.spec.repository.as_deref().unwrap_or_default());
    }

    /// Only as long as it is the same object.
    pub(super) async fn change(
        &self,
        snapshot: &Snapshot,
        change: impl Fn(SnapshotStatus) -> SnapshotStatus + Send + Sync,
    ) -> Result<(), ApiError> {
        let (namespace, name, _) = who(snapshot);
        let generation = snapshot.metadata.generation;
        if self.is_another(snapshot).await {
            return Err(ApiError::not_found(KIND.about(&name)));
        }
        let change = |status: SnapshotStatus| {
            let next = SnapshotStatus { observed_generation: generation, ..change(status.clone()) };
            (next != status).then_some(next)
        };
        self.snapshots.change(&namespace, &name, &change).await
    }
}

const GONE: &str = "the process that took it is gone";

/// Nothing was done yet.
pub(super) fn not_begun(error: ApiError) -> FailedRun {
    FailedRun { reason: reasons::NOT_STARTED.to_owned(), message: error.message, again: true, target: None }
}

fn died(message: &str) -> FailedRun {
    FailedRun { reason: reasons::RUNNER_DIED.to_owned(), message: message.to_owned(), again: true, target: None }
}
