//! CSI's Controller: volumes and snapshots come and go.

use std::{sync::Arc, time::Duration};

use prost_types::Timestamp;
use tonic::{Request, Response, Status};

use crate::{
    faults::Faults,
    node,
    pool::{self, Pool, Source},
    proto::control::Fault,
    proto::csi::{
        ControllerGetCapabilitiesRequest, ControllerGetCapabilitiesResponse, ControllerServiceCapability,
        CreateSnapshotRequest, CreateSnapshotResponse, CreateVolumeRequest, CreateVolumeResponse,
        DeleteSnapshotRequest, DeleteSnapshotResponse, DeleteVolumeRequest, DeleteVolumeResponse, ListSnapshotsRequest,
        ListSnapshotsResponse, Snapshot, ValidateVolumeCapabilitiesRequest, ValidateVolumeCapabilitiesResponse, Volume,
        controller_server::Controller,
        controller_service_capability::{Rpc, Type, rpc},
        list_snapshots_response::Entry,
        validate_volume_capabilities_response::Confirmed,
        volume_content_source::{self, SnapshotSource, VolumeSource},
    },
};

pub(crate) struct Volumes {
    pool: Arc<Pool>,
    faults: Arc<Faults>,
}

/// For who does not say how much they want.
const USUAL: i64 = 1 << 30;

impl Volumes {
    pub(crate) fn new(pool: Arc<Pool>, faults: Arc<Faults>) -> Self {
        Self { pool, faults }
    }

    /// The lie: it is said to be there and is not yet.
    fn promised(&self, name: String, volume: String, after: Duration) -> Result<pool::Snapshot, Status> {
        let snapshot = self.pool.promised(&name, &volume)?;
        let pool = Arc::clone(&self.pool);
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if let Err(error) = pool.create_snapshot(&name, &volume).await {
                eprintln!("the snapshot {name}, promised before: {error}");
            }
        });
        Ok(snapshot)
    }
}

