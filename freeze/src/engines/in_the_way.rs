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
    ended: Vec<Blocker>,
    /// The policy is `Fail`, and somebody was seen.
    pub(super) gave_up: bool,
    /// What would let us see more.
    pub(super) hint: Option<&'static str>,
}

impl Found {
    fn is_to_be_ended(&self, plan: &Plan) -> bool {
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

    /// Whom the policy ends now. Who was told to end is not told again while he undoes his work.
    pub(super) fn to_be_ended(&self, found: &[Found], plan: &Plan) -> Vec<Blocker> {
        let told = |found: &&Found| self.ended.iter().any(|ended| ended.id == found.blocker.id);
        let new = found.iter().filter(|found| found.is_to_be_ended(plan) && !told(found));
        new.map(|found| found.blocker.clone()).collect()
    }

    pub(super) fn ends(&mut self, blocker: &Blocker) {
        self.ended.push(blocker.clone());
    }

    /// It could not be ended after all.
    pub(super) fn lives(&mut self, blocker: &Blocker) {
        self.ended.retain(|ended| ended.id != blocker.id);
    }

    /// For people.
    pub(super) fn ended(&self) -> Vec<String> {
        self.ended.iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use api::{Copy, Level, Role};

    use super::*;

    fn plan(blockers: BlockerPolicy) -> Plan {
        Plan {
            freeze_uid: String::new(),
            level: Level::WriteBlocked,
            copy: Copy::Atomic,
            role: Role::Primary,
            acquire_timeout: Duration::from_secs(3),
            blockers,
            blockers_older_than: Duration::from_secs(5),
            server_ttl: Duration::from_secs(5),
        }
    }

    fn found(id: i64, has_written: bool, may_end: bool, seconds: u64) -> Found {
        Found {
            blocker: Blocker {
                id,
                user: String::new(),
                application: String::new(),
                age: Duration::from_secs(seconds),
                doing: String::new(),
            },
            has_written,
            may_end,
        }
    }

    #[test]
    fn only_an_old_session_that_the_policy_means_and_that_is_a_clients_is_ended() {
        let (old_reader, old_writer) = (found(1, false, true, 9), found(2, true, true, 9));
        let (young, replication) = (found(3, false, true, 1), found(4, false, false, 9));
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

    #[test]
    fn a_session_that_takes_its_time_to_end_is_ended_once() {
        let (plan, mut in_the_way) = (plan(BlockerPolicy::KillAll), InTheWay::default());
        let mut ids = |seconds| {
            let looked = [found(1, true, true, seconds), found(2, true, true, seconds)];
            let ends = in_the_way.to_be_ended(&looked, &plan);
            for blocker in &ends {
                in_the_way.ends(blocker);
            }
            ends.iter().map(|blocker| blocker.id).collect::<Vec<_>>()
        };
        assert_eq!(ids(9), [1, 2]);
        assert_eq!(ids(10), [0_i64; 0], "they are older now, and the same");
        assert_eq!(in_the_way.ended().len(), 2);
        in_the_way.lives(&found(2, true, true, 9).blocker);
        let again = in_the_way.to_be_ended(&[found(2, true, true, 11)], &plan);
        assert_eq!((again.len(), in_the_way.ended().len()), (1, 1), "who could not be ended is tried again");
    }
}
