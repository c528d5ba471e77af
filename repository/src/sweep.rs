//! What runs that died have left: their locks, and packs that no index knows. Packs that one knows are no waste: the next run that
//! stores the same finds them there, and `prune` removes them once nothing needs them.
//!
//! No clock is asked. Packs are listed first, then the locks, then the indexes: whoever wrote one of the packs that were listed has its
//! lock there still, or has written its index before that went, or is dead. A pack that another location's index knows stays, too: a
//! location that is brought up needs it.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

use futures::future::{join_all, try_join_all};
use rustic_core::{FileType, repofile::IndexFile};
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::{
    error::{Fault, StoreError},
    format::Seal,
    location::{Location, Object, for_each},
    locks::{FOLDER, Lock, LockFile, read_all},
    repository::Run,
    standing::whole,
};

/// What was at a location before anything else was asked.
struct Seen<'l> {
    location: &'l Location,
    packs: Vec<Object>,
    /// Files that were being written when their writer died, or that are being written.
    half_written: Vec<PathBuf>,
}

/// Looks at the locks, until those of runs that are over are gone.
const LOOKS: usize = 10;

/// What cannot be removed now is left to the next run that is told of it.
pub(crate) fn sweep(lock: &Lock, seal: &Seal, run: &Run, runtime: &Handle) {
    if run.over.is_empty() {
        return;
    }
    match runtime.block_on(swept(lock, seal, run)) {
        Ok(0) => {}
        Ok(removed) => info!(removed, "what dead runs left was removed"),
        Err(error) => warn!(%error, "what dead runs left stays for now"),
    }
}

/// Removes the locks of runs that are over. Whether nobody else has one here.
pub(crate) async fn bury(location: &Location, seal: &Seal, run: &Run) -> Result<bool, StoreError> {
    let others = buried(location, seal, run).await?;
    Ok(others.iter().all(|(_, of)| of.as_ref() == Some(&run.name)))
}

/// Removes the locks of runs that are over; those that are left, and of which runs they are.
pub(crate) async fn buried(
    location: &Location,
    seal: &Seal,
    run: &Run,
) -> Result<Vec<(Object, Option<String>)>, StoreError> {
    for _ in 0..LOOKS {
        let locks = read_all(location, seal).await?;
        let is_dead = |(_, file): &(Object, Option<LockFile>)| {
            file.as_ref().and_then(|file| file.run.as_ref()).is_some_and(|of| run.is_over(of))
        };
        let (over, others): (Vec<_>, Vec<_>) = locks.into_iter().partition(is_dead);
        if over.is_empty() {
            return Ok(others.into_iter().map(|(object, file)| (object, file.and_then(|file| file.run))).collect());
        }
        for (object, _) in over {
            location.remove(&object.name).await?;
        }
    }
    let why = "the lock of a run that was given up is made anew each time that it is removed";
    Err(StoreError::new(location.name(), Fault::Other, FOLDER, why))
}

/// How many packs were removed, of all locations.
async fn swept(lock: &Lock, seal: &Seal, run: &Run) -> Result<usize, StoreError> {
    let locations = lock.locations();
    let seen = try_join_all(locations.iter().map(look)).await?;
    let mut alone = Vec::new();
    for (seen, is_alone) in seen.into_iter().zip(join_all(locations.iter().map(|at| bury(at, seal, run))).await) {
        if is_alone? {
            alone.push(seen);
        } else {
            info!(location = seen.location.name(), "others may be writing: nothing of theirs is removed");
        }
    }
    // Of a location that is not here now, nobody knows what it needs.
    if let Some(error) = lock.failures().into_iter().next() {
        return Err(error);
    }
    let known: HashSet<String> =
        try_join_all(locations.iter().map(|at| indexed(at, seal))).await?.into_iter().flatten().collect();
    let mut removed = 0;
    for Seen { location, packs, half_written } in alone {
        let waste = waste(packs, &known);
        removed += waste.len();
        for_each(waste, |pack| async move { location.remove(&pack.name).await }).await?;
        for file in half_written {
            std::fs::remove_file(file).ok();
        }
    }
    Ok(removed)
}

async fn look(location: &Location) -> Result<Seen<'_>, StoreError> {
    let half_written = location.directory.as_deref().map(|directory| half_written(directory)).unwrap_or_default();
    Ok(Seen { location, packs: location.list(FileType::Pack.dirname()).await?, half_written })
}

/// The packs that an index at a location names.
async fn indexed(location: &Location, seal: &Seal) -> Result<Vec<String>, StoreError> {
    let mut known = Vec::new();
    for object in location.list(FileType::Index.dirname()).await? {
        let (_, index): (u64, IndexFile) = whole(location, &object.name, seal).await?;
        known.extend(index.packs.iter().chain(&index.packs_to_delete).map(|pack| pack.id.to_hex().as_str().to_owned()));
    }
    Ok(known)
}

fn waste(packs: Vec<Object>, known: &HashSet<String>) -> Vec<Object> {
    let is_waste = |pack: &Object| {
        let id = pack.name.rsplit('/').next().unwrap_or_default();
        id.len() == 64 && !known.contains(id)
    };
    packs.into_iter().filter(is_waste).collect()
}

/// Files of a directory that no list shows: `NAME#1`.
fn half_written(directory: &Path) -> Vec<PathBuf> {
    let kinds = [FileType::Pack, FileType::Index, FileType::Snapshot, FileType::Key];
    let folders = kinds.map(FileType::dirname).into_iter().chain([FOLDER]);
    let mut left: Vec<_> = folders.map(|folder| directory.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = left.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            } else if entry.file_name().to_string_lossy().contains('#') {
                found.push(entry.path());
            }
        }
    }
    found
}
