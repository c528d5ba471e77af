//! Control: its server, and a client for tests.

use std::{path::Path, sync::Arc};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::{
    faults::Faults,
    proto::control::{Call, Calls, Fault, Nothing, control_client::ControlClient, control_server},
};

/// Makes a driver slow, faulty or a liar.
#[derive(Clone, Debug)]
pub struct Control(ControlClient<Channel>);

impl Control {
    /// By its socket, [`crate::Settings::control`].
    pub async fn connect(socket: &Path) -> Result<Self> {
        let path = socket.to_owned();
        let connector = service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The name is never looked up.
        let channel = Endpoint::from_static("http://csi-driver").connect_with_connector(connector).await;
        Ok(Self(ControlClient::new(channel.with_context(|| socket.display().to_string())?)))
    }

    /// Takes the place of what was set for the method.
    pub async fn set(&self, fault: Fault) -> Result<()> {
        self.0.clone().set_fault(fault).await?;
        Ok(())
    }

    /// Nothing is wrong any more.
    pub async fn clear(&self) -> Result<()> {
        self.0.clone().clear_faults(Nothing {}).await?;
        Ok(())
    }

    /// What CSI was asked so far, of `method`.
    pub async fn calls(&self, method: &str) -> Result<Vec<Call>> {
        let calls = self.0.clone().list_calls(Nothing {}).await?.into_inner().calls;
        Ok(calls.into_iter().filter(|call| call.method == method).collect())
    }
}

pub(crate) struct Controls(pub(crate) Arc<Faults>);

#[tonic::async_trait]
impl control_server::Control for Controls {
    async fn set_fault(&self, request: Request<Fault>) -> Result<Response<Nothing>, Status> {
        let fault = request.into_inner();
        if fault.method.is_empty() || fault.code > 16 {
            return Err(Status::invalid_argument("a fault is of a method, and its code is one of gRPC's"));
        }
        self.0.set(fault);
        Ok(Response::new(Nothing {}))
    }

    async fn clear_faults(&self, _: Request<Nothing>) -> Result<Response<Nothing>, Status> {
        self.0.clear();
        Ok(Response::new(Nothing {}))
    }

    async fn list_calls(&self, _: Request<Nothing>) -> Result<Response<Calls>, Status> {
        Ok(Response::new(Calls { calls: self.0.calls() }))
    }
}
