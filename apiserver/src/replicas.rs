//! Several replicas, one freezer per member. A member is claimed by a Lease before anything of it is frozen; a verb that comes to
//! another replica than the member's is sent on; what a dead replica left is undone by another, and never taken again.
//!
//! ```text
//! verb ─► place ─► ours, or free: claimed, and executed here
//!             └──► another's, who lives: sent there
//! own Lease not renewed for 8 s ─► everything here is let go        (the others wait 15 s, by their own clocks)
//! another's Lease not renewed for 15 s ─► its members are claimed, and what its Freezes list is undone
//! ```

mod keeping;
mod lease;
mod members;
mod peers;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::Freeze;
use freeze::{FreezeName, Freezer, Remains};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, api::PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    answer::Answer,
    error::ApiError,
    keyring::Keyring,
    records::{Mirror, Records, freeze_name},
};
use lease::{Alive, FENCE, Member};
pub(crate) use members::Owned;
use members::{Members, Taken, unreachable};
use peers::Peers;
pub(crate) use peers::{Errand, HOPS, WithPeers};

/// This replica among the others. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Replicas(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// This process; another run of it is another.
    identity: String,
    /// Where the others reach us.
    address: String,
    /// As whom we all ask each other, and kube-apiserver.
    account: String,
    leases: Api<Lease>,
    mirror: Mirror<Lease>,
    alive: Mutex<Alive>,
    members: Arc<Members>,
    peers: Peers,
    records: Arc<dyn Records>,
    freezer: Freezer,
    laid: Mutex<Laid>,
    /// When we last said that we live. Too long ago, and nothing is frozen here: looked at by the clock, not by who was in time to
    /// raise a flag, for a process may have been stopped.
    renewed: Mutex<Option<Instant>>,
    /// Cancelled when this replica goes down: what is new is done by another.
    leaving: CancellationToken,
    /// It has said goodbye, and must not say that it lives: requests go on for a while after that.
    left: CancellationToken,
}

/// Freezes that dead replicas left, by their uids, and when we last took care of them: what cannot be undone now is not tried all the
/// time.
#[derive(Debug, Default)]
struct Laid(HashMap<String, Instant>);

impl Laid {
    fn is_due(&self, uid: &str, now: Instant) -> bool {
        self.0.get(uid).is_none_or(|at| now.duration_since(*at) >= LAY_AGAIN)
    }

    fn note(&mut self, uid: String, now: Instant) {
        self.0.retain(|_, at| now.duration_since(*at) < LAY_AGAIN);
        self.0.insert(uid, now);
    }
}

/// Where a verb is to be executed.
pub(crate) enum Place {
    Here(Option<Owned>),
    /// At the replica of this identity.
    At(String),
}

/// How often a race for a Lease is run again.
const TRIES: usize = 8;
/// How often a verb may be sent on: once, and once more when a member went from one to the other meanwhile.
pub(crate) const MOST_HOPS: u32 = 2;

/// How often what cannot be undone is tried again: its Database is gone, or another version of us knows how.
const LAY_AGAIN: Duration = Duration::from_secs(60);

/// What a replica is made of.
pub(crate) struct Us {
    pub(crate) client: Client,
    /// Where the Leases are.
    pub(crate) namespace: String,
    pub(crate) identity: String,
    pub(crate) address: String,
    pub(crate) keyring: Arc<Keyring>,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) freezer: Freezer,
}

impl Replicas {
    pub(crate) fn new(us: Us) -> Self {
        Self(Arc::new(Inner {
            identity: us.identity,
            address: us.address,
            account: api::install::account_user(&us.namespace),
            leases: Api::namespaced(us.client, &us.namespace),
            mirror: Mirror::empty(),
            alive: Mutex::default(),
            members: Arc::default(),
            peers: Peers::new(us.keyring),
            records: us.records,
            freezer: us.freezer,
            laid: Mutex::default(),
            renewed: Mutex::default(),
            leaving: CancellationToken::new(),
            left: CancellationToken::new(),
        }))
    }

