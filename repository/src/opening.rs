//! A repository is made where there is none, opened by its password, and found to be the same in all of its locations.
//!
//! What makes a location one of a repository is its `config`, of which there is one, ever: of several that make one there at once, all
//! but one find that out. Its keys are there before it, so none is without; those of the others, and of one who died, open nothing.

use bytes::Bytes;
use futures::future::join_all;
use rustic_core::{ConfigOptions, Credentials, FileType, KeyOptions};
use serde::Deserialize;
use tokio::runtime::Handle;

use crate::{
    copies::{CONFIG, Copies},
    error::{Error, Fault, Result, StoreError},
    format::Seal,
    keys::{self, unlocked},
    location::Location,
    repository::{Inner, Key, Opened, Repository, Unlock},
    told, unopened,
};

/// What is at a location.
enum Found {
    Nothing,
    Repository(Bytes),
    /// Something else, by the name of one of its files.
    Other(String),
}

/// What we read of restic's `config`.
#[derive(Debug, Deserialize)]
struct Config {
    version: u32,
    id: String,
}

/// What is written to an empty location.
struct Beginning {
    keys: Vec<(String, Bytes)>,
    config: Bytes,
    seal: Seal,
}

/// Of data packs, at first; they grow with the root of what is in the repository (32 MiB at 1 TiB), up to [`LARGEST_PACK`].
const PACK: &str = "2MiB";
/// Five or so are in memory at a time: they are what a run's memory is of.
const LARGEST_PACK: &str = "32MiB";

impl Repository {
    /// Opens it, or makes it where all of its locations are empty. One that cannot be reached is no obstacle to opening; to making it
    /// is: it could hold another one.
    pub fn open_or_create(locations: &[Location], unlock: &Unlock, runtime: &Handle) -> Result<Opened> {
        let opened = Self::open(locations, unlock, runtime);
        let (Err(Error::NoRepository { .. }), Unlock::Password(password)) = (&opened, unlock) else { return opened };
        match Self::create(locations, password, runtime) {
            // Somebody else was quicker.
            Err(Error::Foreign { .. }) => Self::open(locations, unlock, runtime),
            created => created,
        }
    }

    /// Makes it in all locations, which must be empty.
    pub fn create(locations: &[Location], password: &str, runtime: &Handle) -> Result<Opened> {
        let first = locations.first().ok_or_else(|| Error::NoLocation(Vec::new()))?;
        for location in locations {
            match runtime.block_on(look(location))? {
                Found::Nothing => {}
                Found::Repository(_) => return Err(foreign(location, "there is a repository already")),
                Found::Other(name) => return Err(foreign(location, &strange(&name))),
            }
        }
        let (key, beginning) = begun(password, runtime)?;
        if !runtime.block_on(begin(first, &beginning))? {
            return Err(foreign(first, "somebody else has made a repository there at the same time"));
        }
        Self::open(locations, &Unlock::Key(key), runtime)
    }

    /// Opens it by the first location where it can be. Those that are empty are given its keys and configuration; those that hold
    /// another, are damaged or cannot be reached, are left out, and told.
    pub fn open(locations: &[Location], unlock: &Unlock, runtime: &Handle) -> Result<Opened> {
        let looks = runtime.block_on(join_all(locations.iter().map(look)));
        let (mut there, mut empty, mut unusable) = (Vec::new(), Vec::new(), Vec::new());
        for (location, found) in locations.iter().zip(looks) {
            match found {
                Ok(Found::Repository(config)) => there.push((location, config)),
                Ok(Found::Nothing) => empty.push(location),
                Ok(Found::Other(name)) => unusable.push(other(location, &strange(&name))),
                Err(error) => unusable.push(error),
            }
        }
        let Some((key, first)) = key_of(&there, unlock, runtime)? else {
            return Err(match empty.first() {
                Some(location) if unusable.is_empty() => Error::NoRepository { location: location.name().to_owned() },
                _ => Error::NoLocation(unusable),
            });
        };
        let seal = Seal::new(&key.0);
        let (from, config) = &there[first];
        let Config { version, id } = read(&seal, config).ok_or_else(|| foreign(from, "its config is none"))?;
        if version < 2 {
            return Err(Error::OldFormat { location: from.name().to_owned(), version });
        }
        let mut usable = Vec::new();
        for (location, config) in &there {
            match read(&seal, config) {
                Some(config) if config.id == id => usable.push((*location).clone()),
                Some(_) => unusable.push(other(location, ANOTHER)),
                None => unusable.push(runtime.block_on(unlike(from, location))),
            }
        }
        for location in empty {
            match runtime.block_on(join(from, config, &seal, location)) {
                Ok(()) => usable.push(location.clone()),
                Err(error) => unusable.push(error),
            }
        }
        usable.sort_by_key(|one| locations.iter().position(|location| location.name == one.name));
        let inner = Inner { locations: usable, seal, key, id, runtime: runtime.clone() };
        Ok(Opened { repository: Self { inner: inner.into() }, unusable })
    }
}

