//! One place where objects lie: a directory, or a bucket. Whole objects, by their names in restic's layout.
//!
//! Every call ends: each request has a deadline, and with its retries one of its own. A write is there entirely or not at all; in a
//! directory it is on the disk when it returns. Cancelled by dropping: what was sent may or may not be there.

use std::{fmt, future::Future, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode, PutPayload, memory::InMemory, path::Path};

use crate::{
    answers::{brief, fault, is_unsupported},
    error::{Error, Fault, Result, StoreError},
    stores::{Patience, Place, store},
};

/// One location. Cheap to clone.
#[derive(Clone)]
pub struct Location {
    pub(crate) name: Arc<str>,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Of a directory: to find what a dead writer left there.
    pub(crate) directory: Option<Arc<PathBuf>>,
    patience: Patience,
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Below the location's prefix: `data/ab/ab12…`.
    pub name: String,
    pub size: u64,
    /// By the store's clock.
    pub modified: Timestamp,
}

impl Location {
    /// Nothing is asked of it yet.
    pub fn new(name: &str, place: &Place, patience: Patience) -> Result<Self> {
        let wrong = |why: String| Error::Misdescribed { location: name.to_owned(), why };
        let (store, prefix) = store(place, patience).map_err(wrong)?;
        let directory = match place {
            Place::Directory { path } => Some(Arc::new(path.clone())),
            _ => None,
        };
        let prefix =
            Path::parse(prefix.trim_matches('/')).map_err(|error| wrong(format!("the prefix {prefix:?}: {error}")))?;
        Ok(Self { name: name.into(), store, prefix, directory, patience })
    }

    /// A place that is gone with the process.
    pub(crate) fn in_memory() -> Self {
        let (store, prefix) = (Arc::new(InMemory::new()), Path::default());
        Self { name: "memory".into(), store, prefix, directory: None, patience: Patience::default() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
        self.within(name, async { self.store.get(&self.path(name)).await?.bytes().await }).await
    }

    /// `length` bytes from `offset`; fewer are an error.
    pub async fn read_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let bytes =
            self.within(name, async { self.store.get_range(&self.path(name), offset..offset + length).await }).await?;
        if bytes.len() as u64 == length {
            return Ok(bytes);
        }
        let why = format!("{} of {length} bytes from {offset} came", bytes.len());
        Err(StoreError::new(&self.name, Fault::Damaged, name, why))
    }

    pub async fn write(&self, name: &str, content: &[Bytes]) -> Result<(), StoreError> {
        let payload: PutPayload = content.iter().cloned().collect();
        self.within(name, async { self.store.put(&self.path(name), payload).await }).await.map(drop)
    }

    /// Writes what must not be there yet, and says what is there now: of several that do so at once, all find the content of one. A
    /// store that has no such request is asked first, which leaves a moment for others.
    pub(crate) async fn create(&self, name: &str, content: &Bytes) -> Result<Bytes, StoreError> {
        let path = self.path(name);
        let put = self.within(name, async {
            match self.store.put_opts(&path, content.clone().into(), PutMode::Create.into()).await {
                Err(error) if is_unsupported(&error) => Ok(false),
                put => put.map(|_| true),
            }
        });
        let put = match put.await {
            Ok(false) if self.find(name).await?.is_none() => self.write(name, std::slice::from_ref(content)).await,
            put => put.map(drop),
        };
        // A request whose answer is lost is repeated, and then finds its own work: only what is there tells who was first.
        match (self.read(name).await, put) {
            (Err(_), Err(error)) => Err(error),
            (there, _) => there,
        }
    }

    /// What is not there is removed already.
    pub async fn remove(&self, name: &str) -> Result<(), StoreError> {
        match self.within(name, async { self.store.delete(&self.path(name)).await }).await {
            Err(error) if error.fault == Fault::NotFound => Ok(()),
            other => other,
        }
    }

    /// Everything below a folder (`data`), or all of it (``).
    pub async fn list(&self, folder: &str) -> Result<Vec<Object>, StoreError> {
        let below = self.path(folder);
        let all = async {
            let mut objects = Vec::new();
            let mut stream = self.store.list(Some(&below));
            while let Some(meta) = stream.try_next().await? {
                if let Some(name) = self.name_of(&meta.location) {
                    objects.push(object(name, &meta));
                }
            }
            Ok(objects)
        };
        // A long list is many requests, each with a deadline of its own.
        self.within_for(self.patience.call * 4, folder, all).await
    }

    /// The first object that is `wanted`, if there is one.
    pub(crate) async fn first(&self, wanted: impl Fn(&str) -> bool) -> Result<Option<String>, StoreError> {
        let search = async {
            let mut stream = self.store.list(Some(&self.prefix));
            while let Some(meta) = stream.try_next().await? {
                if let Some(name) = self.name_of(&meta.location).filter(|name| wanted(name)) {
                    return Ok(Some(name));
                }
            }
            Ok(None)
        };
        self.within("", search).await
    }

    /// The one object, if it is there.
    pub async fn find(&self, name: &str) -> Result<Option<Object>, StoreError> {
        match self.within(name, async { self.store.head(&self.path(name)).await }).await {
            Ok(meta) => Ok(Some(object(name.to_owned(), &meta))),
            Err(error) if error.fault == Fault::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), Path::join)
    }

    fn name_of(&self, path: &Path) -> Option<String> {
        let parts: Vec<_> = path.prefix_match(&self.prefix)?.map(|part| part.as_ref().to_owned()).collect();
        Some(parts.join("/"))
    }

    async fn within<T>(
        &self,
        name: &str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        self.within_for(self.patience.call, name, work).await
    }

    async fn within_for<T>(
        &self,
        longest: Duration,
        name: &str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(longest, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(StoreError::new(&self.name, fault(&error), name, brief(&error))),
            Err(_) => {
                let why = format!("no answer within {longest:?}");
                Err(StoreError::new(&self.name, Fault::Unavailable, name, why))
            }
        }
    }
}

fn object(name: String, meta: &ObjectMeta) -> Object {
    let modified = Timestamp::from_millisecond(meta.last_modified.timestamp_millis()).unwrap_or_default();
    Object { name, size: meta.size, modified }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Location").field(&self.name).finish()
    }
}

/// Several calls at once, but not all.
pub(crate) const AT_ONCE: usize = 32;

/// Does the same for many objects, some at a time; the first error ends it.
pub(crate) async fn for_each<T, F>(items: Vec<T>, work: impl Fn(T) -> F) -> Result<(), StoreError>
where
    F: Future<Output = Result<(), StoreError>>,
{
    futures::stream::iter(items).map(work).buffer_unordered(AT_ONCE).try_collect().await
}
