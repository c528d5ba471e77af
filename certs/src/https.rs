//! The HTTPS accept loop: bind → [`Bound`] → serve. Every connection has an owner, every wait an end.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use http::{Request, Response};
use hyper::{
    body::{Body, Incoming},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use rustls::{ServerConfig, pki_types::CertificateDer};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

/// A listening socket that nobody serves yet.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
}

/// Who is at the other end of a connection. The certificates are shown, not trusted.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    pub certificates: Arc<[CertificateDer<'static>]>,
}

/// What connections may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once; more wait in the socket's backlog.
    pub connections: usize,
    /// Requests at once on one HTTP/2 connection. Upstream gives a front proxy 1000: it carries all users' watches.
    pub streams: u32,
    /// How long open requests may go on after shutdown began.
    pub drain: Duration,
}

#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// A client that says nothing must not hold a connection: as long as Go's TLS handshake timeout.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Upstream's header timeout.
const HEADERS: Duration = Duration::from_secs(32);
/// HTTP/2 pings find dead peers behind NAT.
const PING: Duration = Duration::from_secs(30);
/// Out of file descriptors: without a pause the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 4096, streams: 1000, drain: Duration::from_secs(5) }
    }
}

impl Bound {
    /// Binds; port 0 takes a free one.
    pub async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let listener = TcpListener::bind(address).await.map_err(|source| BindError { address, source })?;
        Ok(Self { listener })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown`, then lets open requests go on for at most `limits.drain`.
    pub async fn serve<S, F, B>(self, tls: ServerConfig, service: S, limits: Limits, shutdown: CancellationToken)
    where
        S: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let graceful = GracefulShutdown::new();
        let tasks = TaskTracker::new();
        let room = Arc::new(Semaphore::new(limits.connections));
        loop {
            let permit = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                permit = Arc::clone(&room).acquire_owned() => permit,
            };
            let Ok(permit) = permit else { break };
            let (tcp, address) = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        warn!(%error, "accepting a connection failed");
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let (acceptor, service, watcher) = (acceptor.clone(), service.clone(), graceful.watcher());
            let closing = shutdown.clone();
            tasks.spawn(async move {
                let _permit = permit;
                let handshake = tokio::select! {
                    biased;
                    () = closing.cancelled() => return,
                    handshake = shake_hands(acceptor, tcp, address) => handshake,
                };
                let Some((stream, peer)) = handshake else { return };
                let service = service_fn(move |request| {
                    let answer = service(request, peer.clone());
                    async move { Ok::<_, Infallible>(answer.await) }
                });
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADERS);
                builder
                    .http2()
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(limits.streams)
                    .keep_alive_interval(PING)
                    .keep_alive_timeout(PING);
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                if let Err(error) = watcher.watch(connection.into_owned()).await {
                    debug!(%address, %error, "connection ended");
                }
            });
        }
        drop(self.listener);
        tasks.close();
        if timeout(limits.drain, graceful.shutdown()).await.is_err() {
            debug!("open requests were cut at the end of the drain");
        }
    }
}

async fn shake_hands(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    address: SocketAddr,
) -> Option<(tokio_rustls::server::TlsStream<TcpStream>, Peer)> {
    // Small answers must not wait for more to come.
    tcp.set_nodelay(true).ok();
    match timeout(HANDSHAKE, acceptor.accept(tcp)).await {
        Ok(Ok(stream)) => {
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let certificates = certificates.iter().map(|certificate| certificate.clone().into_owned()).collect();
            Some((stream, Peer { address, certificates }))
        }
        Ok(Err(error)) => {
            debug!(%address, %error, "handshake failed");
            None
        }
        Err(_) => {
            debug!(%address, "handshake timed out");
            None
        }
    }
}
