//! What was found of a Snapshot's VolumeSnapshots, as its status: how far each is, what it is worth, and what all of them are worth
//! together. Pure; in doubt for the lesser.

use std::collections::BTreeMap;

use api::{
    Consistency, CutBetween, Level, OnMissed, Position, SnapshotGroup, SnapshotPhase, SnapshotSpec, SnapshotStatus,
    SnapshotVolume, Verdict, conditions,
    conditions::{reasons, types},
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What is there of one VolumeSnapshot.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) uid: String,
    /// The uid of the Snapshot that it was made for, as it says.
    pub(super) made_for: Option<String>,
    pub(super) ready: bool,
    /// A quantity.
    pub(super) size: Option<String>,
    pub(super) error: Option<String>,
    pub(super) handle: Option<String>,
    pub(super) judged: Option<Judged>,
}

/// What whoever held for a cut says of it, on its content.
#[derive(Clone, Debug)]
pub(super) struct Judged {
    pub(super) consistency: Consistency,
    pub(super) freeze: Option<String>,
    /// When it was held; `None`: it was not, or nobody knows any more.
    pub(super) held: Option<CutBetween>,
    /// By Database.
    pub(super) positions: BTreeMap<String, Position>,
}

/// What follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// These are made, by their places in the status.
    Make(Vec<usize>),
    /// Their VolumeGroupSnapshot is made.
    MakeGroup(SnapshotGroup),
    Wait,
    Ready,
    Failed {
        reason: &'static str,
        message: String,
    },
}

/// How long after a copy is ready somebody may take to say what it is worth.
const JUDGED_WITHIN: SignedDuration = SignedDuration::from_secs(60);

/// `uid`: the Snapshot's. `gates`: whether anybody is asked before a cut here.
pub(super) fn looked(
    mut status: SnapshotStatus,
    spec: &SnapshotSpec,
    uid: &str,
    found: &[Option<Found>],
    gates: bool,
    now: Timestamp,
) -> (SnapshotStatus, Outcome) {
    let mut missing = Vec::new();
    for (at, (volume, found)) in status.volumes.iter_mut().zip(found).enumerate() {
        match (found, &volume.uid) {
            (None, None) => missing.push(at),
            (None, Some(_)) => return gone(status, at),
            (Some(found), _) if found.made_for.as_deref() != Some(uid) => return others(status, at),
            (Some(found), Some(known)) if *known != found.uid => return gone(status, at),
            (Some(found), _) => note(volume, found, gates, now),
        }
    }
    status.message = message(&status.volumes);
    if !missing.is_empty() {
        // Those of a group somebody else makes.
        let outcome = if status.volume_group_snapshot.is_some() { Outcome::Wait } else { Outcome::Make(missing) };
        return (status, outcome);
    }
    if spec.on_missed == Some(OnMissed::Fail)
        && let Some(missed) = status.volumes.iter().find(|volume| was_missed(volume))
    {
        let why = missed.consistency.as_ref().map(|worth| worth.reason.clone()).unwrap_or_default();
        let message = format!("claim {} was not held when it was cut, and spec.onMissed is Fail: {why}", missed.claim);
        return (status, Outcome::Failed { reason: reasons::NOT_HELD, message });
    }
    let is_done = status.volumes.iter().all(|volume| volume.ready_to_use && volume.consistency.is_some());
    if is_done { (ready(status, found, now), Outcome::Ready) } else { (status, Outcome::Wait) }
}

fn gone(status: SnapshotStatus, at: usize) -> (SnapshotStatus, Outcome) {
    let name = &status.volumes[at].volume_snapshot;
    let message = format!("VolumeSnapshot {name} is gone: somebody has deleted it; make another Snapshot");
    (status, Outcome::Failed { reason: reasons::NOT_FOUND, message })
}

fn others(status: SnapshotStatus, at: usize) -> (SnapshotStatus, Outcome) {
    let name = &status.volumes[at].volume_snapshot;
    let message = format!(
        "VolumeSnapshot {name} is there already, and is none of this Snapshot's: delete it, or make a Snapshot of another name"
    );
    (status, Outcome::Failed { reason: reasons::EXISTS, message })
}

fn note(volume: &mut SnapshotVolume, found: &Found, gates: bool, now: Timestamp) {
    volume.uid = Some(found.uid.clone());
    volume.error.clone_from(&found.error);
    if found.handle.is_some() {
        volume.handle.clone_from(&found.handle);
    }
    volume.ready_to_use = found.ready;
    if found.ready {
        volume.error = None;
        volume.ready_at.get_or_insert(Time(now));
    }
    volume.size = larger(volume.size.take(), found.size.clone());
    if let Some(judged) = &found.judged {
        volume.consistency = Some(judged.consistency.clone());
        volume.freeze.clone_from(&judged.freeze);
    } else if let Some(ready) = &volume.ready_at
        && volume.consistency.is_none()
    {
        let worth = |verdict, reason: &str| Some(Consistency { verdict, level: None, reason: reason.to_owned() });
        if !gates {
            volume.consistency = worth(Verdict::Crash, NO_GATES);
        } else if now.duration_since(ready.0) >= JUDGED_WITHIN {
            volume.consistency = worth(Verdict::Unknown, NOT_JUDGED);
        }
    }
}

