//! A location that failed during a run, or was not there yet, is given what it lacks from one that has it. Everything is named by its
//! hash and never changes: what is missing is copied, packs first, then what says where they are, then the snapshot.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt};
use rustic_core::FileType;

use crate::{
    Error, Repository, Run,
    copies::{damaged, is_what_it_is_called},
    error::{Fault, Result, StoreError},
    location::{AT_ONCE, Location},
    locks::Lock,
    sweep::bury,
};

/// Packs are large, and all of one is in memory.
const PACKS_AT_ONCE: usize = 3;

impl Repository {
    /// Copies snapshot `id` to the location of that name, with all that it needs. Nothing is done where it is already.
    pub fn replicate(&self, run: &Run, id: &str, to: &str) -> Result<()> {
        let inner = &self.inner;
        let snapshot = format!("{}/{id}", FileType::Snapshot.dirname());
        let to = inner.locations.iter().find(|location| location.name() == to).ok_or_else(|| {
            Error::NoLocation(vec![StoreError::new(to, Fault::Unavailable, "", "it was left out when it was opened")])
        })?;
        let (sources, mut errors) = inner.runtime.block_on(sources(&inner.locations, to, &snapshot));
        let Some(size) = sources.first().map(|(_, size)| *size) else {
            return Err(if errors.is_empty() { Error::NoSnapshot(id.to_owned()) } else { Error::NoLocation(errors) });
        };
        if inner.runtime.block_on(to.find(&snapshot))?.is_some_and(|there| there.size == size) {
            return Ok(());
        }
        for (from, _) in sources {
            // Nobody may take what is copied for waste, nor remove what is to be copied.
            let lock = Lock::take(&[from.clone(), to.clone()], &inner.seal, run, &inner.runtime)?;
            if let Some(error) = lock.failures().into_iter().next() {
                if error.location == to.name() {
                    return Err(error.into());
                }
                errors.push(error);
                continue;
            }
            let copied = inner.runtime.block_on(async {
                // What a dead run has copied already stays: it is what is missing.
                bury(to, &inner.seal, run).await?;
                bury(from, &inner.seal, run).await?;
                copy(from, to).await?;
                if lock.is_held_at(to).await? && lock.is_held_at(from).await? {
                    copy_one(from, to, &snapshot).await.map(|()| true)
                } else {
                    Ok(false)
                }
            });
            match copied {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(Error::GivenUp { location: to.name().to_owned() }),
                // The next may have it whole; that we cannot write will not change.
                Err(error) if error.location == from.name() => errors.push(error),
                Err(error) => return Err(error.into()),
            }
        }
        Err(Error::NoLocation(errors))
    }
}

/// The others that have a snapshot, and its size there; and what some did not say.
async fn sources<'l>(
    locations: &'l [Location],
    to: &Location,
    snapshot: &str,
) -> (Vec<(&'l Location, u64)>, Vec<StoreError>) {
    let (mut sources, mut errors) = (Vec::new(), Vec::new());
    for from in locations.iter().filter(|from| from.name != to.name) {
        match from.find(snapshot).await {
            Ok(found) => sources.extend(found.map(|object| (from, object.size))),
            Err(error) => errors.push(error),
        }
    }
    (sources, errors)
}

async fn copy(from: &Location, to: &Location) -> Result<(), StoreError> {
    // What an index names has to be there before it; so indexes are listed first, and written last.
    let indexes = missing(from, to, FileType::Index.dirname()).await?;
    let packs = missing(from, to, FileType::Pack.dirname()).await?;
    for (names, at_once) in [(packs, PACKS_AT_ONCE), (indexes, AT_ONCE)] {
        let copies = futures::stream::iter(names).map(|name| async move { copy_one(from, to, &name).await });
        copies.buffer_unordered(at_once).try_collect::<()>().await?;
    }
    Ok(())
}

/// What is not there, or is and has less: one that was damaged is replaced.
async fn missing(from: &Location, to: &Location, folder: &str) -> Result<Vec<String>, StoreError> {
    let named = async |location: &Location| -> Result<HashMap<String, u64>, StoreError> {
        Ok(location.list(folder).await?.into_iter().map(|object| (object.name, object.size)).collect())
    };
    let there = named(to).await?;
    let all = named(from).await?;
    let lacks = |(name, size): &(String, u64)| there.get(name).is_none_or(|there| there < size);
    Ok(all.into_iter().filter(lacks).map(|(name, _)| name).collect())
}

async fn copy_one(from: &Location, to: &Location, name: &str) -> Result<(), StoreError> {
    let bytes = from.read(name).await?;
    if !is_what_it_is_called(name, &bytes) {
        return Err(damaged(from, name));
    }
    to.write(name, &[bytes]).await
}
