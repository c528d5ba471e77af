//! One place where objects lie: a directory, or a bucket. Whole objects, by their names in restic's layout.
//!
//! Every call ends: each request has a deadline, and with its retries one of its own. A write is there entirely or not at all; in a
//! directory it is on the disk when it returns. Cancelled by dropping: what was sent may or may not be there.

use std::{error::Error as _, fmt, future::Future, io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use jiff::Timestamp;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, ObjectStore, ObjectStoreExt, PutPayload, RetryConfig,
    aws::AmazonS3Builder, azure::MicrosoftAzureBuilder, gcp::GoogleCloudStorageBuilder, local::LocalFileSystem,
    path::Path,
};

use crate::error::{Error, Fault, Result, StoreError};

/// Where and how, with every secret in it: not for the log.
#[derive(Clone)]
pub enum Place {
    Directory { path: PathBuf },
    S3(S3),
    Gcs { bucket: String, prefix: String, service_account: Option<String>, endpoint: Option<String> },
    Azure(Azure),
}

/// A bucket of S3, or of what speaks as it does.
#[derive(Clone, Default)]
pub struct S3 {
    /// `None`: Amazon's.
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub bucket: String,
    pub prefix: String,
    /// `https://HOST/BUCKET/…`, not `https://BUCKET.HOST/…`.
    pub path_style: bool,
    /// `None`: those of the machine or Pod (environment, web identity, instance metadata).
    pub credentials: Option<S3Credentials>,
    /// PEM; beside the system's.
    pub ca: Option<String>,
}

#[derive(Clone)]
pub struct S3Credentials {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
}

/// A container of Azure's blob storage.
#[derive(Clone, Default)]
pub struct Azure {
    pub account: String,
    pub container: String,
    pub prefix: String,
    pub access_key: Option<String>,
    pub sas_token: Option<String>,
    pub endpoint: Option<String>,
}

/// How long a store is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// One request, its body included: a pack has at most some 64 MiB.
    pub request: Duration,
    /// One call with all its tries.
    pub call: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { request: Duration::from_secs(60), call: Duration::from_secs(150) }
    }
}

/// One location. Cheap to clone.
#[derive(Clone)]
pub struct Location {
    pub(crate) name: Arc<str>,
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// Of a directory: to find what a dead writer left there.
    pub(crate) directory: Option<Arc<PathBuf>>,
    patience: Patience,
}

/// An object in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Below the location's prefix: `data/ab/ab12…`.
    pub name: String,
    pub size: u64,
    /// By the store's clock.
    pub modified: Timestamp,
}

