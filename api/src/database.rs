//! `Database`: one database service, how to reach it, and how it may be frozen.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, MicroTime, Time};
use kube::{CustomResource, core::Selector};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Copy, Engine, Level, Phase, Role, Via};

/// A database service that Stillpoint can hold still.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "stillpoint.dev",
    version = "v1alpha1",
    kind = "Database",
    doc = "A database service that Stillpoint can hold still.",
    plural = "databases",
    singular = "database",
    shortname = "spdb",
    category = "stillpoint",
    namespaced,
    status = "DatabaseStatus",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseSpec {
    /// The kind of server.
    pub engine: Engine,
    /// Where the server listens. It may be left out where `podSelector` says who its members are, and `agent` is `Required`.
    #[serde(default, skip_serializing_if = "Endpoint::is_empty")]
    pub endpoint: Endpoint,
    /// Its members, by the labels of their Pods; else they are the Pods that the endpoint leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Databases (schemas) inside the server that the freeze must cover. Empty: all that accept connections.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub databases: Vec<String>,
    /// The account to freeze with. `kubectl still grants` prints the least it needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// Encryption of the connection to the server. Absent: `Disable` on a socket or a loopback address, else `Require`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// How it may be frozen; every field has a default.
    #[serde(default)]
    pub freeze: FreezePolicy,
    /// Whether the agent in its Pod freezes it, where there is one.
    #[serde(default, skip_serializing_if = "AgentPolicy::is_default")]
    pub agent: AgentPolicy,
    /// Nothing may freeze it while true; what is frozen is thawed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
}

/// Whether the agent beside a server freezes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AgentPolicy {
    /// If there is one; else the server is dialled.
    #[default]
    Preferred,
    /// It and nobody else: without one nothing is held.
    Required,
    /// The server is dialled, whoever stands beside it.
    Never,
}

/// Where the server listens: a host and port, or a local socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// A host name or address. Not a pooler, not a load balancer: the server itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The port; the engine's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// An absolute path: PostgreSQL's socket directory, MariaDB's socket file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
}

/// An [`Endpoint`] after validation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionAddress {
    Tcp { host: String, port: u16 },
    Socket { path: String, port: u16 },
}

/// The account, from a Secret of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    pub secret_ref: SecretReference,
    /// The Secret's key that holds the user name.
    #[serde(default = "username_key")]
    pub username_key: String,
    /// The Secret's key that holds the password. The key may be absent where the server asks for none.
    #[serde(default = "password_key")]
    pub password_key: String,
}

/// A Secret of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretReference {
    pub name: String,
}

/// Encryption of the connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Default: `VerifyFull` when `caSecretRef` is given, else `Require`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<TlsMode>,
    /// A Secret whose key `ca.crt` holds the PEM certificates to trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretReference>,
    /// A Secret whose keys `tls.crt` and `tls.key` hold our client certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_secret_ref: Option<SecretReference>,
}

/// How much of the server's certificate is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TlsMode {
    /// No encryption. Passwords may cross the network in the clear: only when said so here.
    Disable,
    /// Encrypted; the certificate is not checked.
    Require,
    /// Encrypted; the certificate is signed by the CA.
    VerifyCA,
    /// Encrypted; the certificate is signed by the CA and names the host.
    VerifyFull,
}

/// How a Database may be frozen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct FreezePolicy {
    /// The level when a request does not name one.
    pub level: Level,
    /// Which member is frozen.
    pub target: TargetPolicy,
    /// How long a claim lasts when a request does not say. Default: 10 s at WriteBlocked, else 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 21600))]
    pub ttl_seconds: Option<u32>,
    /// The longest any freeze of it lasts, renewals included. Default and ceiling: 15 s at WriteBlocked,
    /// 1 h otherwise, 6 h for `copy: Files`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 21600))]
    pub max_frozen_seconds: Option<u32>,
    /// How long taking hold may last, and with it how long clients can be stalled by the attempt.
    #[schemars(range(min = 1, max = 15))]
    pub acquire_timeout_seconds: u32,
    /// How long connecting, checking and preparing may last; blocks nobody.
    #[schemars(range(min = 1, max = 600))]
    pub prepare_timeout_seconds: u32,
    /// Thaw at once when more sessions than this wait for us. Absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_stalled_sessions: Option<u32>,
    /// What to do about sessions that stand in the way of taking hold.
    pub blockers: Blockers,
}

/// Which member is frozen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct TargetPolicy {
    /// The role that the member must have; a freeze of anything else is refused.
    pub role: Role,
}

/// What to do about sessions in the way. Replication and backup sessions are never ended, whatever the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Blockers {
    pub policy: BlockerPolicy,
    /// Only sessions whose statement or transaction is older than this are ended.
    pub older_than_seconds: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BlockerPolicy {
    /// Wait for them until `acquireTimeoutSeconds`, then give up.
    #[default]
    Wait,
    /// Give up at once when the preflight sees one.
    Fail,
    /// End those that only read.
    KillReads,
    /// End any.
    KillAll,
}

/// What Stillpoint knows of the Database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct DatabaseStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Reachable`, `Privileged`, `Ready`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<MemberStatus>,
    /// Which levels can be reached now, and why not the others.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub levels: Vec<LevelReach>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_freeze: Option<LastFreeze>,
}

