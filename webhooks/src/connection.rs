//! The one connection to the apiserver that all questions share, kept until it is lost, distrusted or in the way.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    net::{TcpStream, lookup_host},
    sync::Mutex,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use crate::{credentials::Trusted, unanswered::Unanswered};

/// Where the apiserver is asked.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// A name or an address, and the port.
    pub host: String,
    pub port: u16,
    /// What its certificate is for.
    pub name: ServerName<'static>,
}

/// A connection to it, dialled when it is needed.
pub(crate) struct Connection {
    upstream: Upstream,
    slot: Mutex<Slot>,
    /// Which of its addresses comes first, the next time.
    turn: AtomicUsize,
}

#[derive(Default)]
struct Slot {
    kept: Option<Kept>,
    dialled: usize,
    /// The last dialling that came to nothing.
    failed: Option<(Instant, Unanswered)>,
}

/// An open one. Its task ends with the last that uses it.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) sender: SendRequest<Full<Bytes>>,
    /// Which one it is.
    pub(crate) number: usize,
    /// Whether it was there before it was needed: then it may have been lost without anybody seeing it.
    pub(crate) is_old: bool,
    trusted: Arc<ClientConfig>,
    _task: Arc<AbortOnDropHandle<()>>,
}

/// For one address, its handshake included. An apiserver that takes longer will not answer in time either.
const DIAL: Duration = Duration::from_secs(2);
/// Addresses that are tried for one question.
const MOST_ADDRESSES: usize = 3;
/// A peer that is gone is noticed while there still is time to ask another.
const PING: Duration = Duration::from_secs(2);

impl Connection {
    pub(crate) fn new(upstream: Upstream) -> Self {
        Self { upstream, slot: Mutex::default(), turn: AtomicUsize::new(0) }
    }

    pub(crate) fn name(&self) -> String {
        self.upstream.name.to_str().into_owned()
    }

    /// The open one, unless it is the one with this number; else a new one. All that want one wait for the same dialling, and
    /// hear of its failure together.
    pub(crate) async fn get(&self, trusted: &Trusted, except: Option<usize>) -> Result<Kept, Unanswered> {
        let asked = Instant::now();
        let mut slot = self.slot.lock().await;
        if let Some(kept) = &slot.kept
            && !kept.sender.is_closed()
            && Some(kept.number) != except
            && Arc::ptr_eq(&kept.trusted, &trusted.tls)
        {
            return Ok(kept.clone());
        }
        slot.kept = None;
        if let Some((at, why)) = &slot.failed
            && *at >= asked
        {
            return Err(why.clone());
        }
        match self.dial(&trusted.tls).await {
            Ok((sender, task)) => {
                slot.dialled += 1;
                let kept = Kept {
                    sender,
                    number: slot.dialled,
                    is_old: false,
                    trusted: Arc::clone(&trusted.tls),
                    _task: Arc::new(task),
                };
                slot.kept = Some(Kept { is_old: true, ..kept.clone() });
                slot.failed = None;
                Ok(kept)
            }
            Err(why) => {
                slot.failed = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    async fn dial(
        &self,
        tls: &Arc<ClientConfig>,
    ) -> Result<(SendRequest<Full<Bytes>>, AbortOnDropHandle<()>), Unanswered> {
        let Upstream { host, port, .. } = &self.upstream;
        let unreachable = |why: &dyn std::fmt::Display| Unanswered::Unreachable(why.to_string());
        let looked_up = timeout(DIAL, lookup_host((host.as_str(), *port))).await;
        let looked_up = looked_up.map_err(|_| unreachable(&"its name cannot be looked up"))?;
        let addresses: Vec<SocketAddr> = looked_up.map_err(|error| unreachable(&error))?.collect();
        let first = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut why = unreachable(&"its name has no address");
        for at in (0..addresses.len()).take(MOST_ADDRESSES) {
            let address = addresses[first.wrapping_add(at) % addresses.len()];
            match timeout(DIAL, self.shake_hands(address, Arc::clone(tls))).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(error)) => why = unreachable(&error),
                Err(_) => why = unreachable(&format!("{address} does not answer")),
            }
            debug!(%address, %why, "the apiserver was not reached");
        }
        Err(why)
    }

    async fn shake_hands(
        &self,
        address: SocketAddr,
        tls: Arc<ClientConfig>,
    ) -> Result<(SendRequest<Full<Bytes>>, AbortOnDropHandle<()>), std::io::Error> {
        let tcp = TcpStream::connect(address).await?;
        // Small questions must not wait for more to come.
        tcp.set_nodelay(true).ok();
        let stream = TlsConnector::from(tls).connect(self.upstream.name.clone(), tcp).await?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(PING).keep_alive_timeout(PING).keep_alive_while_idle(true);
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%address, %error, "the connection to the apiserver ended");
            }
        });
        Ok((sender, AbortOnDropHandle::new(task)))
    }
}
