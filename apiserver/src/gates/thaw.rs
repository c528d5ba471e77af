//! After the cut: every replica follows the contents of snapshots, and ends the claims that it holds for one as soon as the driver has
//! said that it has cut, or nobody waits for it any more; then it says on content and snapshot what the copy is worth.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use api::{
    Claim, FreezeStatus, Stage,
    gate::{self, CONSISTENCY, GROUP_SNAPSHOTS, Group, SNAPSHOTS},
};
use freeze::FreezeView;
use futures::{StreamExt, stream::select};
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
    runtime::{WatchStreamExt, watcher},
};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use super::{
    Gates, atomic,
    contents::{Content, Fate},
    cut::{self, Wanted},
    verdict::{self, Calls, Held, Seen, Verdict, Window, judge},
};

/// How often it is looked for claims whose admission was never stored.
const LOOK: Duration = Duration::from_secs(1);
/// How long an admitted mark may take until it is stored, and seen here.
const STORED: Duration = Duration::from_secs(10);
/// How long whoever held for a cut is let to say what it is worth, before it is said that nobody did.
const FIRST: Duration = Duration::from_secs(5);

/// A claim that is held here for a content.
#[derive(Clone, Debug)]
struct Ours {
    namespace: String,
    database: String,
    claim: Claim,
}

/// Why a claim ends.
#[derive(Clone, Debug)]
enum End {
    Cut {
        content: Box<Content>,
        created: Option<Timestamp>,
        again: bool,
    },
    /// The driver has refused, the content is gone, or its admission was never stored.
    Nobody,
}

/// For ever.
pub(super) async fn run(gates: Gates, watching: Client) {
    let events = |group| {
        let kind = resource(group);
        let api: Api<DynamicObject> = Api::all_with(watching.clone(), &kind);
        Box::pin(watcher(api, watcher::Config::default()).default_backoff().map(move |event| (group, event)))
    };
    let mut events = select(events(Group::Single), events(Group::Group));
    let began = Timestamp::now();
    let mut contents: HashMap<String, Content> = HashMap::new();
    // Those of which a call has failed without saying what it did.
    let mut failed: HashSet<String> = HashSet::new();
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let changed = tokio::select! {
            event = events.next() => match event {
                Some((group, Ok(event))) => take(&mut contents, group, event),
                // Clusters without groups of snapshots, or without snapshots, are no fault.
                Some((group, Err(error))) => {
                    debug!(?group, %error, "contents of snapshots cannot be followed now");
                    None
                }
                None => return,
            },
            _ = tick.tick() => None,
        };
        if let Some(content) = &changed {
            match content.fate {
                Fate::Calling { failed: true } => drop(failed.insert(content.uid.clone())),
                // What was cut before we were there nobody was asked about.
                Fate::Cut { .. } if !content.is_judged && content.made > began && gates.0.verbs.leads() => {
                    tokio::spawn(not_held(gates.clone(), content.clone()));
                }
                _ => {}
            }
        }
        for ours in held_here(&gates) {
            let Some((_, uid)) = cut::content_of(&ours.claim.uid) else { continue };
            let young = Timestamp::now().duration_since(ours.claim.since.0).unsigned_abs() < STORED;
            let end = match contents.get(uid) {
                Some(content) => match content.fate {
                    Fate::Cut { created } => {
                        End::Cut { created, again: failed.remove(uid), content: Box::new(content.clone()) }
                    }
                    Fate::Calling { .. } => continue,
                    Fate::Before if young => continue,
                    Fate::Before => End::Nobody,
                },
                None if young => continue,
                None => End::Nobody,
            };
            tokio::spawn(finish(gates.clone(), ours, end));
        }
        if changed.is_none() {
            failed.retain(|uid| contents.contains_key(uid));
        }
    }
}

/// Keeps what is not over; answers what changed.
fn take(
    contents: &mut HashMap<String, Content>,
    group: Group,
    event: watcher::Event<DynamicObject>,
) -> Option<Content> {
    match event {
        watcher::Event::Init | watcher::Event::InitDone => None,
        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => {
            let content = Content::read(&object, group)?;
            contents.insert(content.uid.clone(), content.clone());
            Some(content)
        }
        watcher::Event::Delete(object) => contents.remove(object.metadata.uid.as_deref()?),
    }
}

