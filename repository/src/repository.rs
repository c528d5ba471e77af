//! A repository: made where there is none, opened by its password, and found to be the same in all of its locations.

use std::{collections::BTreeSet, fmt, sync::Arc};

use bytes::Bytes;
use futures::future::join_all;
use rustic_core::{ConfigOptions, Credentials, FileType, KeyOptions, repofile::MasterKey};
use serde::Deserialize;
use tokio::runtime::Handle;

use crate::{
    capture::{Capture, Captured, capture},
    copies::Copies,
    error::{Error, Fault, Result, StoreError},
    format::Seal,
    location::Location,
    locks::Lock,
    sweep, told, unopened,
};

/// An open repository. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    /// Those that hold it, in the order in which they were named.
    pub(crate) locations: Vec<Location>,
    pub(crate) seal: Seal,
    pub(crate) key: Key,
    pub(crate) id: String,
    pub(crate) runtime: Handle,
}

/// What opens a repository without its password: no key has to be derived, which takes 135 MiB and half a second.
#[derive(Clone)]
pub struct Key(pub(crate) MasterKey);

/// How it is opened.
#[derive(Clone)]
pub enum Unlock {
    Password(String),
    Key(Key),
}

/// A repository, and which of its locations cannot be used now.
pub struct Opened {
    pub repository: Repository,
    pub unusable: Vec<StoreError>,
}

/// One run that writes.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Its own name, nobody else's: that of an attempt.
    pub name: String,
    /// Runs that are certainly over, whatever they left behind.
    pub over: Vec<String>,
}

/// What is at a location.
enum Found {
    Nothing,
    Repository(Bytes),
    Other(String),
}

/// What we read of restic's `config`.
#[derive(Debug, Deserialize)]
struct Config {
    version: u32,
    id: String,
}

const CONFIG: &str = "config";
/// Of data packs, at first; they grow with the repository up to [`LARGEST_PACK`].
const PACK: &str = "16MiB";
/// Some are in memory at a time.
const LARGEST_PACK: &str = "64MiB";

impl Repository {
    /// Opens it, or makes it where all of its locations are empty. One that cannot be reached is no obstacle to opening; to making it
    /// is: it could hold another one.
    pub fn open_or_create(locations: &[Location], unlock: &Unlock, runtime: &Handle) -> Result<Opened> {
        match Self::open(locations, unlock, runtime) {
            Err(Error::NoRepository { .. }) => {
                let Unlock::Password(password) = unlock else { return Self::open(locations, unlock, runtime) };
                Self::create(locations, password, runtime)
            }
            other => other,
        }
    }

    /// Makes it in all locations, which must be empty.
    pub fn create(locations: &[Location], password: &str, runtime: &Handle) -> Result<Opened> {
        let first = locations.first().ok_or_else(|| Error::NoLocation(Vec::new()))?;
        for location in locations {
            match runtime.block_on(look(location))? {
                Found::Nothing => {}
                Found::Repository(_) => return Err(foreign(location, "there is a repository already")),
                Found::Other(name) => {
                    return Err(foreign(location, &format!("something else is there ({name}); name an empty place")));
                }
            }
            // Of one who died while he made it. A key that fits the password and nothing else would be taken for the right one.
            for key in runtime.block_on(location.list(FileType::Key.dirname()))? {
                runtime.block_on(location.remove(&key.name))?;
            }
        }
        let mut config = ConfigOptions::default();
        config.set_datapack_size = PACK.parse().ok();
        config.set_datapack_size_limit = LARGEST_PACK.parse().ok();
        // The library encrypts with a key of its own making, and writes its config last.
        let copies = Copies::new(std::slice::from_ref(first), runtime.clone());
        let made = unopened(&copies)?.init(&Credentials::password(password), &KeyOptions::default(), &config);
        if let Some(error) = copies.failures().into_iter().next() {
            return Err(error.into());
        }
        let key = Key(made.map_err(|error| told(&error))?.key());
        Self::open(locations, &Unlock::Key(key), runtime)
    }

    /// Opens it by the first location that holds it. Those that are empty are given its keys and configuration; those that hold
    /// another, or cannot be reached, are left out, and told.
    pub fn open(locations: &[Location], unlock: &Unlock, runtime: &Handle) -> Result<Opened> {
        let looks = runtime.block_on(join_all(locations.iter().map(look)));
        let (mut key, mut known): (Option<Key>, Option<Config>) = (None, None);
        let (mut usable, mut empty, mut unusable) = (Vec::new(), Vec::new(), Vec::new());
        for (location, found) in locations.iter().zip(looks) {
            let config = match found {
                Ok(Found::Repository(config)) => config,
                Ok(Found::Nothing) => {
                    empty.push(location.clone());
                    continue;
                }
                Ok(Found::Other(name)) => {
                    unusable.push(other(location, &format!("it holds something else ({name}), and no repository")));
                    continue;
                }
                Err(error) => {
                    unusable.push(error);
                    continue;
                }
            };
            let key = match &key {
                Some(key) => key,
                None => key.insert(unlocked(location, unlock, runtime)?),
            };
            match (Seal::new(&key.0).read::<Config>(&config), &known) {
                (Ok(config), Some(first)) if config.id != first.id => {
                    unusable.push(other(location, "it holds another repository"));
                }
                (Ok(config), _) if config.version < 2 => {
                    return Err(Error::OldFormat { location: location.name().to_owned(), version: config.version });
                }
                (Ok(config), _) => {
                    known.get_or_insert(config);
                    usable.push(location.clone());
                }
                (Err(_), None) => return Err(Error::WrongPassword { location: location.name().to_owned() }),
                (Err(_), Some(_)) => unusable.push(other(location, "it holds another repository")),
            }
        }
        let (Some(key), Some(Config { id, .. })) = (key, known) else {
            return Err(match (empty.first(), unusable.is_empty()) {
                (Some(location), true) => Error::NoRepository { location: location.name().to_owned() },
                _ => Error::NoLocation(unusable),
            });
        };
        for location in empty {
            match runtime.block_on(found(&usable[0], &location)) {
                Ok(()) => usable.push(location),
                Err(error) => unusable.push(error),
            }
        }
        usable.sort_by_key(|one| locations.iter().position(|location| location.name == one.name));
        let seal = Seal::new(&key.0);
        let inner = Inner { locations: usable, seal, key, id, runtime: runtime.clone() };
        Ok(Opened { repository: Self { inner: Arc::new(inner) }, unusable })
    }

