//! What an agent is told by its environment, as the injection writes it (docs/injection.md).

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use api::{
    ConnectionAddress, Engine, TlsMode,
    inject::{PASSWORD_FILE, TOKEN_DIRECTORY, TOKEN_FILE, USERNAME_FILE, variables},
};
use freeze::{Account, Member, Tls};

/// Everything.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) engine: Engine,
    pub(crate) address: ConnectionAddress,
    /// `HOST:PORT`, or several with commas: each address of these names is a replica.
    pub(crate) apiserver: String,
    /// Who signs what replicas show, PEM.
    pub(crate) authority: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) pod_uid: String,
    /// With the files `username` and `password`.
    pub(crate) credentials: Option<PathBuf>,
    pub(crate) token: PathBuf,
}

/// Only where an agent runs outside of a Pod.
const TOKEN: &str = "STILLPOINT_TOKEN_FILE";
/// No user name and no password is longer.
const LONGEST: u64 = 4096;

impl Settings {
    /// From variables.
    pub(crate) fn read(variable: impl Fn(&str) -> Option<String>) -> anyhow::Result<Self> {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let needed = |name: &str| given(name).with_context(|| format!("{name} is not set; see docs/injection.md"));
        let engine = match needed(variables::ENGINE)?.as_str() {
            "PostgreSQL" => Engine::PostgreSQL,
            "MariaDB" => Engine::MariaDB,
            other => bail!("{} is {other:?}; PostgreSQL and MariaDB are served", variables::ENGINE),
        };
        Ok(Self {
            engine,
            address: address(&needed(variables::ADDRESS)?, given(variables::PORT), engine)?,
            apiserver: needed(variables::APISERVER)?,
            authority: needed(variables::CA)?,
            namespace: needed(variables::POD_NAMESPACE)?,
            pod: needed(variables::POD_NAME)?,
            pod_uid: needed(variables::POD_UID)?,
            credentials: given(variables::CREDENTIALS).map(PathBuf::from),
            token: given(TOKEN).map_or_else(|| Path::new(TOKEN_DIRECTORY).join(TOKEN_FILE), PathBuf::from),
        })
    }

    /// Whom to be at the server, as the files say now; without any, whoever its engine lets in from its own machine.
    pub(crate) fn member(&self) -> anyhow::Result<Member> {
        let account = match &self.credentials {
            Some(directory) => account(directory)?,
            None => None,
        };
        Ok(Member {
            address: self.address.clone(),
            account,
            tls: Tls { mode: TlsMode::Disable, roots: None },
            databases: Vec::new(),
        })
    }
}

/// `None`: the Secret is not there, or not yet.
fn account(directory: &Path) -> anyhow::Result<Option<Account>> {
    let read = |name: &str| -> anyhow::Result<Option<String>> {
        let path = directory.join(name);
        match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
            Ok(found) if found.len() > LONGEST => bail!("{} has more than {LONGEST} bytes", path.display()),
            Ok(_) => {}
        }
        fs::read_to_string(&path).map(Some).with_context(|| path.display().to_string())
    };
    let user = read(USERNAME_FILE)?;
    let password = read(PASSWORD_FILE)?;
    Ok(user.map(|user| Account { user: user.trim_end_matches('\n').to_owned(), password }))
}

/// An absolute path is a socket; anything else has to be on this machine.
fn address(text: &str, port: Option<String>, engine: Engine) -> anyhow::Result<ConnectionAddress> {
    if text.starts_with('/') {
        // PostgreSQL's socket has the port in its name.
        let port =
            port.map(|port| port.parse().with_context(|| format!("{} is {port:?}", variables::PORT))).transpose()?;
        let port = port.unwrap_or(engine.default_port());
        return Ok(ConnectionAddress::Socket { path: text.to_owned(), port });
    }
    let split = text.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
    let (host, port) =
        split.with_context(|| format!("{} is {text:?}; must be 127.0.0.1:PORT, or a path", variables::ADDRESS))?;
    let address = ConnectionAddress::Tcp { host: host.to_owned(), port };
    if !address.is_local() {
        bail!("{} is {text:?}; an agent freezes the server in its own Pod only", variables::ADDRESS);
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(name: &str) -> Option<String> {
        let value = match name {
            "STILLPOINT_ENGINE" => "PostgreSQL",
            "STILLPOINT_ADDRESS" => "127.0.0.1:5433",
            "STILLPOINT_APISERVER" => "stillpoint-agents.stillpoint.svc:8444",
            "STILLPOINT_CA" => "pem",
            "POD_NAMESPACE" => "shop",
            "POD_NAME" => "pg-0",
            "POD_UID" => "u",
            _ => return None,
        };
        Some(value.to_owned())
    }

    #[test]
    fn what_is_needed_is_named_and_what_is_wrong_is_told() {
        let settings = Settings::read(told).unwrap();
        assert_eq!(settings.address, ConnectionAddress::Tcp { host: "127.0.0.1".to_owned(), port: 5433 });
        assert!(settings.member().unwrap().account.is_none());
        for missing in ["STILLPOINT_ENGINE", "STILLPOINT_ADDRESS", "STILLPOINT_APISERVER", "STILLPOINT_CA", "POD_UID"] {
            let error = Settings::read(|name| told(name).filter(|_| name != missing)).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
        for (name, wrong) in [
            ("STILLPOINT_ENGINE", "MySQL"),
            ("STILLPOINT_ADDRESS", "db.example.org:5432"),
            ("STILLPOINT_ADDRESS", "127.0.0.1"),
        ] {
            let read = Settings::read(|of| if of == name { Some(wrong.to_owned()) } else { told(of) });
            assert!(read.unwrap_err().to_string().contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn credentials_are_read_when_they_are_there_and_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let mut settings = Settings::read(told).unwrap();
        settings.credentials = Some(directory.path().to_owned());
        assert!(settings.member().unwrap().account.is_none(), "the Secret may come later");
        fs::write(directory.path().join("username"), "freezer\n").unwrap();
        fs::write(directory.path().join("password"), "sesame").unwrap();
        let member = settings.member().unwrap();
        let account = member.account.as_ref().unwrap();
        assert_eq!((account.user.as_str(), account.password.as_deref()), ("freezer", Some("sesame")));
        assert!(!format!("{member:?}{settings:?}").contains("sesame"));
    }
}
