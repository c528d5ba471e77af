//! From a `Database` as it is declared, and values of the Secrets that it names, to the one server that it is. Pure.

use api::{ConnectionAddress, DatabaseSpec};
use thiserror::Error;

use crate::driver::{Account, Member, Tls, TlsRoots};

/// A value of a Secret.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretValue {
    NoSecret,
    NoKey,
    Is(Vec<u8>),
}

/// Why a Database leads to no server.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoMember {
    #[error("it names no usable endpoint")]
    Endpoint,
    #[error("it needs key {key:?} of Secret {secret:?}, which {why}")]
    Secret { secret: String, key: String, why: &'static str },
}

const NO_SECRET: &str = "does not exist";
const NO_KEY: &str = "the Secret does not have";
const NO_TEXT: &str = "is not UTF-8 text";

impl Member {
    /// The server itself, over the network or its socket. `secrets`: by the Secret's name and the key.
    pub fn of(spec: &DatabaseSpec, secrets: &dyn Fn(&str, &str) -> SecretValue) -> Result<Self, NoMember> {
        let address = spec.endpoint.address(spec.engine).ok_or(NoMember::Endpoint)?;
        Ok(Self {
            account: account(spec, secrets)?,
            tls: tls(spec, &address, secrets)?,
            databases: spec.databases.clone(),
            address,
        })
    }
}

type Secrets<'s> = &'s dyn Fn(&str, &str) -> SecretValue;

fn account(spec: &DatabaseSpec, secrets: Secrets<'_>) -> Result<Option<Account>, NoMember> {
    let Some(credentials) = &spec.credentials else {
        return Ok(None);
    };
    let secret = &credentials.secret_ref.name;
    let user = text(secrets, secret, &credentials.username_key)?;
    let password = match text(secrets, secret, &credentials.password_key) {
        Ok(password) => Some(password),
        // Where the server asks for none.
        Err(NoMember::Secret { why: NO_KEY, .. }) => None,
        Err(other) => return Err(other),
    };
    Ok(Some(Account { user, password }))
}

fn tls(spec: &DatabaseSpec, address: &ConnectionAddress, secrets: Secrets<'_>) -> Result<Tls, NoMember> {
    let mode = spec.tls_mode(address);
    let Some(tls) = &spec.tls else {
        return Ok(Tls { mode, roots: None });
    };
    let ca = match &tls.ca_secret_ref {
        Some(secret) => Some(text(secrets, &secret.name, "ca.crt")?.into()),
        None => None,
    };
    let identity = match &tls.cert_secret_ref {
        Some(secret) => {
            Some((text(secrets, &secret.name, "tls.crt")?.into(), text(secrets, &secret.name, "tls.key")?.into()))
        }
        None => None,
    };
    Ok(Tls { mode, roots: Some(TlsRoots { ca, identity }) })
}

fn text(secrets: Secrets<'_>, secret: &str, key: &str) -> Result<String, NoMember> {
    let missing = |why| NoMember::Secret { secret: secret.to_owned(), key: key.to_owned(), why };
    match secrets(secret, key) {
        SecretValue::NoSecret => Err(missing(NO_SECRET)),
        SecretValue::NoKey => Err(missing(NO_KEY)),
        SecretValue::Is(bytes) => String::from_utf8(bytes).map_err(|_| missing(NO_TEXT)),
    }
}
