//! Leases as we write them, and whom they make alive. Pure: instants are arguments.
//!
//! A replica renews one Lease of its own. A member's Lease names the replica that may freeze it, is never renewed, and counts
//! for as long as that replica is alive. How long somebody is alive is told by our own clock, from when we saw a renewal: two
//! machines' clocks need not agree.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

/// A Database, in its namespace.
pub(crate) type Member = (String, String);

/// How long a replica counts as alive after a renewal was seen. Longer than [`FENCE`] and what letting go takes.
pub(super) const LIFE: Duration = Duration::from_secs(15);
/// How often a replica renews its Lease.
pub(super) const RENEW: Duration = Duration::from_secs(2);
/// A replica that could not renew for so long lets go of everything: before anybody else believes it dead, and with the time
/// that the servers need to end its sessions (5 s).
pub(super) const FENCE: Duration = Duration::from_secs(8);

/// What kind of Lease it is: a label, by which ours are told from others.
pub(super) const LABEL: &str = api::install::LEASE;
/// Where a replica is reached by the others.
const ADDRESS: &str = "stillpoint.dev/address";
/// Of a replica that is going down: it begins nothing new.
const LEAVES: &str = "stillpoint.dev/leaving";
/// Whose Lease it is, for people.
const MEMBER: &str = "stillpoint.dev/member";

/// What the leader has claimed: no Database has such a name.
pub(super) fn leader() -> Member {
    (String::new(), "leader".to_owned())
}

/// Of a member's Lease, as it was written. Without a version, which no API server leaves out, Leases are not written (Kubernetes
/// `registry/coordination/lease/strategy.go`).
#[derive(Clone, Debug, Default)]
pub(super) struct Written {
    pub(super) version: String,
    pub(super) transitions: Option<i32>,
}

/// When a renewal of each replica was last seen.
#[derive(Debug, Default)]
pub(super) struct Alive(HashMap<String, Seen>);

#[derive(Debug)]
struct Seen {
    renewed: Option<Timestamp>,
    at: Instant,
    address: String,
    leaves: bool,
}

impl Alive {
    pub(super) fn note(&mut self, lease: &Lease, now: Instant) {
        let Some(identity) = holder(lease) else { return };
        let renewed = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref()).map(|at| at.0);
        let annotation = |name| lease.metadata.annotations.as_ref().and_then(|all| all.get(name));
        let (address, leaves) = (annotation(ADDRESS).cloned().unwrap_or_default(), annotation(LEAVES).is_some());
        match self.0.get_mut(identity) {
            // The same renewal, seen again: it is no younger for that.
            Some(seen) if seen.renewed == renewed => {}
            _ => drop(self.0.insert(identity.to_owned(), Seen { renewed, at: now, address, leaves })),
        }
    }

    pub(super) fn forget(&mut self, lease: &Lease) {
        if let Some(identity) = holder(lease) {
            self.0.remove(identity);
        }
    }

    pub(super) fn is_alive(&self, identity: &str, now: Instant) -> bool {
        self.0.get(identity).is_some_and(|seen| now.duration_since(seen.at) < LIFE)
    }

    /// Somebody else who is alive and stays: who does what `identity` does no more.
    pub(super) fn successor(&self, identity: &str, now: Instant) -> Option<&str> {
        let stays =
            |(other, seen): &(&String, &Seen)| *other != identity && !seen.leaves && now.duration_since(seen.at) < LIFE;
        self.0.iter().filter(stays).max_by_key(|(_, seen)| seen.at).map(|(other, _)| other.as_str())
    }

    /// Those that are dead for so long.
    pub(super) fn silent_for(&self, long: Duration, now: Instant) -> Vec<String> {
        let silent = self.0.iter().filter(|(_, seen)| now.duration_since(seen.at) > long);
        silent.map(|(identity, _)| identity.clone()).collect()
    }

    pub(super) fn bury(&mut self, identity: &str) {
        self.0.remove(identity);
    }

    pub(super) fn address(&self, identity: &str) -> Option<&str> {
        self.0.get(identity).map(|seen| seen.address.as_str())
    }
}

/// Who holds a Lease.
pub(super) fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|identity| !identity.is_empty())
}

pub(super) fn is_replica(lease: &Lease) -> bool {
    lease.metadata.labels.as_ref().and_then(|labels| labels.get(LABEL)).is_some_and(|kind| kind == "replica")
}

/// Whose Lease it is, if it is a member's.
pub(super) fn member_of(lease: &Lease) -> Option<Member> {
    let (namespace, name) = lease.metadata.annotations.as_ref()?.get(MEMBER)?.split_once('/')?;
    Some((namespace.to_owned(), name.to_owned()))
}