const NO_GATES: &str = "NotFrozen: Stillpoint is not asked before a cut in this cluster: the apiserver has no gates (--gates-listen; \
                        webhooks.enabled of the chart)";
const NOT_JUDGED: &str = "NotJudged: nobody has said what it is worth: `kubectl still doctor` says what is missing";

fn was_missed(volume: &SnapshotVolume) -> bool {
    volume.consistency.as_ref().is_some_and(|worth| !worth.verdict.was_held())
}

/// What is waited for, and what is in the way.
fn message(volumes: &[SnapshotVolume]) -> Option<String> {
    let waits = volumes.iter().filter(|volume| !volume.ready_to_use || volume.consistency.is_none()).map(|volume| {
        let name = &volume.volume_snapshot;
        match (&volume.error, volume.uid.is_some(), volume.handle.is_some(), volume.ready_to_use) {
            (Some(error), ..) => format!("VolumeSnapshot {name}: {error}; it is tried again"),
            (None, false, ..) => format!("VolumeSnapshot {name} is being made"),
            (None, _, false, false) => format!("VolumeSnapshot {name} is not cut yet"),
            (None, _, _, false) => format!("VolumeSnapshot {name} is cut, and not ready to use yet"),
            (None, _, _, true) => format!("nobody has said yet what VolumeSnapshot {name} is worth"),
        }
    });
    let all = waits.collect::<Vec<_>>().join("; ");
    (!all.is_empty()).then_some(all)
}

fn ready(mut status: SnapshotStatus, found: &[Option<Found>], now: Timestamp) -> SnapshotStatus {
    let judged: Vec<&Judged> = found.iter().flatten().filter_map(|found| found.judged.as_ref()).collect();
    let worth = together(&status.volumes, status.volume_group_snapshot.as_ref());
    let held: Option<Vec<&CutBetween>> = judged.iter().map(|judged| judged.held.as_ref()).collect();
    let held = held.filter(|_| worth.verdict.was_held() && judged.len() == status.volumes.len());
    status.cut_between = held.and_then(|held| {
        let from = held.iter().map(|cut| &cut.frozen_at).min()?.clone();
        let to = held.iter().map(|cut| &cut.thawed_at).max()?.clone();
        Some(CutBetween { frozen_at: from, thawed_at: to })
    });
    for copy in &mut status.contents {
        copy.position = judged.iter().find_map(|judged| judged.positions.get(&copy.database)).cloned();
    }
    let sizes: Option<Vec<u64>> =
        status.volumes.iter().map(|volume| api::inject::bytes(volume.size.as_deref()?)).collect();
    status.size = sizes.map(|sizes| sizes.iter().fold(0, |all: u64, one| all.saturating_add(*one)));
    status.phase = SnapshotPhase::Ready;
    status.finished_at = Some(Time(now));
    status.message =
        (worth.verdict != Verdict::Application).then(|| format!("it is {}: {}", worth.verdict, worth.reason));
    let message = status.message.clone().unwrap_or_default();
    status.consistency = Some(worth);
    condition(&mut status, true, reasons::OK, &message, now);
    status
}

/// What all of it is worth: no more than the least of it, and of several cuts not all is of one instant.
fn together(volumes: &[SnapshotVolume], group: Option<&SnapshotGroup>) -> Consistency {
    let worths = || volumes.iter().filter_map(|volume| volume.consistency.as_ref());
    let worst = worths().map(|worth| worth.verdict).max().unwrap_or(Verdict::Unknown);
    let levels: Option<Vec<Level>> = worths().map(|worth| worth.level).collect();
    let level = levels.and_then(|levels| levels.into_iter().min()).filter(|_| worst.was_held());
    if let [only] = volumes
        && let Some(worth) = &only.consistency
    {
        return worth.clone();
    }
    let of = |volume: &SnapshotVolume| {
        let worth = volume.consistency.as_ref();
        let verdict = worth.map_or(Verdict::Unknown, |worth| worth.verdict);
        format!("{}: {verdict}, {}", volume.claim, worth.map(|worth| worth.reason.as_str()).unwrap_or_default())
    };
    let each = volumes.iter().map(of).collect::<Vec<_>>().join("; ");
    if let Some(group) = group {
        let reason = format!("all claims were cut by VolumeGroupSnapshot {}. {each}", group.name);
        return Consistency { verdict: worst, level, reason };
    }
    let reason = format!("{} claims were cut one after the other, each by itself. {each}", volumes.len());
    Consistency { verdict: worst.max(Verdict::Partial), level, reason }
}

/// There is none.
pub(super) fn failed(mut status: SnapshotStatus, reason: &str, message: &str, now: Timestamp) -> SnapshotStatus {
    status.phase = SnapshotPhase::Failed;
    status.finished_at = Some(Time(now));
    status.message = Some(message.to_owned());
    condition(&mut status, false, reason, message, now);
    status
}

pub(super) fn condition(status: &mut SnapshotStatus, is: bool, reason: &str, message: &str, now: Timestamp) {
    let generation = status.observed_generation;
    conditions::set_condition(&mut status.conditions, types::READY, is, reason, message, generation, now);
}

/// Of two quantities.
pub(super) fn larger(one: Option<String>, other: Option<String>) -> Option<String> {
    let bytes = |size: &Option<String>| size.as_deref().and_then(api::inject::bytes);
    if bytes(&other) > bytes(&one) { other } else { one }
}

#[cfg(test)]
mod tests;
