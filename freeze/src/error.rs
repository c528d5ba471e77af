//! What can go wrong at a database, by meaning: each variant is one condition reason and one piece of advice.

use std::{borrow::Cow, time::Duration};

use api::{Check, conditions::reasons};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{blocker::Blocker, journal::JournalError};

/// Why a driver could not do what it was asked. The message names what was seen; [`Error::advice`] what to do.
#[derive(Debug, Error, Serialize, Deserialize)]
pub enum Error {
    #[error("{address} cannot be reached: {detail}")]
    Unreachable { address: String, detail: String },
    /// Nothing came back within the time given; also a black-holed address.
    #[error("{doing} took longer than {}", seconds(*.limit))]
    Timeout { doing: Cow<'static, str>, limit: Duration },
    #[error("the server refused user {user:?}: {detail}")]
    Authentication { user: String, detail: String },
    /// The server offers no encryption.
    #[error("the server offers no TLS, and the Database asks for it")]
    TlsUnavailable,
    #[error("the server's certificate is not trusted: {detail}")]
    TlsUntrusted { detail: String },
    /// `grant` is the statement that would give it.
    #[error("the account lacks {privilege}")]
    Privilege { privilege: String, grant: String },
    #[error("{engine} {found} is not supported: {supported}")]
    Version { engine: api::Engine, found: String, supported: Cow<'static, str> },
    #[error("the server is a {found}, and the Database wants a {wanted}")]
    Role { found: api::Role, wanted: api::Role },
    #[error("a pooler or proxy stands between us and the server: {detail}")]
    Pooler { detail: String },
    /// The engine cannot do this, whatever the server's state.
    #[error("{what}")]
    Unsupported { what: String, instead: String },
    #[error("{what}")]
    UnsafeSettings { what: String, fix: String },
    /// Not held within the acquire timeout. All undone.
    #[error("not held within {}: {}", seconds(*.limit), sessions(.blockers))]
    Blocked {
        limit: Duration,
        blockers: Vec<Blocker>,
        /// What would let us see more of them.
        hint: Option<Cow<'static, str>>,
    },
    /// What a freeze may last was over before it held everywhere.
    #[error("not held within {} of the first still point, the longest that the freeze may last", seconds(*.limit))]
    TooSlow { limit: Duration },
    #[error("somebody else holds the server: {holder}")]
    ForeignFreeze { holder: String },
    #[error("{what}")]
    NoRoomForWal { what: String, fix: String },
    /// The hold is gone; final for this freeze.
    #[error("the session that held was lost: {detail}")]
    Lost { detail: String },
    /// More sessions waited for us than the Database allows.
    #[error("{stalled} sessions wait for the freeze; the Database allows {most}")]
    TooManyStalled { stalled: u32, most: u32 },
    /// The server is not the one, or not the run of it, that was frozen.
    #[error("the server changed while it was held: {detail}")]
    Incarnation { detail: String },
    #[error("the journal: {0}")]
    Journal(#[from] JournalError),
    /// What the server said that we have no name for.
    #[error("the server said, while {doing}: {detail}")]
    Server { doing: Cow<'static, str>, detail: String },
}

impl Error {
    /// The condition reason (see [`api::conditions::reasons`]).
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => reasons::UNREACHABLE,
            Self::Timeout { .. } => reasons::TIMEOUT,
            Self::Authentication { .. } => reasons::AUTHENTICATION_FAILED,
            Self::TlsUnavailable => reasons::TLS_UNAVAILABLE,
            Self::TlsUntrusted { .. } => reasons::TLS_UNTRUSTED,
            Self::Privilege { .. } => reasons::PRIVILEGE_MISSING,
            Self::Version { .. } => reasons::UNSUPPORTED_VERSION,
            Self::Role { .. } => reasons::WRONG_ROLE,
            Self::Pooler { .. } => reasons::POOLER,
            Self::Unsupported { .. } => reasons::UNSUPPORTED,
            Self::UnsafeSettings { .. } => reasons::UNSAFE_SETTINGS,
            Self::Blocked { .. } | Self::TooSlow { .. } => reasons::BLOCKED,
            Self::ForeignFreeze { .. } => reasons::FOREIGN_FREEZE,
            Self::NoRoomForWal { .. } => reasons::NO_ROOM_FOR_WAL,
            Self::Lost { .. } => reasons::SESSION_LOST,
            Self::TooManyStalled { .. } => reasons::TOO_MANY_STALLED,
            Self::Incarnation { .. } => reasons::INCARNATION_CHANGED,
            Self::Journal(JournalError::NotOurs(_)) => reasons::MEMBER_ELSEWHERE,
            Self::Journal(_) => reasons::JOURNAL_UNAVAILABLE,
            Self::Server { .. } => reasons::SERVER_ERROR,
        }
    }

    /// It as the check of this name, failed.
    pub fn check(&self, name: &str) -> Check {
        Check::fail(name, self.reason(), self.to_string(), self.advice())
    }

    /// What to do about it, for a person.
    pub fn advice(&self) -> String {
        match self {
            Self::Unreachable { .. } => {
                "check spec.endpoint, that the server runs, and that nothing filters the port".to_owned()
            }
            Self::Timeout { .. } => {
                "check that the address is the server's and that no firewall drops packets to it".to_owned()
            }
            Self::Authentication { .. } => {
                "check user name and password in the Secret that spec.credentials names, and the server's host rules"
                    .to_owned()
            }
            Self::TlsUnavailable => {
                "turn TLS on at the server, or set spec.tls.mode: Disable to go without encryption".to_owned()
            }
            Self::TlsUntrusted { .. } => {
                "put the CA that signed the server's certificate into the Secret that spec.tls.caSecretRef names"
                    .to_owned()
            }
            Self::Privilege { grant, .. } => format!("run as an administrator: {grant}"),
            Self::Version { supported, .. } => format!("use a server that is {supported}"),
            Self::Role { .. } => {
                "point spec.endpoint at the right member, or change spec.freeze.target.role".to_owned()
            }
            Self::Pooler { .. } => "point spec.endpoint at the server itself".to_owned(),
            Self::Unsupported { instead, .. } => instead.clone(),
            Self::UnsafeSettings { fix, .. } | Self::NoRoomForWal { fix, .. } => fix.clone(),
            Self::Blocked { hint, .. } => {
                let fix =
                    "wait for these sessions, end them, or set spec.freeze.blockers.policy to KillReads or KillAll";
                hint.as_ref().map_or_else(|| fix.to_owned(), |hint| format!("{fix}; {hint}"))
            }
            Self::TooSlow { .. } => {
                "look what stands in the way at this Database, freeze it apart from the others, or raise \
                 spec.freeze.maxFrozenSeconds"
                    .to_owned()
            }
            Self::ForeignFreeze { .. } => "wait until it is done, or end that session".to_owned(),
            Self::Lost { .. } | Self::Incarnation { .. } => {
                "throw away copies taken during this freeze, and freeze again".to_owned()
            }
            Self::TooManyStalled { .. } => {
                "freeze when there is less traffic, or raise spec.freeze.maxStalledSessions".to_owned()
            }
            Self::Journal(JournalError::NotOurs(_)) => "try again in a moment".to_owned(),
            Self::Journal(_) => "check the space and the health of the server's data directory; in a cluster, whether its API server answers".to_owned(),
            Self::Server { .. } => "look into the database server's log".to_owned(),
        }
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64().mul_add(1000.0, 0.0).round() / 1000.0)
}

fn sessions(blockers: &[Blocker]) -> String {
    match blockers {
        [] => "no session could be named as the cause".to_owned(),
        blockers => blockers.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
    }
}
