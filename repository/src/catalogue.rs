//! What is really there: every snapshot of every location, whoever made it, each read once.
//!
//! A location that does not answer hides nothing that another has, and is told. What cannot be read is told, too, and hides nothing.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use futures::{StreamExt, future::join_all};
use jiff::Timestamp;
use rustic_core::{FileType, repofile::SnapshotFile};

use crate::{
    Repository,
    copies::{is_what_it_is_called, lock},
    error::{Error, Fault, Result, StoreError},
    location::Location,
    manifest::Manifest,
};

/// One snapshot in a repository.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// restic's name for it: 64 hexadecimal digits.
    pub id: String,
    pub time: Timestamp,
    pub host: String,
    pub tags: Vec<String>,
    pub paths: Vec<String>,
    /// The program that wrote it; empty where it did not say.
    pub program: String,
    /// `None`: another program wrote it. Only what we wrote can be restored into a server by us.
    pub manifest: Option<Manifest>,
    /// The locations that have it.
    pub at: Vec<String>,
    pub(crate) tree: String,
}

/// A catalogue that is remembered. Snapshots never change: what was read once is not read again.
#[derive(Debug, Default)]
pub struct Catalogue {
    known: Mutex<HashMap<String, Arc<Entry>>>,
}

/// Small objects; a store far away answers each after some 20 ms.
const READS_AT_ONCE: usize = 64;

impl Catalogue {
    /// Everything, by time, and what could not be read of it.
    pub fn read(&self, repository: &Repository) -> Result<(Vec<Arc<Entry>>, Vec<StoreError>)> {
        repository.inner.runtime.block_on(self.look(repository))
    }

    async fn look(&self, repository: &Repository) -> Result<(Vec<Arc<Entry>>, Vec<StoreError>)> {
        let locations = &repository.inner.locations;
        let folder = FileType::Snapshot.dirname();
        let lists = join_all(locations.iter().map(|location| location.list(folder))).await;
        let mut errors = Vec::new();
        let mut at: BTreeMap<String, Vec<&Location>> = BTreeMap::new();
        for (location, list) in locations.iter().zip(lists) {
            match list {
                Ok(objects) => objects.into_iter().for_each(|object| {
                    if let Some(id) = object.name.rsplit('/').next().filter(|id| id.len() == 64) {
                        at.entry(id.to_owned()).or_default().push(location);
                    }
                }),
                Err(error) => errors.push(error),
            }
        }
        if at.is_empty() && errors.len() == locations.len() {
            return Err(Error::NoLocation(errors));
        }
        let remembered = {
            let mut known = lock(&self.known);
            known.retain(|id, _| at.contains_key(id));
            known.clone()
        };
        let entries = at.into_iter().map(|(id, at)| {
            let known = remembered.get(&id).cloned();
            async move {
                let names: Vec<String> = at.iter().map(|location| location.name().to_owned()).collect();
                match known {
                    Some(entry) if entry.at == names => Ok(entry),
                    Some(entry) => Ok(Arc::new(Entry { at: names, ..Entry::clone(&entry) })),
                    None => read(repository, &id, &at, names).await.map(Arc::new),
                }
            }
        });
        let read: Vec<Result<Arc<Entry>, StoreError>> =
            futures::stream::iter(entries).buffer_unordered(READS_AT_ONCE).collect().await;
        let mut all = Vec::with_capacity(read.len());
        for entry in read {
            match entry {
                Ok(entry) => all.push(entry),
                Err(error) => errors.push(error),
            }
        }
        all.sort_by(|one, other| (one.time, &one.id).cmp(&(other.time, &other.id)));
        *lock(&self.known) = all.iter().map(|entry| (entry.id.clone(), Arc::clone(entry))).collect();
        Ok((all, errors))
    }
}

impl Repository {
    /// Removes a snapshot from every location. What it alone needed stays until the next `prune`.
    pub fn forget(&self, id: &str) -> Result<()> {
        let name = format!("{}/{id}", FileType::Snapshot.dirname());
        let removals = self.inner.locations.iter().map(|location| location.remove(&name));
        let errors: Vec<StoreError> =
            self.inner.runtime.block_on(join_all(removals)).into_iter().filter_map(Result::err).collect();
        if errors.is_empty() { Ok(()) } else { Err(Error::NoLocation(errors)) }
    }
}

/// From the first location that has it whole.
async fn read(repository: &Repository, id: &str, at: &[&Location], names: Vec<String>) -> Result<Entry, StoreError> {
    let name = format!("{}/{id}", FileType::Snapshot.dirname());
    let mut last = None;
    for location in at {
        let bytes = match location.read(&name).await {
            Ok(bytes) if is_what_it_is_called(&name, &bytes) => bytes,
            Ok(_) => {
                last = Some(crate::copies::damaged(location, &name));
                continue;
            }
            Err(error) => {
                last = Some(error);
                continue;
            }
        };
        match repository.inner.seal.read::<SnapshotFile>(&bytes) {
            Ok(file) => return Ok(entry(id, file, names)),
            Err(why) => last = Some(StoreError::new(location.name(), Fault::Damaged, &name, why)),
        }
    }
    Err(last.unwrap_or_else(|| StoreError::new("", Fault::NotFound, &name, "no location has it")))
}

fn entry(id: &str, file: SnapshotFile, at: Vec<String>) -> Entry {
    let manifest = file.description.as_deref().and_then(|text| serde_json::from_str::<Manifest>(text).ok());
    Entry {
        id: id.to_owned(),
        time: file.time.timestamp(),
        host: file.hostname,
        tags: file.tags.iter().cloned().collect(),
        paths: file.paths.iter().cloned().collect(),
        program: file.program_version,
        manifest: manifest.filter(|manifest| manifest.version <= Manifest::VERSION),
        at,
        tree: file.tree.to_hex().as_str().to_owned(),
    }
}
