//! A lock in restic's manner (doc/design.rst, "Locks"), so that `restic prune` waits while we write, and we while it removes.
//!
//! It is also how a run knows that it was given up: whoever removes what a dead run left removes its lock first, and a run that finds
//! its lock gone stores no index and no snapshot. A lock that nobody renews for 30 minutes is stale, as restic sees it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Handle, time::timeout};
use tracing::warn;

use crate::{
    copies::lock,
    error::{Error, Fault, Result, StoreError},
    format::{Seal, id_of},
    location::{Location, Object},
    repository::Run,
};

/// Held until it is dropped.
pub(crate) struct Lock {
    held: Arc<[Held]>,
    runtime: Handle,
    end: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

/// What a run still asks about its lock while others hold it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Fence(Arc<[Held]>);

/// At one location.
struct Held {
    location: Location,
    /// Its object, by now.
    name: Mutex<String>,
    /// Why it is not held here: but it may be there.
    failed: Option<StoreError>,
}

/// restic's fields, and one of ours, which it passes over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LockFile {
    time: Timestamp,
    exclusive: bool,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    pid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<String>,
}

pub(crate) const FOLDER: &str = "locks";
const RENEW: Duration = Duration::from_secs(5 * 60);
const STALE: Duration = Duration::from_secs(30 * 60);
/// At locks that come and go, until two looks show the same.
const LOOKS: usize = 20;
/// How long the removal of a lock is waited for.
const GOODBYE: Duration = Duration::from_secs(15);

impl Lock {
    /// Beside others that write; refused where one has it for itself. Locations where it cannot be taken are left out.
    pub(crate) fn take(locations: &[Location], seal: &Seal, run: &Run, runtime: &Handle) -> Result<Self> {
        let file = LockFile {
            time: Timestamp::now(),
            exclusive: false,
            hostname: format!("stillpoint-{}", run.name),
            username: "stillpoint".to_owned(),
            pid: std::process::id(),
            run: Some(run.name.clone()),
        };
        let (name, bytes) = sealed(seal, &file)?;
        let taken = runtime.block_on(join_all(locations.iter().map(async |location| {
            location.write(&name, std::slice::from_ref(&bytes)).await?;
            read_all(location, seal).await
        })));
        let (mut held, mut exclusive) = (Vec::new(), None);
        for (location, others) in locations.iter().zip(taken) {
            let failed = match others {
                Ok(others) => {
                    exclusive = exclusive.or_else(|| refused(location, &others, &name));
                    None
                }
                Err(error) => Some(error),
            };
            held.push(Held { location: location.clone(), name: Mutex::new(name.clone()), failed });
        }
        // From here on it is removed, whatever happens.
        let mut taken = Self { held: held.into(), runtime: runtime.clone(), end: None };
        if let Some(error) = exclusive {
            return Err(error);
        }
        if taken.locations().is_empty() {
            return Err(Error::NoLocation(taken.failures()));
        }
        taken.end = Some(renewing(Arc::clone(&taken.held), seal.clone(), file, runtime.clone())?);
        Ok(taken)
    }

    /// Where it is held.
    pub(crate) fn locations(&self) -> Vec<Location> {
        self.held.iter().filter(|held| held.failed.is_none()).map(|held| held.location.clone()).collect()
    }

    /// Why it is not held elsewhere.
    pub(crate) fn failures(&self) -> Vec<StoreError> {
        self.held.iter().filter_map(|held| held.failed.clone()).collect()
    }

    /// Whether it is still there.
    pub(crate) async fn is_held_at(&self, location: &Location) -> Result<bool, StoreError> {
        self.fence().is_held_at(location).await
    }

    pub(crate) fn fence(&self) -> Fence {
        Fence(Arc::clone(&self.held))
    }
}

