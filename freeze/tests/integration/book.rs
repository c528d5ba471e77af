//! A journal that tests read, and freezers and requests that write it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use api::{ClaimKind, FreezeSpec, FreezeStatus, Phase};
use async_trait::async_trait;
use freeze::{
    AnsweredWhen, Claimant, Directory, FreezeName, Freezer, Journal, JournalError, Request, Target, Then, Whereabouts,
    engines::memory::MemoryServer,
};

use crate::memory::member;

/// A journal in memory that can fail.
#[derive(Debug, Default)]
pub(crate) struct Book {
    written: Mutex<BTreeMap<FreezeName, FreezeStatus>>,
    pub(crate) phases: Mutex<Vec<Phase>>,
    /// Writes that fail from now on, and how many succeed before.
    pub(crate) fails_after: AtomicU32,
    /// How long a write takes.
    pub(crate) delay_ms: AtomicU64,
    /// Whether others believe this process dead.
    pub(crate) fenced: AtomicBool,
}

#[async_trait]
impl Journal for Book {
    async fn open(&self, freeze: &FreezeName, _spec: &FreezeSpec, status: &FreezeStatus) -> Result<(), JournalError> {
        self.store(freeze, status).await
    }

    async fn write(&self, freeze: &FreezeName, status: &FreezeStatus) -> Result<(), JournalError> {
        if !self.written.lock().unwrap_or_else(PoisonError::into_inner).contains_key(freeze) {
            return Err(JournalError::Gone);
        }
        self.store(freeze, status).await
    }

    fn may_hold(&self, _namespace: &str, databases: &[&str]) -> Result<(), JournalError> {
        if self.fenced.load(Ordering::SeqCst) {
            return Err(JournalError::NotOurs(databases.join(", ")));
        }
        Ok(())
    }
}

impl Book {
    async fn store(&self, freeze: &FreezeName, status: &FreezeStatus) -> Result<(), JournalError> {
        let delay = self.delay_ms.load(Ordering::SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let left = self.fails_after.load(Ordering::SeqCst);
        if left == 1 {
            return Err(JournalError::Unavailable("on demand".to_owned()));
        }
        if left > 1 {
            self.fails_after.store(left - 1, Ordering::SeqCst);
        }
        self.phases.lock().unwrap_or_else(PoisonError::into_inner).push(status.phase);
        self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(freeze.clone(), status.clone());
        Ok(())
    }

    /// An object that was there before, whoever wrote it.
    pub(crate) fn knows(&self, name: FreezeName, status: FreezeStatus) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).insert(name, status);
    }

    pub(crate) fn status(&self, name: &FreezeName) -> FreezeStatus {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned().unwrap_or_default()
    }
}

/// Where tests say that Databases are, or single members of them (`DATABASE/MEMBER`); of the others it knows nothing, so a freeze goes by what it knew itself.
#[derive(Debug, Default)]
pub(crate) struct Places(Mutex<BTreeMap<String, Whereabouts>>);

#[async_trait]
impl Directory for Places {
    async fn find(&self, _namespace: &str, database: &str, held: Option<Then<'_>>) -> Whereabouts {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let very = held.and_then(|held| places.get(&format!("{database}/{}", held.target.member)));
        very.or_else(|| places.get(database)).cloned().unwrap_or(Whereabouts::Gone)
    }
}

impl Places {
    pub(crate) fn put(&self, database: &str, place: Whereabouts) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(database.to_owned(), place);
    }
}

pub(crate) fn at(server: &MemoryServer) -> Whereabouts {
    Whereabouts::At(server.driver(), member(5432))
}

pub(crate) fn freezer() -> (Freezer, Arc<Book>) {
    let book = Arc::new(Book::default());
    (freezer_of("test", &book, &Arc::default()), book)
}

pub(crate) fn freezer_of(identity: &str, book: &Arc<Book>, places: &Arc<Places>) -> Freezer {
    let (journal, directory) = (Arc::clone(book) as Arc<dyn Journal>, Arc::clone(places) as Arc<dyn Directory>);
    Freezer::new(identity.to_owned(), 1, journal, directory)
}

pub(crate) fn name(name: &str) -> FreezeName {
    FreezeName { namespace: "ns".to_owned(), name: name.to_owned() }
}

pub(crate) fn request(freeze: &str, uid: &str, targets: Vec<Target>, ttl: Duration) -> Request {
    let (level, copy) = (targets[0].plan.level, targets[0].plan.copy);
    let spec: FreezeSpec = serde_json::from_value(serde_json::json!({"targets": [{"database": "db"}]})).unwrap();
    Request {
        freeze: name(freeze),
        spec: Some(spec),
        claimant: Claimant {
            kind: ClaimKind::User,
            name: uid.to_owned(),
            uid: uid.to_owned(),
            chosen: true,
            user: "dba".to_owned(),
        },
        targets,
        level,
        copy,
        ttl,
        max_frozen: Duration::from_secs(30),
        accepted: None,
        answered: AnsweredWhen::Written,
    }
}
