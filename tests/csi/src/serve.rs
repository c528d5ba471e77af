//! The sockets: CSI for the kubelet and the sidecars, registration for the kubelet, control for tests.

use std::{fs, path::Path, path::PathBuf, sync::Arc};

use anyhow::{Context, Result};
use clap::Parser;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

use crate::{
    control::Controls,
    controller::Volumes,
    faults::{Faults, FaultsLayer},
    group_controller::Groups,
    identity::{Plugin, Registered},
    node::Host,
    pool::Pool,
    proto::{
        control::control_server::ControlServer,
        csi::{
            controller_server::ControllerServer, group_controller_server::GroupControllerServer,
            identity_server::IdentityServer, node_server::NodeServer,
        },
        registration::registration_server::RegistrationServer,
    },
};

/// Where everything of the driver is.
#[derive(Clone, Debug, Parser)]
#[command(about = "A CSI driver for tests, with delays and faults on demand")]
pub struct Settings {
    /// Keeps the image of all volumes; mounts and sockets are made in it
    #[arg(long)]
    pub directory: PathBuf,
    /// The kubelet's `plugins_registry`; without it no kubelet learns of the driver
    #[arg(long)]
    pub registry: Option<PathBuf>,
    /// The name of the node
    #[arg(long)]
    pub node: String,
    /// How much all volumes and snapshots may hold together; the image is sparse
    #[arg(long, default_value_t = 16)]
    pub gigabytes: u64,
}

impl Settings {
    /// CSI.
    pub fn endpoint(&self) -> PathBuf {
        self.directory.join("csi.sock")
    }

    /// For [`crate::Control`].
    pub fn control(&self) -> PathBuf {
        self.directory.join("control.sock")
    }
}

/// Serves until the process ends.
pub async fn serve(settings: Settings) -> Result<()> {
    fs::create_dir_all(&settings.directory)?;
    let pool = Arc::new(Pool::open(&settings.directory, settings.gigabytes).await?);
    let faults = Arc::new(Faults::default());
    let endpoint = settings.endpoint();

    let control = Server::builder().add_service(ControlServer::new(Controls(Arc::clone(&faults))));
    let control = control.serve_with_incoming(listen(&settings.control())?);

    let driver = Server::builder()
        .layer(FaultsLayer(Arc::clone(&faults)))
        .add_service(IdentityServer::new(Plugin))
        .add_service(ControllerServer::new(Volumes::new(Arc::clone(&pool), Arc::clone(&faults))))
        .add_service(GroupControllerServer::new(Groups::new(Arc::clone(&pool), faults)))
        .add_service(NodeServer::new(Host::new(settings.node, pool)))
        .serve_with_incoming(listen(&endpoint)?);

    let registration = async {
        let Some(registry) = settings.registry else { return std::future::pending().await };
        fs::create_dir_all(&registry)?;
        // After CSI's own: the kubelet asks that one as soon as it sees this. It gives the escaped path as the authority
        // (grpc-go, encodeAuthority), which HTTP allows before an @ only (RFC 3986, 3.2), and so does the server here.
        let incoming = listen(&registry.join(format!("{}@registration.sock", crate::NAME)))?;
        let service = RegistrationServer::new(Registered { endpoint });
        anyhow::Ok(Server::builder().add_service(service).serve_with_incoming(incoming).await?)
    };
    tokio::select! {
        ended = control => ended?,
        ended = driver => ended?,
        ended = registration => ended?,
    }
    Ok(())
}

fn listen(path: &Path) -> Result<UnixListenerStream> {
    // What a driver that was killed left.
    fs::remove_file(path).ok();
    let listener = UnixListener::bind(path).with_context(|| path.display().to_string())?;
    Ok(UnixListenerStream::new(listener))
}