    /// Whether this user is the account that we run as.
    pub(crate) fn is_our_account(&self, user: &str) -> bool {
        self.0.account == user
    }

    /// Where a verb that would freeze is to be executed; if here, the members stay ours for as long as the answer lives.
    pub(crate) async fn place(&self, namespace: &str, databases: &[&str], hops: u32) -> Result<Place, ApiError> {
        let inner = &self.0;
        let wanted: BTreeSet<Member> =
            databases.iter().map(|name| (namespace.to_owned(), (*name).to_owned())).collect();
        let held = wanted.iter().any(|member| inner.holds(member) && inner.members.has(member));
        // What another replica sends here is sent because it is ours.
        if !held
            && hops == 0
            && inner.leaving.is_cancelled()
            && let Some(successor) = inner.successor()
        {
            inner.members.yield_up(&inner.leases, &wanted, |member| inner.holds(member)).await;
            return Ok(Place::At(successor));
        }
        inner.not_fenced()?;
        // Whatever is held here already decides: it is joined, or it is why the answer is no.
        if held {
            return Ok(Place::Here(None));
        }
        if let Some(owned) = inner.members.hold(&wanted) {
            return Ok(Place::Here(Some(owned)));
        }
        for member in &wanted {
            if inner.members.has(member) {
                continue;
            }
            match inner.take(member, hops > 0).await? {
                Taken::Ours => inner.lay_to_rest_at(member),
                Taken::Theirs(holder) if hops < MOST_HOPS => {
                    // It may need them for the same group.
                    inner.members.yield_up(&inner.leases, &wanted, |member| inner.holds(member)).await;
                    return Ok(Place::At(holder));
                }
                Taken::Theirs(_) => {
                    return Err(ApiError::in_motion(
                        "the Databases of this group are with several replicas just now; try again in a moment",
                    ));
                }
            }
        }
        // One may have been lost again meanwhile.
        inner
            .members
            .hold(&wanted)
            .map(|owned| Place::Here(Some(owned)))
            .ok_or_else(|| ApiError::in_motion("another replica was faster; try again"))
    }

    /// Where the freeze of a Database is, for a verb that begins none.
    pub(crate) fn holder(&self, namespace: &str, database: &str) -> Place {
        let member = (namespace.to_owned(), database.to_owned());
        if self.0.members.has(&member) {
            return Place::Here(None);
        }
        match self.0.known(&member).as_ref().and_then(lease::holder) {
            Some(holder) if holder != self.0.identity && self.0.is_alive(holder) => Place::At(holder.to_owned()),
            _ => Place::Here(None),
        }
    }

    /// The epoch of a member's Lease as we wrote it; 0: it is not ours.
    pub(crate) fn epoch(&self, namespace: &str, database: &str) -> i64 {
        self.0.members.epoch(&(namespace.to_owned(), database.to_owned()))
    }

    /// Where a verb that begins none is to be executed, looked up where it is not known for sure: the wrong replica would say that
    /// there is nothing to end, or how an older freeze ended.
    pub(crate) async fn find(&self, namespace: &str, database: &str) -> Result<Place, ApiError> {
        let inner = &self.0;
        let member = (namespace.to_owned(), database.to_owned());
        if inner.freezer.view(namespace, database).is_some() {
            return Ok(Place::Here(None));
        }
        let freezes = inner.records.freezes();
        let mut elsewhere = freezes
            .iter()
            .filter(|freeze| is_held(freeze) && of(freeze, &member))
            .filter_map(|freeze| freezer_of(freeze));
        if let Some(by) = elsewhere.find(|by| *by != inner.identity) {
            if inner.lives(by).await? {
                return Ok(Place::At(by.to_owned()));
            }
            return Err(ApiError::in_motion(
                "the replica that held it is gone, and what it left is being undone; try again",
            ));
        }
        let known = inner.leases.get_opt(&lease::member_name(&member)).await.map_err(|error| unreachable(&error))?;
        match known.as_ref().and_then(lease::holder) {
            Some(holder) if holder != inner.identity && inner.lives(holder).await? => Ok(Place::At(holder.to_owned())),
            _ => Ok(Place::Here(None)),
        }
    }

