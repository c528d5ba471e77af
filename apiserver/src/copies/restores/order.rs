//! Which copy a Restore is of, and what its run is told.

use std::time::Duration;

use api::{
    ChosenCopy, KnownBy, LiveSnapshot, Restore, SnapshotMethod, choose,
    conditions::reasons,
    runner::{FailedRun, RestoreTask, Task, TaskDatabase, UNTOUCHED},
};
use jiff::Timestamp;

use crate::{
    copies::{
        Copies,
        catalogue::Item,
        kept::{owner, who},
        runs::{Order, Place, keys},
        snapshots::template,
    },
    error::ApiError,
    targets,
};

/// What is to be done for one.
pub(in crate::copies) struct Planned {
    pub(in crate::copies) order: Order,
    pub(super) chosen: ChosenCopy,
    /// What a person should know of the choice.
    pub(super) warnings: Vec<String>,
}

/// Of one Restore.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

impl Copies {
    pub(in crate::copies) async fn restore_order(&self, restore: &Restore) -> Result<Planned, FailedRun> {
        let (namespace, _, _) = who(restore);
        let no = |reason: &str, message: String| FailedRun {
            reason: reason.to_owned(),
            message,
            again: false,
            target: Some(UNTOUCHED.to_owned()),
        };
        let untouched = |failed: FailedRun| FailedRun { target: Some(UNTOUCHED.to_owned()), ..failed };
        let target = &restore.spec.database;
        if target.is_empty() {
            let message = "say spec.database, the Database that it is restored into: claims are made in a cluster";
            return Err(no(reasons::UNSUPPORTED, message.to_owned()));
        }
        // What is there may be asked again; what is not there is not.
        let unread = |error: ApiError| FailedRun { again: error.code != 404, ..no(reasons::NOT_FOUND, error.message) };
        let database = self.records.database(&namespace, target).await.map_err(unread)?;
        let from = restore.spec.source.database.clone().unwrap_or_else(|| target.clone());
        let not_chosen = |(again, why)| FailedRun { again, ..no(reasons::NOT_FOUND, why) };
        let (copy, warnings) = self.chosen(&namespace, restore, &from).await.map_err(not_chosen)?;
        let from = match copy.spec.databases.as_slice() {
            // Of one Database alone it can be no other's.
            [only] if restore.spec.source.database.is_none() => only.clone(),
            _ => from,
        };
        let of_it = copy.status.contents.iter().find(|one| one.database == from);
        let made_by = of_it.and_then(|one| one.dump_tool.as_ref());
        let tool = self.tools.restoring(&restore.spec, made_by, database.spec.engine).await.map_err(untouched)?;
        let name = copy.spec.repository.clone().unwrap_or_default();
        let repository = self.repositories.get(&namespace, &name).await.map_err(unread)?;
        let template = template(&repository, tool.as_ref(), restore.spec.runner.as_ref());
        if let Some(tool) = &tool {
            self.has_room(&template, tool, true).map_err(untouched)?;
        }
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
            tool,
            databases: restore.spec.databases.clone(),
            existing: restore.spec.existing,
            globals: restore.spec.globals,
        };
        let place = Place { template, owner: owner(restore), databases: vec![database], longest: LONGEST, namespace };
        let (_, _, uid) = who(restore);
        let order = Order { name: uid, task: Task::Restore(Box::new(task)), secrets, place };
        Ok(Planned { order, chosen, warnings })
    }

    /// The copy that is meant, if it can be restored, and what a person should know of the choice. Else why not, and whether that may
    /// be otherwise in a moment.
    async fn chosen(
        &self,
        namespace: &str,
        restore: &Restore,
        from: &str,
    ) -> Result<(LiveSnapshot, Vec<String>), (bool, String)> {
        match &restore.spec.source.snapshot {
            Some(name) => {
                let copy = self.find(namespace, name).await;
                let copy = copy.map_err(|error| (error.code.is_server_error(), error.message))?;
                restorable(name, copy).map(|copy| (copy, Vec::new())).map_err(|why| (false, why))
            }
            None => self.newest(namespace, restore, from).await,
        }
    }

    async fn newest(
        &self,
        namespace: &str,
        restore: &Restore,
        from: &str,
    ) -> Result<(LiveSnapshot, Vec<String>), (bool, String)> {
        let source = &restore.spec.source;
        let name = source.repository.as_deref().unwrap_or_default();
        let repository = self.repositories.get(namespace, name).await;
        let repository = repository.map_err(|error| (error.code != 404, error.message))?;
        // As it is now: what was known before may lack the newest.
        let looked = self.depot.look(namespace, name, &repository.spec).await;
        let said = looked.warnings.join("; ");
        if looked.unread.len() >= repository.spec.locations.len() {
            return Err((true, format!("which copy is the newest cannot be seen now: {said}")));
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
        let missed = if looked.unread.is_empty() {
            Vec::new()
        } else {
            vec![format!(
                "not all of Repository {name} could be seen, and a newer copy may be where nobody could look: {said}"
            )]
        };
        match choose(copies.iter().filter(is_one), taken, as_of).cloned() {
            Some(copy) => Ok((copy, missed)),
            None => {
                let when = as_of.map(|at| format!(" of {at} or before")).unwrap_or_default();
                let more = missed.iter().fold(String::new(), |all, one| format!("{all}; {one}"));
                // What nobody could look at may have one.
                Err((!missed.is_empty(), format!("Repository {name} has no copy of Database {from}{when}{more}")))
            }
        }
    }
}

fn restorable(name: &str, copy: LiveSnapshot) -> Result<LiveSnapshot, String> {
    if copy.spec.method == SnapshotMethod::VolumeSnapshot {
        return Err(format!("{name} is of volumes, which are brought back to new claims: leave spec.database out"));
    }
    match (copy.status.known, &copy.status.id, copy.status.phase.as_str()) {
        (KnownBy::Foreign, ..) => Err(format!("{name} was written by another program: download its files instead")),
        (KnownBy::Newer, ..) => {
            Err(format!("{name} was written by a newer Stillpoint: restore it with that, or upgrade"))
        }
        (_, Some(_), "Ready" | "Replicating") => Ok(copy),
        (_, _, phase) => Err(format!("{name} cannot be restored: it is {phase}")),
    }
}
