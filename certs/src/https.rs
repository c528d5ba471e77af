//! The HTTPS accept loop: bind → [`Bound`] → serve. Every connection has an owner, every wait an end.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::{ServerConfig, pki_types::CertificateDer};
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::connections::{Busy, Connections, Entry, HEADERS, Limits};

/// A listening socket that nobody serves yet.
#[derive(Debug)]
pub struct Bound {
    pub(crate) listener: TcpListener,
}

/// Who is at the other end of a connection. The certificates are shown, not trusted.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    pub certificates: Arc<[CertificateDer<'static>]>,
}

#[derive(Debug, Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// A client that says nothing must not hold a connection: as long as Go's TLS handshake timeout.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A front proxy sends a header for each group of its user.
const MOST_HEADERS: usize = 1000;
/// Of one request: what Go's servers take is 1 MiB; no user is described by more than this.
const HEADER_BYTES: u32 = 256 * 1024;
/// HTTP/2 pings find dead peers behind NAT.
const PING: Duration = Duration::from_secs(30);
/// What has nothing open is told to go, and then made to.
const LEAVING: Duration = Duration::from_secs(1);
/// Out of file descriptors: without a pause the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

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
        let tasks = TaskTracker::new();
        let connections = Connections::new(limits);
        while let Some((tcp, address)) = self.accept(&connections, &shutdown).await {
            let entry = connections.enter().await;
            let (acceptor, service, closing) = (acceptor.clone(), service.clone(), shutdown.clone());
            tasks.spawn(async move {
                let handshake = tokio::select! {
                    biased;
                    () = closing.cancelled() => return,
                    () = entry.leaves() => return,
                    handshake = shake_hands(acceptor, tcp, address) => handshake,
                };
                if let Some((stream, peer)) = handshake {
                    converse(stream, peer, service, &entry, limits, closing).await;
                }
            });
        }
        drop(self.listener);
        tasks.close();
        if timeout(limits.drain + LEAVING, tasks.wait()).await.is_err() {
            debug!("open requests were cut at the end of the drain");
        }
    }

    /// The next connection; none when it is over.
    async fn accept(&self, connections: &Connections, shutdown: &CancellationToken) -> Option<(TcpStream, SocketAddr)> {
        loop {
            let accepted = shutdown.run_until_cancelled(self.listener.accept()).await?;
            match accepted {
                Ok(accepted) => return Some(accepted),
                Err(error) => {
                    warn!(%error, "accepting a connection failed");
                    connections.make_room();
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// The body of an answer: until it is dropped, a watch's too, its connection is not idle.
struct Answering<B> {
    body: Pin<Box<B>>,
    _busy: Busy,
}

impl<B: Body> Body for Answering<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.get_mut().body.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Answers what is asked on a connection, until either side has enough.
async fn converse<S, F, B>(
    stream: TlsStream<TcpStream>,
    peer: Peer,
    service: S,
    entry: &Entry,
    limits: Limits,
    closing: CancellationToken,
) where
    S: Fn(Request<Incoming>, Peer) -> F,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let address = peer.address;
    let service = service_fn(|request| {
        let busy = entry.request();
        let answer = service(request, peer.clone());
        async move { Ok::<_, Infallible>(answer.await.map(|body| Answering { body: Box::pin(body), _busy: busy })) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).max_headers(MOST_HEADERS).header_read_timeout(HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(HEADER_BYTES)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let grace = tokio::select! {
        biased;
        () = closing.cancelled() => limits.drain,
        () = entry.leaves() => LEAVING,
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                debug!(%address, %error, "connection ended");
            }
            return;
        }
    };
    connection.as_mut().graceful_shutdown();
    if timeout(grace, connection).await.is_err() {
        debug!(%address, "connection cut: it did not end when it was told to");
    }
}

pub(crate) async fn shake_hands(
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    address: SocketAddr,
) -> Option<(TlsStream<TcpStream>, Peer)> {
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
