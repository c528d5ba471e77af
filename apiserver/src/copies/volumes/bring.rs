//! Restores to new claims, each of one VolumeSnapshot of a Snapshot. No claim that is there is ever touched: what has a name already
//! has it for somebody.

use std::sync::Arc;

use api::{
    ChosenCopy, Restore, RestorePhase, RestoredVolume, Snapshot, SnapshotMethod, conditions::reasons, runner::FailedRun,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::{core::v1::PersistentVolumeClaim, storage::v1::StorageClass},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, api::PostParams};
use tracing::debug;

use super::{
    Storage, refused,
    wanted::{Planned, claim, planned},
};
use crate::{
    copies::{Copies, kept::who, restores::complete},
    error::ApiError,
    records::cluster::told,
    resources::{RESTORES, Resource},
};

/// A reason and a message.
type Why = (&'static str, String);

const KIND: &Resource = &RESTORES;
/// How long claims may take until they have their volumes: drivers copy for hours.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);
/// Of a StorageClass whose volumes are made for the first Pod.
const FIRST_POD: &str = "WaitForFirstConsumer";

/// What became of one claim.
enum Made {
    Bound,
    /// It is there, and has no volume before a Pod uses it.
    ForTheFirstPod,
    Waits(String),
}

pub(super) async fn turn(copies: Copies, storage: Storage, namespace: String, name: String) {
    let Ok(restore) = copies.restores.get(&namespace, &name).await else { return };
    // What goes into a server is brought back elsewhere.
    if !copies.lead.is_ours() || restore.metadata.deletion_timestamp.is_some() || !restore.spec.database.is_empty() {
        return;
    }
    let done = match restore.status.clone().unwrap_or_default().phase {
        RestorePhase::Complete | RestorePhase::Failed => Ok(()),
        RestorePhase::Pending => copies.begin_claims(&storage, &restore).await,
        RestorePhase::Running => copies.look_at_claims(&storage, &restore).await,
    };
    if let Err(error) = done {
        debug!(namespace, name, message = %error.message, why = ?error.internal, "not now; trying again");
    }
}

impl Copies {
    /// Everything is looked at before anything is made.
    async fn begin_claims(&self, storage: &Storage, restore: &Restore) -> Result<(), ApiError> {
        let (snapshot, planned) = match self.planned_of(restore).await? {
            Ok(found) => found,
            Err((reason, message)) => return self.no_claims(restore, reason, &message).await,
        };
        if let Some((reason, message)) = in_the_way(storage, restore, &planned).await? {
            return self.no_claims(restore, reason, &message).await;
        }
        let status = snapshot.status.clone().unwrap_or_default();
        let taken = status.cut_between.as_ref().map(|cut| Time(cut.frozen_at.0)).or(status.finished_at);
        let chosen = ChosenCopy {
            snapshot: snapshot.metadata.name.clone().unwrap_or_default(),
            taken_at: taken,
            ..ChosenCopy::default()
        };
        let volumes: Vec<RestoredVolume> = planned
            .into_iter()
            .map(|one| RestoredVolume {
                claim: one.of.claim,
                name: one.name,
                volume_snapshot: one.of.volume_snapshot,
                ..RestoredVolume::default()
            })
            .collect();
        self.change_restore(restore, |mut status| {
            let now = Timestamp::now();
            status.phase = RestorePhase::Running;
            status.chosen = Some(chosen.clone());
            status.volumes.clone_from(&volumes);
            status.started_at = Some(Time(now));
            complete(&mut status, false, reasons::IN_PROGRESS, "", now);
            status
        })
        .await?;
        let names = volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(", ");
        self.tell(KIND, restore, true, "Started", &format!("claims {names} of Snapshot {}", chosen.snapshot)).await;
        Ok(())
    }

    /// Those that are made of it; of one that is not begun when nothing is in the way.
    pub(in crate::copies) async fn claims(
        &self,
        storage: &Storage,
        restore: &Restore,
    ) -> Result<Vec<PersistentVolumeClaim>, ApiError> {
        let no = |(_, message): Why| ApiError::conflict_message(message);
        let (_, planned) = self.planned_of(restore).await?.map_err(no)?;
        let phase = restore.status.as_ref().map(|status| status.phase).unwrap_or_default();
        if phase == RestorePhase::Pending
            && let Some(why) = in_the_way(storage, restore, &planned).await?
        {
            return Err(no(why));
        }
        planned.iter().map(|one| claim(restore, one).map_err(ApiError::internal)).collect()
    }

    /// The Snapshot that is meant, and the claims that are made of it.
    async fn planned_of(&self, restore: &Restore) -> Result<Result<(Arc<Snapshot>, Vec<Planned>), Why>, ApiError> {
        let snapshot = match self.copy_of_volumes(restore).await? {
            Ok(snapshot) => snapshot,
            Err(why) => return Ok(Err(why)),
        };
        let (_, name, _) = who(restore);
        let volumes = snapshot.status.as_ref().map(|status| status.volumes.as_slice()).unwrap_or_default();
        let planned = planned(&name, &restore.spec, volumes).map_err(|message| (reasons::NOT_FOUND, message));
        Ok(planned.map(|planned| (snapshot, planned)))
    }

    /// The Snapshot that is meant, or why there is none that can be restored so.
    async fn copy_of_volumes(&self, restore: &Restore) -> Result<Result<Arc<Snapshot>, Why>, ApiError> {
        let (namespace, _, _) = who(restore);
        let name = restore.spec.source.snapshot.clone().unwrap_or_default();
        let snapshot = match self.snapshots.get(&namespace, &name).await {
            Ok(snapshot) => snapshot,
            Err(error) if error.code == 404 => {
                return Ok(Err((reasons::NOT_FOUND, format!("there is no Snapshot {name}"))));
            }
            Err(error) => return Err(error),
        };
        if snapshot.spec.method != SnapshotMethod::VolumeSnapshot {
            let message =
                format!("Snapshot {name} is a dump: say spec.database, the Database that it is restored into");
            return Ok(Err((reasons::UNSUPPORTED, message)));
        }
        let phase = snapshot.status.as_ref().map(|status| status.phase).unwrap_or_default();
        if !phase.is_restorable() {
            return Ok(Err((reasons::NOT_FOUND, format!("Snapshot {name} cannot be restored: it is {phase}"))));
        }
        Ok(Ok(snapshot))
    }

    async fn look_at_claims(&self, storage: &Storage, restore: &Restore) -> Result<(), ApiError> {
        let (namespace, name, uid) = who(restore);
        let before = restore.status.clone().unwrap_or_default();
        let (mut volumes, mut waits, mut warnings) = (before.volumes.clone(), Vec::new(), Vec::new());
        for volume in &mut volumes {
            let there = storage.claim(&namespace, &volume.name).await;
            let there = match (there.map_err(|error| told(&error, KIND.about(&name)))?, &volume.uid) {
                (Some(there), _) if label(&there) != Some(&uid) => {
                    return self.no_claims(restore, reasons::EXISTS, &is_there(&volume.name)).await;
                }
                (Some(there), _) => there,
                (None, Some(_)) => {
                    let message = format!("claim {} is gone: somebody has deleted it", volume.name);
                    return self.no_claims(restore, reasons::NOT_FOUND, &message).await;
                }
                (None, None) => match self.make_claim(storage, restore, volume).await? {
                    Ok(made) => made,
                    Err(why) => {
                        waits.push(why);
                        continue;
                    }
                },
            };
            volume.uid.clone_from(&there.metadata.uid);
            match made(storage, &there).await? {
                Made::Bound => volume.bound = true,
                Made::ForTheFirstPod => {
                    warnings.push(format!("the first Pod that uses claim {} gives it its volume", volume.name));
                }
                Made::Waits(why) => waits.push(why),
            }
        }
        let is_late =
            before.started_at.as_ref().is_some_and(|began| Timestamp::now().duration_since(began.0) > LONGEST);
        if !waits.is_empty() && is_late {
            return self.no_claims(restore, reasons::DEADLINE_EXCEEDED, &waits.join("; ")).await;
        }
        let is_done = waits.is_empty();
        let message = if is_done { warnings.join("; ") } else { waits.join("; ") };
        self.change_restore(restore, |mut status| {
            let now = Timestamp::now();
            status.volumes.clone_from(&volumes);
            status.warnings.clone_from(&warnings);
            status.message = (!message.is_empty()).then(|| message.clone());
            if is_done {
                status.phase = RestorePhase::Complete;
                status.finished_at.get_or_insert(Time(now));
                complete(&mut status, true, reasons::OK, &message, now);
            }
            status
        })
        .await?;
        if is_done {
            let names = volumes.iter().map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(", ");
            self.tell(KIND, restore, true, "Complete", &format!("claims {names}. {message}")).await;
        }
        Ok(())
    }

    /// Or why it cannot be made now.
    async fn make_claim(
        &self,
        storage: &Storage,
        restore: &Restore,
        volume: &RestoredVolume,
    ) -> Result<Result<PersistentVolumeClaim, String>, ApiError> {
        let (namespace, _, _) = who(restore);
        let planned = match self.planned_of(restore).await? {
            Ok((_, planned)) => planned,
            Err((_, message)) => return Ok(Err(message)),
        };
        let Some(planned) = planned.into_iter().find(|one| one.name == volume.name) else {
            return Ok(Err(format!("Snapshot {} has no copy of claim {}", volume.volume_snapshot, volume.claim)));
        };
        if let Some(gone) = is_gone(storage, restore, &planned).await? {
            return Ok(Err(gone));
        }
        let claim = claim(restore, &planned).map_err(ApiError::internal)?;
        match storage.claims(&namespace).create(&PostParams::default(), &claim).await {
            Ok(made) => Ok(Ok(made)),
            Err(kube::Error::Api(status)) if status.code == 409 && status.reason == "AlreadyExists" => {
                Ok(Err(is_there(&volume.name)))
            }
            Err(error) => Ok(Err(refused(&error, "PersistentVolumeClaims", &namespace))),
        }
    }

    async fn no_claims(&self, restore: &Restore, reason: &str, message: &str) -> Result<(), ApiError> {
        let made = restore.status.iter().flat_map(|status| &status.volumes).filter(|volume| volume.uid.is_some());
        let made = made.map(|volume| volume.name.as_str()).collect::<Vec<_>>().join(", ");
        let target = if made.is_empty() {
            "no claim was made".to_owned()
        } else {
            format!("claims {made} were made, and are there")
        };
        let (reason, message, target) = (reason.to_owned(), message.to_owned(), Some(target));
        let failed = FailedRun { reason, message, again: false, target };
        self.restore_failed(restore, failed).await
    }
}

/// Another VolumeSnapshot of its name is another.
async fn is_gone(storage: &Storage, restore: &Restore, one: &Planned) -> Result<Option<String>, ApiError> {
    let (namespace, name, _) = who(restore);
    let there = storage.snapshots(&namespace).get_opt(&one.of.volume_snapshot).await;
    let there = there.map_err(|error| told(&error, KIND.about(&name)))?;
    let is_gone = there.is_none_or(|there| there.metadata.uid != one.of.uid);
    Ok(is_gone.then(|| format!("VolumeSnapshot {} is gone: somebody has deleted it", one.of.volume_snapshot)))
}

/// What has a name already, or is gone: nothing is made then.
async fn in_the_way(storage: &Storage, restore: &Restore, planned: &[Planned]) -> Result<Option<Why>, ApiError> {
    let (namespace, name, _) = who(restore);
    for one in planned {
        if let Some(message) = is_gone(storage, restore, one).await? {
            return Ok(Some((reasons::NOT_FOUND, message)));
        }
        let there = storage.claim(&namespace, &one.name).await;
        if there.map_err(|error| told(&error, KIND.about(&name)))?.is_some() {
            return Ok(Some((reasons::EXISTS, is_there(&one.name))));
        }
    }
    Ok(None)
}

fn is_there(name: &str) -> String {
    format!("there is a claim {name} already: a Restore touches none that is there; say other names in spec.volumes")
}

fn label(claim: &PersistentVolumeClaim) -> Option<&String> {
    claim.metadata.labels.as_ref()?.get(api::LABEL_RESTORE)
}

async fn made(storage: &Storage, claim: &PersistentVolumeClaim) -> Result<Made, ApiError> {
    let name = claim.metadata.name.clone().unwrap_or_default();
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Bound") {
        return Ok(Made::Bound);
    }
    let waits = format!("claim {name} has no volume yet: kubectl describe persistentvolumeclaim {name} says why");
    let Some(class) = claim.spec.as_ref().and_then(|spec| spec.storage_class_name.as_deref()) else {
        return Ok(Made::Waits(waits));
    };
    let classes: Api<StorageClass> = Api::all(storage.client.clone());
    let class = classes.get_opt(class).await.map_err(|error| told(&error, KIND.about(&name)))?;
    let for_the_first = class.is_some_and(|class| class.volume_binding_mode.as_deref() == Some(FIRST_POD));
    Ok(if for_the_first { Made::ForTheFirstPod } else { Made::Waits(waits) })
}
