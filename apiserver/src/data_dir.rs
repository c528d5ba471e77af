//! The data directory of a standalone server: its lock, keys, tokens, kubeconfigs. All 0700/0600.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use certs::{Authority, AuthorityError, KeyPairPem, Names};
use jiff::Timestamp;
use rand::RngCore;
use serde_json::json;
use thiserror::Error;

use crate::auth::{User, standalone::Role};

/// An open data directory; nobody else has it.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    /// Held as long as the server lives; the kernel lets it go when we die.
    _lock: File,
}

#[derive(Debug, Error)]
pub enum DataDirError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} is in use by another stillpoint-apiserver; stop it, or give another --data-dir")]
    InUse { path: PathBuf },
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    #[error("{path} does not hold what it should: {why}; remove it to have it made anew")]
    Damaged { path: PathBuf, why: String },
}

/// A serving certificate is made at each start, and again long before it ends.
pub const LEAF_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);

impl DataDir {
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| DataDirError::File { path, source }
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed(path))?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed(path))?;
        let lock_path = path.join("lock");
        let lock = private().truncate(false).open(&lock_path).map_err(failed(&lock_path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => Err(failed(&lock_path)(source)),
        }
    }

    pub fn objects(&self) -> PathBuf {
        self.path.join("objects.db")
    }

    /// What runs of dumps and restores need while they run.
    pub fn runs(&self) -> PathBuf {
        self.path.join("runs")
    }

    /// The authority, made at the first start.
    pub fn authority(&self, now: Timestamp) -> Result<Authority, DataDirError> {
        let directory = self.path.join("pki");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(|source| DataDirError::File { path: directory.clone(), source })?;
        Ok(Authority::load_or_create(&directory, "stillpoint standalone", now)?)
    }

    /// A token per role, made at the first start.
    pub fn tokens(&self) -> Result<Vec<(String, User)>, DataDirError> {
        Role::ALL
            .iter()
            .map(|role| {
                let path = self.path.join(format!("{}.token", role.word()));
                let token = match fs::read_to_string(&path) {
                    Ok(token) if token.trim().len() >= 32 => token.trim().to_owned(),
                    Ok(_) => {
                        return Err(DataDirError::Damaged { path, why: "the token is too short".to_owned() });
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {
                        let mut random = [0_u8; 32];
                        rand::rng().fill_bytes(&mut random);
                        let token = URL_SAFE_NO_PAD.encode(random);
                        write(&path, token.as_bytes())?;
                        token
                    }
                    Err(source) => return Err(DataDirError::File { path, source }),
                };
                let user =
                    User { name: format!("stillpoint:{}", role.word()), groups: vec![role.group()], ..User::default() };
                Ok((token, user))
            })
            .collect()
    }

    /// A kubeconfig per role, for where the server listens now.
    pub fn write_kubeconfigs(
        &self,
        address: SocketAddr,
        authority: &Authority,
        tokens: &[(String, User)],
    ) -> Result<PathBuf, DataDirError> {
        for (token, user) in tokens {
            let config = json!({
                "apiVersion": "v1", "kind": "Config", "current-context": "stillpoint",
                "clusters": [{"name": "stillpoint", "cluster": {
                    "server": format!("https://{address}"),
                    "certificate-authority-data": STANDARD.encode(authority.certificate()),
                }}],
                "users": [{"name": user.name, "user": {"token": token}}],
                "contexts": [{"name": "stillpoint", "context": {
                    "cluster": "stillpoint", "user": user.name, "namespace": "default",
                }}],
            });
            let role = user.name.rsplit(':').next().unwrap_or(&user.name);
            write(&self.path.join(format!("{role}.kubeconfig")), format!("{config:#}\n").as_bytes())?;
        }
        Ok(self.path.join("admin.kubeconfig"))
    }

    /// A serving certificate for loopback.
    pub fn leaf(authority: &Authority, address: SocketAddr, now: Timestamp) -> Result<KeyPairPem, DataDirError> {
        let names = Names {
            dns: vec!["localhost".to_owned()],
            addresses: vec![address.ip(), [127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()],
        };
        Ok(authority.serve(&names, now, LEAF_LIFE)?)
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true).create(true).mode(0o600);
    options
}

/// Writes a file of mode 0600 in one step.
fn write(path: &Path, content: &[u8]) -> Result<(), DataDirError> {
    let temporary = path.with_extension("new");
    let step = || -> io::Result<()> {
        let mut file = private().truncate(true).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    step().map_err(|source| DataDirError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_directory_serves_one_server_and_keeps_its_tokens() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("data");
        let first = DataDir::open(&path).unwrap();
        let tokens = first.tokens().unwrap();
        assert!(matches!(DataDir::open(&path), Err(DataDirError::InUse { .. })));
        drop(first);
        assert_eq!(DataDir::open(&path).unwrap().tokens().unwrap(), tokens);
        let mode = fs::metadata(path.join("admin.token")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
