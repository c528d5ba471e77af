//! What runs that died have left: their locks, and packs that no index knows. Packs that one knows are no waste: the next run that
//! stores the same finds them there, and `prune` removes them once nothing needs them.
//!
//! Nothing is removed while somebody else writes, nor what is younger than our own lock, by the store's clock.

use std::{collections::HashSet, path::Path};

use rustic_core::{FileType, repofile::IndexFile};
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::{
    error::StoreError,
    format::Seal,
    location::{Location, Object, for_each},
    locks::{FOLDER, Lock, read_all},
    repository::Run,
    standing::whole,
};

/// What cannot be removed now is left to the next run that is told of it.
pub(crate) fn sweep(lock: &Lock, seal: &Seal, run: &Run, runtime: &Handle) {
    for location in lock.locations().iter().filter(|_| !run.over.is_empty()) {
        match runtime.block_on(sweep_one(location, lock, seal, run)) {
            Ok(0) => {}
            Ok(removed) => info!(location = location.name(), removed, "what dead runs left was removed"),
            Err(error) => warn!(location = location.name(), %error, "what dead runs left stays for now"),
        }
    }
}

/// Removes the locks of runs that are over. Whether nobody else has one here.
pub(crate) async fn bury(location: &Location, lock: &Lock, seal: &Seal, run: &Run) -> Result<bool, StoreError> {
    let own = lock.name_at(location);
    let mut is_alone = true;
    for (object, file) in read_all(location, seal).await? {
        let of = file.and_then(|file| file.run);
        if of.is_some_and(|of| of != run.name && run.over.contains(&of)) {
            location.remove(&object.name).await?;
        } else {
            is_alone &= object.name == own;
        }
    }
    Ok(is_alone)
}

async fn sweep_one(location: &Location, lock: &Lock, seal: &Seal, run: &Run) -> Result<usize, StoreError> {
    let Some(Object { modified: since, .. }) = location.find(&lock.name_at(location)).await? else { return Ok(0) };
    if !bury(location, lock, seal, run).await? {
        info!(location = location.name(), "others may be writing: no pack is removed");
        return Ok(0);
    }
    let packs: Vec<Object> = location.list(FileType::Pack.dirname()).await?;
    let mut known = HashSet::new();
    for object in location.list(FileType::Index.dirname()).await? {
        let (_, index): (u64, IndexFile) = whole(location, &object.name, seal).await?;
        known.extend(index.packs.iter().chain(&index.packs_to_delete).map(|pack| pack.id.to_hex().as_str().to_owned()));
    }
    let unknown = |pack: &Object| {
        let id = pack.name.rsplit('/').next().unwrap_or_default();
        id.len() == 64 && pack.modified < since && !known.contains(id)
    };
    let waste: Vec<Object> = packs.into_iter().filter(unknown).collect();
    let removed = waste.len();
    for_each(waste, |pack| async move { location.remove(&pack.name).await }).await?;
    if let Some(directory) = &location.directory {
        half_written(directory, since);
    }
    Ok(removed)
}

/// Files that were being written when their writer died: `NAME#1`, which no list shows.
fn half_written(directory: &Path, since: jiff::Timestamp) {
    let kinds = [FileType::Pack, FileType::Index, FileType::Snapshot, FileType::Key];
    let folders = kinds.map(FileType::dirname).into_iter().chain([FOLDER]);
    let mut left: Vec<_> = folders.map(|folder| directory.join(folder)).collect();
    while let Some(folder) = left.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let is_old = || {
                let modified = entry.metadata().ok()?.modified().ok()?;
                Some(jiff::Timestamp::try_from(modified).ok()? < since)
            };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(entry.path());
            } else if entry.file_name().to_string_lossy().contains('#') && is_old() == Some(true) {
                std::fs::remove_file(entry.path()).ok();
            }
        }
    }
}
