//! An open repository, and what a run is that writes to it.

use std::{fmt, sync::Arc};

use futures::future::join_all;
use rustic_core::{Credentials, repofile::MasterKey};
use tokio::runtime::Handle;

use crate::{
    capture::{Capture, Captured, capture},
    copies::Copies,
    error::{Result, StoreError},
    format::Seal,
    location::Location,
    locks::Lock,
    standing::{Standing, standing},
    sweep::{buried, sweep},
    told,
    trees::placeable,
    unbroken, unopened,
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
    /// Runs that are over, whatever they left behind: one that is not, and finds out, stores nothing. With a hyphen at its end, all whose
    /// names begin so.
    pub over: Vec<String>,
}

impl Run {
    pub(crate) fn is_over(&self, of: &str) -> bool {
        of != self.name && self.over.iter().any(|over| of == over || (over.ends_with('-') && of.starts_with(over)))
    }
}

impl Repository {
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

    /// Removes the locks of runs that are over, and that no other run will be told of. After an error some may be left: of restic they are
    /// stale half an hour after their run died.
    pub fn unlock(&self, over: Vec<String>) -> Result<()> {
        let Inner { locations, seal, runtime, .. } = &*self.inner;
        let dead = Run { name: String::new(), over };
        let burials = locations.iter().map(|location| buried(location, seal, &dead));
        for outcome in runtime.block_on(join_all(burials)) {
            outcome?;
        }
        Ok(())
    }

    /// Stores streams as one snapshot, in every location that has all that any has, and stays well. What dead runs left is removed
    /// first, wherever it can be.
    pub fn capture(&self, run: &Run, what: Capture) -> Result<Captured> {
        placeable(what.sources.iter().map(|source| source.path.as_str()))?;
        let inner = &self.inner;
        let (seal, runtime) = (&inner.seal, &inner.runtime);
        let lock = Lock::take(&inner.locations, seal, run, runtime)?;
        sweep(&lock, seal, run, runtime);
        let Standing { current, behind, lost, indexes, .. } = runtime.block_on(standing(&lock.locations(), seal))?;
        let copies = Copies::new(&current, Some(seal), runtime.clone()).without(lost).fenced(lock.fence(), indexes);
        let open =
            unopened(&copies)?.open(&Credentials::Masterkey(inner.key.0.clone())).map_err(|error| told(&error))?;
        let mut captured = unbroken(|| {
            let indexed = open.to_indexed_ids().map_err(|error| told(&error))?;
            capture(&indexed, &copies, seal, what, runtime)
        })?;
        captured.failed.extend(behind);
        captured.failed.extend(lock.failures());
        Ok(captured)
    }
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repository")
            .field("id", &self.inner.id)
            .field("locations", &self.inner.locations)
            .finish_non_exhaustive()
    }
}