#[tonic::async_trait]
impl Controller for Volumes {
    async fn controller_get_capabilities(
        &self,
        _: Request<ControllerGetCapabilitiesRequest>,
    ) -> Result<Response<ControllerGetCapabilitiesResponse>, Status> {
        use rpc::Type::{CloneVolume, CreateDeleteSnapshot, CreateDeleteVolume, ListSnapshots};
        let capability = |offered: rpc::Type| ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: offered.into() })),
        };
        let capabilities =
            [CreateDeleteVolume, CreateDeleteSnapshot, ListSnapshots, CloneVolume].map(capability).into();
        Ok(Response::new(ControllerGetCapabilitiesResponse { capabilities }))
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<ValidateVolumeCapabilitiesRequest>,
    ) -> Result<Response<ValidateVolumeCapabilitiesResponse>, Status> {
        let request = request.into_inner();
        self.pool.volume(&request.volume_id)?;
        let offered = request.volume_capabilities.iter().try_for_each(node::check);
        Ok(Response::new(match offered {
            Ok(()) => ValidateVolumeCapabilitiesResponse {
                confirmed: Some(Confirmed {
                    volume_capabilities: request.volume_capabilities,
                    volume_context: request.volume_context,
                    parameters: request.parameters,
                    ..Default::default()
                }),
                ..Default::default()
            },
            Err(status) => {
                ValidateVolumeCapabilitiesResponse { message: status.message().to_owned(), ..Default::default() }
            }
        }))
    }

    async fn create_volume(
        &self,
        request: Request<CreateVolumeRequest>,
    ) -> Result<Response<CreateVolumeResponse>, Status> {
        let request = request.into_inner();
        required(&request.name, "name")?;
        request.volume_capabilities.iter().try_for_each(node::check)?;
        let range = request.capacity_range.unwrap_or_default();
        let wanted = if range.required_bytes == 0 { USUAL } else { range.required_bytes };
        let wanted = if range.limit_bytes > 0 { wanted.min(range.limit_bytes) } else { wanted };
        let bytes = u64::try_from(wanted).map_err(|_| Status::out_of_range("less than nothing"))?;
        let source =
            request.volume_content_source.clone().and_then(|source| source.r#type).map(|source| match source {
                volume_content_source::Type::Snapshot(SnapshotSource { snapshot_id }) => Source::Snapshot(snapshot_id),
                volume_content_source::Type::Volume(VolumeSource { volume_id }) => Source::Volume(volume_id),
            });
        let volume = self.pool.create_volume(&request.name, bytes, source).await?;
        if range.limit_bytes > 0 && signed(volume.bytes) > range.limit_bytes {
            self.pool.delete_volume(&volume.id).await?;
            return Err(Status::out_of_range("what it begins as is larger"));
        }
        Ok(Response::new(CreateVolumeResponse {
            volume: Some(Volume {
                capacity_bytes: signed(volume.bytes),
                volume_id: volume.id,
                content_source: request.volume_content_source.filter(|source| source.r#type.is_some()),
                ..Default::default()
            }),
        }))
    }

    async fn delete_volume(
        &self,
        request: Request<DeleteVolumeRequest>,
    ) -> Result<Response<DeleteVolumeResponse>, Status> {
        let id = request.into_inner().volume_id;
        required(&id, "volume_id")?;
        self.pool.delete_volume(&id).await?;
        Ok(Response::new(DeleteVolumeResponse {}))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<CreateSnapshotResponse>, Status> {
        let CreateSnapshotRequest { name, source_volume_id, .. } = request.into_inner();
        required(&name, "name")?;
        required(&source_volume_id, "source_volume_id")?;
        let fault = self.faults.of("CreateSnapshot");
        let later = Duration::from_millis(fault.cut_after_answer_ms);
        let snapshot = if later.is_zero() {
            self.pool.create_snapshot(&name, &source_volume_id).await?
        } else {
            self.promised(name, source_volume_id, later)?
        };
        Ok(Response::new(CreateSnapshotResponse { snapshot: Some(told(snapshot, &fault)) }))
    }

    async fn delete_snapshot(
        &self,
        request: Request<DeleteSnapshotRequest>,
    ) -> Result<Response<DeleteSnapshotResponse>, Status> {
        let id = request.into_inner().snapshot_id;
        required(&id, "snapshot_id")?;
        self.pool.delete_snapshot(&id).await?;
        Ok(Response::new(DeleteSnapshotResponse {}))
    }

    /// Tokens are positions in the list.
    async fn list_snapshots(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<ListSnapshotsResponse>, Status> {
        let request = request.into_inner();
        let matches = |snapshot: &pool::Snapshot| {
            (request.snapshot_id.is_empty() || snapshot.id == request.snapshot_id)
                && (request.source_volume_id.is_empty() || snapshot.volume == request.source_volume_id)
        };
        let found: Vec<_> = self.pool.snapshots()?.into_iter().filter(matches).collect();
        let first = match request.starting_token.as_str() {
            "" => 0,
            token => token
                .parse()
                .ok()
                .filter(|first| *first < found.len())
                .ok_or_else(|| Status::aborted("no such token"))?,
        };
        let most = usize::try_from(request.max_entries).ok().filter(|most| *most > 0).unwrap_or(usize::MAX);
        let next = first.saturating_add(most);
        let next_token = if next < found.len() { next.to_string() } else { String::new() };
        let page = found.into_iter().skip(first).take(most);
        let fault = self.faults.of("ListSnapshots");
        let entries = page.map(|snapshot| Entry { snapshot: Some(told(snapshot, &fault)) }).collect();
        Ok(Response::new(ListSnapshotsResponse { entries, next_token }))
    }
}

/// As the fault has it.
pub(crate) fn told(snapshot: pool::Snapshot, fault: &Fault) -> Snapshot {
    Snapshot {
        size_bytes: signed(snapshot.bytes),
        creation_time: (!fault.no_creation_time).then(|| timestamp(snapshot.made)),
        snapshot_id: snapshot.id,
        source_volume_id: snapshot.volume,
        ready_to_use: !fault.not_ready,
        group_snapshot_id: snapshot.group.unwrap_or_default(),
    }
}

/// Of nanoseconds since 1970.
pub(crate) fn timestamp(made: u64) -> Timestamp {
    let seconds = i64::try_from(made / 1_000_000_000).unwrap_or(i64::MAX);
    Timestamp { seconds, nanos: i32::try_from(made % 1_000_000_000).unwrap_or_default() }
}

pub(crate) fn required(field: &str, name: &str) -> Result<(), Status> {
    if field.is_empty() { Err(Status::invalid_argument(format!("{name} is missing"))) } else { Ok(()) }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
