//! Several locations as the one backend that the library sees. What is written goes to all that still do what is asked of them;
//! what is read comes from the first, and from the next where that fails or has something else than what was written.
//!
//! A location where a write failed is left alone for the rest of a run: it would have holes. The library may log an error and go on
//! without a file, and calls a stream that broke off a whole one: so no snapshot is ever written by it, but by `capture`, when
//! everything is known to be there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::future::join_all;
use rustic_core::{
    BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend, repofile::IndexFile,
};
use tokio::runtime::Handle;
use tracing::warn;

use crate::{
    error::{Error, Fault, Result, StoreError, Unread},
    format::{Seal, id_of},
    location::Location,
    locks::Fence,
};

/// Locations that hold the same. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Copies {
    members: Arc<[Member]>,
    runtime: Handle,
    /// With it what names do not say is authenticated: the configuration, and each blob. Without, ranges are of anything.
    seal: Option<Seal>,
    /// If it is set, the index is what these files say.
    only: Option<Arc<[Id]>>,
    /// Packs that the index does not name, whatever its files say.
    lost: Arc<BTreeSet<String>>,
    /// Of the run that writes: its lock, and the indexes that it goes by.
    fence: Option<(Fence, Arc<BTreeSet<String>>)>,
    written: Arc<Written>,
}

struct Member {
    location: Location,
    /// A write did.
    failed: Mutex<Option<StoreError>>,
    /// It did not answer: others are asked first.
    silent: AtomicBool,
    missed: Mutex<Vec<StoreError>>,
}

/// What a run has written.
#[derive(Debug, Default)]
struct Written {
    bytes: AtomicU64,
    indexes: Mutex<Vec<Id>>,
    /// Nothing more can be: every location has failed, or the run was given up.
    over: AtomicBool,
    /// Where its lock was gone.
    given_up: Mutex<Option<String>>,
}

/// What is remembered of what one location did not give.
const MISSED: usize = 64;

impl Copies {
    pub(crate) fn new(locations: &[Location], seal: Option<&Seal>, runtime: Handle) -> Self {
        let member = |location: &Location| Member {
            location: location.clone(),
            failed: Mutex::default(),
            silent: AtomicBool::default(),
            missed: Mutex::default(),
        };
        Self {
            members: locations.iter().map(member).collect(),
            runtime,
            seal: seal.cloned(),
            only: None,
            lost: Arc::default(),
            fence: None,
            written: Arc::default(),
        }
    }

    /// The same, as if nothing else were indexed than what was written here.
    pub(crate) fn with_its_own_index(&self) -> Self {
        let indexes = lock(&self.written.indexes).clone();
        Self { only: Some(indexes.into()), ..self.clone() }
    }

    /// The same, as if nothing were known of these packs: what is in them is stored again, or read from elsewhere.
    pub(crate) fn without(self, lost: BTreeSet<String>) -> Self {
        Self { lost: lost.into(), ..self }
    }

    /// The same, for a run that has a lock: it writes no index when that is gone.
    pub(crate) fn fenced(self, fence: Fence, indexes: BTreeSet<String>) -> Self {
        Self { fence: Some((fence, indexes.into())), ..self }
    }

    /// What was written to each that has not failed, bytes.
    pub(crate) fn written(&self) -> u64 {
        self.written.bytes.load(Ordering::Relaxed)
    }

    /// Whether nothing can come any more of what is written.
    pub(crate) fn is_over(&self) -> bool {
        self.written.over.load(Ordering::Relaxed)
    }

    /// Why not, if so.
    pub(crate) fn outcome(&self) -> Result<()> {
        match (&*lock(&self.written.given_up), self.members().next()) {
            (Some(location), _) => Err(Error::GivenUp { location: location.clone() }),
            (None, None) => Err(Error::NoLocation(self.failures())),
            (None, Some(_)) => Ok(()),
        }
    }

    /// Whether our lock is still everywhere. Whoever removes what a run wrote that was taken for dead removes its lock first, and reads
    /// the indexes then: so one that is there before the lock goes keeps its packs, and one that comes later is taken back.
    pub(crate) async fn still_ours(&self, index: Option<&str>) -> Result<()> {
        let Some((fence, _)) = &self.fence else { return Ok(()) };
        for location in self.whole() {
            match fence.is_held_at(&location).await {
                Ok(true) => continue,
                Ok(false) => {
                    lock(&self.written.given_up).get_or_insert(location.name().to_owned());
                    self.written.over.store(true, Ordering::Relaxed);
                }
                Err(error) => self.leave(error),
            }
            if let Some(name) = index
                && let Err(error) = location.remove(name).await
            {
                warn!(%error, "an index stays that came too late: what it names may be gone");
            }
        }
        self.outcome()
    }

    /// Those that have everything that was written here.
    pub(crate) fn whole(&self) -> Vec<Location> {
        self.members().map(|member| member.location.clone()).collect()
    }

    fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| lock(&member.failed).is_none())
    }

    /// What was not written, one for each location.
    pub(crate) fn failures(&self) -> Vec<StoreError> {
        self.members.iter().filter_map(|member| lock(&member.failed).clone()).collect()
    }

    /// What was not read, although another may have given it.
    pub(crate) fn missed(&self) -> Vec<StoreError> {
        self.members.iter().flat_map(|member| lock(&member.missed).clone()).collect()
    }

    /// A location that does not do what is asked of it is left out from now on.
    pub(crate) fn leave(&self, error: StoreError) {
        for member in self.members.iter().filter(|member| member.location.name() == error.location) {
            lock(&member.failed).get_or_insert(error.clone());
        }
        self.written.over.fetch_or(self.members().next().is_none(), Ordering::Relaxed);
    }

    /// Whether all indexes are there by which what is written refers to what was there: one of a run that was given up may have been read
    /// before it was taken back.
    pub(crate) async fn still_there(&self) -> Result<()> {
        let Some((_, indexes)) = &self.fence else { return Ok(()) };
        for location in self.whole() {
            match location.list(FileType::Index.dirname()).await {
                Ok(there) => {
                    let there: BTreeSet<String> = there.into_iter().map(|object| object.name).collect();
                    if !indexes.is_subset(&there) {
                        return Err(Error::Shifted { location: location.name().to_owned() });
                    }
                }
                Err(error) => self.leave(error),
            }
        }
        self.outcome()
    }

    /// To all that are whole; an error if none is left, or it is an index and the run was given up.
    pub(crate) async fn write(&self, name: &str, content: &[Bytes]) -> Result<()> {
        let writes = self.members().map(|member| member.location.write(name, content));
        for error in join_all(writes).await.into_iter().filter_map(Result::err) {
            self.leave(error);
        }
        self.outcome()?;
        self.written.bytes.fetch_add(content.iter().map(|part| part.len() as u64).sum(), Ordering::Relaxed);
        if name.starts_with(FileType::Index.dirname()) { self.still_ours(Some(name)).await } else { Ok(()) }
    }

    /// The write that makes a snapshot of it all. One that may or may not have arrived is looked for, and taken back where nobody says
    /// so: a location that failed has no snapshot, unless it is gone since it took it.
    pub(crate) async fn publish(&self, name: &str, content: &Bytes) -> Result<()> {
        let publish = async |location: &Location| {
            let Err(error) = location.write(name, std::slice::from_ref(content)).await else { return Ok(()) };
            match location.find(name).await {
                Ok(Some(object)) if object.size == content.len() as u64 => Ok(()),
                _ => Err((error, location.remove(name).await.is_ok())),
            }
        };
        let mut unsettled = false;
        for outcome in join_all(self.members().map(|member| publish(&member.location))).await {
            if let Err((error, is_gone)) = outcome {
                unsettled |= !is_gone;
                self.leave(error);
            }
        }
        self.written.bytes.fetch_add(content.len() as u64, Ordering::Relaxed);
        match (self.members().next(), unsettled) {
            (Some(_), _) => Ok(()),
            (None, true) => Err(Error::Unsettled(self.failures())),
            (None, false) => Err(Error::NoLocation(self.failures())),
        }
    }

    /// From the first that has it whole.
    pub(crate) async fn read(&self, name: &str) -> Result<Bytes, Unread> {
        self.first(async |location| {
            let bytes = location.read(name).await?;
            let opens = || self.seal.as_ref().is_none_or(|seal| seal.open(&bytes).is_ok());
            let is_whole = is_what_it_is_called(name, &bytes) && (name != CONFIG || opens());
            if is_whole { Ok(bytes) } else { Err(damaged(location, name)) }
        })
        .await
    }

    async fn read_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, Unread> {
        self.first(async |location| {
            let bytes = location.read_range(name, offset, length).await?;
            match self.seal.as_ref().map_or(Ok(()), |seal| seal.open(&bytes).map(drop)) {
                Ok(()) => Ok(bytes),
                Err(why) => Err(StoreError::new(location.name(), Fault::Damaged, name, why)),
            }
        })
        .await
    }

    /// What one of them gives. One that did not answer before is asked last.
    async fn first<T>(&self, ask: impl AsyncFn(&Location) -> Result<T, StoreError>) -> Result<T, Unread> {
        let (silent, others): (Vec<_>, Vec<_>) =
            self.members().partition(|member| member.silent.load(Ordering::Relaxed));
        let mut errors = Vec::new();
        for member in others.into_iter().chain(silent) {
            match ask(&member.location).await {
                Ok(found) => return Ok(found),
                Err(error) => {
                    member.miss(&error);
                    errors.push(error);
                }
            }
        }
        Err(Unread(if errors.is_empty() { self.failures() } else { errors }))
    }

    /// What any of them has; an error if none answers.
    async fn list(&self, folder: &str) -> Result<BTreeMap<String, u64>, Unread> {
        let members: Vec<&Member> = self.members().collect();
        let lists = join_all(members.iter().map(|member| member.location.list(folder))).await;
        let (mut all, mut errors) = (BTreeMap::new(), Vec::new());
        for (member, list) in members.iter().zip(lists) {
            match list {
                Ok(objects) => objects.into_iter().for_each(|object| {
                    all.entry(object.name).or_insert(object.size);
                }),
                Err(error) => {
                    member.miss(&error);
                    errors.push(error);
                }
            }
        }
        if errors.len() == members.len() { Err(Unread(errors)) } else { Ok(all) }
    }
}

