//! A lock in restic's manner (doc/design.rst, "Locks"), so that `restic prune` waits while we write, and we while it removes.
//!
//! It is also how a run knows that it was given up: whoever removes what a dead run left removes its lock first, and a run that finds
//! its lock gone stores no snapshot. A lock that nobody renews for 30 minutes is stale, as restic sees it.

use std::{
    sync::{
        Arc, Mutex,
        mpsc::{self, RecvTimeoutError},
    },
    thread::JoinHandle,
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tracing::warn;

use crate::{
    copies::{Copies, lock},
    error::{Error, Result},
    format::{Seal, id_of},
    location::Location,
    repository::Run,
};

/// Held until it is dropped.
pub(crate) struct Lock {
    /// Its object, by now.
    name: Arc<Mutex<String>>,
    locations: Vec<Location>,
    runtime: Handle,
    end: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

/// restic's fields, and one of ours, which it passes over.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LockFile {
    time: Timestamp,
    exclusive: bool,
    hostname: String,
    username: String,
    pid: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) run: Option<String>,
}

pub(crate) const FOLDER: &str = "locks";
const RENEW: Duration = Duration::from_secs(5 * 60);
const STALE: Duration = Duration::from_secs(30 * 60);

impl Lock {
    /// Beside others that write; refused where one has it for itself.
    pub(crate) fn take(copies: &Copies, seal: &Seal, run: &Run, runtime: &Handle) -> Result<Self> {
        let file = LockFile {
            time: Timestamp::now(),
            exclusive: false,
            hostname: format!("stillpoint-{}", run.name),
            username: "stillpoint".to_owned(),
            pid: std::process::id(),
            run: Some(run.name.clone()),
        };
        let (name, bytes) = sealed(seal, &file)?;
        runtime.block_on(copies.write(&name, &[bytes]))?;
        let locations = copies.whole();
        let name = Arc::new(Mutex::new(name));
        let (end, ended) = mpsc::channel();
        let mut taken =
            Self { name: Arc::clone(&name), locations: locations.clone(), runtime: runtime.clone(), end: None };
        for location in &locations {
            for (_, other) in read_all(location, seal, runtime)? {
                if other.exclusive && !other.is_stale() {
                    return Err(Error::Locked {
                        location: location.name().to_owned(),
                        holder: format!("{} on {} (pid {})", other.username, other.hostname, other.pid),
                        since: other.time.to_string(),
                    });
                }
            }
        }
        let (seal, runtime) = (seal.clone(), runtime.clone());
        let renewing = std::thread::Builder::new().name("lock".to_owned()).spawn(move || {
            while ended.recv_timeout(RENEW) == Err(RecvTimeoutError::Timeout) {
                renew(&name, &locations, &seal, &file, &runtime);
            }
        });
        let renewing = renewing.map_err(|error| Error::Format(format!("no thread for the lock: {error}")))?;
        taken.end = Some((end, renewing));
        Ok(taken)
    }

    /// Whether it is still there, at a location.
    pub(crate) fn is_held_at(&self, location: &Location) -> Result<bool> {
        let name = lock(&self.name).clone();
        Ok(self.runtime.block_on(location.find(&name))?.is_some())
    }

    /// Its object.
    pub(crate) fn name(&self) -> String {
        lock(&self.name).clone()
    }
}

impl LockFile {
    fn is_stale(&self) -> bool {
        Timestamp::now().duration_since(self.time).unsigned_abs() > STALE
    }
}

/// Every lock at a location that can be read.
pub(crate) fn read_all(location: &Location, seal: &Seal, runtime: &Handle) -> Result<Vec<(String, LockFile)>> {
    let mut locks = Vec::new();
    for object in runtime.block_on(location.list(FOLDER))? {
        // One that is gone by now is none.
        if let Ok(bytes) = runtime.block_on(location.read(&object.name))
            && let Ok(file) = seal.read(&bytes)
        {
            locks.push((object.name, file));
        }
    }
    Ok(locks)
}

fn sealed(seal: &Seal, file: &LockFile) -> Result<(String, Bytes)> {
    let bytes = seal.file(file).map_err(Error::Format)?;
    Ok((format!("{FOLDER}/{}", id_of(&bytes).to_hex().as_str()), bytes.into()))
}

/// The new one is there before the old one goes. One that somebody removed is not made again.
fn renew(name: &Mutex<String>, locations: &[Location], seal: &Seal, file: &LockFile, runtime: &Handle) {
    let Ok((next, bytes)) = sealed(seal, &LockFile { time: Timestamp::now(), ..file.clone() }) else { return };
    let old = lock(name).clone();
    for location in locations {
        let renewed = runtime.block_on(async {
            if location.find(&old).await?.is_some() {
                location.write(&next, std::slice::from_ref(&bytes)).await?;
            }
            location.remove(&old).await
        });
        if let Err(error) = renewed {
            warn!(%error, "a lock was not renewed");
        }
    }
    *lock(name) = next;
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some((end, renewing)) = self.end.take() {
            drop(end);
            renewing.join().ok();
        }
        let name = self.name();
        for location in &self.locations {
            if let Err(error) = self.runtime.block_on(location.remove(&name)) {
                warn!(%error, "a lock was not removed; restic takes it for stale in 30 minutes");
            }
        }
    }
}
