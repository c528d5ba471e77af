//! A certificate authority and what it signs. Pure apart from [`Authority::load_or_create`]; `now` is an argument.

use std::{
    fmt, fs,
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use thiserror::Error;

/// Signs certificates that this installation trusts.
pub struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate chain and its key, as PEM.
#[derive(Clone)]
pub struct KeyPairPem {
    pub certificate: String,
    pub key: String,
}

/// What a serving certificate is good for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub dns: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

/// Who a client certificate stands for: common name and organizations, as Kubernetes reads them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub name: String,
    pub groups: Vec<String>,
}

#[derive(Debug, Error)]
pub enum AuthorityError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    /// Half of a key pair, or something that is not one.
    #[error(
        "{directory} holds no usable certificate authority: {why}; restore it, or remove ca.crt and ca.key to make a new one, which every client must then be told of"
    )]
    Unusable { directory: PathBuf, why: String },
    #[error("signing: {0}")]
    Sign(#[from] rcgen::Error),
}

/// Ten years: a standalone server's clients hold the CA in their kubeconfigs.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks of clients may be behind.
const BACKDATED: Duration = Duration::from_secs(3600);

impl Authority {
    /// A new authority called `name`, for ten years.
    pub fn create(name: &str, now: Timestamp) -> Result<(Self, KeyPairPem), AuthorityError> {
        Self::create_for(name, now, AUTHORITY_LIFE)
    }

    /// A new authority called `name`, for `life`.
    pub fn create_for(name: &str, now: Timestamp, life: Duration) -> Result<(Self, KeyPairPem), AuthorityError> {
        let mut params = dated(name, now, life);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = KeyPairPem { certificate: params.self_signed(&key)?.pem(), key: key.serialize_pem() };
        Ok((Self { certificate: pem.certificate.clone(), issuer: Issuer::new(params, key) }, pem))
    }

    /// The authority of a key pair that was made before.
    pub fn from_pem(pem: &KeyPairPem) -> Result<Self, rcgen::Error> {
        let issuer = Issuer::from_ca_cert_pem(&pem.certificate, KeyPair::from_pem(&pem.key)?)?;
        Ok(Self { certificate: pem.certificate.clone(), issuer })
    }

    /// The authority in `directory` (`ca.crt`, `ca.key`), made there when there is none.
    pub fn load_or_create(directory: &Path, name: &str, now: Timestamp) -> Result<Self, AuthorityError> {
        let paths = [directory.join("ca.crt"), directory.join("ca.key")];
        let unusable = |why: String| AuthorityError::Unusable { directory: directory.to_owned(), why };
        match (read(&paths[0])?, read(&paths[1])?) {
            (Some(certificate), Some(key)) => {
                Self::from_pem(&KeyPairPem { certificate, key }).map_err(|error| unusable(error.to_string()))
            }
            (None, None) => {
                let (authority, pem) = Self::create(name, now)?;
                // The key first: a certificate without its key would be taken for damage at the next start.
                write_secret(&paths[1], &pem.key)?;
                write_secret(&paths[0], &pem.certificate)?;
                Ok(authority)
            }
            (Some(_), None) => Err(unusable("ca.key is missing".to_owned())),
            // We died between the two writes: nobody was told of this key.
            (None, Some(_)) => {
                let (authority, pem) = Self::create(name, now)?;
                write_secret(&paths[1], &pem.key)?;
                write_secret(&paths[0], &pem.certificate)?;
                Ok(authority)
            }
        }
    }

    /// The authority's own certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// A serving certificate.
    pub fn serve(&self, names: &Names, now: Timestamp, life: Duration) -> Result<KeyPairPem, AuthorityError> {
        let mut params = dated("stillpoint-apiserver", now, life);
        for name in &names.dns {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.subject_alt_names.extend(names.addresses.iter().map(|address| SanType::IpAddress(*address)));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    /// A client certificate for a user of one group: rcgen keeps one name of each kind.
    pub fn client(
        &self,
        name: &str,
        group: &str,
        now: Timestamp,
        life: Duration,
    ) -> Result<KeyPairPem, AuthorityError> {
        let mut params = dated(name, now, life);
        params.distinguished_name.push(DnType::OrganizationName, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> Result<KeyPairPem, AuthorityError> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(KeyPairPem { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl fmt::Debug for KeyPairPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPairPem").finish_non_exhaustive()
    }
}

/// Writes a file of mode 0600 in one step: it is there whole, or as it was.
fn write_secret(path: &Path, content: &str) -> Result<(), AuthorityError> {
    let file_error = |source| AuthorityError::File { path: path.to_owned(), source };
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(file_error)
}

fn read(path: &Path) -> Result<Option<String>, AuthorityError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(AuthorityError::File { path: path.to_owned(), source }),
    }
}

/// rcgen's defaults would name every certificate alike and make it valid for centuries.
fn dated(name: &str, now: Timestamp, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    let at = |timestamp: Timestamp| epoch + Duration::from_secs(u64::try_from(timestamp.as_second()).unwrap_or(0));
    params.not_before = at(now - BACKDATED).into();
    params.not_after = at(now + life).into();
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_made_once_and_half_a_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let now = Timestamp::now();
        let first = Authority::load_or_create(directory.path(), "test", now).unwrap();
        let again = Authority::load_or_create(directory.path(), "test", now).unwrap();
        assert_eq!(first.certificate(), again.certificate());
        fs::remove_file(directory.path().join("ca.key")).unwrap();
        let error = Authority::load_or_create(directory.path(), "test", now).unwrap_err();
        assert!(error.to_string().contains("ca.key is missing"), "{error}");
    }
}