impl Member {
    fn miss(&self, error: &StoreError) {
        self.silent.fetch_or(error.fault == Fault::Unavailable, Ordering::Relaxed);
        let mut missed = lock(&self.missed);
        if missed.len() < MISSED {
            missed.push(error.clone());
        }
    }
}

pub(crate) const CONFIG: &str = "config";

/// The object of a file of the repository.
pub(crate) fn name_of(kind: FileType, id: &Id) -> String {
    let hex = id.to_hex();
    match kind {
        FileType::Config => CONFIG.to_owned(),
        FileType::Pack => format!("data/{}/{}", &hex.as_str()[..2], hex.as_str()),
        other => format!("{}/{}", other.dirname(), hex.as_str()),
    }
}

/// Whether bytes are those that an object of this name had when it was written: but for `config`, names are hashes.
pub(crate) fn is_what_it_is_called(name: &str, bytes: &[u8]) -> bool {
    match name.rsplit('/').next() {
        Some(last) if last.len() == 64 => id_of(bytes).to_hex().as_str() == last,
        _ => true,
    }
}

pub(crate) fn damaged(location: &Location, name: &str) -> StoreError {
    StoreError::new(location.name(), Fault::Damaged, name, "its content is not what was written there")
}

impl ReadBackend for Copies {
    fn location(&self) -> String {
        self.members.iter().map(|member| member.location.name()).collect::<Vec<_>>().join(", ")
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let size = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
        if kind == FileType::Config {
            let found = self.runtime.block_on(self.first(async |location| location.find(CONFIG).await));
            return Ok(found.map_err(told)?.map(|object| (Id::default(), size(object.size))).into_iter().collect());
        }
        let found = self.runtime.block_on(self.list(kind.dirname())).map_err(told)?;
        let ids = found
            .into_iter()
            .filter_map(|(name, bytes)| Some((Id::parse_some(name.rsplit('/').next()?, kind)?, size(bytes))));
        Ok(match (&self.only, kind) {
            (Some(only), FileType::Index) => ids.filter(|(id, _)| only.contains(id)).collect(),
            _ => ids.collect(),
        })
    }

    fn read_full(&self, kind: FileType, id: &Id) -> RusticResult<Bytes> {
        let bytes = self.runtime.block_on(self.read(&name_of(kind, id))).map_err(told)?;
        match &self.seal {
            Some(seal) if kind == FileType::Index && !self.lost.is_empty() => {
                unnamed(&bytes, &self.lost, seal).map_err(|why| RusticError::new(ErrorKind::Repository, why))
            }
            _ => Ok(bytes),
        }
    }

    fn read_partial(&self, kind: FileType, id: &Id, _: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        let name = name_of(kind, id);
        self.runtime.block_on(self.read_range(&name, offset.into(), length.into())).map_err(told)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        name_of(kind, id)
    }
}

/// An index file that names none of some packs.
fn unnamed(sealed: &[u8], lost: &BTreeSet<String>, seal: &Seal) -> Result<Bytes, String> {
    let mut index: IndexFile = seal.read(sealed)?;
    index.packs.retain(|pack| !lost.contains(&name_of(FileType::Pack, &pack.id)));
    seal.file(&index).map(Bytes::from)
}

impl WriteBackend for Copies {
    fn write_bytes(&self, kind: FileType, id: &Id, _: bool, content: BytesList) -> RusticResult<()> {
        if kind == FileType::Snapshot {
            return Ok(());
        }
        let written = self.runtime.block_on(self.write(&name_of(kind, id), content.slice()));
        written.map_err(|error| RusticError::with_source(ErrorKind::Backend, "a write failed", error))?;
        if kind == FileType::Index {
            lock(&self.written.indexes).push(*id);
        }
        Ok(())
    }

    fn remove(&self, kind: FileType, id: &Id, _: bool) -> RusticResult<()> {
        let name = name_of(kind, id);
        for member in self.members.iter() {
            let removed = self.runtime.block_on(member.location.remove(&name));
            removed.map_err(|error| told(Unread(vec![error])))?;
        }
        Ok(())
    }
}

fn told(unread: Unread) -> Box<RusticError> {
    RusticError::with_source(ErrorKind::Backend, "a read failed", unread)
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Copies").field(&self.location()).finish()
    }
}