const ANOTHER: &str = "it holds another repository";

async fn look(location: &Location) -> Result<Found, StoreError> {
    if location.find(CONFIG).await?.is_some() {
        return location.read(CONFIG).await.map(Found::Repository);
    }
    let keys = format!("{}/", FileType::Key.dirname());
    let strange = location.first(|name| !name.starts_with(&keys)).await?;
    Ok(strange.map_or(Found::Nothing, Found::Other))
}

fn strange(name: &str) -> String {
    let folders = [FileType::Pack, FileType::Index, FileType::Snapshot].map(FileType::dirname);
    if folders.iter().any(|folder| name.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))) {
        return format!("its config is gone, and not all of it ({name}): copy that file from another location");
    }
    format!("something else is there ({name}), and no repository: name an empty place")
}

/// The key, and by which of the locations; `None` where there are none. Damage at one is no obstacle while another is well.
fn key_of(there: &[(&Location, Bytes)], unlock: &Unlock, runtime: &Handle) -> Result<Option<(Key, usize)>> {
    let mut failed = None;
    for (at, (location, config)) in there.iter().enumerate() {
        let opened = match unlock {
            Unlock::Password(password) => runtime.block_on(unlocked(location, config, password)),
            Unlock::Key(key) if Seal::new(&key.0).open(config).is_ok() => Ok(key.clone()),
            Unlock::Key(_) => {
                let why = "the key is not that of its config, which is damaged or of another repository".to_owned();
                Err(Error::Unopened { location: location.name().to_owned(), why })
            }
        };
        match opened {
            Ok(key) => return Ok(Some((key, at))),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    failed.map_or(Ok(None), Err)
}

fn read(seal: &Seal, config: &[u8]) -> Option<Config> {
    seal.read(config).ok()
}

/// Why a configuration is not opened by the key of another location.
async fn unlike(known: &Location, location: &Location) -> StoreError {
    match (keys::names(known).await, keys::names(location).await) {
        (Ok(known), Ok(names)) if known.iter().any(|name| names.contains(name)) => {
            let why = "it is this repository's, and not as it was written: copy it from another location";
            StoreError::new(location.name(), Fault::Damaged, CONFIG, why)
        }
        (_, Err(error)) => error,
        _ => other(location, ANOTHER),
    }
}

/// A new repository, in memory: the library encrypts with a key of its own making.
fn begun(password: &str, runtime: &Handle) -> Result<(Key, Beginning)> {
    let mut options = ConfigOptions::default();
    options.set_datapack_size = PACK.parse().ok();
    options.set_datapack_size_limit = LARGEST_PACK.parse().ok();
    // To unpack all that was packed, before it is written, is a sixth of a run, and finds what memory that is broken does, in these
    // microseconds alone. What is stored is read and compared when it is restored or checked.
    options.set_extra_verify = Some(false);
    let memory = Location::in_memory();
    let copies = Copies::new(std::slice::from_ref(&memory), None, runtime.clone());
    let made = unopened(&copies)?.init(&Credentials::password(password), &KeyOptions::default(), &options);
    let key = Key(made.map_err(|error| told(&error))?.key());
    let beginning = runtime.block_on(async {
        let config = memory.read(CONFIG).await?;
        Ok::<_, StoreError>(Beginning { keys: keys::all(&memory).await?, config, seal: Seal::new(&key.0) })
    })?;
    Ok((key, beginning))
}

/// An empty location becomes one of a repository that is at another.
async fn join(from: &Location, config: &Bytes, seal: &Seal, to: &Location) -> Result<(), StoreError> {
    let beginning = Beginning { keys: keys::all(from).await?, config: config.clone(), seal: seal.clone() };
    if begin(to, &beginning).await? { Ok(()) } else { Err(other(to, ANOTHER)) }
}

/// Whether it is this one that begins there, and not one of somebody who was quicker.
async fn begin(location: &Location, beginning: &Beginning) -> Result<bool, StoreError> {
    let Beginning { keys, config, seal } = beginning;
    for (name, key) in keys {
        location.write(name, std::slice::from_ref(key)).await?;
    }
    // After an error it may be there all the same: then it needs its keys.
    let there = location.create(CONFIG, config).await?;
    let is_ours = seal.open(&there).is_ok();
    for name in keys::names(location).await? {
        if keys.iter().any(|(key, _)| *key == name) != is_ours {
            location.remove(&name).await?;
        }
    }
    Ok(is_ours)
}

fn other(location: &Location, why: &str) -> StoreError {
    StoreError::new(location.name(), Fault::Other, "", why)
}

fn foreign(location: &Location, why: &str) -> Error {
    Error::Foreign { location: location.name().to_owned(), why: why.to_owned() }
}
