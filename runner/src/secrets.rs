//! Secrets as files, `DIRECTORY/SECRET/KEY`: a volume of a Pod, or a directory of the server's. Read when they are needed.

use std::{fs, io, path::PathBuf};

use api::runner::SECRETS;
use freeze::SecretValue;

use crate::failure::Failure;

#[derive(Clone, Debug)]
pub(crate) struct Secrets(PathBuf);

/// No password, key or bundle of certificates is longer.
const LONGEST: u64 = 1 << 20;

impl Secrets {
    pub(crate) fn from_environment() -> Result<Self, Failure> {
        let directory = std::env::var_os(SECRETS);
        let directory = directory.ok_or_else(|| Failure::bug(format!("{SECRETS} does not say where Secrets are")))?;
        Ok(Self(directory.into()))
    }

    pub(crate) fn value(&self, secret: &str, key: &str) -> SecretValue {
        // Names of objects and keys have no slashes; whatever has is none.
        if [secret, key].iter().any(|part| part.contains('/') || *part == ".." || part.is_empty()) {
            return SecretValue::NoSecret;
        }
        let directory = self.0.join(secret);
        if !directory.is_dir() {
            return SecretValue::NoSecret;
        }
        let path = directory.join(key);
        match fs::metadata(&path) {
            Ok(found) if found.len() <= LONGEST => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return SecretValue::NoKey,
            _ => return SecretValue::NoKey,
        }
        fs::read(&path).map_or(SecretValue::NoKey, SecretValue::Is)
    }

    pub(crate) fn text(&self, secret: &str, key: &str) -> Option<String> {
        match self.value(secret, key) {
            SecretValue::Is(bytes) => String::from_utf8(bytes).ok(),
            SecretValue::NoSecret | SecretValue::NoKey => None,
        }
    }
}