impl Location {
    /// Nothing is asked of it yet.
    pub fn new(name: &str, place: &Place, patience: Patience) -> Result<Self> {
        let wrong = |error: object_store::Error| Error::Misdescribed { location: name.to_owned(), why: said(&error) };
        let (store, prefix): (Arc<dyn ObjectStore>, &str) = match place {
            Place::Directory { path } => {
                let opened = directory(path);
                let store = opened.map_err(|why| Error::Misdescribed { location: name.to_owned(), why })?;
                (Arc::new(store), "")
            }
            Place::S3(s3) => (Arc::new(amazon(s3, patience).map_err(wrong)?), &s3.prefix),
            Place::Gcs { bucket, prefix, service_account, endpoint } => {
                let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
                if let Some(json) = service_account {
                    builder = builder.with_service_account_key(json);
                }
                if let Some(endpoint) = endpoint {
                    builder = builder.with_base_url(endpoint);
                }
                let builder =
                    builder.with_retry(retries(patience)).with_client_options(client(patience, None).map_err(wrong)?);
                (Arc::new(builder.build().map_err(wrong)?), prefix)
            }
            Place::Azure(azure) => (Arc::new(microsoft(azure, patience).map_err(wrong)?), &azure.prefix),
        };
        let directory = match place {
            Place::Directory { path } => Some(Arc::new(path.clone())),
            _ => None,
        };
        let prefix = Path::parse(prefix.trim_matches('/')).map_err(|error| Error::Misdescribed {
            location: name.to_owned(),
            why: format!("the prefix {prefix:?}: {error}"),
        })?;
        Ok(Self { name: name.into(), store, prefix, directory, patience })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub async fn read(&self, name: &str) -> Result<Bytes, StoreError> {
        self.within(name, async { self.store.get(&self.path(name)).await?.bytes().await }).await
    }

    /// `length` bytes from `offset`; fewer are an error.
    pub async fn read_range(&self, name: &str, offset: u64, length: u64) -> Result<Bytes, StoreError> {
        let bytes =
            self.within(name, async { self.store.get_range(&self.path(name), offset..offset + length).await }).await?;
        if bytes.len() as u64 == length {
            return Ok(bytes);
        }
        let why = format!("{} of {length} bytes from {offset} came", bytes.len());
        Err(StoreError::new(&self.name, Fault::Damaged, name, why))
    }

    pub async fn write(&self, name: &str, content: &[Bytes]) -> Result<(), StoreError> {
        let payload: PutPayload = content.iter().cloned().collect();
        self.within(name, async { self.store.put(&self.path(name), payload).await }).await.map(drop)
    }

    /// What is not there is removed already.
    pub async fn remove(&self, name: &str) -> Result<(), StoreError> {
        match self.within(name, async { self.store.delete(&self.path(name)).await }).await {
            Err(error) if error.fault == Fault::NotFound => Ok(()),
            other => other,
        }
    }

    /// Everything below a folder (`data`), or all of it (``).
    pub async fn list(&self, folder: &str) -> Result<Vec<Object>, StoreError> {
        let below = self.path(folder);
        let all = async {
            let mut objects = Vec::new();
            let mut stream = self.store.list(Some(&below));
            while let Some(meta) = stream.try_next().await? {
                let Some(name) = self.name_of(&meta.location) else { continue };
                let modified = Timestamp::from_millisecond(meta.last_modified.timestamp_millis()).unwrap_or_default();
                objects.push(Object { name, size: meta.size, modified });
            }
            Ok(objects)
        };
        // A long list is many requests, each with a deadline of its own.
        self.within_for(self.patience.call * 4, folder, all).await
    }

    /// The first object that is `wanted`, if there is one.
    pub(crate) async fn first(&self, wanted: impl Fn(&str) -> bool) -> Result<Option<String>, StoreError> {
        let search = async {
            let mut stream = self.store.list(Some(&self.prefix));
            while let Some(meta) = stream.try_next().await? {
                if let Some(name) = self.name_of(&meta.location).filter(|name| wanted(name)) {
                    return Ok(Some(name));
                }
            }
            Ok(None)
        };
        self.within("", search).await
    }

    /// The one object, if it is there.
    pub async fn find(&self, name: &str) -> Result<Option<Object>, StoreError> {
        match self.within(name, async { self.store.head(&self.path(name)).await }).await {
            Ok(meta) => {
                let modified = Timestamp::from_millisecond(meta.last_modified.timestamp_millis()).unwrap_or_default();
                Ok(Some(Object { name: name.to_owned(), size: meta.size, modified }))
            }
            Err(error) if error.fault == Fault::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn path(&self, name: &str) -> Path {
        name.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), Path::join)
    }

    fn name_of(&self, path: &Path) -> Option<String> {
        let parts: Vec<_> = path.prefix_match(&self.prefix)?.map(|part| part.as_ref().to_owned()).collect();
        Some(parts.join("/"))
    }

    async fn within<T>(
        &self,
        name: &str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        self.within_for(self.patience.call, name, work).await
    }

    async fn within_for<T>(
        &self,
        longest: Duration,
        name: &str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(longest, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(StoreError::new(&self.name, fault(&error), name, said(&error))),
            Err(_) => {
                let why = format!("no answer within {} s", longest.as_secs());
                Err(StoreError::new(&self.name, Fault::Unavailable, name, why))
            }
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Location").field(&self.name).finish()
    }
}

/// Made with its parents when it is not there, for us alone.
fn directory(path: &std::path::Path) -> Result<LocalFileSystem, String> {
    use std::os::unix::fs::DirBuilderExt;
    if !path.is_absolute() {
        return Err(format!("{} is not an absolute path", path.display()));
    }
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| format!("{}: {error}", path.display()))?;
    let store = LocalFileSystem::new_with_prefix(path).map_err(|error| said(&error))?;
    Ok(store.with_fsync(true))
}

fn amazon(s3: &S3, patience: Patience) -> object_store::Result<impl ObjectStore> {
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(&s3.bucket);
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    builder = builder.with_region(s3.region.as_deref().unwrap_or("us-east-1"));
    builder = builder.with_virtual_hosted_style_request(!s3.path_style);
    if let Some(credentials) = &s3.credentials {
        builder = builder
            .with_access_key_id(&credentials.access_key_id)
            .with_secret_access_key(&credentials.secret_access_key);
        if let Some(token) = &credentials.session_token {
            builder = builder.with_token(token);
        }
    }
    let client = client(patience, s3.ca.as_deref())?;
    let client = client.with_allow_http(s3.endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://")));
    builder.with_retry(retries(patience)).with_client_options(client).build()
}

fn microsoft(azure: &Azure, patience: Patience) -> object_store::Result<impl ObjectStore> {
    let mut builder =
        MicrosoftAzureBuilder::from_env().with_account(&azure.account).with_container_name(&azure.container);
    if let Some(key) = &azure.access_key {
        builder = builder.with_access_key(key);
    }
    if let Some(token) = &azure.sas_token {
        builder = builder.with_config(object_store::azure::AzureConfigKey::SasKey, token);
    }
    if let Some(endpoint) = &azure.endpoint {
        builder = builder.with_endpoint(endpoint.clone()).with_allow_http(endpoint.starts_with("http://"));
    }
    builder.with_retry(retries(patience)).with_client_options(client(patience, None)?).build()
}

fn client(patience: Patience, ca: Option<&str>) -> object_store::Result<ClientOptions> {
    let options = ClientOptions::new().with_connect_timeout(Duration::from_secs(10)).with_timeout(patience.request);
    match ca {
        None => Ok(options),
        Some(pem) => Certificate::from_pem_bundle(pem.as_bytes())
            .map(|certificates| certificates.into_iter().fold(options, ClientOptions::with_root_certificate)),
    }
}

fn retries(patience: Patience) -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 6, retry_timeout: patience.call * 2 / 3 }
}

