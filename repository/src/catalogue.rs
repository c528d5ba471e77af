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
use serde::Deserialize;

use crate::{
    Repository,
    copies::{damaged, is_what_it_is_called, lock},
    error::{Error, Fault, Result, StoreError},
    format::Seal,
    location::Location,
    manifest::{Manifest, PROGRAM},
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
    pub writer: Writer,
    /// The locations that have it.
    pub at: Vec<String>,
    pub(crate) tree: String,
    /// Of its file, bytes: a location where that has another does not have it.
    pub(crate) size: u64,
}

/// Who wrote a snapshot, and so what can be done with it.
#[derive(Clone, Debug, PartialEq)]
pub enum Writer {
    /// We, or a Stillpoint before us: it can be restored into a server.
    Ours(Box<Manifest>),
    /// A newer Stillpoint, whose manifest has this version. Only such a one restores it.
    Newer(u32),
    /// Another program. It can be read file by file.
    Foreign,
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
        let (at, mut errors) = listed(&repository.inner.locations).await;
        if at.is_empty() && errors.len() == repository.inner.locations.len() {
            return Err(Error::NoLocation(errors));
        }
        let remembered = {
            let mut known = lock(&self.known);
            known.retain(|id, _| at.contains_key(id));
            known.clone()
        };
        let entries = at.into_iter().map(|(id, copies)| {
            let known = remembered.get(&id).cloned();
            let seal = &repository.inner.seal;
            async move { entry(&id, &copies, known, seal).await }
        });
        let read: Vec<(Option<Arc<Entry>>, Vec<StoreError>)> =
            futures::stream::iter(entries).buffer_unordered(READS_AT_ONCE).collect().await;
        let mut all = Vec::with_capacity(read.len());
        for (entry, untold) in read {
            all.extend(entry);
            errors.extend(untold);
        }
        all.sort_by(|one, other| (one.time, &one.id).cmp(&(other.time, &other.id)));
        *lock(&self.known) = all.iter().map(|entry| (entry.id.clone(), Arc::clone(entry))).collect();
        Ok((all, errors))
    }
}

impl Entry {
    /// What it says of itself, if we wrote it.
    pub fn manifest(&self) -> Option<&Manifest> {
        match &self.writer {
            Writer::Ours(manifest) => Some(manifest),
            Writer::Newer(_) | Writer::Foreign => None,
        }
    }
}

/// One file of a snapshot, and its size there.
type Copy<'l> = (&'l Location, u64);

async fn listed(locations: &[Location]) -> (BTreeMap<String, Vec<Copy<'_>>>, Vec<StoreError>) {
    let folder = FileType::Snapshot.dirname();
    let lists = join_all(locations.iter().map(|location| location.list(folder))).await;
    let mut at: BTreeMap<String, Vec<Copy<'_>>> = BTreeMap::new();
    let mut errors = Vec::new();
    for (location, list) in locations.iter().zip(lists) {
        match list {
            Ok(objects) => objects.into_iter().for_each(|object| {
                if let Some(id) = object.name.rsplit('/').next().filter(|id| id.len() == 64) {
                    at.entry(id.to_owned()).or_default().push((location, object.size));
                }
            }),
            Err(error) => errors.push(error),
        }
    }
    (at, errors)
}

/// A snapshot, if any location has it whole; and where it is damaged.
async fn entry(
    id: &str,
    copies: &[Copy<'_>],
    known: Option<Arc<Entry>>,
    seal: &Seal,
) -> (Option<Arc<Entry>>, Vec<StoreError>) {
    let name = format!("{}/{id}", FileType::Snapshot.dirname());
    let mut errors = Vec::new();
    let mut whole: Vec<&Copy<'_>> = copies.iter().collect();
    let mut entry = known;
    while let (None, Some((location, _))) = (&entry, whole.first()) {
        match read(location, id, &name, seal).await {
            Ok(read) => entry = Some(read.into()),
            Err(error) => {
                errors.push(error);
                whole.remove(0);
            }
        }
    }
    let Some(entry) = entry else { return (None, errors) };
    for (location, _) in whole.extract_if(.., |(_, size)| *size != entry.size) {
        errors.push(damaged(location, &name));
    }
    let at: Vec<String> = whole.iter().map(|(location, _)| location.name().to_owned()).collect();
    match at {
        at if at.is_empty() => (None, errors),
        at if at == entry.at => (Some(entry), errors),
        at => (Some(Entry { at, ..Entry::clone(&entry) }.into()), errors),
    }
}

async fn read(location: &Location, id: &str, name: &str, seal: &Seal) -> Result<Entry, StoreError> {
    let bytes = location.read(name).await?;
    if !is_what_it_is_called(name, &bytes) {
        return Err(damaged(location, name));
    }
    let file: SnapshotFile =
        seal.read(&bytes).map_err(|why| StoreError::new(location.name(), Fault::Damaged, name, why))?;
    Ok(Entry {
        id: id.to_owned(),
        time: file.time.timestamp(),
        host: file.hostname,
        tags: file.tags.iter().cloned().collect(),
        paths: file.paths.iter().cloned().collect(),
        writer: writer(&file.program_version, file.description.as_deref().unwrap_or_default()),
        program: file.program_version,
        at: Vec::new(),
        tree: file.tree.to_hex().as_str().to_owned(),
        size: bytes.len() as u64,
    })
}

fn writer(program: &str, description: &str) -> Writer {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    match (serde_json::from_str::<Versioned>(description), serde_json::from_str::<Manifest>(description)) {
        (Ok(_), Ok(manifest)) if manifest.version <= Manifest::VERSION => Writer::Ours(manifest.into()),
        // One that says more than we understand is newer, too.
        (Ok(Versioned { version }), _) if program.starts_with(PROGRAM) => Writer::Newer(version),
        _ => Writer::Foreign,
    }
}

impl Repository {
    /// Removes a snapshot from every location. What it alone needed stays until the next `prune`. After an error it is still at one.
    pub fn forget(&self, id: &str) -> Result<()> {
        let name = format!("{}/{id}", FileType::Snapshot.dirname());
        let removals = self.inner.locations.iter().map(|location| location.remove(&name));
        let removed = self.inner.runtime.block_on(join_all(removals));
        removed.into_iter().collect::<Result<(), StoreError>>().map_err(Error::from)
    }
}
