//! Who the driver is: CSI's Identity, and what the kubelet asks when it finds the socket.

use std::path::PathBuf;

use tonic::{Request, Response, Status};

use crate::{
    NAME,
    proto::{
        csi::{
            GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
            PluginCapability, ProbeRequest, ProbeResponse,
            identity_server::Identity,
            plugin_capability::{Service, Type, service},
        },
        registration::{
            InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse, registration_server::Registration,
        },
    },
};

pub(crate) struct Plugin;

#[tonic::async_trait]
impl Identity for Plugin {
    async fn get_plugin_info(
        &self,
        _: Request<GetPluginInfoRequest>,
    ) -> Result<Response<GetPluginInfoResponse>, Status> {
        // The sidecars refuse a driver without a version.
        let vendor_version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(GetPluginInfoResponse { name: NAME.to_owned(), vendor_version, ..Default::default() }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Result<Response<GetPluginCapabilitiesResponse>, Status> {
        use service::Type::{ControllerService, GroupControllerService};
        let capability = |offered: service::Type| PluginCapability {
            r#type: Some(Type::Service(Service { r#type: offered.into() })),
        };
        let capabilities = [ControllerService, GroupControllerService].map(capability).into();
        Ok(Response::new(GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        Ok(Response::new(ProbeResponse { ready: Some(true) }))
    }
}

pub(crate) struct Registered {
    pub(crate) endpoint: PathBuf,
}

#[tonic::async_trait]
impl Registration for Registered {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: NAME.to_owned(),
            endpoint: self.endpoint.display().to_string(),
            supported_versions: vec!["1.0.0".to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        if !status.plugin_registered {
            eprintln!("the kubelet did not register the driver: {}", status.error);
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
