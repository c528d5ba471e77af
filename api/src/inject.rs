//! Injection: the agent beside a database, asked for by labels and annotations of its Pod. Pure: a Pod goes in as JSON, and what
//! is to become of it comes out. `stillpoint-webhooks` and `kubectl still inject` are thin around it, so that they agree.
//!
//! ```text
//! Pod ─► decide ─┬─► left alone    nobody asks for it, or it is not to be touched: not a byte changes
//!                ├─► skipped       it asks and cannot have it: its annotations say why, and nothing else changes
//!                └─► plan ─► apply ─► injected
//! ```
//! Promises: no Pod is ever stopped by what is decided here; what is done twice is done once; nothing of anybody else's containers
//! is touched but the one mount of a shared socket, when that is asked for; what this version does not know of a Pod survives.

mod database;
mod decide;
mod engine;
mod limit_range;
mod looks;
mod mounts;
mod plan;
mod pod;
mod quantity;
mod resources;
mod settings;
mod sidecar;
mod status;
mod values;
mod velero;

pub use database::image_of;
pub use decide::{Decided, Verdict, decide, hash, patch};
pub use engine::{OPERATORS, pattern};
pub use looks::{Looks, System, looks, operator};
pub use quantity::bytes;
pub use settings::{Policy, SETTINGS, Setting, table};

/// Label of a Pod: `"true"`, it is to have an agent; `"false"`, it is not, whatever its namespace says. Label of a Namespace:
/// `"true"`, its Pods that look like a database are to have one, but those that say `"false"`.
pub const LABEL: &str = "stillpoint.dev/inject";
/// Below it are all annotations of ours.
pub const PREFIX: &str = "stillpoint.dev/";

/// Written back on the Pod: [`INJECTED`] or [`SKIPPED`].
pub const STATUS: &str = "stillpoint.dev/inject-status";
pub const INJECTED: &str = "injected";
pub const SKIPPED: &str = "skipped";
/// Beside it: why it was skipped, or what was guessed.
pub const MESSAGE: &str = "stillpoint.dev/inject-message";
/// What was decided, as a hash: it differs from [`hash`] of the same Pod once it would be decided otherwise.
pub const HASH: &str = "stillpoint.dev/inject-hash";
/// Which version of Stillpoint decided.
pub const VERSION: &str = "stillpoint.dev/inject-version";
/// The longest [`MESSAGE`], in bytes.
pub const LONGEST_MESSAGE: usize = 1024;

/// The agent's container: an init container that goes on running (KEP-753), or an ordinary one where Velero is to find it.
pub const CONTAINER: &str = "stillpoint-agent";
/// Its volumes: the token, its own socket, the Secret's keys, and the socket's directory that is shared when asked.
pub const TOKEN_VOLUME: &str = "stillpoint-token";
pub const RUN_VOLUME: &str = "stillpoint-run";
pub const CREDENTIALS_VOLUME: &str = "stillpoint-credentials";
pub const SOCKET_VOLUME: &str = "stillpoint-socket";
/// Where it finds them. The token's file in its directory is `token`; the credentials' are `username` and `password`.
pub const TOKEN_DIRECTORY: &str = "/run/stillpoint/token";
pub const RUN_DIRECTORY: &str = "/run/stillpoint/run";
pub const CREDENTIALS_DIRECTORY: &str = "/run/stillpoint/credentials";
pub const TOKEN_FILE: &str = "token";
pub const USERNAME_FILE: &str = "username";
pub const PASSWORD_FILE: &str = "password";
/// How long a token is good for: the least that kube-apiserver takes (`pkg/apis/core/validation`, ValidateProjectedVolumeSource).
pub const TOKEN_SECONDS: u32 = 600;
/// The program in its image.
pub const AGENT_BINARY: &str = "/stillpoint-agent";

/// Whether it can be the image of an agent.
pub fn is_image(text: &str) -> bool {
    values::image(text).is_ok()
}

/// Whether it is `HOST:PORT`.
pub fn is_authority(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
        let is_address = host.starts_with('[') && host.ends_with(']');
        values::port(port).is_ok() && !host.is_empty() && (is_address || host.chars().all(plain))
    })
}

/// What the agent is told by its environment.
pub mod variables {
    /// Its Pod, by fields of it.
    pub const POD_NAME: &str = "POD_NAME";
    pub const POD_NAMESPACE: &str = "POD_NAMESPACE";
    pub const POD_UID: &str = "POD_UID";
    /// The container that the database runs in.
    pub const CONTAINER: &str = "STILLPOINT_CONTAINER";
    /// As [`crate::Engine`] is written.
    pub const ENGINE: &str = "STILLPOINT_ENGINE";
    /// `127.0.0.1:PORT`, or the path of a socket: PostgreSQL's directory, MariaDB's file.
    pub const ADDRESS: &str = "STILLPOINT_ADDRESS";
    /// Which of the sockets in PostgreSQL's directory, if it is not that of its usual port.
    pub const PORT: &str = "STILLPOINT_PORT";
    /// As [`crate::Level`] is written; none: as the Database says.
    pub const LEVEL: &str = "STILLPOINT_LEVEL";
    /// Seconds and an `s`; none: as the Database says.
    pub const TTL: &str = "STILLPOINT_TTL";
    /// The directory of the account, if a Secret is named.
    pub const CREDENTIALS: &str = "STILLPOINT_CREDENTIALS";
    /// `HOST:PORT` of all replicas of the apiserver.
    pub const APISERVER: &str = "STILLPOINT_APISERVER";
    /// Who signs their certificates: the bundle itself, PEM.
    pub const CA: &str = "STILLPOINT_CA";
}

/// Which of the two asked: the entry of the configuration that kube-apiserver went by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    /// The Pod, by its label.
    Label,
    /// Its Namespace, for all that look like a database.
    Namespace,
}

/// What an installation gives its agents. What is missing is the reason why none is injected.
#[derive(Clone, Copy, Debug)]
pub struct Installation<'a> {
    /// Where we are installed: nothing there is injected.
    pub namespace: &'a str,
    /// The agent's image, unless a Pod names another.
    pub image: Option<&'a str>,
    /// `HOST:PORT` of all replicas: their headless Service.
    pub apiserver: Option<&'a str>,
    /// Who signs their certificates, PEM.
    pub ca: Option<&'a str>,
}
