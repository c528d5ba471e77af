//! CSI's GroupController: snapshots of several volumes at one instant.

use std::{sync::Arc, time::Duration};

use tonic::{Request, Response, Status};

use crate::{
    controller::{required, timestamp, told},
    faults::Faults,
    pool::{Group, Pool},
    proto::{
        control::Fault,
        csi::{
            CreateVolumeGroupSnapshotRequest, CreateVolumeGroupSnapshotResponse, DeleteVolumeGroupSnapshotRequest,
            DeleteVolumeGroupSnapshotResponse, GetVolumeGroupSnapshotRequest, GetVolumeGroupSnapshotResponse,
            GroupControllerGetCapabilitiesRequest, GroupControllerGetCapabilitiesResponse,
            GroupControllerServiceCapability, VolumeGroupSnapshot,
            group_controller_server::GroupController,
            group_controller_service_capability::{Rpc, Type, rpc},
        },
    },
};

pub(crate) struct Groups {
    pool: Arc<Pool>,
    faults: Arc<Faults>,
}

impl Groups {
    pub(crate) fn new(pool: Arc<Pool>, faults: Arc<Faults>) -> Self {
        Self { pool, faults }
    }

    /// The lie: it is said to be there and is not yet.
    fn promised(&self, name: String, volumes: Vec<String>, after: Duration) -> Result<Group, Status> {
        let group = self.pool.promised_group(&name, &volumes)?;
        let pool = Arc::clone(&self.pool);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if let Err(error) = pool.create_group(&name, &volumes).await {
                eprintln!("the group {name}, promised before: {error}");
            }
        });
        Ok(group)
    }
}

#[tonic::async_trait]
impl GroupController for Groups {
    async fn group_controller_get_capabilities(
        &self,
        _: Request<GroupControllerGetCapabilitiesRequest>,
    ) -> Result<Response<GroupControllerGetCapabilitiesResponse>, Status> {
        let r#type = Some(Type::Rpc(Rpc { r#type: rpc::Type::CreateDeleteGetVolumeGroupSnapshot.into() }));
        let capabilities = vec![GroupControllerServiceCapability { r#type }];
        Ok(Response::new(GroupControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn create_volume_group_snapshot(
        &self,
        request: Request<CreateVolumeGroupSnapshotRequest>,
    ) -> Result<Response<CreateVolumeGroupSnapshotResponse>, Status> {
        let CreateVolumeGroupSnapshotRequest { name, source_volume_ids, .. } = request.into_inner();
        required(&name, "name")?;
        required(source_volume_ids.first().map_or("", String::as_str), "source_volume_ids")?;
        let fault = self.faults.of("CreateVolumeGroupSnapshot");
        let later = Duration::from_millis(fault.cut_after_answer_ms);
        let group = if later.is_zero() {
            self.pool.create_group(&name, &source_volume_ids).await?
        } else {
            self.promised(name, source_volume_ids, later)?
        };
        Ok(Response::new(CreateVolumeGroupSnapshotResponse { group_snapshot: Some(all_told(group, &fault)) }))
    }

    async fn delete_volume_group_snapshot(
        &self,
        request: Request<DeleteVolumeGroupSnapshotRequest>,
    ) -> Result<Response<DeleteVolumeGroupSnapshotResponse>, Status> {
        let DeleteVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, .. } = request.into_inner();
        required(&group_snapshot_id, "group_snapshot_id")?;
        self.pool.delete_group(&group_snapshot_id, &snapshot_ids).await?;
        Ok(Response::new(DeleteVolumeGroupSnapshotResponse {}))
    }

    async fn get_volume_group_snapshot(
        &self,
        request: Request<GetVolumeGroupSnapshotRequest>,
    ) -> Result<Response<GetVolumeGroupSnapshotResponse>, Status> {
        let GetVolumeGroupSnapshotRequest { group_snapshot_id, snapshot_ids, .. } = request.into_inner();
        required(&group_snapshot_id, "group_snapshot_id")?;
        let group = self.pool.group(&group_snapshot_id, &snapshot_ids)?;
        let told = all_told(group, &self.faults.of("GetVolumeGroupSnapshot"));
        Ok(Response::new(GetVolumeGroupSnapshotResponse { group_snapshot: Some(told) }))
    }
}

/// As the fault has it.
fn all_told(group: Group, fault: &Fault) -> VolumeGroupSnapshot {
    VolumeGroupSnapshot {
        group_snapshot_id: group.id,
        snapshots: group.snapshots.into_iter().map(|snapshot| told(snapshot, fault)).collect(),
        creation_time: (!fault.no_creation_time).then(|| timestamp(group.made)),
        ready_to_use: !fault.not_ready,
    }
}
