//! Which members this replica may freeze: taken by compare-and-swap, one after the other in sorted order, kept a little while
//! after the last freeze, and lost when somebody else has them.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, api::PostParams};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::lease::{self, Member, Written};
use crate::error::ApiError;

/// How long a member stays ours when nothing of it is held: the next freeze is often soon, and often here.
const IDLE: Duration = Duration::from_secs(2);

/// The members that are ours.
#[derive(Debug, Default)]
pub(super) struct Members(Mutex<HashMap<Member, Mine>>);

#[derive(Debug)]
struct Mine {
    /// Of its Lease, as we wrote it: all that is not the same in every Lease of this member.
    written: Written,
    /// Calls that are under way.
    calls: usize,
    idle_since: Instant,
}

/// Members that stay ours while this lives.
#[derive(Debug)]
pub(crate) struct Owned {
    members: Arc<Members>,
    names: Vec<Member>,
}

/// What came of trying to take a member.
pub(super) enum Taken {
    Ours,
    /// That replica has it, and lives.
    Theirs(String),
}

impl Members {
    /// Those of `wanted` that are ours already stay so from now on; answers whether all are.
    pub(super) fn hold(self: &Arc<Self>, wanted: &BTreeSet<Member>) -> Option<Owned> {
        let mut mine = self.lock();
        if !wanted.iter().all(|member| mine.contains_key(member)) {
            return None;
        }
        for member in wanted {
            if let Some(mine) = mine.get_mut(member) {
                mine.calls += 1;
            }
        }
        drop(mine);
        Some(Owned { members: Arc::clone(self), names: wanted.iter().cloned().collect() })
    }

    pub(super) fn has(&self, member: &Member) -> bool {
        self.lock().contains_key(member)
    }

    /// How often its Lease has changed hands when it became ours; 0: it is not.
    pub(super) fn epoch(&self, member: &Member) -> i64 {
        self.lock().get(member).and_then(|mine| mine.written.transitions).unwrap_or_default().into()
    }

    /// It was taken; perhaps by two calls at once, of which the first is under way.
    pub(super) fn insert(&self, member: &Member, lease: Lease) {
        let now = Instant::now();
        let mut mine = self.lock();
        let mine = mine.entry(member.clone()).or_insert_with(|| Mine {
            written: Written::default(),
            calls: 0,
            idle_since: now,
        });
        let transitions = lease.spec.and_then(|spec| spec.lease_transitions);
        let version = lease.metadata.resource_version.unwrap_or_default();
        (mine.written, mine.idle_since) = (Written { version, transitions }, now);
    }

    /// Gives back members of which nothing is held and nobody asks; `all`: at once.
    pub(super) async fn give_back(&self, leases: &Api<Lease>, is_held: impl Fn(&Member) -> bool, all: bool) {
        let now = Instant::now();
        let idle: Vec<(Member, Written)> = {
            let mut mine = self.lock();
            for (member, mine) in mine.iter_mut() {
                if mine.calls > 0 || is_held(member) {
                    mine.idle_since = now;
                }
            }
            let idle = |mine: &Mine| all || now.duration_since(mine.idle_since) > IDLE;
            let idle = mine.extract_if(|_, mine| idle(mine)).map(|(member, mine)| (member, mine.written));
            idle.collect()
        };
        for (member, written) in idle {
            let name = lease::member_name(&member);
            match leases.replace(&name, &PostParams::default(), &lease::given_back(&member, written)).await {
                Ok(_) => debug!(?member, "given back"),
                Err(error) => warn!(?member, %error, "could not be given back; it is free when this replica is gone"),
            }
        }
    }

    /// Gives those of `wanted` back at once of which nothing is held here.
    pub(super) async fn yield_up(
        &self,
        leases: &Api<Lease>,
        wanted: &BTreeSet<Member>,
        is_held: impl Fn(&Member) -> bool,
    ) {
        let free = |member: &Member| !wanted.contains(member) || is_held(member);
        {
            let mut mine = self.lock();
            for (member, mine) in mine.iter_mut().filter(|(member, _)| !free(member)) {
                debug!(?member, "yielded");
                mine.idle_since = Instant::now().checked_sub(IDLE * 2).unwrap_or(mine.idle_since);
            }
        }
        self.give_back(leases, free, false).await;
    }

    /// Somebody else has it now.
    pub(super) fn lose(&self, member: &Member) -> bool {
        let lost = self.lock().remove(member).is_some();
        if lost {
            info!(?member, "another replica has it now");
        }
        lost
    }

    pub(super) fn lose_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Member, Mine>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let mut mine = self.members.lock();
        for name in &self.names {
            if let Some(mine) = mine.get_mut(name) {
                mine.calls = mine.calls.saturating_sub(1);
                mine.idle_since = Instant::now();
            }
        }
    }
}

pub(super) fn unreachable(error: &kube::Error) -> ApiError {
    ApiError {
        internal: Some(error.to_string()),
        ..ApiError::in_motion(
            "the Database cannot be claimed: the cluster's API server refused or was not reached; try again",
        )
    }
}