/// A replica's own.
pub(super) fn of_replica(identity: &str, address: &str, now: Timestamp) -> Lease {
    let spec = LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(LIFE.as_secs()).ok(),
        acquire_time: Some(MicroTime(now)),
        renew_time: Some(MicroTime(now)),
        ..LeaseSpec::default()
    };
    lease(replica_name(identity), "replica", (ADDRESS, address.to_owned()), spec)
}

/// The same Lease, of one that leaves.
pub(super) fn leaving(mut lease: Lease) -> Lease {
    lease.metadata.annotations.get_or_insert_default().insert(LEAVES.to_owned(), "true".to_owned());
    lease
}

/// A member's, for one that never had one.
pub(super) fn of_member(member: &Member, identity: &str, now: Timestamp) -> Lease {
    let spec = taken(LeaseSpec::default(), identity, now);
    lease(member_name(member), "member", (MEMBER, format!("{}/{}", member.0, member.1)), spec)
}

/// The same Lease with another holder, one epoch later.
pub(super) fn taken(spec: LeaseSpec, identity: &str, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(identity.to_owned()),
        lease_duration_seconds: i32::try_from(LIFE.as_secs()).ok(),
        acquire_time: Some(MicroTime(now)),
        lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + 1),
        ..spec
    }
}

/// A member's that nobody has; refused if somebody has it by now.
pub(super) fn given_back(member: &Member, written: Written) -> Lease {
    let spec = LeaseSpec { lease_transitions: written.transitions, ..LeaseSpec::default() };
    let mut lease = lease(member_name(member), "member", (MEMBER, format!("{}/{}", member.0, member.1)), spec);
    lease.metadata.resource_version = Some(written.version);
    lease
}

/// Of names that a Lease cannot have, and that may be too long.
pub(super) fn member_name(member: &Member) -> String {
    let digest = Sha256::digest(format!("{}/{}", member.0, member.1));
    digest.iter().take(20).fold("member-".to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

pub(super) fn replica_name(identity: &str) -> String {
    let safe = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    format!("replica-{}", identity.chars().map(safe).take(240).collect::<String>().trim_matches('-'))
}

fn lease(name: String, kind: &str, annotation: (&str, String), spec: LeaseSpec) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(name),
            labels: Some(BTreeMap::from([(LABEL.to_owned(), kind.to_owned())])),
            annotations: Some(BTreeMap::from([(annotation.0.to_owned(), annotation.1)])),
            ..ObjectMeta::default()
        },
        spec: Some(spec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_seen_again_without_a_renewal_grows_no_younger() {
        let (mut alive, begin) = (Alive::default(), Instant::now());
        let at = |second| Timestamp::from_second(second).unwrap();
        alive.note(&of_replica("a", "10.0.0.1:6443", at(1)), begin);
        assert!(alive.is_alive("a", begin + LIFE / 2) && !alive.is_alive("b", begin));
        alive.note(&of_replica("a", "10.0.0.1:6443", at(1)), begin + LIFE / 2);
        assert!(!alive.is_alive("a", begin + LIFE));
        // A clock that is set back renews as well as any.
        alive.note(&of_replica("a", "10.0.0.1:6443", at(0)), begin + LIFE / 2);
        assert!(alive.is_alive("a", begin + LIFE));
        assert_eq!(alive.address("a"), Some("10.0.0.1:6443"));
    }

    #[test]
    fn what_a_replica_does_no_more_is_done_by_one_that_lives_and_stays() {
        let (mut alive, begin) = (Alive::default(), Instant::now());
        let of = |identity: &str| of_replica(identity, "10.0.0.1:6443", Timestamp::UNIX_EPOCH);
        alive.note(&of("us"), begin);
        assert_eq!(alive.successor("us", begin), None, "nobody else is there");
        alive.note(&leaving(of("goes")), begin);
        assert_eq!(alive.successor("us", begin), None, "it goes too");
        alive.note(&of("stays"), begin);
        assert_eq!(alive.successor("us", begin), Some("stays"));
        assert_eq!(alive.successor("us", begin + LIFE), None, "it is dead");
    }

    #[test]
    fn a_replica_lets_go_before_anybody_believes_it_dead() {
        let servers = freeze::LONGEST_SERVER_TTL;
        assert!(FENCE + servers + RENEW <= LIFE, "and the servers have ended its sessions by then");
    }

    #[test]
    fn a_members_lease_has_a_name_of_its_own_and_an_epoch_that_grows() {
        let (orders, other) = (("shop".to_owned(), "orders".to_owned()), ("shop-orders".to_owned(), String::new()));
        assert_ne!(member_name(&orders), member_name(&other));
        let first = of_member(&orders, "a", Timestamp::UNIX_EPOCH);
        let second = taken(first.spec.clone().unwrap(), "b", Timestamp::UNIX_EPOCH);
        assert_eq!((first.spec.unwrap().lease_transitions, second.lease_transitions), (Some(1), Some(2)));
        assert_eq!(replica_name("Pod_1/abc"), "replica-pod-1-abc");
    }
}
