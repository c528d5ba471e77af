//! Repositories that are open, by what they are declared to be and the Secrets that they name: when these change, another one is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use api::{RepositorySpec, conditions::reasons};
use lru::LruCache;
use repository::{
    Catalogue, Entry, Fault, Finding, Key, Location, Opened, Patience, ReadData, Repository, Restorable, StoreError,
    Unlock,
};
use sha2::{Digest, Sha256};
use tokio::{runtime::Handle, sync::Semaphore, time::timeout};

use super::ambient::Ambient;
use crate::{error::ApiError, records::Records};

/// Of one repository.
const READ_AT_ONCE: NonZeroUsize = NonZeroUsize::MIN;

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Depot {
    records: Arc<dyn Records>,
    known: Arc<Mutex<HashMap<Name, Arc<Known>>>>,
    /// Deriving a key takes 135 MiB: one at a time.
    deriving: Arc<Semaphore>,
    ambient: Ambient,
}

/// Of a Repository, in its namespace.
type Name = (String, String);

/// One repository that was open once. What its catalogue was then is remembered, whatever becomes of it.
#[derive(Debug)]
pub(crate) struct Known {
    /// Of what is declared, and of the Secrets.
    digest: [u8; 32],
    key: Mutex<Option<Unlocked>>,
    pub(crate) catalogue: Catalogue,
    listed: Mutex<Option<(Instant, Listed)>>,
    /// Copies that are read in parts; each has its repository's index in memory.
    read: Mutex<LruCache<String, Arc<Restorable>>>,
}

/// Not for the log.
struct Unlocked(Key);

/// What a look at a repository found. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listed {
    pub(crate) entries: Arc<[Arc<Entry>]>,
    /// What a person should know of it.
    pub(crate) warnings: Vec<String>,
    /// Locations that could not be looked at: what is not seen there may be there.
    pub(crate) unread: Vec<String>,
}

/// Why a repository cannot be used now.
#[derive(Clone, Debug)]
pub(crate) struct Closed {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// By location: what was found there, or why it could not be looked at.
pub(crate) type Checked = Vec<(String, repository::Result<Vec<Finding>>)>;

/// Values of Secrets, by Secret and key.
pub(crate) type Values = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

/// How long somebody who only looks waits for a store. A run has the patience of [`Patience::default`].
const LOOKING: Patience = Patience { request: Duration::from_secs(10), call: Duration::from_secs(15) };
/// How long a list waits for one repository, before it shows what it knew of it.
pub(crate) const LISTING: Duration = Duration::from_secs(8);
/// A list of ten thousand comes in twenty pages: they are of one look.
const YOUNG: Duration = Duration::from_secs(2);

impl Depot {
    pub(crate) fn new(records: Arc<dyn Records>, ambient: Ambient) -> Self {
        Self { records, known: Arc::default(), deriving: Arc::new(Semaphore::new(1)), ambient }
    }

    /// Opens it, or makes it where `create` says so.
    pub(crate) async fn open(
        &self,
        namespace: &str,
        name: &str,
        spec: &RepositorySpec,
        create: bool,
    ) -> Result<(Opened, Arc<Known>), Closed> {
        self.open_with(LOOKING, namespace, name, spec, create).await
    }

    async fn open_with(
        &self,
        patience: Patience,
        namespace: &str,
        name: &str,
        spec: &RepositorySpec,
        create: bool,
    ) -> Result<(Opened, Arc<Known>), Closed> {
        if let Some(refused) = self.ambient.refusal(spec) {
            return Err(refused);
        }
        let values = self
            .values(namespace, spec.secrets())
            .await
            .map_err(|error| Closed { reason: reasons::REPOSITORY_UNAVAILABLE, message: error.message })?;
        let known = self.known(namespace, name, spec, &values);
        let text = |secret: &str, key: &str| text(&values, secret, key);
        let encryption = &spec.encryption;
        let password = text(&encryption.password_secret_ref.name, &encryption.password_key);
        let password = password.filter(|password| !password.is_empty()).ok_or_else(|| Closed {
            reason: reasons::REPOSITORY_LOCKED,
            message: format!(
                "Secret {} is not there, or has no key {}: put the repository's password there",
                encryption.password_secret_ref.name, encryption.password_key
            ),
        })?;
        let locations = spec
            .locations
            .iter()
            .map(|location| Location::new(&location.name, &repository::place(location, &text)?, patience));
        let locations = locations.collect::<Result<Vec<_>, _>>().map_err(closed)?;
        let key = locked(&known.key).as_ref().map(|unlocked| unlocked.0.clone());
        let permit = match &key {
            Some(_) => None,
            None => Some(Arc::clone(&self.deriving).acquire_owned().await),
        };
        let runtime = Handle::current();
        let opened = blocking(move || {
            let _permit = permit;
            let unlock = key.map_or(Unlock::Password(password), Unlock::Key);
            if create {
                Repository::open_or_create(&locations, &unlock, &runtime)
            } else {
                Repository::open(&locations, &unlock, &runtime)
            }
        });
        let opened = opened.await?;
        *locked(&known.key) = Some(Unlocked(opened.repository.key()));
        Ok((opened, known))
    }