/// Claims of gates in freezes that this replica executes.
fn held_here(gates: &Gates) -> Vec<Ours> {
    let us = &gates.0.us.name;
    let views = gates.0.verbs.freezer.views();
    views.iter().flat_map(|view| claims(view, us)).collect()
}

fn claims<'v>(view: &'v FreezeView, us: &'v str) -> impl Iterator<Item = Ours> + 'v {
    let database = view.status.targets.first().map(|target| target.database.clone()).unwrap_or_default();
    let live = view
        .status
        .claims
        .iter()
        .filter(move |claim| claim.ended_at.is_none() && claim.user == us && cut::content_of(&claim.uid).is_some());
    live.map(move |claim| Ours {
        namespace: view.freeze.namespace.clone(),
        database: database.clone(),
        claim: claim.clone(),
    })
}

async fn finish(gates: Gates, ours: Ours, end: End) {
    let seen_at = Timestamp::now();
    let freezer = &gates.0.verbs.freezer;
    let ended = freezer.unquiesce(&ours.namespace, &ours.database, &ours.claim.uid, Stage::Thaw).await;
    let End::Cut { content, created, again } = end else {
        info!(claim = ours.claim.uid, "nobody waits for this cut any more");
        return;
    };
    let Some(Ok(ended)) = ended else {
        debug!(claim = ours.claim.uid, ?ended, "it was let go already");
        return;
    };
    let verdict = judged(&gates, &ours, &content, &ended.status, Observed { seen_at, created, again }).await;
    info!(content = content.name, freeze = %ended.freeze, consistency = verdict.consistency.word(), "a cut is judged");
    write(&gates, &content, Some((&ended.freeze.name, &ended.status)), &verdict).await;
}

/// Of a cut that nobody was held for, though a Database has data on it.
async fn not_held(gates: Gates, content: Content) {
    sleep(FIRST).await;
    let has = |claim: &Claim| cut::content_of(&claim.uid).is_some_and(|(_, uid)| uid == content.uid);
    let freezes = gates.0.verbs.records.freezes();
    let mut begun = freezes.iter().filter_map(|freeze| freeze.status.as_ref());
    if begun.any(|status| status.freezer.is_some() && status.frozen_at.is_some() && status.claims.iter().any(has)) {
        return;
    }
    let contents: Api<DynamicObject> = Api::all_with(gates.0.client.clone(), &resource(content.group));
    let now = contents.get_opt(&content.name).await;
    match now.map(|now| now.and_then(|now| Content::read(&now, content.group))) {
        Ok(Some(now)) if !now.is_judged => {}
        Ok(_) => return,
        Err(error) => warn!(content = content.name, %error, "it could not be read again"),
    }
    // Else nothing of ours is on it.
    let Some((cut, of)) = volumes(&gates, &content) else { return };
    let why =
        "nobody asked before the cut, or it could not be held: see its Events, and the log of stillpoint-apiserver";
    let verdict = judge(&Seen { atomic: false, cut, of, held: Held::Not { why: why.to_owned() } });
    info!(content = content.name, consistency = verdict.consistency.word(), "a cut that nobody was held for is judged");
    write(&gates, &content, None, &verdict).await;
}

/// What was seen of a cut from outside.
#[derive(Clone, Copy, Debug)]
struct Observed {
    seen_at: Timestamp,
    created: Option<Timestamp>,
    again: bool,
}

async fn judged(gates: &Gates, ours: &Ours, content: &Content, status: &FreezeStatus, seen: Observed) -> Verdict {
    let class = class_says(gates, content).await;
    let atomic = atomic::is_atomic(&content.driver, content.group, class.as_deref());
    let Some((cut, of)) = volumes(gates, content) else {
        // Its Pod is gone by now: nobody can tell whether these are all volumes that it had.
        return verdict::unknown("PodGone", "whoever had its volumes was gone when the cut was seen");
    };
    let claim = status.claims.iter().rev().find(|claim| claim.uid == ours.claim.uid).unwrap_or(&ours.claim);
    let proved =
        !status.targets.is_empty() && status.targets.iter().all(|target| target.proof.as_ref().is_some_and(|p| p.held));
    let held = match claim.frozen_at.as_ref().or(status.frozen_at.as_ref()) {
        _ if claim.until.0 < seen.seen_at => {
            Held::Ended { why: "its claim had lapsed before the cut was seen".to_owned() }
        }
        None => Held::Ended { why: status.message.clone().unwrap_or_else(|| "it never held".to_owned()) },
        Some(from) => {
            let calls = if seen.again { Calls::Again { created: seen.created } } else { Calls::Once };
            Held::Throughout { window: Window { from: from.0, to: seen.seen_at }, calls, proved }
        }
    };
    judge(&Seen { atomic, cut, of, held })
}