impl Fence {
    /// Whether the lock is still there.
    pub(crate) async fn is_held_at(&self, location: &Location) -> Result<bool, StoreError> {
        loop {
            let name = self.name_at(location);
            if location.find(&name).await?.is_some() {
                return Ok(true);
            }
            // Renewed meanwhile, it has another name.
            if name == self.name_at(location) {
                return Ok(false);
            }
        }
    }

    fn name_at(&self, location: &Location) -> String {
        let at = self.0.iter().find(|held| held.location.name == location.name);
        at.map(|held| lock(&held.name).clone()).unwrap_or_default()
    }
}

impl LockFile {
    fn is_stale(&self) -> bool {
        Timestamp::now().duration_since(self.time).unsigned_abs() > STALE
    }
}

/// Who has a location for himself, going by its locks, of which one is our own.
fn refused(location: &Location, locks: &[(Object, Option<LockFile>)], own: &str) -> Option<Error> {
    let now = locks.iter().find(|(object, _)| object.name == own).map(|(object, _)| object.modified);
    locks.iter().find_map(|(object, file)| {
        let (holder, since) = match file {
            Some(file) if !file.exclusive || file.is_stale() => return None,
            Some(file) => (format!("{} on {} (pid {})", file.username, file.hostname, file.pid), file.time),
            // Whose it is cannot be told, and how old it is by the store's clock alone.
            None if now?.duration_since(object.modified).unsigned_abs() > STALE => return None,
            None => (format!("somebody whose lock is damaged ({})", object.name), object.modified),
        };
        Some(Error::Locked { location: location.name().to_owned(), holder, since: since.to_string() })
    })
}

/// Every lock at a location; nothing is known of one that is damaged.
pub(crate) async fn read_all(location: &Location, seal: &Seal) -> Result<Vec<(Object, Option<LockFile>)>, StoreError> {
    let list = async || location.list(FOLDER).await;
    let locks = settled(location.name(), list, async |name| location.read(name).await).await?;
    Ok(locks.into_iter().map(|(object, bytes)| (object, seal.read(&bytes).ok())).collect())
}