    /// What is in it, as far as that can be read within [`LISTING`], or was known before.
    pub(crate) async fn look(&self, namespace: &str, name: &str, spec: &RepositorySpec) -> Listed {
        let look = async {
            let (opened, known) = self.open(namespace, name, spec, false).await?;
            let (repository, of) = (opened.repository.clone(), Arc::clone(&known));
            let (entries, errors) = blocking(move || of.catalogue.read(&repository)).await?;
            let listed = listed(name, entries, errors.iter().chain(&opened.unusable));
            *locked(&known.listed) = Some((Instant::now(), listed.clone()));
            Ok::<_, Closed>(listed)
        };
        let why = match timeout(LISTING, look).await {
            Ok(Ok(listed)) => return listed,
            Ok(Err(closed)) => closed.message,
            Err(_) => format!("no answer within {} s", LISTING.as_secs()),
        };
        let known = self.remembered(namespace, name).map(|(_, listed)| listed).unwrap_or_default();
        Listed {
            warnings: vec![format!("Repository {name}: {why}; what is shown of it was known before")],
            unread: spec.locations.iter().map(|location| location.name.clone()).collect(),
            ..known
        }
    }

    /// The same, of a moment ago.
    pub(crate) async fn list(&self, namespace: &str, name: &str, spec: &RepositorySpec) -> Listed {
        match self.remembered(namespace, name).filter(|(at, _)| at.elapsed() < YOUNG) {
            Some((_, listed)) => listed,
            None => self.look(namespace, name, spec).await,
        }
    }

    /// What is in it is another by now; whoever lists it looks.
    pub(crate) fn has_changed(&self, namespace: &str, name: &str) {
        let known = locked(&self.known).get(&(namespace.to_owned(), name.to_owned())).cloned();
        if let Some(known) = known
            && let Some((at, _)) = locked(&known.listed).as_mut()
        {
            *at = at.checked_sub(YOUNG).unwrap_or(*at);
        }
    }

    fn remembered(&self, namespace: &str, name: &str) -> Option<(Instant, Listed)> {
        let known = locked(&self.known).get(&(namespace.to_owned(), name.to_owned())).cloned()?;
        locked(&known.listed).clone()
    }

    /// A copy that is open for reading, for whoever reads it in parts.
    pub(crate) async fn restorable(
        &self,
        namespace: &str,
        name: &str,
        spec: &RepositorySpec,
        id: &str,
    ) -> Result<Arc<Restorable>, Closed> {
        let (opened, known) = self.open(namespace, name, spec, false).await?;
        if let Some(open) = locked(&known.read).get(id) {
            return Ok(Arc::clone(open));
        }
        let (id, of) = (id.to_owned(), Arc::clone(&known));
        let opening = blocking(move || {
            let (entries, _) = of.catalogue.read(&opened.repository)?;
            let entry = entries.iter().find(|entry| entry.id == id).ok_or(repository::Error::NoSnapshot(id))?;
            Ok::<_, repository::Error>((entry.id.clone(), Arc::new(opened.repository.restorable(entry)?)))
        });
        let (id, open) = opening.await?;
        locked(&known.read).put(id, Arc::clone(&open));
        Ok(open)
    }

    /// Removes the locks of runs that are over, wherever it can be.
    pub(crate) async fn unlock(
        &self,
        namespace: &str,
        name: &str,
        spec: &RepositorySpec,
        over: Vec<String>,
    ) -> Result<(), Closed> {
        let (opened, _) = self.open(namespace, name, spec, false).await?;
        blocking(move || opened.repository.unlock(over)).await
    }

    /// Removes the copy of this name, and all of the Snapshot of this uid, from every location. One that cannot be reached has them still,
    /// and is told.
    pub(crate) async fn remove(
        &self,
        namespace: &str,
        name: &str,
        spec: &RepositorySpec,
        id: Option<String>,
        uid: String,
    ) -> Result<(), Closed> {
        let (opened, known) = self.open(namespace, name, spec, false).await?;
        if let Some(error) = opened.unusable.first() {
            return Err(Closed { reason: reasons::REPOSITORY_UNAVAILABLE, message: error.to_string() });
        }
        let removing = blocking(move || {
            let (entries, errors) = known.catalogue.read(&opened.repository)?;
            if let Some(error) = errors.into_iter().next() {
                return Err(repository::Error::Store(error));
            }
            let is_its = |entry: &&Arc<Entry>| entry.manifest().is_some_and(|manifest| manifest.snapshot.uid == uid);
            let ids: BTreeSet<String> = entries.iter().filter(is_its).map(|entry| entry.id.clone()).chain(id).collect();
            ids.iter().try_for_each(|id| opened.repository.forget(id))
        });
        let removed = removing.await;
        self.has_changed(namespace, name);
        removed
    }