    /// Whether this replica does what only one has to do.
    pub(crate) fn leads(&self) -> bool {
        !self.0.is_fenced() && !self.0.leaving.is_cancelled() && self.0.members.has(&lease::leader())
    }

    /// Whether a member is ours still, and the others believe us alive, by our own clock.
    pub(crate) fn may_hold(&self, namespace: &str, database: &str) -> bool {
        !self.0.is_fenced() && self.0.members.has(&(namespace.to_owned(), database.to_owned()))
    }

    /// Whether the others count on us; if not, nothing is frozen here.
    pub(crate) fn is_believed_alive(&self) -> bool {
        !self.0.is_fenced()
    }

    /// What is new is done by another from now on, if there is another.
    pub(crate) fn begin_to_leave(&self) {
        self.0.leaving.cancel();
    }

    pub(crate) async fn send(&self, to: &str, errand: Errand<'_>, limit: Duration) -> Result<Answer, ApiError> {
        let address = self.0.alive().address(to).map(str::to_owned);
        let address =
            address.ok_or_else(|| ApiError::in_motion("the replica that has this Database is gone; try again"))?;
        self.0.peers.send(&address, errand, limit).await
    }
}

impl Inner {
    fn not_fenced(&self) -> Result<(), ApiError> {
        if self.is_fenced() {
            return Err(ApiError::in_motion(
                "this replica could not tell the cluster's API server that it lives, and freezes nothing; try again",
            ));
        }
        Ok(())
    }