/// All locks that were there at one moment. One that is renewed has another name from then on, and a list that is made meanwhile may
/// show neither: so a look counts when the next list shows the same.
async fn settled(
    location: &str,
    list: impl AsyncFn() -> Result<Vec<Object>, StoreError>,
    read: impl AsyncFn(&str) -> Result<Bytes, StoreError>,
) -> Result<Vec<(Object, Bytes)>, StoreError> {
    let by_name = |objects: Vec<Object>| -> BTreeMap<String, Object> {
        objects.into_iter().map(|object| (object.name.clone(), object)).collect()
    };
    let mut known: BTreeMap<String, Bytes> = BTreeMap::new();
    let mut listed = by_name(list().await?);
    for _ in 0..LOOKS {
        for name in listed.keys() {
            if !known.contains_key(name) {
                match read(name).await {
                    Ok(bytes) => drop(known.insert(name.clone(), bytes)),
                    Err(error) if error.fault == Fault::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let again = by_name(list().await?);
        if again.keys().eq(listed.keys()) && again.keys().all(|name| known.contains_key(name)) {
            let lock = |(name, object)| known.remove(&name).map(|bytes| (object, bytes));
            return Ok(again.into_iter().filter_map(lock).collect());
        }
        listed = again;
    }
    Err(StoreError::new(location, Fault::Unavailable, FOLDER, "locks come and go faster than they can be read"))
}

fn sealed(seal: &Seal, file: &LockFile) -> Result<(String, Bytes)> {
    let bytes = seal.file(file).map_err(Error::Format)?;
    Ok((format!("{FOLDER}/{}", id_of(&bytes).to_hex().as_str()), bytes.into()))
}

fn renewing(
    held: Arc<[Held]>,
    seal: Seal,
    file: LockFile,
    runtime: Handle,
) -> Result<(mpsc::Sender<()>, JoinHandle<()>)> {
    let (end, ended) = mpsc::channel();
    let thread = std::thread::Builder::new().name("lock".to_owned()).spawn(move || {
        while ended.recv_timeout(RENEW) == Err(RecvTimeoutError::Timeout) {
            let file = LockFile { time: Timestamp::now(), ..file.clone() };
            let Ok((name, bytes)) = sealed(&seal, &file) else { continue };
            let held = held.iter().filter(|held| held.failed.is_none());
            runtime.block_on(join_all(held.map(|held| held.renew(&name, &bytes))));
        }
    });
    Ok((end, thread.map_err(|error| Error::Format(format!("no thread for the lock: {error}")))?))
}

impl Held {
    /// The new one is there before the old one goes. One that somebody removed is not made again: who does so looks again when it is
    /// gone, and sees the new one, or was seen.
    async fn renew(&self, name: &str, bytes: &Bytes) {
        let old = lock(&self.name).clone();
        let renewed = async {
            if self.location.find(&old).await?.is_none() {
                return Ok(());
            }
            self.location.write(name, std::slice::from_ref(bytes)).await?;
            if self.location.find(&old).await?.is_none() {
                return self.location.remove(name).await;
            }
            name.clone_into(&mut lock(&self.name));
            self.location.remove(&old).await
        };
        if let Err(error) = renewed.await {
            warn!(%error, "a lock was not renewed");
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some((end, renewing)) = self.end.take() {
            drop(end);
            renewing.join().ok();
        }
        let removals = self.held.iter().map(async |held| {
            let name = lock(&held.name).clone();
            match timeout(GOODBYE, held.location.remove(&name)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    warn!(%error, "a lock may be left; `restic unlock` removes it when it is 30 minutes old");
                }
                Err(_) => warn!(location = held.location.name(), "a lock may be left, for nobody answers"),
            }
        });
        self.runtime.block_on(join_all(removals));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A folder of locks in which something happens after each list.
    async fn seen(
        mut happens: Vec<fn(&mut Vec<&'static str>)>,
        at_first: Vec<&'static str>,
    ) -> Result<Vec<String>, StoreError> {
        happens.reverse();
        let (there, happens) = (RefCell::new(at_first), RefCell::new(happens));
        let list = async || {
            let object = |name: &&str| Object { name: (*name).to_owned(), size: 1, modified: Timestamp::UNIX_EPOCH };
            let listed = there.borrow().iter().map(object).collect();
            if let Some(next) = happens.borrow_mut().pop() {
                next(&mut there.borrow_mut());
            }
            Ok(listed)
        };
        let read = async |name: &str| {
            let is_there = there.borrow().contains(&name);
            is_there
                .then_some(Bytes::from_static(b"lock"))
                .ok_or_else(|| StoreError::new("main", Fault::NotFound, name, "gone"))
        };
        Ok(settled("main", list, read).await?.into_iter().map(|(object, _)| object.name).collect())
    }

    #[tokio::test]
    async fn a_lock_that_is_renewed_while_it_is_looked_for_is_seen() {
        assert_eq!(seen(vec![], vec!["a", "b"]).await.unwrap(), ["a", "b"]);
        assert_eq!(seen(vec![|there| *there = vec!["new"]], vec!["old"]).await.unwrap(), ["new"]);
        assert_eq!(
            seen(vec![|there| *there = vec!["old", "new"], |there| *there = vec!["new"]], vec!["old"]).await.unwrap(),
            ["new"]
        );
        // The list itself was made while it happened.
        assert_eq!(seen(vec![|there| there.push("new")], vec![]).await.unwrap(), ["new"]);
        assert_eq!(seen(vec![|there| there.clear()], vec!["over"]).await.unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn a_look_at_locks_that_never_come_to_rest_ends() {
        let restless: fn(&mut Vec<&'static str>) = |there| {
            if there.is_empty() {
                there.push("a");
            } else {
                there.clear();
            }
        };
        let error = seen(vec![restless; 100], vec![]).await.unwrap_err();
        assert_eq!(error.fault, Fault::Unavailable);
    }
}
