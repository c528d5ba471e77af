//! Condition types and reasons, in one list, and the one way to set a condition.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Condition types.
pub mod types {
    /// Database: its server answers and lets us in.
    pub const REACHABLE: &str = "Reachable";
    /// Database: the account may do what the Database's level needs.
    pub const PRIVILEGED: &str = "Privileged";
    /// Database: a freeze at its level would be tried. Repository: all of its locations can be used. Snapshot: it can be restored.
    pub const READY: &str = "Ready";
    /// Restore: everything that was asked for is there.
    pub const COMPLETE: &str = "Complete";
    /// Freeze: it holds.
    pub const FROZEN: &str = "Frozen";
}

/// Condition reasons. Errors of drivers, checks of the preflight and Events use the same.
pub mod reasons {
    pub const OK: &str = "OK";
    /// Nothing answers at the address, or the connection broke.
    pub const UNREACHABLE: &str = "Unreachable";
    /// The address accepted or swallowed the connection, and nothing came back in time.
    pub const TIMEOUT: &str = "Timeout";
    /// The server refused the user name or password.
    pub const AUTHENTICATION_FAILED: &str = "AuthenticationFailed";
    /// The Secret, or a key in it, is missing.
    pub const CREDENTIALS_MISSING: &str = "CredentialsMissing";
    /// The server offers no encryption, and the Database wants it.
    pub const TLS_UNAVAILABLE: &str = "TLSUnavailable";
    /// The server's certificate is not trusted.
    pub const TLS_UNTRUSTED: &str = "TLSUntrusted";
    /// The account may not do what the level needs.
    pub const PRIVILEGE_MISSING: &str = "PrivilegeMissing";
    pub const UNSUPPORTED_VERSION: &str = "UnsupportedVersion";
    /// A standby where a primary is wanted, or the other way round.
    pub const WRONG_ROLE: &str = "WrongRole";
    /// A pooler or proxy stands between us and the server.
    pub const POOLER: &str = "Pooler";
    /// The engine cannot do this level with this copy method.
    pub const UNSUPPORTED: &str = "Unsupported";
    /// Server settings under which no copy can be trusted (`fsync=off`, …).
    pub const UNSAFE_SETTINGS: &str = "UnsafeSettings";
    /// Sessions stand in the way.
    pub const BLOCKED: &str = "Blocked";
    /// Somebody else already holds the server.
    pub const FOREIGN_FREEZE: &str = "ForeignFreeze";
    /// Too little space is left for the WAL that a file copy makes the server keep.
    pub const NO_ROOM_FOR_WAL: &str = "NoRoomForWAL";
    /// It is to be frozen by an agent, and none is connected.
    pub const AGENT_MISSING: &str = "AgentMissing";
    /// The Database says `paused`.
    pub const PAUSED: &str = "Paused";
    /// The freezer could not write its journal.
    pub const JOURNAL_UNAVAILABLE: &str = "JournalUnavailable";
    /// Another replica may have the member by now; nothing was held.
    pub const MEMBER_ELSEWHERE: &str = "MemberElsewhere";
    /// The session that held was lost.
    pub const SESSION_LOST: &str = "SessionLost";
    /// The server restarted, failed over, or is another one.
    pub const INCARNATION_CHANGED: &str = "IncarnationChanged";
    /// A commit got through.
    pub const COMMIT_ESCAPED: &str = "CommitEscaped";
    /// More sessions waited than `maxStalledSessions` allows.
    pub const TOO_MANY_STALLED: &str = "TooManyStalledSessions";
    /// The lease ended before the claims did.
    pub const LEASE_EXPIRED: &str = "LeaseExpired";
    /// The freezer died; whatever it held was released and undone.
    pub const FREEZER_DIED: &str = "FreezerDied";
    /// The freezer is going down and thawed.
    pub const SHUTDOWN: &str = "Shutdown";
    /// Held until its last claim ended.
    pub const RELEASED: &str = "Released";
    /// Somebody with the right to thaw ended all claims.
    pub const FORCED: &str = "Forced";
    /// Anything the server said that we have no name for.
    pub const SERVER_ERROR: &str = "ServerError";
    /// The program that dumps or restores is not there, or is older than its server.
    pub const TOOL_MISSING: &str = "ToolMissing";
    /// A dump or a restore broke off: what its program said.
    pub const TOOL_FAILED: &str = "ToolFailed";
    /// No location of the Repository does what is asked of it.
    pub const REPOSITORY_UNAVAILABLE: &str = "RepositoryUnavailable";
    /// The password is missing, or does not open the Repository.
    pub const REPOSITORY_LOCKED: &str = "RepositoryLocked";
    /// What is stored is not what was stored.
    pub const DAMAGED: &str = "Damaged";
    /// Nothing of that name, or of that time, is there.
    pub const NOT_FOUND: &str = "NotFound";
    /// What was to be restored would replace something, and may not.
    pub const EXISTS: &str = "Exists";
    /// It was not done in time.
    pub const DEADLINE_EXCEEDED: &str = "DeadlineExceeded";
    /// The process that did it is gone without a word.
    pub const RUNNER_DIED: &str = "RunnerDied";
    /// It was to be held, and was not.
    pub const NOT_HELD: &str = "NotHeld";
    /// No process could be begun.
    pub const NOT_STARTED: &str = "NotStarted";
    pub const IN_PROGRESS: &str = "InProgress";
    /// What is stored is not of its kind, though its schema has let it pass.
    pub const UNREADABLE: &str = "Unreadable";
}

/// Sets `type_` to `status`, and moves `lastTransitionTime` only when the status changes (Kubernetes API conventions,
/// "Typical status properties").
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: bool,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = if status { "True" } else { "False" };
    let existing = conditions.iter().position(|condition| condition.type_ == type_);
    let last_transition_time = match existing.map(|at| &conditions[at]) {
        Some(condition) if condition.status == status => condition.last_transition_time.clone(),
        _ => Time(now),
    };
    let condition = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time,
    };
    match existing {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
}

/// The condition of a type.
pub fn find<'c>(conditions: &'c [Condition], type_: &str) -> Option<&'c Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether it is there, and true.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    find(conditions, type_).is_some_and(|condition| condition.status == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let (first, later) = (Timestamp::from_second(1_000).unwrap(), Timestamp::from_second(2_000).unwrap());
        let mut conditions = Vec::new();
        set_condition(&mut conditions, types::READY, false, reasons::PAUSED, "paused", None, first);
        set_condition(&mut conditions, types::READY, false, reasons::BLOCKED, "blocked", None, later);
        assert_eq!(conditions[0].last_transition_time, Time(first));
        assert_eq!(conditions[0].reason, reasons::BLOCKED);
        set_condition(&mut conditions, types::READY, true, reasons::OK, "", None, later);
        assert_eq!(conditions[0].last_transition_time, Time(later));
        assert_eq!(conditions.len(), 1);
    }
}
