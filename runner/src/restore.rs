//! A restore, from its task to databases that can be used. The order of things:
//!
//! ```text
//! no other restore goes on there ─► every byte of what is to be restored is read and checked ─► may it be there? ─► roles
//!     ─► databases ─► may it still be there? ─► done
//! ```
//! Until the check is over nothing of the target is touched. What a failure leaves is said, and is what was there before wherever
//! the engine allows it: PostgreSQL's databases are made under other names and take theirs at the end.

mod mariadb;
mod postgresql;
mod tool;
mod turn;

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use api::{
    DatabaseCopy, DumpFile, DumpFormat, Engine, ExistingPolicy,
    conditions::reasons,
    runner::{Report, RestoreTask, Restored, UNTOUCHED},
};
use freeze::Member;
use repository::{Catalogue, Repository, Restorable};

use turn::Alone;

use crate::{
    child::settle,
    dump::open,
    failure::Failure,
    options::Files,
    report::{Reports, listed},
    secrets::Secrets,
    stop::Stop,
};

/// Everything that a restore of one engine works with. On a thread that may block.
pub(crate) struct Work {
    pub(crate) member: Member,
    pub(crate) copy: DatabaseCopy,
    pub(crate) source: Restorable,
    /// Databases inside the server; empty: all.
    pub(crate) databases: Vec<String>,
    pub(crate) existing: ExistingPolicy,
    pub(crate) globals: bool,
    pub(crate) files: Files,
    pub(crate) told: Told,
    pub(crate) stop: Stop,
    pub(crate) alone: Alone,
}

/// Where it goes.
struct Target {
    member: Member,
    files: Files,
    alone: Alone,
}

/// What is being done, and how far it is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    bytes: Arc<AtomicU64>,
    step: Arc<std::sync::Mutex<String>>,
}

pub(crate) async fn restore(
    task: RestoreTask,
    secrets: &Secrets,
    reports: &Reports,
    stop: &Stop,
) -> Result<Restored, Failure> {
    let told = Told::default();
    told.step("opening the repository");
    let opened = open(&task.repository, secrets).await.map_err(Failure::untouched)?;
    let member = Member::of(&task.to.spec, &|secret, key| secrets.value(secret, key));
    let member = member.map_err(|error| Failure::no_member(&task.to.name, &error).untouched())?;
    let files = Files::new();
    let files =
        files.map_err(|error| Failure::bug(format!("no directory for the run's files: {error}")).untouched())?;
    let alone = turn::alone(&task.to.name, task.to.spec.engine, &member).await.map_err(Failure::untouched)?;
    let target = Target { member, files, alone };
    let (stop, telling) = (stop.clone(), told.clone());
    let working = tokio::task::spawn_blocking(move || {
        let by = task.tool.clone();
        let work = ready(task, &opened.repository, target, telling, stop).map_err(Failure::untouched)?;
        match (by, work.copy.engine) {
            (Some(by), _) => tool::restore(&work, &by),
            (None, Engine::PostgreSQL) => postgresql::restore(&work),
            (None, Engine::MariaDB) => mariadb::restore(&work),
        }
    });
    reports.during(working, || told.report()).await
}

/// Everything of the copy is there, and as it was written; of the target we have the turn, and nothing else.
fn ready(
    task: RestoreTask,
    repository: &Repository,
    Target { member, files, alone }: Target,
    told: Told,
    stop: Stop,
) -> Result<Work, Failure> {
    let (entries, _) = Catalogue::default().read(repository)?;
    let entry =
        entries.iter().find(|entry| entry.id == task.id).ok_or(repository::Error::NoSnapshot(task.id.clone()))?;
    let copies = entry.manifest().into_iter().flat_map(|manifest| &manifest.contents);
    let copy = copies.into_iter().find(|copy| copy.database == task.from).cloned();
    let copy = copy
        .ok_or_else(|| Failure::new(reasons::NOT_FOUND, format!("the copy has nothing of Database {}", task.from)))?;
    let engine = task.to.spec.engine;
    if copy.engine != engine {
        let message = format!("a copy of {} cannot be restored into {engine}", copy.engine);
        return Err(Failure::new(reasons::UNSUPPORTED, message));
    }
    if copy.dump_tool.is_some() != task.tool.is_some() {
        let by = copy.dump_tool.map_or("the engine's own program".to_owned(), |tool| format!("DumpTool {}", tool.name));
        return Err(Failure::new(reasons::UNSUPPORTED, format!("the copy was made by {by}: by that it is restored")));
    }
    let work = Work {
        member,
        copy,
        source: repository.restorable(entry)?,
        databases: task.databases,
        existing: task.existing,
        globals: task.globals,
        files,
        told,
        stop,
        alone,
    };
    work.verify()?;
    Ok(work)
}

impl Work {
    /// Whether it is to be restored: what is of the whole server is, whichever databases are.
    fn is_wanted(&self, file: &DumpFile) -> bool {
        self.databases.is_empty() || file.database.as_ref().is_none_or(|database| self.databases.contains(database))
    }

    /// The files of a format, those that are wanted.
    pub(crate) fn wanted(&self, format: DumpFormat) -> Vec<&DumpFile> {
        self.copy.files.iter().filter(|file| file.format == format && self.is_wanted(file)).collect()
    }

    /// Reads all that is to be restored, and changes nothing.
    fn verify(&self) -> Result<(), Failure> {
        self.told.step("verifying");
        for file in self.copy.files.iter().filter(|file| self.is_wanted(file)) {
            self.copy(&file.path, &mut io::sink())?;
        }
        Ok(())
    }

    /// Before what takes long.
    pub(crate) fn go_on(&self) -> Result<(), Failure> {
        if self.stop.is_set() { Err(Failure::new(reasons::SHUTDOWN, "told to end")) } else { self.alone.still() }
    }

    /// A file, to its end.
    pub(crate) fn copy(&self, path: &str, to: &mut dyn Write) -> Result<u64, Failure> {
        let mut counted = Counted { to, told: &self.told, stop: &self.stop };
        Ok(self.source.copy(path, &mut counted)?)
    }

    pub(crate) fn text(&self, path: &str) -> Result<String, Failure> {
        let mut bytes = Vec::new();
        self.copy(path, &mut bytes)?;
        String::from_utf8(bytes).map_err(|_| Failure::new(reasons::DAMAGED, format!("{path} is no text")))
    }
}

/// Before what is not given up in the middle: until the run ends nobody is told to.
pub(crate) fn undisturbed() -> Result<(), Failure> {
    if settle() { Ok(()) } else { Err(Failure::new(reasons::SHUTDOWN, "told to end")) }
}

impl Told {
    pub(crate) fn step(&self, step: &str) {
        self.bytes.store(0, Ordering::Relaxed);
        step.clone_into(&mut self.step.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn report(&self) -> Report {
        let step = self.step.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        Report::Progress { step, bytes: self.bytes.load(Ordering::Relaxed), total: None }
    }
}

struct Counted<'w> {
    to: &'w mut dyn Write,
    told: &'w Told,
    stop: &'w Stop,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.stop.is_set() {
            return Err(io::Error::other("told to end"));
        }
        let length = self.to.write(bytes)?;
        self.told.bytes.fetch_add(length as u64, Ordering::Relaxed);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Nothing is touched, and here is what is in the way.
pub(crate) fn exists(names: &[String], what: &str) -> Failure {
    let message = format!("{} {what}: name other databases, or set spec.existing: Replace", listed(names));
    Failure::new(reasons::EXISTS, message).leaves(UNTOUCHED)
}
