//! Several locations as the one backend that the library sees. What is written goes to all that still do what is asked of them;
//! what is read comes from the first, and from the next where that fails or has something else than its name says.
//!
//! A location that failed once is left alone for the rest of a run: it would have holes. The library may log an error and go on
//! without a file, and calls a stream that broke off a whole one: so no snapshot is ever written by it, but by `capture`, when
//! everything is known to be there.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::future::join_all;
use rustic_core::{BytesList, ErrorKind, FileType, Id, ReadBackend, RusticError, RusticResult, WriteBackend};
use tokio::runtime::Handle;

use crate::{
    error::{Error, Fault, Result, StoreError},
    format::id_of,
    location::Location,
};

/// Locations that hold the same. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Copies {
    members: Arc<[Member]>,
    runtime: Handle,
    /// If it is set, the index is what these files say.
    only: Option<Arc<[Id]>>,
    written: Arc<Written>,
}

struct Member {
    location: Location,
    failed: Mutex<Option<StoreError>>,
}

/// What a run has written.
#[derive(Debug, Default)]
struct Written {
    bytes: AtomicU64,
    indexes: Mutex<Vec<Id>>,
}

impl Copies {
    pub(crate) fn new(locations: &[Location], runtime: Handle) -> Self {
        let member = |location: &Location| Member { location: location.clone(), failed: Mutex::default() };
        Self { members: locations.iter().map(member).collect(), runtime, only: None, written: Arc::default() }
    }

    /// The same, as if nothing else were indexed than what was written here.
    pub(crate) fn with_its_own_index(&self) -> Self {
        let indexes = lock(&self.written.indexes).clone();
        Self { only: Some(indexes.into()), ..self.clone() }
    }

    /// What was written to each that has not failed, bytes.
    pub(crate) fn written(&self) -> u64 {
        self.written.bytes.load(Ordering::Relaxed)
    }

    /// Those that have everything that was written here.
    pub(crate) fn whole(&self) -> Vec<Location> {
        self.members
            .iter()
            .filter(|member| lock(&member.failed).is_none())
            .map(|member| member.location.clone())
            .collect()
    }

    pub(crate) fn failures(&self) -> Vec<StoreError> {
        self.members.iter().filter_map(|member| lock(&member.failed).clone()).collect()
    }

    /// To all that are whole; an error if none is left.
    pub(crate) async fn write(&self, name: &str, content: &[Bytes]) -> Result<()> {
        let writes = self.members.iter().filter(|member| lock(&member.failed).is_none()).map(|member| async move {
            if let Err(error) = member.location.write(name, content).await {
                lock(&member.failed).get_or_insert(error);
            }
        });
        join_all(writes).await;
        if self.whole().is_empty() {
            return Err(Error::NoLocation(self.failures()));
        }
        self.written.bytes.fetch_add(content.iter().map(|part| part.len() as u64).sum(), Ordering::Relaxed);
        Ok(())
    }

    /// From the first that has it.
    pub(crate) async fn read(&self, name: &str) -> Result<Bytes, Vec<StoreError>> {
        let mut errors = Vec::new();
        for member in self.members.iter().filter(|member| lock(&member.failed).is_none()) {
            match member.location.read(name).await {
                Ok(bytes) if is_what_it_is_called(name, &bytes) => return Ok(bytes),
                Ok(_) => errors.push(damaged(&member.location, name)),
                Err(error) => errors.push(error),
            }
        }
        Err(errors)
    }

    async fn read_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, Vec<StoreError>> {
        let mut errors = Vec::new();
        for member in self.members.iter().filter(|member| lock(&member.failed).is_none()) {
            match member.location.read_range(name, offset, length).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) => errors.push(error),
            }
        }
        Err(errors)
    }

    async fn list(&self, folder: &str) -> Result<Vec<(String, u64)>, Vec<StoreError>> {
        let mut errors = Vec::new();
        for member in self.members.iter().filter(|member| lock(&member.failed).is_none()) {
            match member.location.list(folder).await {
                Ok(objects) => return Ok(objects.into_iter().map(|object| (object.name, object.size)).collect()),
                Err(error) => errors.push(error),
            }
        }
        Err(errors)
    }
}

/// The object of a file of the repository.
pub(crate) fn name_of(kind: FileType, id: &Id) -> String {
    let hex = id.to_hex();
    match kind {
        FileType::Config => "config".to_owned(),
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
    StoreError::new(location.name(), Fault::Damaged, name, "its content does not have the hash that it is named by")
}

impl ReadBackend for Copies {
    fn location(&self) -> String {
        self.members.iter().map(|member| member.location.name()).collect::<Vec<_>>().join(", ")
    }

    fn list_with_size(&self, kind: FileType) -> RusticResult<Vec<(Id, u32)>> {
        let size = |size: u64| u32::try_from(size).unwrap_or(u32::MAX);
        if kind == FileType::Config {
            let found = self.runtime.block_on(self.list("")).map_err(told)?;
            return Ok(found
                .iter()
                .filter(|(name, _)| name == "config")
                .map(|(_, bytes)| (Id::default(), size(*bytes)))
                .collect());
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
        self.runtime.block_on(self.read(&name_of(kind, id))).map_err(told)
    }

    fn read_partial(&self, kind: FileType, id: &Id, _: bool, offset: u32, length: u32) -> RusticResult<Bytes> {
        let name = name_of(kind, id);
        self.runtime.block_on(self.read_range(&name, offset.into(), length.into())).map_err(told)
    }

    fn warmup_path(&self, kind: FileType, id: &Id) -> String {
        name_of(kind, id)
    }
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
            self.runtime.block_on(member.location.remove(&name)).map_err(|error| told(vec![error]))?;
        }
        Ok(())
    }
}

fn told(errors: Vec<StoreError>) -> Box<RusticError> {
    let error = Error::NoLocation(errors);
    RusticError::new(ErrorKind::Backend, error.to_string())
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Copies").field(&self.location()).finish()
    }
}
