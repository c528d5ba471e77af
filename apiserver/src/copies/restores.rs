//! Restores, from what was asked for to how it ended. One run each, never a second: what it found may not be what it left.

use std::time::Duration;

use api::{
    ChosenCopy, KnownBy, LiveSnapshot, Restore, RestorePhase, RestoreStatus, SnapshotMethod, choose,
    conditions::{self, reasons, types},
    runner::{FailedRun, Report, RestoreTask, Task, TaskDatabase},
};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use super::{
    Copies,
    catalogue::Item,
    kept::{owner, who},
    runs::{Order, Place, Running, keys},
    snapshots::not_begun,
    status::Pace,
};
use crate::{controllers::Turns, error::ApiError, records::Seen, resources::RESTORES, targets};

const AT_ONCE: usize = 4;
/// Of a target, where the run did not say what it left.
const UNKNOWN: &str = "unknown: see what is in it before you restore again";
/// Of one Restore.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);
/// How often it is looked for what nobody works on.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is looked whether one whose run goes on was deleted.
const STILL_WANTED: Duration = Duration::from_millis(500);

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
        let (order, chosen) = match self.restore_order(restore).await {
            Ok(ready) => ready,
            Err(failed) => return self.restore_failed(restore, failed).await,
        };
        let message = told(&chosen);
        self.change_restore(restore, |mut status| {
            let now = Timestamp::now();
            status.phase = RestorePhase::Running;
            status.chosen = Some(chosen.clone());
            status.started_at = Some(Time(now));
            complete(&mut status, false, reasons::IN_PROGRESS, "", now);
            status
        })
        .await?;
        self.tell(&RESTORES, restore, true, "Started", &message).await;
        match self.runs.begin(order).await {
            Ok(running) => self.follow_restore(restore, running, &message).await,
            Err(error) => {
                let target = Some("as it was: nothing was touched".to_owned());
                self.restore_failed(restore, FailedRun { target, ..not_begun(error) }).await
            }
        }
    }

    /// One that was begun by whoever led before; it may be gone.
    async fn resume_restore(&self, restore: &Restore) -> Result<(), ApiError> {
        let (namespace, _, uid) = who(restore);
        if let Some(running) = self.runs.resume(&namespace, &uid).await? {
            let chosen = restore.status.as_ref().and_then(|status| status.chosen.clone()).unwrap_or_default();
            return self.follow_restore(restore, running, &told(&chosen)).await;
        }
        let failed = FailedRun {
            reason: reasons::RUNNER_DIED.to_owned(),
            message: "the process that did it is gone; see what is in the target before you restore again".to_owned(),
            again: false,
            target: Some("unknown: PostgreSQL's databases are as they were until the restore takes their names; MariaDB's may be restored in part".to_owned()),
        };
        self.restore_failed(restore, failed).await
    }

    /// A run, to its end.
    async fn follow_restore(&self, restore: &Restore, running: Running, message: &str) -> Result<(), ApiError> {
        match self.hear_restore(restore, running).await? {
            Some(Report::Restored(restored)) => {
                self.change_restore(restore, |mut status| {
                    let now = Timestamp::now();
                    status.phase = RestorePhase::Complete;
                    status.finished_at = Some(Time(now));
                    status.progress = None;
                    status.databases.clone_from(&restored.databases);
                    status.warnings.clone_from(&restored.warnings);
                    complete(&mut status, true, reasons::OK, "", now);
                    status
                })
                .await?;
                let message = format!("{} of {message}", restored.databases.join(", "));
                self.tell(&RESTORES, restore, true, "Complete", &message).await;
                Ok(())
            }
            Some(Report::Failed(failed)) => self.restore_failed(restore, failed).await,
            _ => {
                let failed = FailedRun {
                    reason: reasons::RUNNER_DIED.to_owned(),
                    message: "the run ended without a word".to_owned(),
                    again: false,
                    target: None,
                };
                self.restore_failed(restore, failed).await
            }
        }
    }

    async fn hear_restore(&self, restore: &Restore, mut running: Running) -> Result<Option<Report>, ApiError> {
        let (namespace, name, uid) = who(restore);
        let (mut pace, mut last) = (Pace::default(), None);
        let mut wanted = interval(STILL_WANTED);
        loop {
            tokio::select! {
                report = running.reports.recv() => match report {
                    None => return Ok(last),
                    Some(Report::Log(line)) => self.logs.say(&uid, &line),
                    Some(Report::Progress { step, bytes, total }) => {
                        let progress = pace.progress(step, bytes, total, Timestamp::now());
                        let shown = |status| RestoreStatus { progress: Some(progress.clone()), ..status };
                        self.change_restore(restore, shown).await.ok();
                    }
                    Some(report) => last = Some(report),
                },
                _ = wanted.tick() => {
                    if !self.lead.is_ours() {
                        return Err(ApiError::unavailable("another replica leads now, and hears how it goes"));
                    }
                    let gone = match self.restores.get(&namespace, &name).await {
                        Ok(now) => now.metadata.uid.as_deref() != Some(&uid),
                        Err(error) => error.code == 404,
                    };
                    if gone {
                        running.end().await;
                        return Ok(None);
                    }
                }
            }
        }
    }

    pub(super) async fn restore_order(&self, restore: &Restore) -> Result<(Order, ChosenCopy), FailedRun> {
        let (namespace, _, _) = who(restore);
        let no = |reason: &str, message: String| FailedRun {
            reason: reason.to_owned(),
            message,
            again: false,
            target: Some("as it was: nothing was touched".to_owned()),
        };
        let target = &restore.spec.database;
        if target.is_empty() {
            let message = "say spec.database, the Database that it is restored into: claims are made in a cluster";
            return Err(no(reasons::UNSUPPORTED, message.to_owned()));
        }
        let database =
            self.records.database(&namespace, target).await.map_err(|error| no(reasons::NOT_FOUND, error.message))?;
        let from = restore.spec.source.database.clone().unwrap_or_else(|| target.clone());
        let copy = self.chosen(&namespace, restore, &from).await.map_err(|why| no(reasons::NOT_FOUND, why))?;
        let from = match copy.spec.databases.as_slice() {
            // Of one Database alone it can be no other's.
            [only] if restore.spec.source.database.is_none() => only.clone(),
            _ => from,
        };
        let name = copy.spec.repository.clone().unwrap_or_default();
        let repository =
            self.repositories.get(&namespace, &name).await.map_err(|error| no(reasons::NOT_FOUND, error.message))?;
        let mut wanted = repository.spec.secrets();
        wanted.extend(targets::secrets(&database));
        let secrets = keys(wanted);
        let chosen = ChosenCopy {
            snapshot: copy.metadata.name.clone().unwrap_or_default(),
            repository: name,
            id: copy.status.id.clone().unwrap_or_default(),
            taken_at: copy.status.taken_at.clone(),
        };
        let task = RestoreTask {
            repository: repository.spec.clone(),
            id: chosen.id.clone(),
            from,
            to: TaskDatabase { name: target.clone(), spec: database.spec.clone() },
            databases: restore.spec.databases.clone(),
            existing: restore.spec.existing,
            globals: restore.spec.globals,
        };
        let place = Place {
            template: repository.spec.runner.clone().unwrap_or_default().with(restore.spec.runner.as_ref()),
            owner: owner(restore),
            databases: vec![database],
            longest: LONGEST,
            namespace,
        };
        let (_, _, uid) = who(restore);
        Ok((Order { name: uid, task: Task::Restore(Box::new(task)), secrets, place }, chosen))
    }

    /// The copy that is meant, if it can be restored.
    async fn chosen(&self, namespace: &str, restore: &Restore, from: &str) -> Result<LiveSnapshot, String> {
        let source = &restore.spec.source;
        if let Some(name) = &source.snapshot {
            let copy = self.find(namespace, name).await.map_err(|error| error.message)?;
            if copy.spec.method == SnapshotMethod::VolumeSnapshot {
                return Err(format!(
                    "{name} is of volumes, which are brought back to new claims: leave spec.database out"
                ));
            }
            return match (copy.status.known, &copy.status.id, copy.status.phase.as_str()) {
                (KnownBy::Foreign, ..) => {
                    Err(format!("{name} was written by another program: download its files instead"))
                }
                (KnownBy::Newer, ..) => {
                    Err(format!("{name} was written by a newer Stillpoint: restore it with that, or upgrade"))
                }
                (_, Some(_), "Ready" | "Replicating") => Ok(copy),
                (_, _, phase) => Err(format!("{name} cannot be restored: it is {phase}")),
            };
        }
        let all = self.catalogue(Some(namespace)).await;
        let is_one = |copy: &&LiveSnapshot| {
            copy.spec.repository == source.repository
                && copy.spec.databases.iter().any(|database| database == from)
                && !matches!(copy.status.known, KnownBy::Foreign | KnownBy::Newer)
                && copy.status.taken_at.is_some()
                && !copy.status.locations.is_empty()
        };
        let taken = |copy: &LiveSnapshot| copy.status.taken_at.as_ref().map_or(Timestamp::MAX, |taken| taken.0);
        let as_of = source.as_of.as_ref().map(|at| at.0);
        let copies: Vec<LiveSnapshot> = all.items.iter().map(Item::live).collect();
        let found = choose(copies.iter().filter(is_one), taken, as_of).cloned();
        found.ok_or_else(|| {
            let when = as_of.map(|at| format!(" of {at} or before")).unwrap_or_default();
            let repository = source.repository.as_deref().unwrap_or_default();
            let more = if all.warnings.is_empty() { String::new() } else { format!("; {}", all.warnings.join("; ")) };
            format!("Repository {repository} has no copy of Database {from}{when}{more}")
        })
    }

    pub(super) async fn restore_failed(&self, restore: &Restore, failed: FailedRun) -> Result<(), ApiError> {
        self.change_restore(restore, |mut status| {
            let now = Timestamp::now();
            status.phase = RestorePhase::Failed;
            status.finished_at = Some(Time(now));
            status.progress = None;
            status.message = Some(failed.message.clone());
            status.target = failed.target.clone().or_else(|| Some(UNKNOWN.to_owned()));
            complete(&mut status, false, &failed.reason, &failed.message, now);
            status
        })
        .await?;
        self.logs.say(&who(restore).2, &format!("failed: {}: {}", failed.reason, failed.message));
        self.tell(&RESTORES, restore, false, &failed.reason, &failed.message).await;
        Ok(())
    }

    pub(super) async fn change_restore(
        &self,
        restore: &Restore,
        change: impl Fn(RestoreStatus) -> RestoreStatus + Send + Sync,
    ) -> Result<(), ApiError> {
        let (namespace, name, uid) = who(restore);
        // Made anew under its name, it is somebody else's.
        if self.restores.get(&namespace, &name).await.is_ok_and(|now| now.metadata.uid.as_deref() != Some(&uid)) {
            return Err(ApiError::not_found(RESTORES.about(&name)));
        }
        let generation = restore.metadata.generation;
        let change = |status: RestoreStatus| {
            let next = RestoreStatus { observed_generation: generation, ..change(status.clone()) };
            (next != status).then_some(next)
        };
        self.restores.change(&namespace, &name, &change).await
    }
}

fn told(chosen: &ChosenCopy) -> String {
    format!("copy {} of Repository {}", chosen.snapshot, chosen.repository)
}

pub(super) fn complete(status: &mut RestoreStatus, is: bool, reason: &str, message: &str, now: Timestamp) {
    conditions::set_condition(&mut status.conditions, types::COMPLETE, is, reason, message, None, now);
}
