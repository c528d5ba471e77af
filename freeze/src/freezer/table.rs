//! Which freeze has each member, ways to the tasks of these freezes, and how the claims of finished ones ended.

use std::{
    collections::{BTreeMap, HashMap, VecDeque, hash_map::Entry},
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use api::{Copy, FreezeStatus};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{FreezeView, task::Command};
use crate::{claims::Claimant, journal::FreezeName, lease};

/// A Database, in the namespace of its freeze.
pub(super) type Member = (String, String);

/// Of a claim, in its namespace: who asks chooses it, and must not meet others'.
pub(super) type Uid = (String, String);
/// Claims of finished freezes that a repeated uid is recognised by.
const REMEMBERED: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Table {
    /// The freeze that has each member. More than one, the newest last, only of those that are being recovered.
    pub(super) by_member: HashMap<Member, Vec<Handle>>,
    /// How freezes ended, by their claims' uids: for repeated requests. At most [`REMEMBERED`].
    pub(super) finished: HashMap<Uid, (FreezeName, Arc<FreezeStatus>)>,
    /// Oldest first.
    finished_order: VecDeque<Uid>,
}

/// A way to one freeze's task.
#[derive(Clone, Debug)]
pub(super) struct Handle {
    pub(super) freeze: FreezeName,
    pub(super) members: Arc<[Member]>,
    pub(super) copy: Copy,
    pub(super) commands: mpsc::Sender<Box<Command>>,
    pub(super) shown: watch::Receiver<Arc<FreezeStatus>>,
    /// What a status does not say: it moves with every heartbeat.
    pub(super) vitals: Arc<Vitals>,
}

#[derive(Debug)]
pub(super) struct Vitals {
    /// −1: not known.
    stalled: AtomicI64,
    lease: Mutex<Option<Instant>>,
    held_since: OnceLock<Instant>,
    claimants: Mutex<BTreeMap<String, String>>,
}

// === impl Table ===

impl Table {
    pub(super) fn handle(&self, namespace: &str, database: &str) -> Option<Handle> {
        self.by_member.get(&(namespace.to_owned(), database.to_owned()))?.last().cloned()
    }

    pub(super) fn take(&mut self, handle: &Handle) {
        for member in handle.members.iter() {
            self.by_member.entry(member.clone()).or_default().push(handle.clone());
        }
    }

    /// The freeze lets its members go; its claims stay known.
    pub(super) fn forget(&mut self, task: &Arc<Vitals>, members: &[Member]) {
        for member in members {
            if let Entry::Occupied(mut taken) = self.by_member.entry(member.clone()) {
                // Not by name: an object may have been deleted and declared again meanwhile.
                taken.get_mut().retain(|handle| !Arc::ptr_eq(&handle.vitals, task));
                if taken.get().is_empty() {
                    taken.remove();
                }
            }
        }
    }

    pub(super) fn remember(&mut self, freeze: &FreezeName, status: &Arc<FreezeStatus>) {
        let requested = |status: &FreezeStatus| status.requested_at.as_ref().map(|at| at.0);
        for claim in &status.claims {
            // A uid that is used again is answered by its newest freeze, in whatever order they are told.
            let uid = (freeze.namespace.clone(), claim.uid.clone());
            if self.finished.get(&uid).is_some_and(|(_, known)| requested(known) > requested(status)) {
                continue;
            }
            if self.finished.insert(uid.clone(), (freeze.clone(), Arc::clone(status))).is_none() {
                self.finished_order.push_back(uid);
            }
        }
        while self.finished_order.len() > REMEMBERED {
            if let Some(uid) = self.finished_order.pop_front() {
                self.finished.remove(&uid);
            }
        }
    }
}

// === impl Handle ===

impl Handle {
    pub(super) fn view(&self) -> FreezeView {
        let stalled = self.vitals.stalled.load(Ordering::Relaxed);
        FreezeView {
            freeze: self.freeze.clone(),
            status: self.shown.borrow().clone(),
            copy: self.copy,
            remaining: self.vitals.lease().map(|end| lease::left(end, Instant::now())),
            stalled_sessions: u32::try_from(stalled).ok(),
            held_for: self.vitals.held_since.get().map(Instant::elapsed),
            claimants: self.vitals.claimants.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

// === impl Vitals ===

impl Vitals {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            stalled: AtomicI64::new(-1),
            lease: Mutex::new(None),
            held_since: OnceLock::new(),
            claimants: Mutex::default(),
        })
    }

    pub(super) fn lease(&self) -> Option<Instant> {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_lease(&self, end: Option<Instant>) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = end;
    }

    pub(super) fn admit(&self, claimant: &Claimant) {
        let mut claimants = self.claimants.lock().unwrap_or_else(PoisonError::into_inner);
        claimants.insert(claimant.uid.clone(), claimant.user.clone());
    }

    /// All of it holds, since then.
    pub(super) fn holds(&self, since: Instant) {
        self.held_since.set(since).ok();
    }

    pub(super) fn set_stalled(&self, sessions: Option<u32>) {
        self.stalled.store(sessions.map_or(-1, i64::from), Ordering::Relaxed);
    }
}
