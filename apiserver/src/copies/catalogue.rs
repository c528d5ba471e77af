//! What really is there, as one list: every Snapshot, and every copy in a Repository that there is no Snapshot of.
//!
//! A Repository that does not answer never fails the list: what was known of it is shown, and that it is not new is said.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use api::{KnownBy, LiveSnapshot, LiveSnapshotSpec, LiveSnapshotStatus, Repository, Snapshot};
use futures::future::join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use repository::{Entry, Writer};

use super::{Copies, kept::who};
use crate::{error::ApiError, resources::live::SNAPSHOTS};

/// A list, and what a person should know of it.
#[derive(Debug, Default)]
pub(crate) struct Catalogued {
    /// By namespace and name.
    pub(crate) items: Vec<Item>,
    pub(crate) warnings: Vec<String>,
}

/// One copy, not yet as it is shown: of ten thousand a page is.
#[derive(Debug)]
pub(crate) struct Item {
    namespace: String,
    name: String,
    of: Known,
}

#[derive(Debug)]
enum Known {
    /// And the locations that have it.
    Snapshot(Arc<Snapshot>, Vec<String>),
    Entry(Arc<Repository>, Arc<Entry>),
}

/// Of the name of a copy that there is no Snapshot of: so much of its own.
const DIGITS: usize = 8;

impl Copies {
    pub(crate) async fn catalogue(&self, namespace: Option<&str>) -> Catalogued {
        let (snapshots, repositories) = (self.snapshots.all(namespace), self.repositories.all(namespace));
        let lists = join_all(repositories.iter().map(|repository| async move {
            let (namespace, name) = named(&**repository);
            (repository, self.depot.list(&namespace, &name, &repository.spec).await)
        }));
        let uids: HashSet<&str> = snapshots.iter().filter_map(|snapshot| snapshot.metadata.uid.as_deref()).collect();
        let mut found = Catalogued::default();
        let mut at: HashMap<String, Vec<String>> = HashMap::new();
        let mut unread: HashMap<(String, String), Vec<String>> = HashMap::new();
        for (repository, listed) in lists.await {
            unread.insert(named(&**repository), listed.unread);
            found.warnings.extend(listed.warnings);
            for entry in listed.entries.iter() {
                let uid = entry.manifest().map(|manifest| manifest.snapshot.uid.as_str());
                if uid.is_some_and(|uid| uids.contains(uid)) {
                    at.insert(entry.id.clone(), entry.at.clone());
                } else {
                    found.items.push(Item::of_entry(repository, Arc::clone(entry)));
                }
            }
        }
        let of_snapshot = |snapshot: &Arc<Snapshot>| {
            let id = snapshot.status.as_ref().and_then(|status| status.id.as_ref());
            let stored = || {
                let (namespace, _) = named(&**snapshot);
                let unread = unread.get(&(namespace, snapshot.spec.repository.clone().unwrap_or_default()));
                let is_unread = |name: &String| unread.is_some_and(|unread| unread.contains(name));
                let mut at = id.and_then(|id| at.get(id)).cloned().unwrap_or_default();
                // That it was not seen there says nothing.
                at.extend(stored_at(snapshot).into_iter().filter(is_unread));
                at
            };
            Item::of_snapshot(snapshot, self.in_storage(snapshot).unwrap_or_else(stored))
        };
        found.items.extend(snapshots.iter().map(of_snapshot));
        found.items.sort_by(|one, other| one.key().cmp(&other.key()));
        found
    }

    pub(crate) async fn find(&self, namespace: &str, name: &str) -> Result<LiveSnapshot, ApiError> {
        if let Ok(snapshot) = self.snapshots.get(namespace, name).await {
            let at = self.in_storage(&snapshot).unwrap_or_else(|| stored_at(&snapshot));
            return Ok(Item::of_snapshot(&snapshot, at).live());
        }
        let Catalogued { items, warnings } = self.catalogue(Some(namespace)).await;
        items.iter().find(|item| item.name == name).map(Item::live).ok_or_else(|| {
            if warnings.is_empty() {
                ApiError::not_found(SNAPSHOTS.about(name))
            } else {
                ApiError::unavailable(format!("{name} is not among what could be read: {}", warnings.join("; ")))
            }
        })
    }
}

impl Item {
    fn of_snapshot(snapshot: &Arc<Snapshot>, at: Vec<String>) -> Self {
        let (namespace, name) = named(&**snapshot);
        Self { namespace, name, of: Known::Snapshot(Arc::clone(snapshot), at) }
    }

    fn of_entry(repository: &Arc<Repository>, entry: Arc<Entry>) -> Self {
        let (namespace, name) = named(&**repository);
        let name = format!("{name}-{}", entry.id.get(..DIGITS).unwrap_or(&entry.id));
        Self { namespace, name, of: Known::Entry(Arc::clone(repository), entry) }
    }

