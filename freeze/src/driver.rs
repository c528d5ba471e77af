//! The seam to a database engine. A type per stage: what is prepared can be acquired, what is held can be proved and
//! released, and nothing else compiles. [`contract`](crate::contract) is the suite that every engine passes.

use std::{fmt, sync::Arc, time::Duration};

use api::{
    Artifact, BlockerPolicy, Check, ConnectionAddress, Copy, Engine, Incarnation, Level, Position, Proof, Role,
    TlsMode, Undo,
};
use async_trait::async_trait;
use futures::future::{BoxFuture, join_all};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{error::Error, journal::UndoLog};

/// How to reach one member.
#[derive(Clone, Debug)]
pub struct Member {
    pub address: ConnectionAddress,
    pub account: Option<Account>,
    pub tls: Tls,
    /// Databases inside the server that must be covered. Empty: all that accept connections.
    pub databases: Vec<String>,
}

/// Who to be. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    pub user: String,
    pub password: Option<String>,
}

/// How the connection is protected.
#[derive(Clone, Debug)]
pub struct Tls {
    pub mode: TlsMode,
    pub roots: Option<TlsRoots>,
}

/// PEM text; `identity` is certificate chain and key. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct TlsRoots {
    pub ca: Option<Arc<str>>,
    pub identity: Option<(Arc<str>, Arc<str>)>,
}

/// What is to be made true at one member.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Marks everything of ours inside the server (application name, label, slot, marker).
    pub freeze_uid: String,
    pub level: Level,
    pub copy: Copy,
    pub role: Role,
    /// Covers every statement of `acquire` together, not each.
    pub acquire_timeout: Duration,
    pub blockers: BlockerPolicy,
    /// Only older statements and transactions are ended or reported as blockers of the preflight.
    pub blockers_older_than: Duration,
    /// The idle time after which the server ends our session by itself, before the first heartbeat.
    pub server_ttl: Duration,
}

/// What a server says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerInfo {
    /// As the server says it, for people.
    pub version: String,
    pub role: Role,
    pub incarnation: Incarnation,
    pub started_at: Option<Timestamp>,
}

/// What a look at a server found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Preflight {
    /// In a stable order: `reachable` first; later ones are absent when an earlier one makes them pointless.
    pub checks: Vec<Check>,
    /// Whoever answered, of a version that we know.
    pub server: Option<ServerInfo>,
}

impl Preflight {
    /// Nobody answered who is the server itself.
    pub(crate) fn unreached(checks: Vec<Check>) -> Self {
        Self { checks, server: None }
    }
}

/// An instant, by both clocks: the wall's is shown to people, and may be set back meanwhile; the other one decides.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub at: Timestamp,
    pub instant: Instant,
}

/// What `acquire` or a further `barrier` made true, and since when.
#[derive(Clone, Debug)]
pub struct Acquired {
    /// Stamped *before* the barrier was issued at Durable, after the last lock was granted at WriteBlocked.
    pub frozen_at: Moment,
    pub position: Position,
    /// Sessions that the blocker policy ended.
    pub ended_sessions: Vec<String>,
}

impl Moment {
    #[must_use]
    pub fn now() -> Self {
        Self { at: Timestamp::now(), instant: Instant::now() }
    }
}

/// What a heartbeat saw.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Pulse {
    /// Sessions that wait for a lock of ours; `None` where the account may not see them.
    pub stalled_sessions: Option<u32>,
}

/// How a hold ended.
#[derive(Debug, Default)]
pub struct Released {
    /// What a restore of a Files copy needs, where `stop` was not called before.
    pub artifacts: Vec<Artifact>,
    pub farewell: Farewell,
}

/// Sessions that hold nothing any more and are still to be closed: work for the server that nobody has to wait for.
/// Dropped instead, their sockets close all the same.
#[derive(Default)]
pub struct Farewell(Vec<BoxFuture<'static, ()>>);

/// What a server shows of a freeze of ours, asked on a fresh connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Observed {
    /// Nothing of this uid holds or remains.
    Nothing,
    /// What remains, in the server's words.
    Holds(String),
}

/// What became of an undo item.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recovered {
    /// It is as it was before the freeze, or the change went with the run of the server that it was made to.
    Undone,
    /// Another server, which it says itself to be, answers at the address.
    Elsewhere(String),
    /// A kind that this engine does not know; it is left in the journal.
    Unknown,
}

/// One privilege statement that an administrator runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    pub statement: String,
    /// What needs it.
    pub reason: String,
}