fn fault(error: &object_store::Error) -> Fault {
    match error {
        object_store::Error::NotFound { .. } => Fault::NotFound,
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => Fault::Denied,
        other => match kind_below(other) {
            Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => Fault::Full,
            Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => Fault::Denied,
            _ if full(&said(other)) => Fault::Full,
            _ if unavailable(&said(other)) => Fault::Unavailable,
            _ => Fault::Other,
        },
    }
}

/// The first I/O error in the chain that has a name.
fn kind_below(error: &object_store::Error) -> Option<io::ErrorKind> {
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(error) = source.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = source.source();
    }
    None
}

/// 507, and the codes that servers of S3 give for a full disk.
fn full(said: &str) -> bool {
    ["507", "InsufficientStorage", "XMinioStorageFull", "QuotaExceeded"].iter().any(|word| said.contains(word))
}

fn unavailable(said: &str) -> bool {
    ["503", "502", "504", "500", "429", "timed out", "timeout", "error sending request", "connect"]
        .iter()
        .any(|word| said.contains(word))
}

/// The whole chain; what a source says already is not said twice.
fn said(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    text
}

/// Several calls at once, but not all.
pub(crate) const AT_ONCE: usize = 32;

/// Does the same for many objects, some at a time; the first error ends it.
pub(crate) async fn for_each<T, F>(items: Vec<T>, work: impl Fn(T) -> F) -> Result<(), StoreError>
where
    F: Future<Output = Result<(), StoreError>>,
{
    futures::stream::iter(items).map(work).buffer_unordered(AT_ONCE).try_collect().await
}
