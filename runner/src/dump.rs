//! A dump, from its task to what can be restored. The order of things:
//!
//! ```text
//! repository opened (slow) ─► still point of each Database ─► streams read into the repository ─► manifest ─► snapshot
//! ```
//! Every minute that a snapshot of PostgreSQL's is open it keeps old rows from being cleaned up: so everything that is slow comes
//! before, and nothing waits after.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use api::{
    Consistency, CutBetween, DatabaseCopy, Engine, Level, Verdict,
    runner::{DUMPING, DumpTask, Dumped, Report, TaskDatabase, TaskTool},
};
use freeze::Member;
use jiff::Timestamp;
use repository::{Capture, Location, Manifest, Opened, Origin, Patience, Repository, Run, Source, StoredFile, Unlock};
use tokio::runtime::Handle;

use crate::{
    failure::Failure,
    mariadb,
    options::Files,
    postgresql,
    report::{Reports, can_be_told},
    secrets::Secrets,
    stop::Stop,
    tool,
};

/// A Database that is about to be read.
pub(crate) struct Ready {
    pub(crate) sources: Vec<Source>,
    /// What is to be said of it, when all of it is read.
    pub(crate) describe: Describe,
}

pub(crate) type Describe = Box<dyn FnOnce(&[StoredFile]) -> Described + Send>;

/// What is said of one Database's copy.
pub(crate) struct Described {
    pub(crate) copy: DatabaseCopy,
    pub(crate) frozen_at: Timestamp,
    pub(crate) thawed_at: Timestamp,
    pub(crate) verdict: Verdict,
    /// None: nothing is known of it.
    pub(crate) level: Option<Level>,
    pub(crate) reason: String,
    pub(crate) warnings: Vec<String>,
}

/// How long connecting and looking may take, of one Database.
pub(crate) const LOOK: Duration = Duration::from_secs(60);

/// Ends soon after `stop` is set; then nothing is stored.
pub(crate) async fn dump(task: DumpTask, secrets: &Secrets, reports: &Reports, stop: &Stop) -> Result<Dumped, Failure> {
    reports.say(&Report::Progress { step: "opening the repository".into(), bytes: 0, total: task.expected_bytes });
    let Opened { repository, unusable } = open(&task.repository, secrets).await?;
    let files = Files::new().map_err(|error| Failure::bug(format!("no directory for the run's files: {error}")))?;
    let files = Arc::new(files);
    let (mut sources, mut describes) = (Vec::new(), Vec::new());
    for database in &task.databases {
        reports.say(&Report::Progress {
            step: format!("connecting to {}", database.name),
            bytes: 0,
            total: task.expected_bytes,
        });
        let ready = ready(database, task.tool.as_ref(), secrets, &files, reports).await?;
        sources.extend(ready.sources);
        describes.push(ready.describe);
    }
    can_be_told(sources.iter().map(|source| source.path.as_str()))?;
    let origin = Origin {
        namespace: task.snapshot.namespace.clone(),
        name: task.snapshot.name.clone(),
        uid: task.snapshot.uid.clone(),
    };
    let read = Arc::new(AtomicU64::new(0));
    let names = task.databases.iter().map(|database| format!("database={}", database.name));
    let capture = Capture {
        sources,
        host: origin.namespace.clone(),
        tags: ["stillpoint".to_owned(), format!("snapshot={}", origin.name), format!("uid={}", origin.uid)]
            .into_iter()
            .chain(names)
            .collect(),
        manifest: Box::new(move |files| {
            manifest(origin, describes.into_iter().map(|describe| describe(files)).collect())
        }),
        read: Arc::clone(&read),
        cancel: Arc::clone(&stop.0),
    };
    let run = Run { name: task.run.name, over: task.run.over };
    let capturing = tokio::task::spawn_blocking(move || Ok(repository.capture(&run, capture)?));
    let total = task.expected_bytes;
    let how = || Report::Progress { step: DUMPING.into(), bytes: read.load(Ordering::Relaxed), total };
    let captured = reports.during(capturing, how).await?;
    if stop.is_set() {
        reports.log("told to end, when it was done already");
    }
    let Manifest { consistency, cut_between, contents, warnings, .. } = captured.manifest;
    let (Some(consistency), Some(cut_between)) = (consistency, cut_between) else {
        return Err(Failure::bug("what was captured does not say what it is worth"));
    };
    let failed = captured.failed.iter().chain(&unusable).map(|error| (error.location.clone(), error.to_string()));
    Ok(Dumped {
        id: captured.id,
        consistency,
        cut_between,
        contents,
        stored: captured.stored,
        whole: captured.whole,
        failed: failed.collect(),
        warnings,
    })
}

async fn ready(
    database: &TaskDatabase,
    by: Option<&TaskTool>,
    secrets: &Secrets,
    files: &Arc<Files>,
    reports: &Reports,
) -> Result<Ready, Failure> {
    let member = Member::of(&database.spec, &|secret, key| secrets.value(secret, key));
    let member = member.map_err(|error| Failure::no_member(&database.name, &error))?;
    if let Some(by) = by {
        return tool::ready(database, member, by, files, reports).await;
    }
    match database.spec.engine {
        Engine::PostgreSQL => postgresql::ready(&database.name, member, files, reports).await,
        Engine::MariaDB => mariadb::ready(&database.name, member, files, reports).await,
    }
}

/// All of its locations, by its password.
pub(crate) async fn open(spec: &api::RepositorySpec, secrets: &Secrets) -> Result<Opened, Failure> {
    let encryption = &spec.encryption;
    let password = secrets.text(&encryption.password_secret_ref.name, &encryption.password_key).ok_or_else(|| {
        let (secret, key) = (&encryption.password_secret_ref.name, &encryption.password_key);
        Failure::new(
            api::conditions::reasons::REPOSITORY_LOCKED,
            format!("Secret {secret} is not there, or has no key {key}: it holds the repository's password"),
        )
    })?;
    let locations = spec.locations.iter().map(|location| {
        let place = repository::place(location, &|secret: &str, key: &str| secrets.text(secret, key))?;
        Location::new(&location.name, &place, Patience::default())
    });
    let locations = locations.collect::<Result<Vec<_>, _>>()?;
    let runtime = Handle::current();
    let opening = move || Repository::open(&locations, &Unlock::Password(password), &runtime);
    let opened = tokio::task::spawn_blocking(opening).await;
    Ok(opened.map_err(|error| Failure::bug(format!("opening the repository broke: {error}")))??)
}

/// Of all of them together.
fn manifest(snapshot: Origin, described: Vec<Described>) -> Manifest {
    let frozen = described.iter().map(|one| one.frozen_at).min();
    let thawed = described.iter().map(|one| one.thawed_at).max();
    let reason =
        described.iter().map(|one| format!("{}: {}", one.copy.database, one.reason)).collect::<Vec<_>>().join("; ");
    // No better than the least of them.
    let verdict = described.iter().map(|one| one.verdict).max().unwrap_or(Verdict::Unknown);
    let level = described.iter().map(|one| one.level).min().flatten();
    let cut = frozen
        .zip(thawed)
        .map(|(frozen, thawed)| CutBetween { frozen_at: api::micro_time(frozen), thawed_at: api::micro_time(thawed) });
    let warnings = described
        .iter()
        .flat_map(|one| one.warnings.iter().map(|warning| format!("{}: {warning}", one.copy.database)))
        .collect();
    Manifest {
        version: Manifest::VERSION,
        snapshot,
        consistency: Some(Consistency { verdict, level, reason }),
        cut_between: cut,
        contents: described.into_iter().map(|one| one.copy).collect(),
        warnings,
    }
}