/// One database engine.
///
/// # Contract
/// - Every method returns by its deadline, also when the server is black-holed, and is safe to cancel: dropping the
///   future, a [`Prepared`] or a [`Held`] closes its connections, and the server lets go by itself.
/// - No pool and no automatic reconnection: a lost session is an error, at once and finally.
/// - Nothing that outlives the connections is done before `undo.intend` returned.
/// - Messages never carry passwords.
#[async_trait]
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// The engine it drives.
    fn engine(&self) -> Engine;

    /// Asks the server who it is. Read only. Refuses poolers and unsupported versions.
    async fn probe(&self, member: &Member, deadline: Instant) -> Result<ServerInfo, Error>;

    /// Every check for `plan`, nothing touched.
    async fn preflight(&self, member: &Member, plan: &Plan, deadline: Instant) -> Preflight;

    /// Connects and does all that is slow and blocks nobody, by `deadline`. Refuses what the preflight fails on.
    async fn prepare(
        &self,
        member: &Member,
        plan: &Plan,
        undo: Arc<dyn UndoLog>,
        deadline: Instant,
    ) -> Result<Box<dyn Prepared>, Error>;

    /// Undoes what a dead freezer left, by its journal. Idempotent. `of`: the server that it was done to; another one is
    /// not touched.
    async fn recover(
        &self,
        member: &Member,
        undo: &Undo,
        of: Option<&Incarnation>,
        deadline: Instant,
    ) -> Result<Recovered, Error>;

    /// Asks the server, on a fresh connection, what of this freeze is still in it.
    async fn observe(&self, member: &Member, freeze_uid: &str, deadline: Instant) -> Result<Observed, Error>;

    /// Ends every session and undoes every lock in the server that is marked as any freeze of ours (break-glass).
    /// Returns what was ended.
    async fn thaw_all(&self, member: &Member, deadline: Instant) -> Result<Vec<String>, Error>;

    /// The least privileges for a level and copy method, as statements for `user`.
    fn grants(&self, user: &str, level: Level, copy: Copy) -> Vec<Grant>;

    /// Whether the engine can do this at all, whatever the server: `Err` says why not, and what instead.
    fn supports(&self, level: Level, copy: Copy) -> Result<(), Error>;

    /// How a copy is restored by plain means, step by step, in Markdown.
    fn restore_recipe(&self, copy: Copy, position: Option<&Position>, artifacts: &[Artifact]) -> String;
}

/// A member that is connected and prepared; nobody is blocked yet.
#[async_trait]
pub trait Prepared: fmt::Debug + Send {
    fn server(&self) -> &ServerInfo;

    /// Checks that did not pass and do not refuse.
    fn warnings(&self) -> Vec<Check>;

    /// The server's patience with every session begins anew: somebody else of the group takes longer. Any error is final.
    async fn keep(&mut self, server_ttl: Duration, deadline: Instant) -> Result<(), Error>;

    /// Takes hold within the plan's acquire timeout. On error everything is undone already.
    async fn acquire(self: Box<Self>) -> Result<(Box<dyn Held>, Acquired), Error>;

    /// Lets go of everything without ever having held, by `deadline`.
    async fn abandon(self: Box<Self>, deadline: Instant) -> Result<(), Error>;
}

/// A member that holds.
#[async_trait]
pub trait Held: fmt::Debug + Send {
    /// On the session that holds: it still holds, and the server's idle TTL is `server_ttl` from now. Any error is final.
    async fn heartbeat(&mut self, server_ttl: Duration, deadline: Instant) -> Result<Pulse, Error>;

    /// A further still point for a late claim, stamped as in [`Acquired`].
    async fn barrier(&mut self, deadline: Instant) -> Result<Acquired, Error>;

    /// `copy: Files`: ends the data phase; label, map and WAL range. Session and slot stay until `release`.
    /// A second call answers the same.
    async fn stop(&mut self, deadline: Instant) -> Result<Vec<Artifact>, Error>;

    /// Still holding: did it hold all the time? Also asks a fresh connection whether server, incarnation and role are
    /// the same. Not provable is `held: false` with a reason; an error is a lost session.
    async fn prove(&mut self, deadline: Instant) -> Result<Proof, Error>;

    /// Lets go and undoes everything: when it returns nothing is held and another freeze may begin, though sessions may
    /// still have to be closed ([`Released::farewell`]). On error the connections are closed all the same, and what could
    /// not be undone stays in the undo log.
    async fn release(self: Box<Self>, deadline: Instant) -> Result<Released, Error>;
}

// === impls ===

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Account").field("user", &self.user).finish_non_exhaustive()
    }
}

impl fmt::Debug for TlsRoots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsRoots").field("ca", &self.ca.is_some()).field("identity", &self.identity.is_some()).finish()
    }
}

impl Farewell {
    pub fn to(sessions: impl IntoIterator<Item = BoxFuture<'static, ()>>) -> Self {
        Self(sessions.into_iter().collect())
    }

    pub fn and(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Closes them in order.
    pub async fn say(self) {
        join_all(self.0).await;
    }
}

impl fmt::Debug for Farewell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Farewell to {}", self.0.len())
    }
}
