//! One step about one Snapshot: what is there is found, and what follows is done.

use std::{collections::BTreeMap, sync::Arc};

use api::{
    Database, DatabaseCopy, Snapshot, SnapshotGroup, SnapshotMethod, SnapshotPhase, SnapshotStatus, SnapshotVolume,
    Verdict, conditions::reasons, gate,
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PostParams;
use serde_json::Value;
use tracing::debug;

use super::{
    MADE_FOR, Storage,
    claims::{self, Unknown},
    group::{self, Cut},
    kinds::VolumeSnapshot,
    plan::{self, Next},
    refused,
    worth::{self, Outcome, looked},
};
use crate::{
    copies::{Copies, kept::who},
    error::ApiError,
    records::cluster::told,
    resources::{Resource, SNAPSHOTS},
};

pub(super) const KIND: &Resource = &SNAPSHOTS;

/// Of what a Snapshot is made.
struct Cuts {
    volumes: Vec<SnapshotVolume>,
    contents: Vec<DatabaseCopy>,
    warnings: Vec<String>,
    /// What cuts all of them at one instant, where that is done.
    group: Option<SnapshotGroup>,
}

/// Why it is not known of what.
enum Hindered {
    /// What is in the way may go.
    Now(Unknown),
    Always(Unknown),
}

/// Whether it is of volumes, and something is to be done about it: of a finished one nothing but when it is deleted.
pub(super) fn is_to_do(snapshot: &Snapshot) -> bool {
    let status = snapshot.status.as_ref();
    let is_over = status.is_some_and(|status| match status.phase {
        SnapshotPhase::Failed => status.volumes.is_empty(),
        phase => phase.is_finished(),
    });
    let is_finished = is_over && snapshot.metadata.deletion_timestamp.is_none();
    snapshot.spec.method == SnapshotMethod::VolumeSnapshot && !is_finished
}

pub(super) async fn turn(copies: Copies, storage: Storage, namespace: String, name: String) {
    let Ok(snapshot) = copies.snapshots.get(&namespace, &name).await else { return };
    // It may have waited for its turn while another was chosen. Dumps are taken elsewhere.
    if !copies.lead.is_ours() || snapshot.spec.method == SnapshotMethod::Dump {
        return;
    }
    let done = match plan::next(&snapshot, Timestamp::now()) {
        Next::Nothing => Ok(()),
        Next::LetGo => copies.snapshots.let_go(&namespace, &name, api::FINALIZER_SNAPSHOT).await,
        Next::TooLate => {
            let why = snapshot.status.as_ref().and_then(|status| status.message.clone()).unwrap_or_default();
            copies.no_copy(&snapshot, reasons::DEADLINE_EXCEEDED, &too_late(&why)).await
        }
        Next::Begin => copies.begin(&storage, &snapshot).await,
        Next::Look => copies.look(&storage, &snapshot).await,
        Next::Remove => copies.remove(&storage, &snapshot).await,
    };
    if let Err(error) = done {
        debug!(namespace, name, message = %error.message, why = ?error.internal, "not now; trying again");
    }
}

fn too_late(why: &str) -> String {
    format!("it was not done within spec.deadlineSeconds: {why}")
}

impl Copies {
    /// Of what it is, as its Databases stand now.
    async fn begin(&self, storage: &Storage, snapshot: &Snapshot) -> Result<(), ApiError> {
        let (namespace, name, _) = who(snapshot);
        let Cuts { volumes, contents, warnings, group } = match self.cuts(storage, snapshot).await? {
            Ok(cuts) => cuts,
            Err(Hindered::Now(why)) => return self.waits(snapshot, why.reason, &why.message).await,
            Err(Hindered::Always(why)) => return self.no_copy(snapshot, why.reason, &why.message).await,
        };
        self.snapshots.keep(&namespace, &name, api::FINALIZER_SNAPSHOT).await?;
        self.change(snapshot, |mut status| {
            let now = Timestamp::now();
            status.phase = SnapshotPhase::Running;
            status.attempts += 1;
            status.started_at.get_or_insert(Time(now));
            status.message = None;
            status.volumes.clone_from(&volumes);
            status.volume_group_snapshot.clone_from(&group);
            status.contents.clone_from(&contents);
            status.warnings.clone_from(&warnings);
            worth::condition(&mut status, false, reasons::IN_PROGRESS, "it is being taken", now);
            status
        })
        .await?;
        let all = volumes.iter().map(|volume| volume.claim.as_str()).collect::<Vec<_>>().join(", ");
        self.tell(KIND, snapshot, true, "Started", &format!("of claims {all}")).await;
        Ok(())
    }

    /// As its Databases stand now.
    async fn cuts(&self, storage: &Storage, snapshot: &Snapshot) -> Result<Result<Cuts, Hindered>, ApiError> {
        let (namespace, name, _) = who(snapshot);
        if !storage.watched.is_complete() {
            let message = "it is not known yet what stands where in this cluster; in a moment".to_owned();
            return Ok(Err(Hindered::Now(Unknown { reason: reasons::IN_PROGRESS, message })));
        }
        let mut databases: Vec<Arc<Database>> = Vec::new();
        for database in &snapshot.spec.databases {
            match self.records.database(&namespace, database).await {
                Ok(found) => databases.push(found),
                Err(error) if error.code == 404 => {
                    let message = format!("there is no Database {database}");
                    return Ok(Err(Hindered::Always(Unknown { reason: reasons::NOT_FOUND, message })));
                }
                Err(error) => return Err(error),
            }
        }
        let databases: Vec<&Database> = databases.iter().map(AsRef::as_ref).collect();
        let found = claims::claims(&storage.watched.index(), &namespace, &name, &databases);
        let (mut volumes, mut warnings) = match found {
            Ok(found) => found,
            Err(unknown) => return Ok(Err(Hindered::Now(unknown))),
        };
        let group = match storage.how_cut(snapshot, &volumes).await? {
            Ok(Cut::Together(group)) => Some(group),
            Ok(Cut::Each(why)) => {
                warnings.extend(why);
                None
            }
            Err(message) => return Ok(Err(Hindered::Now(Unknown { reason: reasons::NOT_FOUND, message }))),
        };
        for volume in &mut volumes {
            describe(storage, &namespace, volume).await?;
            if group.is_some() {
                volume.volume_snapshot.clear();
            }
        }
        let contents = databases.iter().copied().map(copy_of).collect();
        Ok(Ok(Cuts { volumes, contents, warnings, group }))
    }

    /// Those that are made for it, or the one VolumeGroupSnapshot: of what was written down, or would be now.
    pub(in crate::copies) async fn volume_snapshots(
        &self,
        storage: &Storage,
        snapshot: &Snapshot,
    ) -> Result<Vec<Value>, ApiError> {
        let status = snapshot.status.clone().unwrap_or_default();
        let (volumes, group) = if status.volumes.is_empty() {
            match self.cuts(storage, snapshot).await? {
                Ok(cuts) => (cuts.volumes, cuts.group),
                Err(Hindered::Now(why) | Hindered::Always(why)) => {
                    return Err(ApiError::conflict_message(why.message));
                }
            }
        } else {
            (status.volumes, status.volume_group_snapshot)
        };
        let made: Result<Vec<Value>, serde_json::Error> = match &group {
            Some(group) => group::object(storage, snapshot, group).and_then(|one| Ok(vec![serde_json::to_value(one)?])),
            None => volumes.iter().map(|of| serde_json::to_value(volume_snapshot(snapshot, of))).collect(),
        };
        made.map_err(ApiError::internal)
    }

    /// Makes what is not there, and says what is.
    async fn look(&self, storage: &Storage, snapshot: &Snapshot) -> Result<(), ApiError> {
        let before = snapshot.status.clone().unwrap_or_default();
        let (status, outcome) = self.seen(storage, snapshot, before.clone()).await?;
        let is_late = Timestamp::now() > plan::deadline(snapshot);
        match outcome {
            Outcome::Failed { reason, message } => return self.no_copy_of(snapshot, &status, reason, &message).await,
            Outcome::Make(_) | Outcome::MakeGroup(_) | Outcome::Wait if is_late => {
                // What was said last knows more than what is seen now: why it was refused, say.
                let why = before.message.as_deref().or(status.message.as_deref());
                let message = too_late(why.unwrap_or_default());
                return self.no_copy_of(snapshot, &status, reasons::DEADLINE_EXCEEDED, &message).await;
            }
            Outcome::MakeGroup(group) => {
                let refused = self.make_group(storage, snapshot, &group).await;
                self.has_made(snapshot, &before, status, refused).await?;
            }
            Outcome::Make(missing) => {
                let mut refused = None;
                for at in missing {
                    refused = refused.or(self.make(storage, snapshot, &status.volumes[at]).await);
                }
                self.has_made(snapshot, &before, status, refused).await?;
            }
            Outcome::Wait => {
                self.put(snapshot, &before, &status).await?;
                let error = |status: &SnapshotStatus| status.volumes.iter().find_map(|volume| volume.error.clone());
                self.tell_news(snapshot, "VolumeSnapshotError", error(&before).as_ref(), error(&status).as_ref()).await;
            }
            Outcome::Ready => {
                self.put(snapshot, &before, &status).await?;
                let worth = status.consistency.as_ref();
                let is_good = worth.is_some_and(|worth| worth.verdict == Verdict::Application);
                let said = worth.map(|worth| format!("{}: {}", worth.verdict, worth.reason)).unwrap_or_default();
                self.tell(KIND, snapshot, is_good, "Stored", &said).await;
            }
        }
        Ok(())
    }

    /// What is there of it, and what follows.
    async fn seen(
        &self,
        storage: &Storage,
        snapshot: &Snapshot,
        mut status: SnapshotStatus,
    ) -> Result<(SnapshotStatus, Outcome), ApiError> {
        let (_, _, uid) = who(snapshot);
        if let Some(group) = status.volume_group_snapshot.clone()
            && status.volumes.iter().any(|volume| volume.volume_snapshot.is_empty())
        {
            let (now, outcome) = self.look_at_group(storage, snapshot, status, &group).await?;
            match outcome {
                Some(outcome) => return Ok((now, outcome)),
                None => status = now,
            }
        }
        let mut found = Vec::new();
        for volume in &status.volumes {
            found.push(self.found(storage, snapshot, volume).await?);
        }
        Ok(looked(status, &snapshot.spec, &uid, &found, storage.gates, Timestamp::now()))
    }

    /// What was missing; or not, and why.
    async fn has_made(
        &self,
        snapshot: &Snapshot,
        before: &SnapshotStatus,
        status: SnapshotStatus,
        refused: Option<String>,
    ) -> Result<(), ApiError> {
        let next = SnapshotStatus { message: refused.clone().or(status.message.clone()), ..status };
        self.put(snapshot, before, &next).await?;
        self.tell_news(snapshot, "VolumeSnapshotRefused", before.message.as_ref(), refused.as_ref()).await;
        Ok(())
    }

    /// Only by who has seen what it follows on.
    async fn put(&self, snapshot: &Snapshot, before: &SnapshotStatus, next: &SnapshotStatus) -> Result<(), ApiError> {
        self.change(snapshot, |status| if status == *before { next.clone() } else { status }).await
    }

    /// Answers why it cannot be made now.
    async fn make(&self, storage: &Storage, snapshot: &Snapshot, volume: &SnapshotVolume) -> Option<String> {
        let (namespace, _, _) = who(snapshot);
        let made = volume_snapshot(snapshot, volume);
        match storage.snapshots(&namespace).create(&PostParams::default(), &made).await {
            Ok(_) => None,
            // Whose it is shows when it is looked at.
            Err(kube::Error::Api(status)) if status.code == 409 => None,
            Err(error) => Some(refused(&error, "VolumeSnapshots", &namespace)),
        }
    }

    /// What is in the way, when it is that no more than when it was seen first.
    async fn tell_news(&self, snapshot: &Snapshot, reason: &str, before: Option<&String>, now: Option<&String>) {
        if let Some(news) = now.filter(|_| now != before) {
            self.tell(KIND, snapshot, false, reason, news).await;
        }
    }

    /// Nothing goes on now; what is in the way may go.
    async fn waits(&self, snapshot: &Snapshot, reason: &str, message: &str) -> Result<(), ApiError> {
        let before = snapshot.status.as_ref().and_then(|status| status.message.as_deref());
        self.change(snapshot, |mut status| {
            status.message = Some(message.to_owned());
            worth::condition(&mut status, false, reason, message, Timestamp::now());
            status
        })
        .await?;
        if before != Some(message) && reason != reasons::IN_PROGRESS {
            self.tell(KIND, snapshot, false, reason, message).await;
        }
        Ok(())
    }

    async fn no_copy(&self, snapshot: &Snapshot, reason: &str, message: &str) -> Result<(), ApiError> {
        let status = snapshot.status.clone().unwrap_or_default();
        self.no_copy_of(snapshot, &status, reason, message).await
    }

    async fn no_copy_of(
        &self,
        snapshot: &Snapshot,
        status: &SnapshotStatus,
        reason: &str,
        message: &str,
    ) -> Result<(), ApiError> {
        // Only by who has seen what it follows on: another may have made a copy of it meanwhile.
        let before = snapshot.status.clone().unwrap_or_default();
        let failed = |_| worth::failed(status.clone(), reason, message, Timestamp::now());
        if self.change_where(snapshot, |now| *now == before, failed).await? {
            self.tell(KIND, snapshot, false, reason, message).await;
        }
        Ok(())
    }
}

/// Of what is made for it: its name, and what it wants, in the words that gates read. A namespace may want otherwise.
pub(super) fn annotations(snapshot: &Snapshot) -> BTreeMap<String, String> {
    let (_, name, _) = who(snapshot);
    let said = |key: &str, value: Option<String>| value.map(|value| (key.to_owned(), value));
    let on_missed = snapshot.spec.on_missed.map(|on_missed| format!("{on_missed:?}"));
    let deadline = snapshot.spec.deadline_seconds.map(|seconds| seconds.to_string());
    let all = [said(MADE_FOR, Some(name)), said(gate::ON_MISSED, on_missed), said(gate::DEADLINE_SECONDS, deadline)];
    all.into_iter().flatten().collect()
}

/// Pure.
fn volume_snapshot(snapshot: &Snapshot, volume: &SnapshotVolume) -> VolumeSnapshot {
    let (namespace, _, uid) = who(snapshot);
    let metadata = ObjectMeta {
        name: Some(volume.volume_snapshot.clone()),
        namespace: Some(namespace),
        labels: Some(BTreeMap::from([(api::LABEL_SNAPSHOT.to_owned(), uid)])),
        annotations: Some(annotations(snapshot)),
        ..ObjectMeta::default()
    };
    VolumeSnapshot::new(metadata, &volume.claim, snapshot.spec.volume_snapshot_class_name.as_deref())
}

/// What a claim that is made of it later has to be like: the claim itself may be gone then.
async fn describe(storage: &Storage, namespace: &str, volume: &mut SnapshotVolume) -> Result<(), ApiError> {
    let claim =
        storage.claim(namespace, &volume.claim).await.map_err(|error| told(&error, KIND.about(&volume.claim)))?;
    let Some(spec) = claim.and_then(|claim| claim.spec) else { return Ok(()) };
    volume.storage_class_name = spec.storage_class_name;
    volume.access_modes = spec.access_modes.unwrap_or_default();
    volume.volume_mode = spec.volume_mode;
    let requests = spec.resources.and_then(|resources| resources.requests);
    volume.size = requests.and_then(|requests| requests.get("storage").map(|size| size.0.clone()));
    Ok(())
}

/// Where it stood is known when it is cut.
fn copy_of(database: &Database) -> DatabaseCopy {
    let members = database.status.as_ref().map(|status| status.members.as_slice()).unwrap_or_default();
    let role = database.spec.freeze.target.role;
    let member = members.iter().find(|member| member.role == role).or(members.first());
    DatabaseCopy {
        database: database.metadata.name.clone().unwrap_or_default(),
        engine: database.spec.engine,
        version: member.map(|member| member.version.clone()).unwrap_or_default(),
        tool: String::new(),
        dump_tool: None,
        position: None,
        files: Vec::new(),
    }
}