    pub(crate) fn key(&self) -> (&str, &str) {
        (&self.namespace, &self.name)
    }

    /// As it is shown.
    pub(crate) fn live(&self) -> LiveSnapshot {
        match &self.of {
            Known::Snapshot(snapshot, at) => of_snapshot(snapshot, at.clone()),
            Known::Entry(repository, entry) => of_entry(&self.name, repository, entry),
        }
    }
}

fn named<K: kube::Resource>(object: &K) -> (String, String) {
    let (namespace, name, _) = who(object);
    (namespace, name)
}

/// The locations that had it, as its Snapshot says.
fn stored_at(snapshot: &Snapshot) -> Vec<String> {
    let locations = snapshot.status.iter().flat_map(|status| &status.locations);
    locations.filter(|at| at.stored).map(|at| at.name.clone()).collect()
}

fn live(metadata: ObjectMeta, spec: LiveSnapshotSpec, status: LiveSnapshotStatus) -> LiveSnapshot {
    LiveSnapshot {
        api_version: api::LIVE_API_VERSION.to_owned(),
        kind: SNAPSHOTS.kind.to_owned(),
        metadata,
        spec,
        status,
    }
}

fn of_snapshot(snapshot: &Snapshot, at: Vec<String>) -> LiveSnapshot {
    let status = snapshot.status.clone().unwrap_or_default();
    let spec = LiveSnapshotSpec {
        databases: snapshot.spec.databases.clone(),
        method: snapshot.spec.method,
        repository: snapshot.spec.repository.clone(),
    };
    let (namespace, name) = named(snapshot);
    let mut metadata = snapshot.metadata.clone();
    metadata.managed_fields = None;
    // What it stored is not there any more: deleted behind its back, or by somebody else's retention.
    let is_lost = status.phase.is_restorable() && at.len() < status.volumes.len().max(1);
    live(
        metadata,
        spec,
        LiveSnapshotStatus {
            known: KnownBy::Snapshot,
            phase: if is_lost { "Missing".to_owned() } else { status.phase.to_string() },
            taken_as: Some(format!("{namespace}/{name}")),
            taken_at: status.cut_between.as_ref().map(|cut| Time(cut.frozen_at.0)),
            id: status.id,
            locations: at,
            consistency: status.consistency,
            cut_between: status.cut_between,
            contents: status.contents,
            size: status.size,
            volumes: status.volumes,
            paths: Vec::new(),
            program: None,
        },
    )
}

fn of_entry(name: &str, repository: &Repository, entry: &Entry) -> LiveSnapshot {
    let (namespace, of) = named(repository);
    let manifest = entry.manifest();
    let metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some(namespace),
        creation_timestamp: Some(Time(entry.time)),
        labels: labels(entry),
        ..ObjectMeta::default()
    };
    let databases = manifest.into_iter().flat_map(|manifest| &manifest.contents).map(|copy| copy.database.clone());
    let spec = LiveSnapshotSpec { databases: databases.collect(), repository: Some(of), ..LiveSnapshotSpec::default() };
    let status = LiveSnapshotStatus {
        known: match &entry.writer {
            Writer::Ours(_) => KnownBy::Repository,
            Writer::Newer(_) => KnownBy::Newer,
            Writer::Foreign => KnownBy::Foreign,
        },
        phase: "Ready".to_owned(),
        taken_as: manifest.map(|manifest| format!("{}/{}", manifest.snapshot.namespace, manifest.snapshot.name)),
        taken_at: Some(Time(entry.time)),
        id: Some(entry.id.clone()),
        locations: entry.at.clone(),
        consistency: manifest.and_then(|manifest| manifest.consistency.clone()),
        cut_between: manifest.and_then(|manifest| manifest.cut_between.clone()),
        contents: manifest.map(|manifest| manifest.contents.clone()).unwrap_or_default(),
        size: manifest.map(repository::Manifest::size),
        volumes: Vec::new(),
        paths: if manifest.is_some() { Vec::new() } else { entry.paths.clone() },
        program: manifest.is_none().then(|| entry.program.clone()).filter(|program| !program.is_empty()),
    };
    live(metadata, spec, status)
}

/// By which a list can be limited: tags of the form `NAME=VALUE` are labels of ours, as far as they can be.
fn labels(entry: &Entry) -> Option<BTreeMap<String, String>> {
    let fits = |text: &str| text.len() <= 63 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let pairs = entry.tags.iter().filter_map(|tag| tag.split_once('='));
    let labels: BTreeMap<String, String> = pairs
        .filter(|(name, value)| fits(name) && fits(value))
        .map(|(name, value)| (format!("stillpoint.dev/{name}"), value.to_owned()))
        .collect();
    (!labels.is_empty()).then_some(labels)
}
