//! Where a location is, and the client that speaks to it: whom it trusts, and how long it waits.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use object_store::{
    BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig,
    aws::AmazonS3Builder,
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::GoogleCloudStorageBuilder,
    local::LocalFileSystem,
};
use webpki_root_certs::TLS_SERVER_ROOT_CERTS;

use crate::answers::said;

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
    /// PEM; beside the machine's.
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
    /// One request, its body included: a pack has at most some 32 MiB.
    pub request: Duration,
    /// One call with all its tries.
    pub call: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { request: Duration::from_secs(60), call: Duration::from_secs(150) }
    }
}

/// The store of a place, and the prefix in it; or why there can be none.
pub(crate) fn store(place: &Place, patience: Patience) -> Result<(Arc<dyn ObjectStore>, &str), String> {
    let made: object_store::Result<(Arc<dyn ObjectStore>, &str)> = match place {
        Place::Directory { path } => return Ok((Arc::new(directory(path)?), "")),
        Place::S3(s3) => amazon(s3, patience).map(|store| (store, s3.prefix.as_str())),
        Place::Gcs { bucket, prefix, service_account, endpoint } => {
            google(bucket, service_account.as_deref(), endpoint.as_deref(), patience)
                .map(|store| (store, prefix.as_str()))
        }
        Place::Azure(azure) => microsoft(azure, patience).map(|store| (store, azure.prefix.as_str())),
    };
    made.map_err(|error| said(&error))
}

/// Made with its parents when it is not there, for us alone.
fn directory(path: &Path) -> Result<LocalFileSystem, String> {
    use std::os::unix::fs::DirBuilderExt;
    if !path.is_absolute() {
        return Err(format!("{} is not an absolute path", path.display()));
    }
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| format!("{}: {error}", path.display()))?;
    let store = LocalFileSystem::new_with_prefix(path).map_err(|error| said(&error))?;
    Ok(store.with_fsync(true))
}

fn amazon(s3: &S3, patience: Patience) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = amazon_account(s3.credentials.as_ref()).with_bucket_name(&s3.bucket);
    // Not every store has requests that remove several objects, and we remove them one by one.
    builder = builder.with_disable_bulk_delete(true);
    builder = builder.with_virtual_hosted_style_request(!s3.path_style);
    if let Some(region) = &s3.region {
        builder = builder.with_region(region);
    }
    let mut client = client(patience, s3.ca.as_deref())?;
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(endpoint_of(endpoint, &s3.bucket, s3.path_style));
        client = client.with_allow_http(endpoint.starts_with("http://"));
    }
    Ok(Arc::new(builder.with_retry(retries(patience)).with_client_options(client).build()?))
}

/// The environment is read only where nothing is given: an account that is has nothing to do with the session, the endpoint or the
/// identity that this process may have.
fn amazon_account(credentials: Option<&S3Credentials>) -> AmazonS3Builder {
    let Some(credentials) = credentials else { return AmazonS3Builder::from_env() };
    let builder = AmazonS3Builder::new()
        .with_access_key_id(&credentials.access_key_id)
        .with_secret_access_key(&credentials.secret_access_key);
    match &credentials.session_token {
        Some(token) => builder.with_token(token),
        None => builder,
    }
}

fn google_account(service_account: Option<&str>) -> GoogleCloudStorageBuilder {
    match service_account {
        Some(json) => GoogleCloudStorageBuilder::new().with_service_account_key(json),
        None => GoogleCloudStorageBuilder::from_env(),
    }
}

fn microsoft_account(azure: &Azure) -> MicrosoftAzureBuilder {
    let mut builder = match (&azure.access_key, &azure.sas_token) {
        (None, None) => MicrosoftAzureBuilder::from_env(),
        _ => MicrosoftAzureBuilder::new(),
    };
    if let Some(key) = &azure.access_key {
        builder = builder.with_access_key(key);
    }
    if let Some(token) = &azure.sas_token {
        builder = builder.with_config(AzureConfigKey::SasKey, token);
    }
    builder.with_account(&azure.account).with_container_name(&azure.container)
}

/// As the library wants it: with the bucket, where that is in the host's name.
fn endpoint_of(endpoint: &str, bucket: &str, path_style: bool) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) if !path_style && !host.starts_with(&format!("{bucket}.")) => {
            format!("{scheme}://{bucket}.{host}")
        }
        _ => endpoint.to_owned(),
    }
}

