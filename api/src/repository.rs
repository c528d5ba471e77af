//! `Repository`: where dumps are kept. One or several locations that hold the same: encrypted, deduplicated, in restic's format.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{SecretReference, runner::RunnerTemplate};

/// Where dumps are kept.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "Repository",
    doc = "Where dumps are kept: one or several locations that hold the same, encrypted and deduplicated.",
    plural = "repositories",
    singular = "repository",
    shortname = "sprepo",
    category = "stillpoint",
    namespaced,
    status = "RepositoryStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct RepositorySpec {
    /// Where it lies. Each location holds all of it; the first that answers is read.
    #[schemars(length(min = 1, max = 8))]
    pub locations: Vec<RepositoryLocation>,
    /// What opens it. Without the password nothing can be read again: keep it somewhere else, too.
    pub encryption: Encryption,
    /// In a cluster: how the Pods of runs are made that read or write it. A Snapshot or Restore may say more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runner: Option<RunnerTemplate>,
}

/// One place that holds all of a repository: exactly one of `directory`, `s3`, `gcs` and `azure`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RepositoryLocation {
    /// What it is called in statuses and messages.
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<DirectoryLocation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Location>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gcs: Option<GcsLocation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure: Option<AzureLocation>,
}

/// A directory of the machine that a standalone server runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DirectoryLocation {
    /// An absolute path; made when it is not there.
    pub path: String,
}

/// A bucket of S3, or of a server that speaks as it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3Location {
    #[schemars(regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$"))]
    pub bucket: String,
    /// Below which folder of the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// `https://HOST[:PORT]`; Amazon's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$"))]
    pub endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[A-Za-z0-9_-]{1,63}$"))]
    pub region: Option<String>,
    /// Whether the bucket is in the path and not in the host's name. Default: true where there is an endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_style: Option<bool>,
    /// Absent: the identity of the machine or Pod, in a cluster only where its operator lends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<S3CredentialsReference>,
    /// A Secret whose key `ca.crt` holds PEM certificates to trust beside the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretReference>,
}

/// An access key, from a Secret of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct S3CredentialsReference {
    pub secret_ref: SecretReference,
    #[serde(default = "access_key_id")]
    pub access_key_id_key: String,
    #[serde(default = "secret_access_key")]
    pub secret_access_key_key: String,
    /// Only for temporary credentials; the key may be absent.
    #[serde(default = "session_token")]
    pub session_token_key: String,
}

/// A bucket of Google Cloud Storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GcsLocation {
    #[schemars(regex(pattern = r"^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$"))]
    pub bucket: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// A Secret whose key `service-account.json` holds an account's key. Absent: the identity of the machine or Pod, in a cluster only where its operator lends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account_secret_ref: Option<SecretReference>,
}

/// A container of Azure Blob Storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AzureLocation {
    #[schemars(regex(pattern = r"^[a-z0-9]{3,24}$"))]
    pub account: String,
    #[schemars(regex(pattern = r"^[a-z0-9](-?[a-z0-9]){2,62}$"))]
    pub container: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// A Secret with a key `account-key` or `sas-token`. Absent: the identity of the machine or Pod, in a cluster only where its operator lends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretReference>,
}

/// The password, from a Secret of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Encryption {
    pub password_secret_ref: SecretReference,
    #[serde(default = "password_key")]
    pub password_key: String,
}

/// What is known of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RepositoryStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// By which `restic cat config` knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub locations: Vec<LocationStatus>,
    /// Copies in its catalogue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<u64>,
}

/// What is known of one location.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocationStatus {
    pub name: String,
    pub ready: bool,
    /// Why not, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checked_at: Option<Time>,
}

// === impls ===

