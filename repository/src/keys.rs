//! The key files of a repository: each holds its one master key, sealed with a password (restic, doc/design.rst, "Keys, Encryption
//! and MAC").

use bytes::Bytes;
use rustic_core::{
    FileType,
    repofile::{KeyFile, MasterKey},
};

use crate::{
    copies::{damaged, is_what_it_is_called},
    error::{Error, Fault, Result, StoreError},
    format::Seal,
    location::Location,
    repository::Key,
};

/// What deriving a key may take, bytes. restic takes 32 MiB, or what half a second allows.
const MOST_MEMORY: u64 = 1 << 30;

pub(crate) async fn names(location: &Location) -> Result<Vec<String>, StoreError> {
    Ok(location.list(FileType::Key.dirname()).await?.into_iter().map(|object| object.name).collect())
}

/// Every key that is whole.
pub(crate) async fn all(location: &Location) -> Result<Vec<(String, Bytes)>, StoreError> {
    let mut keys = Vec::new();
    for name in names(location).await? {
        let bytes = location.read(&name).await?;
        if is_what_it_is_called(&name, &bytes) {
            keys.push((name, bytes));
        }
    }
    if keys.is_empty() {
        return Err(StoreError::new(location.name(), Fault::NotFound, FileType::Key.dirname(), GONE));
    }
    Ok(keys)
}

const GONE: &str = "no key is left there; bring that folder back from another location";

/// The key that a password opens, and that opens the configuration: others are of somebody who did not come to write one.
pub(crate) async fn unlocked(location: &Location, config: &[u8], password: &str) -> Result<Key> {
    let names = names(location).await?;
    let (mut fits, mut broken) = (false, None);
    for name in &names {
        let bytes = location.read(name).await?;
        if !is_what_it_is_called(name, &bytes) {
            broken = Some(damaged(location, name));
        } else if let Some(key) = master(&bytes, password) {
            if Seal::new(&key).open(config).is_ok() {
                return Ok(Key(key));
            }
            fits = true;
        }
    }
    let why = match broken {
        _ if fits => "its config is not as it was written; bring it back from another location".to_owned(),
        Some(error) => format!("{error}; bring it back from another location"),
        None if names.is_empty() => GONE.to_owned(),
        None => return Err(Error::WrongPassword { location: location.name().to_owned() }),
    };
    Err(Error::Unopened { location: location.name().to_owned(), why })
}

/// `None`: it is another password's.
fn master(file: &[u8], password: &str) -> Option<MasterKey> {
    let file: KeyFile = serde_json::from_slice(file).ok()?;
    // Whoever can write to a store could take all of our memory otherwise.
    if !file.n.is_power_of_two() || u64::from(file.n) * u64::from(file.r) * 128 > MOST_MEMORY {
        return None;
    }
    let (encrypt, k, r) = file.key_from_password(&password).ok()?.to_keys();
    let mut key = MasterKey::new();
    (key.encrypt, key.mac.k, key.mac.r) = (encrypt, k, r);
    Some(key)
}
