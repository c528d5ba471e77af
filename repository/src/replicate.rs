//! A location that failed during a run, or was not there yet, is given what it lacks from one that has it. Everything is named by its
//! hash and never changes: what is missing is copied, packs first, then what says where they are, then the snapshot.

use std::collections::HashSet;

use futures::{StreamExt, TryStreamExt};
use rustic_core::FileType;

use crate::{
    Error, Repository,
    copies::{damaged, is_what_it_is_called},
    error::{Result, StoreError},
    location::{AT_ONCE, Location},
};

/// Packs are large, and all of one is in memory.
const PACKS_AT_ONCE: usize = 3;

impl Repository {
    /// Copies snapshot `id` to the location of that name, with all that it needs. Nothing is done where it is already.
    pub fn replicate(&self, id: &str, to: &str) -> Result<()> {
        let snapshot = format!("{}/{id}", FileType::Snapshot.dirname());
        let locations = &self.inner.locations;
        let to = locations.iter().find(|location| location.name() == to);
        let to = to.ok_or_else(|| Error::NoLocation(Vec::new()))?;
        self.inner.runtime.block_on(async {
            if to.find(&snapshot).await?.is_some() {
                return Ok(());
            }
            let mut errors = Vec::new();
            for from in locations.iter().filter(|from| from.name != to.name) {
                match from.find(&snapshot).await {
                    Ok(None) => continue,
                    Err(error) => {
                        errors.push(error);
                        continue;
                    }
                    Ok(Some(_)) => {}
                }
                match copy(from, to, &snapshot).await {
                    Ok(()) => return Ok(()),
                    // The next may have it whole; that we cannot write will not change.
                    Err(error) if error.location == from.name() => errors.push(error),
                    Err(error) => return Err(error.into()),
                }
            }
            if errors.is_empty() { Err(Error::NoSnapshot(id.to_owned())) } else { Err(Error::NoLocation(errors)) }
        })
    }
}

async fn copy(from: &Location, to: &Location, snapshot: &str) -> Result<(), StoreError> {
    // What an index names has to be there before it; so indexes are listed first, and written last.
    let indexes = missing(from, to, FileType::Index.dirname()).await?;
    let packs = missing(from, to, FileType::Pack.dirname()).await?;
    for (names, at_once) in [(packs, PACKS_AT_ONCE), (indexes, AT_ONCE)] {
        let copies = futures::stream::iter(names).map(|name| async move { copy_one(from, to, &name).await });
        copies.buffer_unordered(at_once).try_collect::<()>().await?;
    }
    copy_one(from, to, snapshot).await
}

async fn missing(from: &Location, to: &Location, folder: &str) -> Result<Vec<String>, StoreError> {
    let there: HashSet<String> = to.list(folder).await?.into_iter().map(|object| object.name).collect();
    let all = from.list(folder).await?.into_iter().map(|object| object.name);
    Ok(all.filter(|name| !there.contains(name)).collect())
}

async fn copy_one(from: &Location, to: &Location, name: &str) -> Result<(), StoreError> {
    let bytes = from.read(name).await?;
    if !is_what_it_is_called(name, &bytes) {
        return Err(damaged(from, name));
    }
    to.write(name, &[bytes]).await
}
