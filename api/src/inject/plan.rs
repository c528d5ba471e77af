//! What an agent is to be, once it is clear that there is to be one: everything that is said, guessed or given, and nothing of how a
//! Pod is built.

use json_patch::Patch;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{
    Installation, PREFIX, database::Database, engine, mounts, pod::Pod, resources::Wanted, settings::Settings, velero,
};
use crate::{Engine, Level};

/// An agent. Its hash is of all that is here: whatever makes another agent of it has a place here.
#[derive(Debug, Serialize)]
pub(super) struct Plan<'a> {
    /// The container that the database runs in.
    pub(super) container: &'a str,
    pub(super) engine: Engine,
    /// `127.0.0.1:PORT`, or the path of a socket.
    pub(super) address: String,
    /// Of a socket's directory with several sockets.
    pub(super) port: Option<u16>,
    pub(super) level: Option<Level>,
    pub(super) ttl_seconds: Option<u32>,
    pub(super) credentials: Option<Credentials>,
    pub(super) image: String,
    /// `HOST:PORT` of all replicas.
    pub(super) apiserver: &'a str,
    pub(super) user: i64,
    /// None: as the Pod says.
    pub(super) group: Option<i64>,
    /// Of the database's volumes.
    pub(super) mounts: Vec<Value>,
    /// The directory of the socket that a volume is made for.
    pub(super) shared: Option<String>,
    pub(super) resources: Wanted,
    pub(super) velero_hooks: bool,
    /// One of the Pod's ordinary containers, and no sidecar: where Velero finds it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) ordinary: bool,
    pub(super) patch: Option<Patch>,
    /// For what it has to trust. Its authority is exchanged now and then, and no other agent comes of that.
    #[serde(skip)]
    pub(super) ca: &'a str,
    /// How the engine is known, if nobody has said it.
    #[serde(skip)]
    pub(super) guessed_by: Option<&'static str>,
}

/// Where a Secret's account is.
#[derive(Debug, Serialize)]
pub(super) struct Credentials {
    pub(super) secret: String,
    pub(super) username_key: String,
    pub(super) password_key: String,
}

/// Raised when the same plan makes another container.
const SHAPE: u32 = 1;
/// Bytes of a hash that are written down.
const HASHED: usize = 16;
/// Whom the agent runs as where nothing says more: nobody's in any image.
const NOBODY: i64 = 65_532;
/// A variable of more than 128 KiB keeps a container from starting (execve(2), MAX_ARG_STRLEN).
const LONGEST_CA: usize = 64 * 1024;

impl<'a> Plan<'a> {
    pub(super) fn of(
        pod: Pod<'a>,
        database: &Database<'a>,
        settings: &Settings,
        installation: &Installation<'a>,
    ) -> Result<Self, String> {
        let Database { container, engine, guessed_by } = *database;
        let (apiserver, ca) = whom_to_trust(installation)?;
        let image = settings.agent_image.as_deref().or(installation.image);
        let image = image.ok_or_else(|| {
            format!(
                "no image of the agent is known; annotate {PREFIX}agent-image, or start what injects with --agent-image"
            )
        })?;
        let (address, port) = address(database, settings)?;
        let socket = match &settings.socket {
            Some(socket) => mounts::socket(database, socket, settings.shared_socket)?,
            None => mounts::Socket::default(),
        };
        let mut mounts = socket.mounts;
        let data = settings.data_volume.as_deref().map(|volume| mounts::data(database, volume));
        for mount in data.transpose()?.unwrap_or_default() {
            if !mounts.contains(&mount) {
                mounts.push(mount);
            }
        }
        let (user, group) = identity(pod, database, settings);
        Ok(Self {
            container: container.name(),
            engine,
            address,
            port,
            level: settings.level,
            ttl_seconds: settings.ttl_seconds,
            credentials: credentials(settings),
            image: image.to_owned(),
            apiserver,
            user,
            group,
            mounts,
            shared: socket.shared,
            resources: settings.agent_resources.clone(),
            velero_hooks: settings.velero_hooks,
            ordinary: settings.velero_hooks && velero::refusal(pod).is_none(),
            patch: settings.json_patch.clone(),
            ca,
            guessed_by,
        })
    }

    /// Of everything that makes it what it is.
    pub(super) fn hash(&self) -> String {
        let text = serde_json::to_vec(&(SHAPE, self)).unwrap_or_default();
        let digest = Sha256::digest(text);
        digest.iter().take(HASHED).fold(String::new(), |hash, byte| hash + &format!("{byte:02x}"))
    }
}

fn whom_to_trust<'a>(installation: &Installation<'a>) -> Result<(&'a str, &'a str), String> {
    let apiserver = installation
        .apiserver
        .ok_or("no address of the apiserver's replicas is known; start what injects with --agent-apiserver")?;
    let ca = installation
        .ca
        .ok_or("whom an agent is to trust is not known yet; make the Pod again in a minute, or name --ca")?;
    let is_bundle = ca.contains("-----BEGIN CERTIFICATE-----") && !ca.contains("PRIVATE KEY") && !ca.contains("$(");
    if !is_bundle || ca.len() > LONGEST_CA {
        return Err(format!("whom an agent is to trust is no bundle of certificates of at most {LONGEST_CA} bytes"));
    }
    Ok((apiserver, ca))
}

fn address(database: &Database<'_>, settings: &Settings) -> Result<(String, Option<u16>), String> {
    let engine = database.engine;
    let Some(socket) = &settings.socket else {
        let port = settings.port.unwrap_or_else(|| engine::port(database.container, engine));
        return Ok((format!("127.0.0.1:{port}"), None));
    };
    if engine == Engine::MariaDB && settings.port.is_some() {
        return Err(format!("{PREFIX}port and {PREFIX}socket: a socket of MariaDB has no port; leave one out"));
    }
    let port = settings.port.filter(|port| *port != engine.default_port());
    Ok((socket.clone(), port))
}

/// Whoever may read the database's files and is let in by its socket is the database's own user; but never root.
fn identity(pod: Pod<'_>, database: &Database<'_>, settings: &Settings) -> (i64, Option<i64>) {
    let own = |key| pod.security(database.container, key).filter(|id| *id > 0);
    match settings.agent_user.or_else(|| own("runAsUser")) {
        Some(user) => (user, own("runAsGroup")),
        None => (NOBODY, Some(own("runAsGroup").unwrap_or(NOBODY))),
    }
}

fn credentials(settings: &Settings) -> Option<Credentials> {
    let key = |named: &Option<String>, usual: &str| named.clone().unwrap_or_else(|| usual.to_owned());
    settings.credentials_secret.clone().map(|secret| Credentials {
        secret,
        username_key: key(&settings.username_key, super::USERNAME_FILE),
        password_key: key(&settings.password_key, super::PASSWORD_FILE),
    })
}
