//! CSI's Node: a volume is mounted once for the node, and bound to where each Pod wants it.

use std::{path::Path, sync::Arc};

use tonic::{Request, Response, Status};

use crate::{
    mounts::{mount, run, unmount},
    pool::{Pool, internal},
    proto::csi::{
        NodeGetCapabilitiesRequest, NodeGetCapabilitiesResponse, NodeGetInfoRequest, NodeGetInfoResponse,
        NodePublishVolumeRequest, NodePublishVolumeResponse, NodeServiceCapability, NodeStageVolumeRequest,
        NodeStageVolumeResponse, NodeUnpublishVolumeRequest, NodeUnpublishVolumeResponse, NodeUnstageVolumeRequest,
        NodeUnstageVolumeResponse, VolumeCapability,
        node_server::Node,
        node_service_capability::{Rpc, Type, rpc},
        volume_capability::{AccessType, access_mode::Mode},
    },
};

pub(crate) struct Host {
    name: String,
    pool: Arc<Pool>,
}

impl Host {
    pub(crate) fn new(name: String, pool: Arc<Pool>) -> Self {
        Self { name, pool }
    }
}

#[tonic::async_trait]
impl Node for Host {
    async fn node_get_info(&self, _: Request<NodeGetInfoRequest>) -> Result<Response<NodeGetInfoResponse>, Status> {
        Ok(Response::new(NodeGetInfoResponse { node_id: self.name.clone(), ..Default::default() }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<NodeGetCapabilitiesRequest>,
    ) -> Result<Response<NodeGetCapabilitiesResponse>, Status> {
        let stages = Type::Rpc(Rpc { r#type: rpc::Type::StageUnstageVolume.into() });
        let capabilities = vec![NodeServiceCapability { r#type: Some(stages) }];
        Ok(Response::new(NodeGetCapabilitiesResponse { capabilities }))
    }

    async fn node_stage_volume(
        &self,
        request: Request<NodeStageVolumeRequest>,
    ) -> Result<Response<NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let path = absolute(&request.staging_target_path)?;
        check(request.volume_capability.as_ref().unwrap_or(&VolumeCapability::default()))?;
        let volume = self.pool.volume(&request.volume_id)?;
        // Its journal is replayed, as after a power cut.
        internal(mount("loop,noatime", &self.pool.device(&volume), path).await)?;
        Ok(Response::new(NodeStageVolumeResponse {}))
    }

    async fn node_unstage_volume(
        &self,
        request: Request<NodeUnstageVolumeRequest>,
    ) -> Result<Response<NodeUnstageVolumeResponse>, Status> {
        internal(unmount(absolute(&request.into_inner().staging_target_path)?).await)?;
        Ok(Response::new(NodeUnstageVolumeResponse {}))
    }

    async fn node_publish_volume(
        &self,
        request: Request<NodePublishVolumeRequest>,
    ) -> Result<Response<NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (from, path) = (absolute(&request.staging_target_path)?, absolute(&request.target_path)?);
        self.pool.volume(&request.volume_id)?;
        internal(mount("bind", from, path).await)?;
        if request.readonly {
            // A bind mount takes no other options than this, and only when it is there (mount(8)).
            internal(run("mount", &["-o".as_ref(), "remount,bind,ro".as_ref(), path.as_os_str()], 0).await)?;
        }
        Ok(Response::new(NodePublishVolumeResponse {}))
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<NodeUnpublishVolumeRequest>,
    ) -> Result<Response<NodeUnpublishVolumeResponse>, Status> {
        internal(unmount(absolute(&request.into_inner().target_path)?).await)?;
        Ok(Response::new(NodeUnpublishVolumeResponse {}))
    }
}

/// Whether a volume can be used like this: as ext4, on one node.
pub(crate) fn check(capability: &VolumeCapability) -> Result<(), Status> {
    if let Some(AccessType::Mount(mount)) = &capability.access_type
        && (mount.fs_type.is_empty() || mount.fs_type == "ext4")
        && !matches!(
            capability.access_mode.unwrap_or_default().mode(),
            Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter
        )
    {
        return Ok(());
    }
    Err(Status::invalid_argument("a volume is an ext4 that is mounted on one node"))
}

fn absolute(path: &str) -> Result<&Path, Status> {
    let path = Path::new(path);
    if path.is_absolute() { Ok(path) } else { Err(Status::invalid_argument("a path is missing")) }
}
