//! How an agent beside a database and a replica of the API server meet: where, by which names, and what they say first.

use serde::{Deserialize, Serialize};

use crate::{Engine, Level, Phase};

/// What an agent's token is meant for: it is good for nothing else.
pub const AUDIENCE: &str = "agents.stillpoint.dev";
/// Where replicas are dialled, by each of their own addresses.
pub const PORT: u16 = 8444;
/// The Service, without an address of its own, that knows the replicas' addresses.
pub const SERVICE: &str = "stillpoint-agents";
/// The protocol, as both name it while they shake hands (ALPN).
pub const PROTOCOL: &str = "stillpoint-agent/1";
/// In the extra of a token's holder: the Pod that the token is bound to (Kubernetes, `pkg/serviceaccount/claims.go`).
pub const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
pub const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// The first that an agent says.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    pub token: String,
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    pub engine: Engine,
    /// Of the agent.
    pub version: String,
}

/// What it is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// It is obeyed from now on.
    Come { replica: String },
    /// It may try again, and why.
    Refused { why: String },
}

/// Nobody waits longer for a wish to be held, in seconds.
pub const LONGEST_WITHIN: u32 = 600;

/// What is asked from inside of the Pod, by whoever may run a command there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Wish {
    /// Hold the database still for so long, unless it is let go before.
    Freeze {
        /// By which the claim is known: the agent gives each another.
        claim: String,
        seconds: u32,
        /// In seconds: given up when it does not hold by then.
        within: u32,
        level: Option<Level>,
        reason: String,
    },
    /// End what was wished for: these claims, which were granted; all that live, if none is named.
    Thaw {
        claims: Vec<String>,
    },
    Status,
}

/// What became of a wish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Granted {
    /// It is held, by this Freeze; RFC 3339, until when.
    Frozen {
        freeze: String,
        level: Level,
        until: Option<String>,
    },
    /// It is not held by a wish, and whether the proof of what was held has passed.
    Thawed {
        freeze: Option<String>,
        proved: Option<bool>,
    },
    Status {
        phase: Phase,
        freeze: Option<String>,
        until: Option<String>,
    },
    /// It is not this Pod's server that is held, and why: whoever asks in each of several goes on.
    Elsewhere {
        why: String,
    },
    /// It could not be done, and why.
    Refused {
        why: String,
    },
}

impl std::fmt::Debug for Hello {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { namespace, pod, engine, .. } = self;
        f.debug_struct("Hello")
            .field("namespace", namespace)
            .field("pod", pod)
            .field("engine", engine)
            .finish_non_exhaustive()
    }
}
