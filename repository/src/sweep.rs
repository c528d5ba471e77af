//! What runs that died have left: their locks, and packs that no index knows. Packs that one knows are no waste: the next run that
//! stores the same finds them there, and `prune` removes them once nothing needs them.
//!
//! Nothing is removed while somebody else writes, nor what is younger than our own lock, by the store's clock.

use std::{collections::HashSet, path::Path};

use rustic_core::{FileType, repofile::IndexFile};
use tokio::runtime::Handle;
use tracing::{info, warn};

use crate::{
    copies::Copies,
    error::Result,
    format::Seal,
    location::{Location, Object, for_each},
    locks::{Lock, read_all},
    repository::Run,
};

/// What cannot be removed now is left to the next run.
pub(crate) fn sweep(lock: &Lock, copies: &Copies, seal: &Seal, run: &Run, runtime: &Handle) {
    if run.over.is_empty() {
        return;
    }
    for location in copies.whole() {
        match sweep_one(&location, lock, seal, run, runtime) {
            Ok(0) => {}
            Ok(removed) => info!(location = location.name(), removed, "what dead runs left was removed"),
            Err(error) => warn!(location = location.name(), %error, "what dead runs left stays for now"),
        }
    }
}

fn sweep_one(location: &Location, lock: &Lock, seal: &Seal, run: &Run, runtime: &Handle) -> Result<usize> {
    let own = lock.name();
    let Some(since) = runtime.block_on(location.find(&own))?.map(|object| object.modified) else { return Ok(0) };
    let mut dead = 0;
    let mut alone = true;
    for (name, file) in read_all(location, seal, runtime)? {
        if file.run.is_some_and(|of| of != run.name && run.over.contains(&of)) {
            runtime.block_on(location.remove(&name))?;
            dead += 1;
        } else {
            alone &= name == own;
        }
    }
    if dead == 0 || !alone {
        return Ok(dead);
    }
    let packs: Vec<Object> = runtime.block_on(location.list(FileType::Pack.dirname()))?;
    let mut known = HashSet::new();
    for object in runtime.block_on(location.list(FileType::Index.dirname()))? {
        let bytes = runtime.block_on(location.read(&object.name))?;
        let index: IndexFile = seal.read(&bytes).map_err(crate::Error::Format)?;
        known.extend(index.packs.iter().chain(&index.packs_to_delete).map(|pack| pack.id.to_hex().as_str().to_owned()));
    }
    let unknown = |pack: &Object| {
        let id = pack.name.rsplit('/').next().unwrap_or_default();
        id.len() == 64 && pack.modified < since && !known.contains(id)
    };
    let waste: Vec<Object> = packs.into_iter().filter(unknown).collect();
    let removed = dead + waste.len();
    runtime.block_on(for_each(waste, |pack| async move { location.remove(&pack.name).await }))?;
    if let Some(directory) = &location.directory {
        half_written(directory, since);
    }
    Ok(removed)
}

/// Files that were being written when their writer died: `NAME#1`, which no list shows.
fn half_written(directory: &Path, since: jiff::Timestamp) {
    let folders = [FileType::Pack, FileType::Index, FileType::Snapshot].map(|kind| directory.join(kind.dirname()));
    let mut left: Vec<_> = folders.into();
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
