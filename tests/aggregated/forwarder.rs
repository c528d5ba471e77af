//! A TCP forwarder of the tests': what kube-proxy would do on a node (a new connection goes to one of the Service's endpoints, an
//! open one stays where it is), and a network that can be cut.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use rand::seq::IndexedRandom;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};

pub(crate) struct Forwarder {
    pub(crate) address: SocketAddr,
    targets: Arc<Mutex<Vec<SocketAddr>>>,
    /// While it is, nothing comes through: new connections hang, open ones are silent.
    cut: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Forwarder {
    pub(crate) async fn start(listen: SocketAddr, targets: Vec<SocketAddr>) -> Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let targets = Arc::new(Mutex::new(targets));
        let (cut, is_cut) = watch::channel(false);
        let accepting = tokio::spawn({
            let targets = Arc::clone(&targets);
            async move {
                while let Ok((tcp, _)) = listener.accept().await {
                    let target =
                        targets.lock().unwrap_or_else(PoisonError::into_inner).choose(&mut rand::rng()).copied();
                    if let Some(target) = target {
                        tokio::spawn(forward(tcp, target, is_cut.clone()));
                    }
                }
            }
        });
        Ok(Self { address, targets, cut, accepting })
    }

    /// Where new connections go.
    pub(crate) fn lead_to(&self, targets: Vec<SocketAddr>) {
        *self.targets.lock().unwrap_or_else(PoisonError::into_inner) = targets;
    }

    pub(crate) fn cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Until either side ends, or the network is cut: then nothing is heard of it for as long as that lasts, and it is broken after.
async fn forward(mut tcp: TcpStream, target: SocketAddr, mut is_cut: watch::Receiver<bool>) {
    if is_cut.wait_for(|cut| !cut).await.is_err() {
        return;
    }
    let Ok(mut other) = TcpStream::connect(target).await else { return };
    tcp.set_nodelay(true).ok();
    other.set_nodelay(true).ok();
    let cut = {
        let mut is_cut = is_cut.clone();
        async move { is_cut.wait_for(|cut| *cut).await.map(drop) }
    };
    tokio::select! {
        _ = copy_bidirectional(&mut tcp, &mut other) => {}
        _ = cut => {
            is_cut.wait_for(|cut| !cut).await.ok();
        }
    }
}
