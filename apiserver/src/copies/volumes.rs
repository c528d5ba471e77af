//! Copies by CSI snapshots of volumes, in a cluster: Snapshots of `method: VolumeSnapshot`, and Restores of them to new claims.
//!
//! ```text
//! Snapshot ─► its Databases' claims (topology) ─► written down ─► a VolumeSnapshot of each ─► what is found of them ─► status
//!                                                        └─► or a VolumeGroupSnapshot of all ─┘
//!                                                                        └─► gates hold for its cut, and say what it is worth
//! Restore  ─► a claim of each VolumeSnapshot ─► bound
//! ```
//! Nothing is held here: who holds for a VolumeSnapshot that anybody takes holds for these. Whoever leads works on them, each step
//! by what is stored and what is there, so that a new leader goes on where another has stopped. Names are written down before what
//! they name is made, and what is made says for whom: nothing of anybody else's is touched.

mod bring;
mod claims;
mod declare;
mod found;
mod group;
mod kinds;
mod plan;
mod remove;
mod take;
mod wanted;
mod worth;

use std::{fmt, time::Duration};

use api::{Snapshot, SnapshotMethod, gate::Group};
use futures::{FutureExt, StreamExt, future::BoxFuture};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    Api, Client,
    api::{DynamicObject, ListParams},
    runtime::watcher,
};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::warn;

use super::{Copies, kept::who};
use crate::{
    controllers::Turns,
    csi_snapshots::{Kind, Kinds},
    indexed::Watched,
    records::{Mirror, Seen},
};
use kinds::VolumeSnapshot;

/// What VolumeSnapshots and claims are made with. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Storage {
    client: Client,
    kinds: Kinds,
    /// Those that were made for a Snapshot.
    made: Mirror<VolumeSnapshot>,
    watched: Watched,
    /// Whether anybody is asked before a cut here.
    gates: bool,
}

/// Worked on at once.
const AT_ONCE: usize = 8;
/// How often it is looked at what is not finished.
const LOOK: Duration = Duration::from_secs(2);
/// How often it is asked whether a cluster has VolumeSnapshots now.
const NOT_SERVED: Duration = Duration::from_secs(30);
/// Annotations on what was made for a Snapshot, or a Restore: its name.
const MADE_FOR: &str = "stillpoint.dev/snapshot";
const CLAIM_FOR: &str = "stillpoint.dev/restore";

impl Storage {
    pub(crate) fn new(client: Client, watched: Watched, gates: bool) -> Self {
        Self { kinds: Kinds::new(client.clone()), client, made: Mirror::empty(), watched, gates }
    }

    fn snapshots(&self, namespace: &str) -> Api<VolumeSnapshot> {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn contents(&self) -> Api<DynamicObject> {
        self.kinds.all(Kind::Content, Group::Single)
    }

    fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// By a list of one: that is a right that we have for gates.
    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, kube::Error> {
        let one = ListParams::default().fields(&format!("metadata.name={name}"));
        Ok(self.claims(namespace).list(&one).await?.items.into_iter().next())
    }

    /// Those of a Snapshot's that are there, as far as was seen.
    pub(super) fn there(&self, snapshot: &Snapshot) -> Vec<String> {
        let namespace = snapshot.metadata.namespace.as_deref().unwrap_or_default();
        let volumes = snapshot.status.iter().flat_map(|status| &status.volumes);
        let is_there = |volume: &&api::SnapshotVolume| {
            let seen = self.made.get(namespace, &volume.volume_snapshot);
            !self.made.is_complete() || seen.is_some_and(|seen| seen.metadata.uid == volume.uid)
        };
        volumes.filter(is_there).map(|volume| volume.volume_snapshot.clone()).collect()
    }

    /// Those that are made for a Snapshot, for ever. Clusters without the kind are asked again and again.
    async fn follow(self, watching: Client) {
        loop {
            match self.kinds.are_served(Group::Single).await {
                Ok(true) => break,
                Ok(false) => {}
                Err(error) => warn!(%error, "whether this cluster has VolumeSnapshots is not known"),
            }
            sleep(NOT_SERVED).await;
        }
        let which = watcher::Config::default().labels(api::LABEL_SNAPSHOT);
        self.made.run_of(Api::all(watching), which).await;
    }
}

impl Copies {
    /// The VolumeSnapshots of it that are there. `None`: it is kept elsewhere.
    pub(super) fn in_storage(&self, snapshot: &Snapshot) -> Option<Vec<String>> {
        (snapshot.spec.method == SnapshotMethod::VolumeSnapshot)
            .then(|| self.storage.as_ref().map(|storage| storage.there(snapshot)).unwrap_or_default())
    }
}

/// Loops of a cluster that never end. `watching`: a client whose requests may be silent for long.
pub(super) fn loops(
    copies: &Copies,
    storage: &Storage,
    watching: Client,
) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
    vec![
        ("VolumeSnapshots", storage.clone().follow(watching).boxed()),
        ("snapshots", snapshots(copies.clone(), storage.clone()).boxed()),
        ("restores", restores(copies.clone(), storage.clone()).boxed()),
    ]
}

async fn snapshots(copies: Copies, storage: Storage) {
    let turns = {
        let (copies, storage) = (copies.clone(), storage.clone());
        Turns::new(&copies.clone().tasks, AT_ONCE, move |(namespace, name): (String, String)| {
            take::turn(copies.clone(), storage.clone(), namespace, name)
        })
    };
    let (mut following, mut made) = (copies.snapshots.follow(), storage.made.follow());
    let (mut due, mut tick) = (interval(LOOK), 0);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let take = |snapshot: &Snapshot| {
        let (namespace, name, _) = who(snapshot);
        turns.take((namespace, name));
    };
    loop {
        tokio::select! {
            next = following.next() => match next {
                None => return,
                Some(Seen::There(snapshot)) if copies.lead.is_ours() && take::is_to_do(&snapshot) => take(&snapshot),
                Some(_) => {}
            },
            Some(Seen::There(one) | Seen::Gone(one)) = made.next() => {
                if let (Some(name), true) = (one.annotation(MADE_FOR), copies.lead.is_ours()) {
                    turns.take((one.metadata.namespace.clone().unwrap_or_default(), name.to_owned()));
                }
            }
            _ = due.tick() => {
                tick += 1;
                if copies.lead.is_ours() {
                    let (all, now) = (copies.snapshots.all(None), Timestamp::now());
                    let wanted = all.iter().filter(|one| take::is_to_do(one) && plan::is_due(one, tick, now));
                    wanted.for_each(|one| take(one));
                }
            }
        }
    }
}

async fn restores(copies: Copies, storage: Storage) {
    let turns = {
        let copies = copies.clone();
        Turns::new(&copies.clone().tasks, AT_ONCE, move |(namespace, name): (String, String)| {
            bring::turn(copies.clone(), storage.clone(), namespace, name)
        })
    };
    super::restores::each(&copies, &turns, LOOK, |restore| copies.is_to_claims(restore)).await;
}

/// What an API server says to whoever makes something, as people can use it.
fn refused(error: &kube::Error, what: &str, namespace: &str) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => format!(
            "Stillpoint may not make {what} in namespace {namespace} ({}); let it: kubectl still enable {namespace}",
            status.message
        ),
        kube::Error::Api(status) if status.code == 404 => format!(
            "this cluster has no VolumeSnapshots ({}): install their CRDs, snapshot-controller and a CSI driver that makes them",
            status.message
        ),
        kube::Error::Api(status) => status.message.clone(),
        other => format!("the cluster's API server cannot be reached: {other}"),
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("gates", &self.gates).finish_non_exhaustive()
    }
}