    /// Takes one member, if nobody who is alive has it. `sent`: whoever sent us here may have given it back a moment ago, which
    /// the mirror does not know yet.
    async fn take(&self, member: &Member, sent: bool) -> Result<Taken, ApiError> {
        let name = lease::member_name(member);
        let mut known = if sent {
            self.leases.get_opt(&name).await.map_err(|error| unreachable(&error))?
        } else {
            self.known(member)
        };
        for _ in 0..TRIES {
            let holder = known.as_ref().and_then(lease::holder).filter(|holder| *holder != self.identity);
            if let Some(holder) = holder.map(str::to_owned)
                && self.lives(&holder).await?
            {
                return Ok(Taken::Theirs(holder));
            }
            let began = Instant::now();
            let written = match known {
                None => {
                    let new = lease::of_member(member, &self.identity, Timestamp::now());
                    self.leases.create(&PostParams::default(), &new).await
                }
                Some(found) => {
                    let spec = lease::taken(found.spec.clone().unwrap_or_default(), &self.identity, Timestamp::now());
                    self.leases.replace(&name, &PostParams::default(), &Lease { spec: Some(spec), ..found }).await
                }
            };
            match written {
                // What is answered late may be another's by now.
                Ok(_) if began.elapsed() > FENCE => {
                    return Err(ApiError::in_motion("the cluster's API server is slow; try again"));
                }
                Ok(lease) => {
                    self.not_fenced()?;
                    self.members.insert(member, lease);
                    return Ok(Taken::Ours);
                }
                // Somebody was faster, or what we knew is old.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    known = self.leases.get_opt(&name).await.map_err(|error| unreachable(&error))?;
                }
                Err(error) => return Err(unreachable(&error)),
            }
        }
        Err(ApiError::in_motion(format!("Database {}: too many take it at once; try again", member.1)))
    }

    /// Whether a replica is alive. Nobody is believed dead because of what was not heard: its Lease is read first, and may be
    /// younger than what we know.
    async fn lives(&self, identity: &str) -> Result<bool, ApiError> {
        if !self.is_alive(identity) {
            let found =
                self.leases.get_opt(&lease::replica_name(identity)).await.map_err(|error| unreachable(&error))?;
            if let Some(lease) = found {
                self.alive().note(&lease, Instant::now());
            }
        }
        Ok(self.is_alive(identity))
    }

    fn is_fenced(&self) -> bool {
        let renewed = *self.renewed.lock().unwrap_or_else(PoisonError::into_inner);
        renewed.is_none_or(|renewed| renewed.elapsed() > FENCE)
    }

    fn set_renewed(&self, at: Option<Instant>) {
        *self.renewed.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn holds(&self, member: &Member) -> bool {
        (*member == lease::leader() && !self.leaving.is_cancelled())
            || self.freezer.view(&member.0, &member.1).is_some()
    }

    fn known(&self, member: &Member) -> Option<Lease> {
        let namespace = self.leases.namespace()?;
        self.mirror.get(namespace, &lease::member_name(member)).map(Arc::unwrap_or_clone)
    }

    fn successor(&self) -> Option<String> {
        self.alive().successor(&self.identity, Instant::now()).map(str::to_owned)
    }

    fn is_alive(&self, identity: &str) -> bool {
        self.alive().is_alive(identity, Instant::now())
    }

    fn alive(&self) -> MutexGuard<'_, Alive> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What dead freezers left at a member that is ours now: nothing else is frozen there before it is undone.
    fn lay_to_rest_at(&self, member: &Member) {
        self.lay_to_rest(|freeze| {
            of(freeze, member) && freezer_of(freeze).is_some_and(|by| by != self.identity && !self.is_alive(by))
        });
    }

    /// Whether it is time to take care of what a dead replica left there.
    fn is_due(&self, freeze: &Freeze) -> bool {
        self.laid().is_due(freeze.metadata.uid.as_deref().unwrap_or_default(), Instant::now())
    }

    fn laid(&self) -> MutexGuard<'_, Laid> {
        self.laid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands what dead freezers left to ours, which undoes it. Only what is not finished, or has something to undo.
    fn lay_to_rest(&self, chosen: impl Fn(&Freeze) -> bool) {
        let known: BTreeSet<FreezeName> = self.freezer.views().into_iter().map(|view| view.freeze).collect();
        let mut remains = Vec::new();
        for freeze in self.records.freezes().into_iter().filter(|freeze| is_left(freeze) && chosen(freeze)) {
            let (Some(name), Some(status)) = (freeze_name(&freeze), freeze.status.clone()) else { continue };
            if !known.contains(&name) {
                let uid = freeze.metadata.uid.clone().unwrap_or_default();
                self.laid().note(uid, Instant::now());
                remains.push(Remains { freeze: name, status });
            }
        }
        if !remains.is_empty() {
            tracing::info!(count = remains.len(), "taking care of what a dead replica left");
            self.freezer.recover(remains);
        }
    }
}

/// The process that executes it.
fn freezer_of(freeze: &Freeze) -> Option<&str> {
    freeze.status.as_ref()?.freezer.as_deref()
}

fn of(freeze: &Freeze, (namespace, database): &Member) -> bool {
    freeze.metadata.namespace.as_ref() == Some(namespace)
        && freeze.spec.targets.iter().any(|target| target.database == *database)
}

/// Somebody has begun it, and it is not over.
fn is_held(freeze: &Freeze) -> bool {
    freeze.status.as_ref().is_some_and(|status| status.freezer.is_some() && !status.phase.is_finished())
}

/// Somebody has begun it, and it is not over, or not all of it is undone.
fn is_left(freeze: &Freeze) -> bool {
    freeze.status.as_ref().is_some_and(|status| {
        status.freezer.is_some()
            && (!status.phase.is_finished() || status.targets.iter().any(|target| !target.undo.is_empty()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_not_be_undone_is_tried_again_after_a_pause() {
        let (mut laid, now) = (Laid::default(), Instant::now());
        assert!(laid.is_due("one", now));
        laid.note("one".to_owned(), now);
        assert!(!laid.is_due("one", now + LAY_AGAIN / 2));
        assert!(laid.is_due("other", now + LAY_AGAIN / 2));
        assert!(laid.is_due("one", now + LAY_AGAIN));
    }
}