fn google(
    bucket: &str,
    service_account: Option<&str>,
    endpoint: Option<&str>,
    patience: Patience,
) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = google_account(service_account).with_bucket_name(bucket);
    if let Some(endpoint) = endpoint {
        builder = builder.with_base_url(endpoint);
    }
    Ok(Arc::new(builder.with_retry(retries(patience)).with_client_options(client(patience, None)?).build()?))
}

fn microsoft(azure: &Azure, patience: Patience) -> object_store::Result<Arc<dyn ObjectStore>> {
    let mut builder = microsoft_account(azure);
    if let Some(endpoint) = &azure.endpoint {
        builder = builder.with_endpoint(endpoint.clone()).with_allow_http(endpoint.starts_with("http://"));
    }
    Ok(Arc::new(builder.with_retry(retries(patience)).with_client_options(client(patience, None)?).build()?))
}

/// Trusts the authorities that are given, beside the machine's. On a machine that has none, an image FROM scratch, Mozilla's stand for
/// those, as they were when this program was built: the library could not even speak plain HTTP there.
fn client(patience: Patience, ca: Option<&str>) -> object_store::Result<ClientOptions> {
    let options = ClientOptions::new().with_connect_timeout(Duration::from_secs(10)).with_timeout(patience.request);
    let mut trusted = Certificate::from_pem_bundle(ca.unwrap_or_default().as_bytes())?;
    if ca.is_some() && trusted.is_empty() {
        let source = "what is given as its CA has no certificate in it".into();
        return Err(object_store::Error::Generic { store: "TLS", source });
    }
    let alone = rustls_native_certs::load_native_certs().certs.is_empty();
    if alone {
        for der in TLS_SERVER_ROOT_CERTS {
            trusted.push(Certificate::from_der(der)?);
        }
    }
    Ok(trusted.into_iter().fold(options, ClientOptions::with_root_certificate).with_no_system_certificates(alone))
}

fn retries(patience: Patience) -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 6, retry_timeout: patience.call * 2 / 3 }
}

#[cfg(test)]
mod tests {
    use object_store::{aws::AmazonS3ConfigKey, gcp::GoogleConfigKey};

    use super::*;

    #[test]
    fn the_bucket_is_in_the_host_or_in_the_path() {
        let of = |path_style| endpoint_of("https://s3.example.com:9000", "dumps", path_style);
        assert_eq!(
            (of(true).as_str(), of(false).as_str()),
            ("https://s3.example.com:9000", "https://dumps.s3.example.com:9000")
        );
        assert_eq!(endpoint_of("https://dumps.s3.example.com", "dumps", false), "https://dumps.s3.example.com");
    }

    /// What an identity that lies in the environment would be known by. This test is run once more, by itself, with one.
    const IDENTITY: [(&str, &str); 4] = [
        ("AWS_SESSION_TOKEN", "ours"),
        ("AWS_ENDPOINT", "https://elsewhere.example"),
        ("GOOGLE_BUCKET", "ours"),
        ("AZURE_CLIENT_ID", "ours"),
    ];

    #[test]
    fn the_environment_is_read_only_where_no_account_is_given() {
        if std::env::var_os("AZURE_CLIENT_ID").is_none() {
            let name = "stores::tests::the_environment_is_read_only_where_no_account_is_given";
            let mut again = std::process::Command::new(std::env::current_exe().unwrap());
            assert!(again.args(["--exact", name]).envs(IDENTITY).status().unwrap().success());
            return;
        }
        let key = || "key".to_owned();
        let given = S3Credentials { access_key_id: key(), secret_access_key: key(), session_token: None };
        let amazons = |credentials| {
            let builder = amazon_account(credentials);
            [AmazonS3ConfigKey::Token, AmazonS3ConfigKey::Endpoint].map(|key| builder.get_config_value(&key).is_some())
        };
        assert_eq!((amazons(Some(&given)), amazons(None)), ([false; 2], [true; 2]));
        let googles = |json| google_account(json).get_config_value(&GoogleConfigKey::Bucket).is_some();
        assert_eq!((googles(Some("{}")), googles(None)), (false, true));
        let azures = |access_key, sas_token| {
            let azure = Azure { access_key, sas_token, ..Azure::default() };
            microsoft_account(&azure).get_config_value(&AzureConfigKey::ClientId).is_some()
        };
        assert_eq!((azures(Some(key()), None), azures(None, Some(key())), azures(None, None)), (false, false, true));
    }
}
