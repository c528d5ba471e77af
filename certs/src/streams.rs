//! An accept loop for what is no HTTP: each connection is a stream, for as long as both sides want it.

use std::{sync::Arc, time::Duration};

use rustls::ServerConfig;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::https::{Bound, Peer, shake_hands};

/// Out of file descriptors: without a pause the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long streams may take to end when it is over.
const LAST: Duration = Duration::from_secs(5);

impl Bound {
    /// Serves streams of `protocol` until `shutdown`, at most so many at once; whoever comes beyond that is turned away.
    /// `service` has to end soon after `shutdown` by itself.
    pub async fn serve_streams<S, F>(
        self,
        mut tls: ServerConfig,
        protocol: &str,
        most: usize,
        service: S,
        shutdown: CancellationToken,
    ) where
        S: Fn(TlsStream<TcpStream>, Peer) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        tls.alpn_protocols = vec![protocol.as_bytes().to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let (tasks, room) = (TaskTracker::new(), Arc::new(Semaphore::new(most)));
        while let Some(accepted) = shutdown.run_until_cancelled(self.listener.accept()).await {
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "accepting a connection failed");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                debug!(%address, most, "turned away: there is no room for another stream");
                continue;
            };
            let (acceptor, service) = (acceptor.clone(), service.clone());
            tasks.spawn(async move {
                if let Some((stream, peer)) = shake_hands(acceptor, tcp, address).await {
                    service(stream, peer).await;
                }
                drop(place);
            });
        }
        drop(self.listener);
        tasks.close();
        if timeout(LAST, tasks.wait()).await.is_err() {
            debug!("open streams were cut");
        }
    }
}
