//! What goes over a link: orders and their answers, and what an order writes into the journal before it goes on.
//!
//! Clocks of two machines need not agree: times are durations, counted from when they were sent or heard.

use std::time::Duration;

use api::{
    Artifact, Check, Incarnation, Position, Proof, Undo,
    agent::{Granted, Wish},
};
use serde::{Deserialize, Serialize};

use crate::{
    driver::{Observed, Plan, Preflight, Pulse, Recovered, ServerInfo},
    error::Error,
    journal::JournalError,
};

/// To the agent.
#[derive(Debug, Serialize, Deserialize)]
pub enum Down {
    /// To be answered within `limit`. On the heap: a queue has room for many frames from its start, and most never have one.
    Order { number: u64, limit: Duration, order: Box<Order> },
    /// Nobody waits for this hold any more: whatever is under way for it is given up.
    Forget { hold: u64 },
    /// What became of an [`Up::Entry`].
    Entered { number: u64, result: Result<(), JournalError> },
    /// What became of an [`Up::Wish`].
    Granted { number: u64, granted: Box<Granted> },
    /// Whose certificates replicas are going to show, PEM.
    Trust { bundle: String },
    /// The freezer is there.
    Here,
}

/// From the agent.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "a few are there at a time, and most are the large one")]
pub enum Up {
    /// What became of an order.
    Answer { number: u64, result: Result<Reply, Error> },
    /// To be written down before this hold goes on.
    Entry { number: u64, hold: u64, entry: Entry },
    /// Somebody in the Pod asks for something.
    Wish { number: u64, wish: Wish },
    /// The agent is there.
    Here,
}

/// What a [`Driver`](crate::Driver) can be asked, at the member that the agent stands beside. Holds have numbers of the freezer's.
#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Probe,
    Preflight { databases: Vec<String>, plan: Plan },
    Prepare { hold: u64, term: Term, databases: Vec<String>, plan: Plan },
    Keep { hold: u64, server_ttl: Duration },
    Acquire { hold: u64 },
    Abandon { hold: u64 },
    Heartbeat { hold: u64, server_ttl: Duration },
    Barrier { hold: u64 },
    Stop { hold: u64 },
    Prove { hold: u64 },
    Release { hold: u64 },
    Recover { databases: Vec<String>, undo: Undo, of: Option<Incarnation> },
    Observe { freeze_uid: String },
    ThawAll,
}

/// Who may freeze a member: whoever has claimed it last. Each Database of a server is claimed by itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Term {
    pub database: String,
    /// A freezer of a lower one has no say any more.
    pub epoch: i64,
}

/// What an order comes to.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Server(ServerInfo),
    Preflight(Preflight),
    Prepared { server: ServerInfo, warnings: Vec<Check> },
    Acquired(Frozen),
    Pulse(Pulse),
    Artifacts(Vec<Artifact>),
    Proof(Proof),
    Recovered(Recovered),
    Observed(Observed),
    Ended(Vec<String>),
}

/// A still point.
#[derive(Debug, Serialize, Deserialize)]
pub struct Frozen {
    /// How long ago it was, when this was sent.
    pub age: Duration,
    pub position: Position,
    pub ended_sessions: Vec<String>,
}

/// What an undo log is told.
#[derive(Debug, Serialize, Deserialize)]
pub enum Entry {
    Intend(Undo),
    Settled(String),
}

impl Order {
    /// One word, for counting.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Preflight { .. } => "preflight",
            Self::Prepare { .. } => "prepare",
            Self::Keep { .. } => "keep",
            Self::Acquire { .. } => "acquire",
            Self::Abandon { .. } => "abandon",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Barrier { .. } => "barrier",
            Self::Stop { .. } => "stop",
            Self::Prove { .. } => "prove",
            Self::Release { .. } => "release",
            Self::Recover { .. } => "recover",
            Self::Observe { .. } => "observe",
            Self::ThawAll => "thaw-all",
        }
    }

    /// The hold that it is about.
    pub(super) fn hold(&self) -> Option<u64> {
        match self {
            Self::Prepare { hold, .. }
            | Self::Keep { hold, .. }
            | Self::Acquire { hold }
            | Self::Abandon { hold }
            | Self::Heartbeat { hold, .. }
            | Self::Barrier { hold }
            | Self::Stop { hold }
            | Self::Prove { hold }
            | Self::Release { hold } => Some(*hold),
            Self::Probe | Self::Preflight { .. } | Self::Recover { .. } | Self::Observe { .. } | Self::ThawAll => None,
        }
    }
}