/// The claims that were cut, and all that their Databases have data on. `None`: no Database has any on them.
fn volumes(gates: &Gates, content: &Content) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
    let index = gates.0.watched.index();
    let claims = cut::claims(&index, &content.driver, &content.handles);
    let databases = gates.0.verbs.records.databases(claims.first().map(|(namespace, _)| namespace.as_str()));
    let databases: Vec<_> = databases.iter().map(AsRef::as_ref).collect();
    match cut::wanted(&index, &claims, &databases) {
        Wanted::Hold(together) => Some((together.cut, together.of)),
        Wanted::Nothing(_) => None,
    }
}

async fn class_says(gates: &Gates, content: &Content) -> Option<String> {
    let kind = match content.group {
        Group::Single => named(SNAPSHOTS, "VolumeSnapshotClass", "volumesnapshotclasses"),
        Group::Group => named(GROUP_SNAPSHOTS, "VolumeGroupSnapshotClass", "volumegroupsnapshotclasses"),
    };
    let classes: Api<DynamicObject> = Api::all_with(gates.0.client.clone(), &kind);
    let class = classes.get_opt(content.class.as_deref()?).await;
    let metadata = class.inspect_err(|error| warn!(%error, "a snapshot class could not be read")).ok()??.metadata;
    let said = |all: &Option<std::collections::BTreeMap<String, String>>| all.as_ref()?.get(gate::ATOMIC).cloned();
    said(&metadata.labels).or_else(|| said(&metadata.annotations))
}

/// On the content and on its snapshot. What cannot be written is told in the log: the Freeze has it, too.
async fn write(gates: &Gates, content: &Content, held: Option<(&str, &FreezeStatus)>, verdict: &Verdict) {
    let mut annotations = json!({gate::REASON: verdict.reason, gate::MESSAGE: verdict.message});
    if let Some((freeze, status)) = held {
        let positions: serde_json::Map<String, Value> = status
            .targets
            .iter()
            .filter_map(|target| Some((target.database.clone(), serde_json::to_value(target.position.as_ref()?).ok()?)))
            .collect();
        annotations[gate::FREEZE] = freeze.into();
        annotations[gate::LEVEL] = status.level.unwrap_or_default().to_string().into();
        annotations[gate::POSITION] = Value::Object(positions).to_string().into();
        if let Some(held) = status.frozen_milliseconds {
            annotations[gate::FROZEN_MILLISECONDS] = held.to_string().into();
        }
    }
    let patch = json!({"metadata": {"labels": {CONSISTENCY: verdict.consistency.word()}, "annotations": annotations}});
    let patch = Patch::Merge(patch);
    let (kind, of) = (resource(content.group), snapshot(content.group));
    let contents: Api<DynamicObject> = Api::all_with(gates.0.client.clone(), &kind);
    let snapshots: Api<DynamicObject> = Api::namespaced_with(gates.0.client.clone(), &content.snapshot.0, &of);
    let params = PatchParams::default();
    let (one, other) = tokio::join!(
        contents.patch(&content.name, &params, &patch),
        snapshots.patch(&content.snapshot.1, &params, &patch)
    );
    for error in [one.err(), other.err()].into_iter().flatten() {
        warn!(content = content.name, %error, "what a snapshot is worth could not be written on it");
    }
}

fn resource(group: Group) -> ApiResource {
    match group {
        Group::Single => named(SNAPSHOTS, "VolumeSnapshotContent", "volumesnapshotcontents"),
        Group::Group => named(GROUP_SNAPSHOTS, "VolumeGroupSnapshotContent", "volumegroupsnapshotcontents"),
    }
}

fn snapshot(group: Group) -> ApiResource {
    match group {
        Group::Single => named(SNAPSHOTS, "VolumeSnapshot", "volumesnapshots"),
        Group::Group => named(GROUP_SNAPSHOTS, "VolumeGroupSnapshot", "volumegroupsnapshots"),
    }
}

fn named(group: &str, kind: &str, plural: &str) -> ApiResource {
    let version = "v1";
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}