    /// Looks at every location for itself; `held` is kept for as long as that takes, whoever waits for it no longer.
    pub(crate) async fn check(
        &self,
        namespace: &str,
        name: &str,
        spec: &RepositorySpec,
        read: ReadData,
        held: impl Send + 'static,
    ) -> Result<Checked, Closed> {
        // Whole packs are read, also from far away.
        let (opened, known) = self.open_with(Patience::default(), namespace, name, spec, false).await?;
        let Opened { repository, unusable } = opened;
        blocking(move || {
            let _held = held;
            let (entries, _) = known.catalogue.read(&repository)?;
            let look = |location: &Location| {
                let found = repository.check(location, read);
                let found = found.map(|found| lacking(location.name(), &entries).chain(found).collect());
                (location.name().to_owned(), found)
            };
            let looked: Vec<_> = repository.locations().iter().map(look).collect();
            let missed =
                unusable.into_iter().map(|error| (error.location.clone(), Err(repository::Error::Store(error))));
            Ok(looked.into_iter().chain(missed).collect())
        })
        .await
    }

    /// Those of the Secrets that are there, and of these the keys that are named.
    pub(crate) async fn values(&self, namespace: &str, wanted: Vec<(&str, Vec<&str>)>) -> Result<Values, ApiError> {
        let mut values = Values::new();
        for (name, keys) in wanted {
            let Some(secret) = self.records.secret(namespace, name).await? else { continue };
            let data = secret.data.unwrap_or_default();
            let of: &mut BTreeMap<_, _> = values.entry(name.to_owned()).or_default();
            for key in keys {
                if let Some(value) = data.get(key) {
                    of.insert(key.to_owned(), value.0.clone());
                }
            }
        }
        Ok(values)
    }

    fn known(&self, namespace: &str, name: &str, spec: &RepositorySpec, values: &Values) -> Arc<Known> {
        let digest: [u8; 32] = Sha256::digest(serde_json::to_vec(&(spec, values)).unwrap_or_default()).into();
        let mut known = locked(&self.known);
        let slot = known.entry((namespace.to_owned(), name.to_owned()));
        let new = || {
            Arc::new(Known {
                digest,
                key: Mutex::default(),
                catalogue: Catalogue::default(),
                listed: Mutex::default(),
                read: Mutex::new(LruCache::new(READ_AT_ONCE)),
            })
        };
        let known = slot.or_insert_with(new);
        if known.digest != digest {
            *known = new();
        }
        Arc::clone(known)
    }

    pub(crate) fn forget(&self, namespace: &str, name: &str) {
        locked(&self.known).remove(&(namespace.to_owned(), name.to_owned()));
    }
}

fn listed<'e>(name: &str, entries: Vec<Arc<Entry>>, errors: impl Iterator<Item = &'e StoreError>) -> Listed {
    let (mut warnings, mut unread) = (Vec::new(), BTreeSet::new());
    for error in errors {
        warnings.push(format!("Repository {name}: {error}"));
        // Of what is damaged or gone it is known that it is.
        if !matches!(error.fault, Fault::Damaged | Fault::NotFound) {
            unread.insert(error.location.clone());
        }
    }
    Listed { entries: entries.into(), warnings, unread: unread.into_iter().collect() }
}

/// Copies that others have: each location for itself, one that has none would be whole.
fn lacking<'e>(location: &'e str, entries: &'e [Arc<Entry>]) -> impl Iterator<Item = Finding> + 'e {
    let lacks = move |entry: &&Arc<Entry>| !entry.at.iter().any(|at| at == location);
    entries.iter().filter(lacks).map(|entry| Finding {
        is_error: true,
        message: format!(
            "it does not have snapshot {}, which is in {}",
            entry.id.get(..8).unwrap_or(&entry.id),
            entry.at.join(", ")
        ),
    })
}

/// On a thread that may wait for a store.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> repository::Result<T> + Send + 'static,
) -> Result<T, Closed> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(closed),
        Err(error) => Err(Closed { reason: reasons::SERVER_ERROR, message: error.to_string() }),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(values: &Values, secret: &str, key: &str) -> Option<String> {
    String::from_utf8(values.get(secret)?.get(key)?.clone()).ok()
}

pub(crate) fn closed(error: repository::Error) -> Closed {
    use repository::Error;
    let reason = match &error {
        Error::WrongPassword { .. } | Error::OldFormat { .. } => reasons::REPOSITORY_LOCKED,
        Error::Damaged { .. } => reasons::DAMAGED,
        Error::NoSnapshot(_) | Error::NoFile(_) | Error::NoRepository { .. } => reasons::NOT_FOUND,
        _ => reasons::REPOSITORY_UNAVAILABLE,
    };
    Closed { reason, message: error.to_string() }
}

impl std::fmt::Debug for Unlocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Unlocked")
    }
}