/// Where a location is, of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocationKind<'a> {
    Directory(&'a DirectoryLocation),
    S3(&'a S3Location),
    Gcs(&'a GcsLocation),
    Azure(&'a AzureLocation),
}

impl RepositoryLocation {
    /// `None`: it says none, or more than one.
    pub fn kind(&self) -> Option<LocationKind<'_>> {
        let Self { name: _, directory, s3, gcs, azure } = self;
        match (directory, s3, gcs, azure) {
            (Some(directory), None, None, None) => Some(LocationKind::Directory(directory)),
            (None, Some(s3), None, None) => Some(LocationKind::S3(s3)),
            (None, None, Some(gcs), None) => Some(LocationKind::Gcs(gcs)),
            (None, None, None, Some(azure)) => Some(LocationKind::Azure(azure)),
            _ => None,
        }
    }

    /// The Secrets that it names, each with the keys that may be read of it.
    pub fn secrets(&self) -> Vec<(&str, Vec<&str>)> {
        let mut secrets = Vec::new();
        match self.kind() {
            Some(LocationKind::S3(s3)) => {
                if let Some(credentials) = &s3.credentials {
                    let keys = vec![
                        credentials.access_key_id_key.as_str(),
                        &credentials.secret_access_key_key,
                        &credentials.session_token_key,
                    ];
                    secrets.push((credentials.secret_ref.name.as_str(), keys));
                }
                if let Some(ca) = &s3.ca_secret_ref {
                    secrets.push((ca.name.as_str(), vec![CA_KEY]));
                }
            }
            Some(LocationKind::Gcs(gcs)) => {
                secrets.extend(
                    gcs.service_account_secret_ref.iter().map(|it| (it.name.as_str(), vec![SERVICE_ACCOUNT_KEY])),
                );
            }
            Some(LocationKind::Azure(azure)) => {
                secrets.extend(azure.secret_ref.iter().map(|it| (it.name.as_str(), vec![ACCOUNT_KEY, SAS_TOKEN_KEY])));
            }
            Some(LocationKind::Directory(_)) | None => {}
        }
        secrets
    }

    /// The field that would say by which account it is reached, where none does: then it is by the identity of the machine or Pod.
    pub fn lacks_credentials(&self) -> Option<&'static str> {
        let (field, is_said) = match self.kind()? {
            LocationKind::Directory(_) => return None,
            LocationKind::S3(s3) => ("s3.credentials", s3.credentials.is_some()),
            LocationKind::Gcs(gcs) => ("gcs.serviceAccountSecretRef", gcs.service_account_secret_ref.is_some()),
            LocationKind::Azure(azure) => ("azure.secretRef", azure.secret_ref.is_some()),
        };
        (!is_said).then_some(field)
    }

    /// For people: `s3://BUCKET/PREFIX`, `/a/directory`.
    pub fn place(&self) -> String {
        let below = |prefix: &Option<String>| prefix.as_deref().map(|prefix| format!("/{prefix}")).unwrap_or_default();
        match self.kind() {
            Some(LocationKind::Directory(directory)) => directory.path.clone(),
            Some(LocationKind::S3(s3)) => format!("s3://{}{}", s3.bucket, below(&s3.prefix)),
            Some(LocationKind::Gcs(gcs)) => format!("gs://{}{}", gcs.bucket, below(&gcs.prefix)),
            Some(LocationKind::Azure(azure)) => {
                format!("azure://{}/{}{}", azure.account, azure.container, below(&azure.prefix))
            }
            None => String::new(),
        }
    }
}

impl RepositorySpec {
    /// Every Secret that is needed to use it, each with the keys that may be read of it.
    pub fn secrets(&self) -> Vec<(&str, Vec<&str>)> {
        let password = (self.encryption.password_secret_ref.name.as_str(), vec![self.encryption.password_key.as_str()]);
        std::iter::once(password).chain(self.locations.iter().flat_map(RepositoryLocation::secrets)).collect()
    }
}

/// The key of a Secret that holds certificates to trust.
pub const CA_KEY: &str = "ca.crt";
pub const SERVICE_ACCOUNT_KEY: &str = "service-account.json";
pub const ACCOUNT_KEY: &str = "account-key";
pub const SAS_TOKEN_KEY: &str = "sas-token";

fn access_key_id() -> String {
    "access-key-id".to_owned()
}

fn secret_access_key() -> String {
    "secret-access-key".to_owned()
}

fn session_token() -> String {
    "session-token".to_owned()
}

fn password_key() -> String {
    "password".to_owned()
}
