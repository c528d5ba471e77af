//! A server that listens, and its life: serving, draining, gone.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use certs::{Bound, Limits};
use tokio::time::sleep;
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{info, warn};

use crate::{
    app::App,
    connection::Upstream,
    credentials::{Credentials, Files},
    forward::Forwarder,
    ours::{Agent, Ours},
};

/// How it is reached, what it reaches, and what it is trusted by.
#[derive(Clone, Debug)]
pub struct Place {
    pub listen: SocketAddr,
    pub upstream: Upstream,
    pub files: Files,
    /// How often the files are read again.
    pub look_every: Duration,
    /// The namespace that we are installed in.
    pub namespace: String,
    /// What agents beside databases are given.
    pub agent: Agent,
    pub ending: Ending,
}

/// How it ends after SIGTERM.
#[derive(Clone, Copy, Debug)]
pub struct Ending {
    /// How long it goes on as it was: until kube-apiserver sends nothing here any more.
    pub delay: Duration,
    /// How long reviews that wait may go on after that.
    pub drain: Duration,
}

/// A server that listens, and answers nobody yet.
pub struct Server {
    bound: Bound,
    tls: rustls::ServerConfig,
    address: SocketAddr,
    app: Arc<App>,
    credentials: Arc<Credentials>,
    look_every: Duration,
    ending: Ending,
    stopping: CancellationToken,
}

/// kube-apiserver's replicas hold one or a few each.
const CONNECTIONS: usize = 1024;

impl Server {
    pub async fn bind(place: Place) -> anyhow::Result<Self> {
        let Place { listen, upstream, files, look_every, namespace, agent, ending } = place;
        let credentials = Credentials::read(files)?;
        let tls = credentials.server_config()?;
        let bound = Bound::bind(listen).await?;
        let address = bound.address().context("the address that we listen on")?;
        let stopping = CancellationToken::new();
        let forwarder = Forwarder::new(upstream, Arc::clone(&credentials));
        let ours = Ours::in_namespace(&namespace).with_agent(agent);
        let app = Arc::new(App::new(ours, forwarder, Arc::clone(&credentials), stopping.clone()));
        Ok(Self { bound, tls, address, app, credentials, look_every, ending, stopping })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends [`Server::run`] when it is cancelled.
    pub fn stopping(&self) -> CancellationToken {
        self.stopping.clone()
    }

    /// Serves until `stopping`, and until what waits then is answered.
    pub async fn run(self) -> anyhow::Result<()> {
        let Self { bound, tls, address, app, credentials, look_every, ending, stopping } = self;
        let Ending { delay, drain } = ending;
        let over = CancellationToken::new();
        let limits = Limits { connections: CONNECTIONS, drain, ..Limits::default() };
        let service = move |request, peer| Arc::clone(&app).serve(request, peer);
        let mut server = AbortOnDropHandle::new(tokio::spawn(bound.serve(tls, service, limits, over.clone())));
        let mut keeping = AbortOnDropHandle::new(tokio::spawn(credentials.keep(look_every)));
        info!(%address, "serving");
        tokio::select! {
            biased;
            () = stopping.cancelled() => {}
            ended = &mut server => bail!("the listener has ended: {ended:?}"),
            ended = &mut keeping => bail!("nobody looks after certificates and tokens any more: {ended:?}"),
        }
        info!(
            "stopping: reviews are answered for {} s more, and those that wait then have {} s",
            delay.as_secs(),
            drain.as_secs()
        );
        sleep(delay).await;
        over.cancel();
        if let Err(error) = server.await {
            warn!(%error, "the listener did not end as it should");
        }
        Ok(())
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("address", &self.address).finish_non_exhaustive()
    }
}