/// One server of the Database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MemberStatus {
    /// Its address; its Pod, where the agent in that was asked.
    pub name: String,
    pub role: Role,
    /// By which way it was asked.
    #[serde(default, skip_serializing_if = "Via::is_default")]
    pub via: Via,
    /// The server's version, as it says it.
    pub version: String,
    /// System identifier or server id: the same server, whatever its address.
    pub id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// The PersistentVolumeClaims that its Pod may write to, where that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<String>,
}

/// Whether a level can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LevelReach {
    pub level: Level,
    pub copy: Copy,
    pub reachable: bool,
    /// Why not, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The newest finished freeze.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LastFreeze {
    pub name: String,
    pub phase: Phase,
    pub level: Level,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_at: Option<MicroTime>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frozen_milliseconds: Option<u64>,
    /// Whether it was proved that the hold lasted.
    pub proved: bool,
}

// === impls ===

impl AgentPolicy {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands it so")]
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Endpoint {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// As it is dialled from another namespace of the same cluster: a name alone is a Service's of this one.
    #[must_use]
    pub fn within(self, namespace: &str) -> Self {
        let is_alone = |host: &String| !host.contains(['.', ':']) && host != "localhost";
        let host = self.host.map(|host| if is_alone(&host) { format!("{host}.{namespace}.svc") } else { host });
        Self { host, ..self }
    }

    /// The address, if exactly one of host and socket is given.
    pub fn address(&self, engine: Engine) -> Option<ConnectionAddress> {
        let port = self.port.unwrap_or(engine.default_port());
        match (&self.host, &self.socket) {
            (Some(host), None) => Some(ConnectionAddress::Tcp { host: host.clone(), port }),
            (None, Some(path)) => Some(ConnectionAddress::Socket { path: path.clone(), port }),
            _ => None,
        }
    }
}

impl std::fmt::Display for ConnectionAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Socket { path, .. } => f.write_str(path),
        }
    }
}

impl DatabaseSpec {
    /// Where it is, for people: its address, else the Pods that are its members.
    pub fn place(&self) -> String {
        let selected = || {
            let selector = Selector::try_from(self.pod_selector.clone()?).ok()?;
            Some(format!("pods {selector}"))
        };
        let address = self.endpoint.address(self.engine).map(|address| address.to_string());
        address.or_else(selected).unwrap_or_default()
    }

    /// The encryption in force for `address`.
    pub fn tls_mode(&self, address: &ConnectionAddress) -> TlsMode {
        match &self.tls {
            Some(Tls { mode: Some(mode), .. }) => *mode,
            Some(Tls { ca_secret_ref: Some(_), .. }) => TlsMode::VerifyFull,
            None if address.is_local() => TlsMode::Disable,
            Some(_) | None => TlsMode::Require,
        }
    }
}

impl ConnectionAddress {
    /// Whether bytes to it never leave the machine.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Socket { .. } => true,
            Self::Tcp { host, .. } => {
                host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }
}

impl FreezePolicy {
    /// How long a claim lasts that asked for `wanted`.
    pub fn ttl(&self, level: Level, copy: Copy, wanted: Option<u32>) -> Duration {
        let wanted = wanted.or(self.ttl_seconds).map(|seconds| Duration::from_secs(u64::from(seconds)));
        wanted.unwrap_or_else(|| level.default_ttl()).min(self.max_frozen(level, copy))
    }

    /// The longest a freeze lasts, renewals included.
    pub fn max_frozen(&self, level: Level, copy: Copy) -> Duration {
        let ceiling = copy.longest(level);
        self.max_frozen_seconds.map_or(ceiling, |seconds| Duration::from_secs(u64::from(seconds)).min(ceiling))
    }

    /// See [`FreezePolicy::acquire_timeout_seconds`].
    pub fn acquire_timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.acquire_timeout_seconds))
    }

    /// See [`FreezePolicy::prepare_timeout_seconds`].
    pub fn prepare_timeout(&self) -> Duration {
        Duration::from_secs(u64::from(self.prepare_timeout_seconds))
    }
}

impl Default for FreezePolicy {
    fn default() -> Self {
        Self {
            level: Level::default(),
            target: TargetPolicy::default(),
            ttl_seconds: None,
            max_frozen_seconds: None,
            acquire_timeout_seconds: 3,
            prepare_timeout_seconds: 60,
            max_stalled_sessions: None,
            blockers: Blockers::default(),
        }
    }
}

impl Default for Blockers {
    /// Five seconds: what a short transaction needs, and a report does not.
    fn default() -> Self {
        Self { policy: BlockerPolicy::default(), older_than_seconds: 5 }
    }
}

fn username_key() -> String {
    "username".to_owned()
}

fn password_key() -> String {
    "password".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_name_alone_is_a_services_of_the_databases_own_namespace() {
        for (host, dialled) in [
            ("primary", "primary.shop.svc"),
            ("pg-0.all", "pg-0.all"),
            ("primary.shop.svc", "primary.shop.svc"),
            ("db.example.org", "db.example.org"),
            ("10.0.0.1", "10.0.0.1"),
            ("fd00::1", "fd00::1"),
            ("localhost", "localhost"),
        ] {
            let endpoint = Endpoint { host: Some(host.to_owned()), ..Endpoint::default() };
            assert_eq!(endpoint.within("shop").host.as_deref(), Some(dialled));
        }
        assert_eq!(Endpoint::default().within("shop"), Endpoint::default());
    }
}
