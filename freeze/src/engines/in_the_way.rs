//! Sessions in the way of a write block: who they are, and whom the policy lets us end. Pure; engines find them and end them.

use api::BlockerPolicy;

use crate::{blocker::Blocker, driver::Plan};

/// A session that stands in the way, as an engine found it.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) blocker: Blocker,
    /// Ending it undoes work of its client.
    pub(super) has_written: bool,
    /// A client's session, certainly in the way. Never so: replication, backups, freezes, and whoever only may be in the way.
    pub(super) may_end: bool,
}

/// Who stood in the way, as last seen, and who was ended for it.
#[derive(Debug, Default)]
pub(super) struct InTheWay {
    pub(super) seen: Vec<Blocker>,
    pub(super) ended: Vec<String>,
    /// The policy is `Fail`, and somebody was seen.
    pub(super) gave_up: bool,
    /// What would let us see more.
    pub(super) hint: Option<&'static str>,
}

impl Found {
    pub(super) fn is_to_be_ended(&self, plan: &Plan) -> bool {
        let policy = match plan.blockers {
            BlockerPolicy::KillAll => true,
            BlockerPolicy::KillReads => !self.has_written,
            BlockerPolicy::Wait | BlockerPolicy::Fail => false,
        };
        policy && self.may_end && self.blocker.age >= plan.blockers_older_than
    }
}

impl InTheWay {
    /// Remembers the newest look that found anybody.
    pub(super) fn see(&mut self, found: &[Found]) {
        if !found.is_empty() {
            self.seen = found.iter().map(|found| found.blocker.clone()).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use api::{Copy, Level, Role};

    use super::*;

    #[test]
    fn only_an_old_session_that_the_policy_means_and_that_is_a_clients_is_ended() {
        let plan = |blockers| Plan {
            freeze_uid: String::new(),
            level: Level::WriteBlocked,
            copy: Copy::Atomic,
            role: Role::Primary,
            acquire_timeout: Duration::from_secs(3),
            blockers,
            blockers_older_than: Duration::from_secs(5),
            server_ttl: Duration::from_secs(5),
        };
        let found = |has_written, may_end, seconds| Found {
            blocker: Blocker {
                id: 1,
                user: String::new(),
                application: String::new(),
                age: Duration::from_secs(seconds),
                doing: String::new(),
            },
            has_written,
            may_end,
        };
        let (old_reader, old_writer) = (found(false, true, 9), found(true, true, 9));
        let (young, replication) = (found(false, true, 1), found(false, false, 9));
        for (policy, ended) in [
            (BlockerPolicy::Wait, [false, false, false, false]),
            (BlockerPolicy::Fail, [false, false, false, false]),
            (BlockerPolicy::KillReads, [true, false, false, false]),
            (BlockerPolicy::KillAll, [true, true, false, false]),
        ] {
            let all = [&old_reader, &old_writer, &young, &replication];
            assert_eq!(all.map(|found| found.is_to_be_ended(&plan(policy))), ended, "{policy:?}");
        }
    }
}
