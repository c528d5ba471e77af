//! The VolumeGroupSnapshot of a Snapshot: all its claims are cut by it at one instant. Of each claim it makes a VolumeSnapshot, which is
//! looked at like one of ours; they go with it.

mod plan;

use std::collections::BTreeMap;

use api::{
    Snapshot, SnapshotGroup, SnapshotStatus, SnapshotVolume,
    gate::{GROUP_KIND, Group},
};
use kube::{
    Api,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions},
};
use serde_json::json;

use super::{MADE_FOR, Storage, kinds::VolumeSnapshot, refused, take::KIND, worth::Outcome};
use crate::{
    copies::{Copies, kept::who},
    csi_snapshots::Kind,
    error::ApiError,
    records::cluster::told,
};
pub(super) use plan::Cut;
use plan::{GroupFound, Means};

/// What is called by this is made for a Snapshot.
const WHAT: &str = "VolumeGroupSnapshots";

impl Storage {
    /// How the claims of a Snapshot are cut. The inner error is what is in the way of what it asks for by name.
    pub(super) async fn how_cut(
        &self,
        snapshot: &Snapshot,
        volumes: &[SnapshotVolume],
    ) -> Result<Result<Cut, String>, ApiError> {
        let (namespace, name, _) = who(snapshot);
        let wanted = snapshot.spec.volume_group_snapshot_class_name.as_deref();
        let mut means = Means::default();
        {
            let index = self.watched.index();
            let driver = |claim: &str| index.driver_of(&namespace, claim).map(str::to_owned);
            means.drivers = volumes.iter().map(|one| (one.claim.clone(), driver(&one.claim))).collect();
        }
        if wanted.is_some() || volumes.len() > 1 {
            let all = ListParams::default();
            let unseen = |error: kube::Error| told(&error, KIND.about(&name));
            if self.kinds.are_served(Group::Group).await.map_err(unseen)? {
                let classes = self.kinds.all(Kind::Class, Group::Group);
                means.classes = classes.list(&all).await.map_err(unseen)?.items;
            }
            means.claims = self.claims(&namespace).list(&all).await.map_err(unseen)?.items;
        }
        Ok(plan::cut(&name, wanted, &means))
    }

    /// In the version that is served now.
    async fn groups(&self, namespace: &str) -> Result<Api<DynamicObject>, kube::Error> {
        self.kinds.are_served(Group::Group).await?;
        Ok(self.kinds.snapshots(Group::Group, namespace))
    }
}

impl Copies {
    /// What is there of it; an outcome, where its VolumeSnapshots are not known yet.
    pub(super) async fn look_at_group(
        &self,
        storage: &Storage,
        snapshot: &Snapshot,
        status: SnapshotStatus,
        group: &SnapshotGroup,
    ) -> Result<(SnapshotStatus, Option<Outcome>), ApiError> {
        let (_, name, uid) = who(snapshot);
        let found = group_found(storage, snapshot, group).await.map_err(|error| told(&error, KIND.about(&name)))?;
        Ok(plan::looked(status, group, &uid, found))
    }

    /// Answers why it cannot be made now.
    pub(super) async fn make_group(
        &self,
        storage: &Storage,
        snapshot: &Snapshot,
        group: &SnapshotGroup,
    ) -> Option<String> {
        let (namespace, _, _) = who(snapshot);
        let made = async {
            let groups = storage.groups(&namespace).await?;
            let object = object(storage, snapshot, group).map_err(kube::Error::SerdeError)?;
            groups.create(&PostParams::default(), &object).await
        };
        match made.await {
            Ok(_) => None,
            // Whose it is shows when it is looked at.
            Err(kube::Error::Api(status)) if status.code == 409 => None,
            Err(error) => Some(refused(&error, WHAT, &namespace)),
        }
    }

