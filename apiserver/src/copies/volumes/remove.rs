//! What was made for a Snapshot goes with it, or when there is none; nothing of anybody else's.

use api::{Snapshot, SnapshotStatus};
use kube::api::{DeleteParams, Preconditions};

use super::{Storage, refused, take::KIND};
use crate::{
    copies::{Copies, kept::who},
    error::ApiError,
    records::cluster::told,
};

impl Copies {
    /// Has what was made for it go; when all of it has, the Snapshot may, too.
    pub(super) async fn remove(&self, storage: &Storage, snapshot: &Snapshot) -> Result<(), ApiError> {
        let (namespace, name, uid) = who(snapshot);
        let (about, snapshots) = (KIND.about(&name), storage.snapshots(&namespace));
        let status = snapshot.status.clone().unwrap_or_default();
        let is_deleted = snapshot.metadata.deletion_timestamp.is_some();
        if let Some(group) = &status.volume_group_snapshot {
            let message = match self.remove_group(storage, snapshot, group).await {
                Ok(true) => None,
                // Why it failed is more than that.
                Ok(false) if !is_deleted => return Ok(()),
                Ok(false) => Some(format!("VolumeGroupSnapshot {} is being removed", group.name)),
                Err(refused) => Some(refused),
            };
            if let Some(message) = message {
                let said = |status: SnapshotStatus| SnapshotStatus { message: Some(message.clone()), ..status };
                return self.change(snapshot, said).await;
            }
        }
        let mut left = Vec::new();
        // Those of a group that was never cut have no names.
        for volume in status.volumes.iter().filter(|volume| !volume.volume_snapshot.is_empty()) {
            let there = snapshots.get_opt(&volume.volume_snapshot).await.map_err(|error| told(&error, about))?;
            let Some(there) = there.filter(|there| there.label(api::LABEL_SNAPSHOT) == Some(&uid)) else { continue };
            left.push(volume.volume_snapshot.clone());
            if there.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let this = Preconditions { uid: there.metadata.uid, resource_version: None };
            let this = DeleteParams { preconditions: Some(this), ..DeleteParams::default() };
            match snapshots.delete(&volume.volume_snapshot, &this).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => {
                    let message = refused(&error, "VolumeSnapshots, nor delete them,", &namespace);
                    let said = |status: SnapshotStatus| SnapshotStatus { message: Some(message.clone()), ..status };
                    return self.change(snapshot, said).await;
                }
            }
        }
        if !left.is_empty() {
            let message = format!("VolumeSnapshots {} are being removed", left.join(", "));
            let said = |status: SnapshotStatus| SnapshotStatus { message: Some(message.clone()), ..status };
            // Why it failed is more than that.
            return if is_deleted { self.change(snapshot, said).await } else { Ok(()) };
        }
        if is_deleted {
            return self.snapshots.let_go(&namespace, &name, api::FINALIZER_SNAPSHOT).await;
        }
        let without = |status| SnapshotStatus { volumes: Vec::new(), volume_group_snapshot: None, ..status };
        self.change(snapshot, without).await?;
        self.snapshots.let_go(&namespace, &name, api::FINALIZER_SNAPSHOT).await
    }
}
