//! How locations stand to each other: which have all that any has, as far as the names and sizes of their indexes and packs say.
//!
//! A run refers to what is there already. So it writes to those only that have all of that; and what none of them has, though an index
//! says so, is stored again.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt, TryStreamExt, future::join_all};
use rustic_core::{
    FileType,
    repofile::{IndexFile, IndexPack},
};

use crate::{
    copies::{damaged, is_what_it_is_called, name_of},
    error::{Error, Fault, Result, StoreError, Unread},
    format::Seal,
    location::{AT_ONCE, Location},
};

pub(crate) struct Standing {
    /// Those that have everything that is left.
    pub(crate) current: Vec<Location>,
    /// The others, and why.
    pub(crate) behind: Vec<StoreError>,
    /// The packs that an index names, and no current location has.
    pub(crate) lost: BTreeSet<String>,
    /// Those of them that no location has at all.
    pub(crate) gone: BTreeSet<String>,
    /// All indexes, by which a run knows what is there.
    pub(crate) indexes: BTreeSet<String>,
}

/// What is at a location: names and sizes.
struct Holdings<'l> {
    location: &'l Location,
    indexes: BTreeMap<String, u64>,
    packs: BTreeMap<String, u64>,
    /// Why an index that it has is none.
    damaged: Option<StoreError>,
}

/// An index file that was read: its size, and the packs that it names, with the least that they have.
struct Read {
    name: String,
    size: u64,
    packs: Vec<(String, u64)>,
    /// Holdings in which it could not be.
    failed: Vec<(usize, StoreError)>,
}

pub(crate) async fn standing(locations: &[Location], seal: &Seal) -> Result<Standing> {
    let (mut holdings, mut behind) = (Vec::new(), Vec::new());
    for held in join_all(locations.iter().map(holdings_of)).await {
        match held {
            Ok(held) => holdings.push(held),
            Err(error) => behind.push(error),
        }
    }
    let needed = needed(&mut holdings, seal).await?;
    let lacks = |held: &Holdings<'_>| -> BTreeSet<String> {
        let there = |name: &String, size: u64| {
            let found = held.indexes.get(name).or_else(|| held.packs.get(name));
            found.is_some_and(|found| *found >= size)
        };
        needed.iter().filter(|(name, size)| !there(name, **size)).map(|(name, _)| name.clone()).collect()
    };
    let lacks: Vec<BTreeSet<String>> = holdings.iter().map(lacks).collect();
    let Some(least) = lacks.iter().min_by_key(|lacking| lacking.len()) else {
        return Err(Error::NoLocation(behind));
    };
    let mut current = Vec::new();
    for (held, lacking) in holdings.iter().zip(&lacks) {
        match lacking.difference(least).chain(least.difference(lacking)).next() {
            None => current.push(held.location.clone()),
            Some(name) => {
                let why = "it lacks what others have; it is brought up";
                let lacking = || StoreError::new(held.location.name(), Fault::Other, name, why);
                behind.push(held.damaged.clone().unwrap_or_else(lacking));
            }
        }
    }
    let is_pack = |name: &&String| name.starts_with(FileType::Pack.dirname());
    let lost: BTreeSet<String> = least.iter().filter(is_pack).cloned().collect();
    let indexes = needed.keys().filter(|name| !is_pack(name)).cloned().collect();
    let gone = lost.iter().filter(|name| lacks.iter().all(|lacking| lacking.contains(*name))).cloned().collect();
    Ok(Standing { current, behind, lost, gone, indexes })
}

/// Indexes first: what one names was there before it.
async fn holdings_of(location: &Location) -> Result<Holdings<'_>, StoreError> {
    let named = async |folder: &str| -> Result<BTreeMap<String, u64>, StoreError> {
        Ok(location.list(folder).await?.into_iter().map(|object| (object.name, object.size)).collect())
    };
    let indexes = named(FileType::Index.dirname()).await?;
    Ok(Holdings { location, indexes, packs: named(FileType::Pack.dirname()).await?, damaged: None })
}

/// Every index, and every pack that one names, with their sizes.
async fn needed(holdings: &mut [Holdings<'_>], seal: &Seal) -> Result<BTreeMap<String, u64>> {
    let names: BTreeSet<String> = holdings.iter().flat_map(|held| held.indexes.keys().cloned()).collect();
    let there = &*holdings;
    let reads = futures::stream::iter(names).map(|name| read(there, name, seal));
    let reads: Vec<Read> = reads.buffer_unordered(AT_ONCE).try_collect().await?;
    let mut needed = BTreeMap::new();
    for read in reads {
        for (at, error) in read.failed {
            holdings[at].indexes.remove(&read.name);
            holdings[at].damaged.get_or_insert(error);
        }
        needed.insert(read.name, read.size);
        for (pack, size) in read.packs {
            let least = needed.entry(pack).or_insert(size);
            *least = size.max(*least);
        }
    }
    Ok(needed)
}

/// From the first that has it whole.
async fn read(holdings: &[Holdings<'_>], name: String, seal: &Seal) -> Result<Read> {
    let mut failed: Vec<(usize, StoreError)> = Vec::new();
    for (at, held) in holdings.iter().enumerate().filter(|(_, held)| held.indexes.contains_key(&name)) {
        match whole(held.location, &name, seal).await {
            Ok((size, index)) => {
                let pack = |pack: &IndexPack| (name_of(FileType::Pack, &pack.id), u64::from(pack.pack_size()));
                let packs = index.packs.iter().map(pack).collect();
                return Ok(Read { name, size, packs, failed });
            }
            Err(error) => failed.push((at, error)),
        }
    }
    Err(Unread(failed.into_iter().map(|(_, error)| error).collect()).into())
}

pub(crate) async fn whole(location: &Location, name: &str, seal: &Seal) -> Result<(u64, IndexFile), StoreError> {
    let bytes = location.read(name).await?;
    if !is_what_it_is_called(name, &bytes) {
        return Err(damaged(location, name));
    }
    let index = seal.read(&bytes).map_err(|why| StoreError::new(location.name(), Fault::Damaged, name, why))?;
    Ok((bytes.len() as u64, index))
}