    /// Has it go, and what was cut by it. Whether it has; or why it may not.
    pub(super) async fn remove_group(
        &self,
        storage: &Storage,
        snapshot: &Snapshot,
        group: &SnapshotGroup,
    ) -> Result<bool, String> {
        let (namespace, _, uid) = who(snapshot);
        let removed = async {
            let groups = storage.groups(&namespace).await?;
            let found = groups.get_opt(&group.name).await?;
            let Some(found) = found.filter(|found| made_for(found).is_some_and(|made_for| made_for == uid)) else {
                return Ok(true);
            };
            if found.metadata.deletion_timestamp.is_none() {
                let this = Preconditions { uid: found.metadata.uid, resource_version: None };
                let this = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
                match groups.delete(&group.name, &this).await {
                    Ok(_) => {}
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(false)
        };
        removed.await.map_err(|error| refused(&error, "VolumeGroupSnapshots, nor delete them,", &namespace))
    }
}

/// As it is made, in the version that was served last.
pub(super) fn object(
    storage: &Storage,
    snapshot: &Snapshot,
    group: &SnapshotGroup,
) -> Result<DynamicObject, serde_json::Error> {
    let (namespace, _, uid) = who(snapshot);
    let kind = storage.kinds.resource(Kind::Snapshot, Group::Group);
    serde_json::from_value(json!({
        "apiVersion": kind.api_version, "kind": kind.kind,
        "metadata": {
            "name": group.name, "namespace": namespace, "labels": {api::LABEL_SNAPSHOT: uid},
            "annotations": super::take::annotations(snapshot),
        },
        "spec": {
            "volumeGroupSnapshotClassName": group.class_name,
            "source": {"selector": {"matchLabels": group.match_labels}},
        },
    }))
}

async fn group_found(
    storage: &Storage,
    snapshot: &Snapshot,
    group: &SnapshotGroup,
) -> Result<Option<GroupFound>, kube::Error> {
    let (namespace, _, uid) = who(snapshot);
    let Some(there) = storage.groups(&namespace).await?.get_opt(&group.name).await? else { return Ok(None) };
    let mut found = GroupFound {
        uid: there.metadata.uid.clone().unwrap_or_default(),
        made_for: made_for(&there).map(str::to_owned),
        error: there.data["status"]["error"]["message"].as_str().map(str::to_owned),
        members: BTreeMap::new(),
    };
    if found.made_for.as_ref() == Some(&uid) {
        found.members = members(storage, snapshot, &found.uid).await?;
    }
    Ok(Some(found))
}

/// By claim; each says from now on for whom it was made, like one that we have made ourselves.
async fn members(storage: &Storage, snapshot: &Snapshot, group: &str) -> Result<BTreeMap<String, String>, kube::Error> {
    let (namespace, name, uid) = who(snapshot);
    let snapshots = storage.snapshots(&namespace);
    let ours = json!({"metadata": {"labels": {api::LABEL_SNAPSHOT: uid}, "annotations": {MADE_FOR: name}}});
    let mut members = BTreeMap::new();
    for one in snapshots.list(&ListParams::default()).await?.items {
        let claim = one.spec.source.persistent_volume_claim_name.clone();
        let (Some(claim), Some(name), true) = (claim, one.metadata.name.clone(), is_of(&one, group)) else { continue };
        if one.label(api::LABEL_SNAPSHOT) != Some(&uid) {
            snapshots.patch(&name, &PatchParams::default(), &Patch::Merge(&ours)).await?;
        }
        members.insert(claim, name);
    }
    Ok(members)
}

fn is_of(member: &VolumeSnapshot, group: &str) -> bool {
    let owners = member.metadata.owner_references.iter().flatten();
    owners.into_iter().any(|owner| owner.kind == GROUP_KIND && owner.uid == group)
}

fn made_for(group: &DynamicObject) -> Option<&str> {
    group.metadata.labels.as_ref()?.get(api::LABEL_SNAPSHOT).map(String::as_str)
}