    /// As `restic cat config` shows it.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    pub fn key(&self) -> Key {
        self.inner.key.clone()
    }

    /// The locations that are used.
    pub fn locations(&self) -> &[Location] {
        &self.inner.locations
    }

    /// Stores streams as one snapshot, in every location that is up to date and stays well. What dead runs left is removed first.
    pub fn capture(&self, run: &Run, what: Capture) -> Result<Captured> {
        let inner = &self.inner;
        let runtime = &inner.runtime;
        let (current, behind) = runtime.block_on(self.current())?;
        let copies = Copies::new(&current, runtime.clone());
        let lock = Lock::take(&copies, &inner.seal, run, runtime)?;
        sweep::sweep(&lock, &copies, &inner.seal, run, runtime);
        let open =
            unopened(&copies)?.open(&Credentials::Masterkey(inner.key.0.clone())).map_err(|error| told(&error))?;
        let indexed = open.to_indexed_ids().map_err(|error| told(&error))?;
        let mut captured = capture(&indexed, &copies, &inner.seal, what, &lock, runtime)?;
        captured.failed.extend(behind);
        Ok(captured)
    }

    /// Locations that have all that any has, as far as their indexes say; and those that have not.
    async fn current(&self) -> Result<(Vec<Location>, Vec<StoreError>)> {
        let lists = self.inner.locations.iter().map(|location| async move {
            let list = location.list(FileType::Index.dirname()).await?;
            Ok::<_, StoreError>((location.clone(), list.into_iter().map(|object| object.name).collect::<BTreeSet<_>>()))
        });
        let (mut well, mut behind) = (Vec::new(), Vec::new());
        for list in join_all(lists).await {
            match list {
                Ok(found) => well.push(found),
                Err(error) => behind.push(error),
            }
        }
        let Some((_, most)) = well.iter().max_by_key(|(_, indexes)| indexes.len()) else {
            return Err(Error::NoLocation(behind));
        };
        let most = most.clone();
        let (current, late): (Vec<_>, Vec<_>) = well.into_iter().partition(|(_, indexes)| *indexes == most);
        behind.extend(
            late.iter()
                .map(|(location, _)| other(location, "it lacks what earlier runs have stored; it is brought up")),
        );
        Ok((current.into_iter().map(|(location, _)| location).collect(), behind))
    }
}

async fn look(location: &Location) -> Result<Found, StoreError> {
    if location.find(CONFIG).await?.is_some() {
        return location.read(CONFIG).await.map(Found::Repository);
    }
    let keys = format!("{}/", FileType::Key.dirname());
    let strange = location.first(|name| !name.starts_with(&keys)).await?;
    Ok(strange.map_or(Found::Nothing, Found::Other))
}

/// The key that a password opens.
fn unlocked(location: &Location, unlock: &Unlock, runtime: &Handle) -> Result<Key> {
    let password = match unlock {
        Unlock::Key(key) => return Ok(key.clone()),
        Unlock::Password(password) => password,
    };
    let copies = Copies::new(std::slice::from_ref(location), runtime.clone());
    match unopened(&copies)?.open(&Credentials::password(password)) {
        Ok(open) => Ok(Key(open.key())),
        Err(error) if error.is_incorrect_password() => {
            Err(Error::WrongPassword { location: location.name().to_owned() })
        }
        Err(error) => Err(told(&error)),
    }
}

/// An empty location becomes one of a repository: its keys, then its configuration.
async fn found(from: &Location, to: &Location) -> Result<(), StoreError> {
    for key in from.list(FileType::Key.dirname()).await? {
        to.write(&key.name, &[from.read(&key.name).await?]).await?;
    }
    to.write(CONFIG, &[from.read(CONFIG).await?]).await
}

fn other(location: &Location, why: &str) -> StoreError {
    StoreError::new(location.name(), Fault::Other, "", why)
}

fn foreign(location: &Location, why: &str) -> Error {
    Error::Foreign { location: location.name().to_owned(), why: why.to_owned() }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.inner.id)
            .field("locations", &self.inner.locations)
            .finish_non_exhaustive()
    }
}
