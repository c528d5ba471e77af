//! What a run of a Snapshot is told: everything as it is declared when it begins, and a name that no other run has.

use std::sync::Arc;

use api::{
    Database, Repository, Snapshot, SnapshotPhase,
    conditions::reasons,
    runner::{DumpTask, FailedRun, ObjectName, RunName, RunnerTemplate, Task, TaskDatabase, TaskTool},
};
use jiff::Timestamp;

use crate::{
    copies::{
        Copies,
        kept::{owner, who},
        runs::{Order, Place, keys},
    },
    error::ApiError,
    targets,
};

/// Its runs until now, by their names.
pub(super) fn runs_of(snapshot: &Snapshot) -> Vec<String> {
    let (_, _, uid) = who(snapshot);
    let attempts = snapshot.status.as_ref().map_or(0, |status| status.attempts);
    (1..=attempts as usize).map(|number| run_of(&uid, number)).collect()
}

/// How the names of all runs begin that give its locations what they lack.
pub(super) fn replications_of(uid: &str) -> String {
    format!("{uid}-replicate-")
}

pub(super) fn replication_of(uid: &str, number: u32) -> String {
    format!("{}{number}", replications_of(uid))
}

pub(super) fn run_of(uid: &str, number: usize) -> String {
    format!("{uid}-{number}")
}

/// The run that it is to have next; where it has one, or had its last, that.
pub(in crate::copies) fn run_now(snapshot: &Snapshot) -> RunName {
    let (_, _, uid) = who(snapshot);
    let mut over = runs_of(snapshot);
    let phase = snapshot.status.as_ref().map(|status| status.phase).unwrap_or_default();
    let begun = if phase == SnapshotPhase::Pending { None } else { over.pop() };
    RunName { name: begun.unwrap_or_else(|| run_of(&uid, over.len() + 1)), over }
}

impl Copies {
    /// What a run is to know: everything as it is declared now.
    pub(in crate::copies) async fn order(&self, snapshot: &Snapshot, run: RunName) -> Result<Order, FailedRun> {
        let (namespace, name, uid) = who(snapshot);
        let missing = |kind: &str, name: &str, error: &ApiError| FailedRun {
            reason: reasons::NOT_FOUND.to_owned(),
            message: if error.code == 404 { format!("there is no {kind} {name}") } else { error.message.clone() },
            again: error.code != 404,
            target: None,
        };
        let of = snapshot.spec.repository.clone().unwrap_or_default();
        let repository =
            self.repositories.get(&namespace, &of).await.map_err(|error| missing("Repository", &of, &error))?;
        let mut wanted = repository.spec.secrets();
        let mut found: Vec<Arc<Database>> = Vec::new();
        for database in &snapshot.spec.databases {
            let one = self.records.database(&namespace, database).await;
            found.push(one.map_err(|error| missing("Database", database, &error))?);
        }
        for database in &found {
            wanted.extend(targets::secrets(database));
        }
        let engines = found.iter().map(|database| database.spec.engine);
        let tool = self.tools.dumping(snapshot.spec.tool.as_ref(), engines).await?;
        let place = place(snapshot, &repository, found.clone(), tool.as_ref());
        if let Some(tool) = &tool {
            self.has_room(&place.template, tool, false)?;
        }
        let secrets = keys(wanted);
        let databases = found.iter().map(|database| TaskDatabase {
            name: database.metadata.name.clone().unwrap_or_default(),
            spec: database.spec.clone(),
        });
        let task = DumpTask {
            run: run.clone(),
            snapshot: ObjectName { namespace, name, uid },
            databases: databases.collect(),
            tool,
            repository: repository.spec.clone(),
            expected_bytes: self.expected(snapshot),
        };
        Ok(Order { name: run.name, task: Task::Dump(Box::new(task)), secrets, place })
    }

    /// As many as the newest copy of the same Databases had.
    fn expected(&self, snapshot: &Snapshot) -> Option<u64> {
        let all = self.snapshots.all(snapshot.metadata.namespace.as_deref());
        let same = all.iter().filter(|other| other.spec.databases == snapshot.spec.databases);
        let sized = same.filter_map(|other| {
            let status = other.status.as_ref()?;
            Some((status.cut_between.as_ref()?.frozen_at.0, status.size?))
        });
        sized.max_by_key(|(taken, _)| *taken).map(|(_, size)| size)
    }
}

/// Where a run of it is done.
pub(super) fn place(
    snapshot: &Snapshot,
    repository: &Repository,
    databases: Vec<Arc<Database>>,
    tool: Option<&TaskTool>,
) -> Place {
    let (namespace, _, _) = who(snapshot);
    let template = template(repository, tool, snapshot.spec.runner.as_ref());
    let now = Timestamp::now();
    let left = snapshot.spec.deadline(now).duration_since(now).unsigned_abs();
    Place { namespace, owner: owner(snapshot), template, databases, longest: left }
}

/// How a Pod is made: as the Repository says, with the image of the tool, and as is said for this run.
pub(in crate::copies) fn template(
    repository: &Repository,
    tool: Option<&TaskTool>,
    own: Option<&RunnerTemplate>,
) -> RunnerTemplate {
    let image = tool.and_then(|tool| tool.spec.image.clone());
    let of_tool = RunnerTemplate { image, ..RunnerTemplate::default() };
    repository.spec.runner.clone().unwrap_or_default().with(Some(&of_tool)).with(own)
}
