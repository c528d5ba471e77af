//! How a freeze ends, and how that is told: phase, reason, message, causes. Pure.

use api::{
    Artifact, Check, FreezeStatus, Phase, Proof, TargetStatus,
    conditions::{self, reasons},
};
use jiff::Timestamp;
use tracing::error;

use crate::{
    group::{Fault, Target},
    journal::FreezeName,
};

/// Why a freeze ends.
#[derive(Debug)]
pub(super) enum Finish {
    /// Its last claim was ended.
    Released,
    Forced(String),
    Withdrawn(&'static str),
    Shutdown,
    Expired,
    Lost(Fault),
    /// It never held.
    Failed(Vec<Fault>),
}

impl Finish {
    /// How it is told: phase, condition reason, message.
    pub(super) fn tell(&self, held: bool) -> (Phase, &'static str, String) {
        let thawed = if held { Phase::Thawed } else { Phase::Failed };
        match self {
            Self::Released if held => (thawed, reasons::RELEASED, "held until its last claim ended".to_owned()),
            Self::Released => (thawed, reasons::RELEASED, "every claim ended before it held".to_owned()),
            Self::Forced(by) => (thawed, reasons::FORCED, format!("thawed by {by}")),
            Self::Withdrawn(why) => (thawed, reasons::RELEASED, (*why).to_owned()),
            Self::Shutdown => (thawed, reasons::SHUTDOWN, "thawed because its freezer goes down".to_owned()),
            Self::Expired => (
                Phase::Expired,
                reasons::LEASE_EXPIRED,
                "its lease ended before its claims did; ask for a longer ttlSeconds, or renew".to_owned(),
            ),
            Self::Lost(fault) => (Phase::Lost, fault.error.reason(), fault.to_string()),
            Self::Failed(faults) => {
                let reason = faults.first().map_or(reasons::SERVER_ERROR, |fault| fault.error.reason());
                let message = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                (Phase::Failed, reason, message)
            }
        }
    }

    pub(super) fn causes(&self) -> Vec<Check> {
        match self {
            Self::Failed(faults) => faults.iter().map(Fault::cause).collect(),
            Self::Lost(fault) => vec![fault.cause()],
            _ => Vec::new(),
        }
    }
}

impl Fault {
    /// As a named cause, with what to do.
    pub(crate) fn cause(&self) -> Check {
        let check = Check::fail("freeze", self.error.reason(), self.error.to_string(), self.error.advice());
        Check { database: self.database.clone(), ..check }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; {}", self.database, self.error, self.error.advice())
    }
}

/// A target of which nothing is known yet.
pub(super) fn blank(target: &Target) -> TargetStatus {
    TargetStatus {
        database: target.database.clone(),
        engine: target.driver.engine(),
        member: target.name.clone(),
        via: target.via,
        position: None,
        incarnation: None,
        undo: Vec::new(),
        artifacts: Vec::new(),
        proof: None,
        ended_sessions: Vec::new(),
    }
}

/// Writes down what was proved, member by member.
pub(super) fn prove(status: &mut FreezeStatus, proofs: Vec<Proof>) {
    for (target, proof) in status.targets.iter_mut().zip(proofs) {
        target.proof = Some(proof);
    }
    let held: Vec<bool> =
        status.targets.iter().filter_map(|target| target.proof.as_ref()).map(|proof| proof.held).collect();
    status.proved = (!held.is_empty()).then(|| held.len() == status.targets.len() && held.iter().all(|held| *held));
}

/// Keeps what a restore needs; what `stop` gave is not overwritten by an empty hand at release.
pub(super) fn keep(status: &mut FreezeStatus, artifacts: Vec<Vec<Artifact>>) {
    for (target, artifacts) in status.targets.iter_mut().zip(artifacts) {
        if !artifacts.is_empty() {
            target.artifacts = artifacts;
        }
    }
}

/// Sets the condition `Frozen` as the phase has it.
pub(super) fn conclude(status: &mut FreezeStatus, reason: &str, message: &str, at: Timestamp) {
    let frozen = status.phase == Phase::Frozen;
    conditions::set_condition(&mut status.conditions, conditions::types::FROZEN, frozen, reason, message, None, at);
}

/// Logs what went wrong while letting go.
pub(super) fn report(freeze: &FreezeName, faults: &[Fault]) {
    for fault in faults {
        error!(%freeze, database = %fault.database, error = %fault.error, "letting go went wrong; the connections are closed");
    }
}

pub(super) fn milliseconds(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_millis()).unwrap_or(0)
}
