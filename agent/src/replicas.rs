//! Every replica is dialled, by each address of the Service's name, and one stream is kept to each.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use api::agent::{Granted, Hello, Welcome, Wish};
use freeze::remote::{self, Host};
use rustls::pki_types::ServerName;
use tokio::{
    net::{TcpStream, lookup_host},
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::{settings::Settings, trust::Trust};

/// What goes to each.
#[derive(Clone)]
pub(crate) struct Replicas {
    pub(crate) settings: Arc<Settings>,
    pub(crate) trust: Trust,
    pub(crate) host: Host,
    wishing: Arc<Mutex<HashMap<SocketAddr, Wishing>>>,
}

type Wishing = mpsc::Sender<(Wish, oneshot::Sender<Granted>)>;

/// How often the name is looked up: a replica that has come is dialled so soon.
const LOOK_UP: Duration = Duration::from_secs(5);
const DIAL: Duration = Duration::from_secs(5);
/// Between two attempts, twice as long each time, and up to as long again by chance: agents are many.
const PAUSES: [Duration; 2] = [Duration::from_millis(500), Duration::from_secs(15)];
/// Replicas are a few.
const MOST: usize = 16;

impl Replicas {
    pub(crate) fn new(settings: Arc<Settings>, trust: Trust, host: Host) -> Self {
        Self { settings, trust, host, wishing: Arc::default() }
    }

    /// Until `stop`; when it returns nothing is held for anybody.
    pub(crate) async fn keep(&self, stop: CancellationToken) {
        let (mut kept, mut dialling) = (HashMap::new(), JoinSet::new());
        while !stop.is_cancelled() {
            match self.look_up().await {
                Ok(found) => {
                    // Whoever is gone from the name is dialled no more; what goes on with him goes on.
                    kept.retain(|address, known: &mut CancellationToken| {
                        let stays = found.contains(address);
                        if !stays {
                            known.cancel();
                        }
                        stays
                    });
                    for address in found {
                        kept.entry(address).or_insert_with(|| {
                            let (replicas, known, stop) = (self.clone(), CancellationToken::new(), stop.clone());
                            let gone = known.clone();
                            dialling.spawn(async move { replicas.keep_one(address, gone, stop).await });
                            known
                        });
                    }
                }
                Err(error) => warn!(name = self.settings.apiserver, %error, "replicas cannot be looked up"),
            }
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(LOOK_UP) => {}
            }
            while dialling.try_join_next().is_some() {}
        }
        while dialling.join_next().await.is_some() {}
    }

    /// All addresses of all names.
    async fn look_up(&self) -> std::io::Result<Vec<SocketAddr>> {
        let mut found = Vec::new();
        for name in self.settings.apiserver.split(',') {
            let addresses = timeout(DIAL, lookup_host(name.trim())).await.unwrap_or_else(|late| Err(late.into()))?;
            found.extend(addresses);
        }
        found.truncate(MOST);
        Ok(found)
    }

    /// One stream after the other to one address, until it is gone from the name.
    async fn keep_one(&self, address: SocketAddr, gone: CancellationToken, stop: CancellationToken) {
        let mut pause = PAUSES[0];
        loop {
            let began = Instant::now();
            let met = tokio::select! {
                () = stop.cancelled() => return,
                met = timeout(DIAL, self.meet(address)) => met,
            };
            match met.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {} s", DIAL.as_secs()))) {
                Ok(stream) => {
                    let (wishing, wishes) = mpsc::channel(4);
                    self.wishing().insert(address, wishing);
                    let trust = self.trust.clone();
                    self.host.run(stream, wishes, |bundle| trust.hear(bundle), stop.clone()).await;
                    self.wishing().remove(&address);
                    info!(%address, "a replica is gone");
                }
                Err(error) => warn!(%address, error = %format!("{error:#}"), "a replica was not reached"),
            }
            if began.elapsed() > PAUSES[1] {
                pause = PAUSES[0];
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = gone.cancelled() => return,
                () = sleep(pause.mul_f64(rand::random_range(1.0..2.0))) => {}
            }
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    async fn meet(&self, address: SocketAddr) -> anyhow::Result<TlsStream<TcpStream>> {
        let tcp = TcpStream::connect(address).await?;
        // Small answers must not wait for more to come.
        tcp.set_nodelay(true).ok();
        let name = ServerName::try_from(api::install::REPLICAS)?;
        let mut stream = TlsConnector::from(self.trust.tls()).connect(name, tcp).await?;
        let Settings { namespace, pod, pod_uid, engine, token, .. } = self.settings.as_ref();
        let hello = Hello {
            token: std::fs::read_to_string(token).with_context(|| token.display().to_string())?.trim().to_owned(),
            namespace: namespace.clone(),
            pod: pod.clone(),
            pod_uid: pod_uid.clone(),
            engine: *engine,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        remote::write(&mut stream, &hello).await?;
        match remote::read(&mut stream).await?.context("it went without a word")? {
            Welcome::Come { replica } => {
                info!(%address, replica, "obeying a replica");
                Ok(stream)
            }
            Welcome::Refused { why } => bail!("it does not let us in: {why}"),
        }
    }

    /// Asks whoever answers; the next one has what is left of the time.
    pub(crate) async fn wish(&self, mut wish: Wish) -> Granted {
        let (known, began): (Vec<Wishing>, _) = (self.wishing().values().cloned().collect(), Instant::now());
        let longest = if let Wish::Freeze { within, .. } = &wish { *within } else { 0 };
        for replica in known {
            if let Wish::Freeze { within, .. } = &mut wish {
                let spent = u32::try_from(began.elapsed().as_secs()).unwrap_or(u32::MAX);
                match longest.saturating_sub(spent) {
                    0 => break,
                    left => *within = left,
                }
            }
            let (told, hears) = oneshot::channel();
            if replica.send((wish.clone(), told)).await.is_ok()
                && let Ok(granted) = hears.await
            {
                return granted;
            }
            debug!("a replica went before it answered; another is asked");
        }
        Granted::Refused { why: format!("no replica is connected ({})", self.settings.apiserver) }
    }

    fn wishing(&self) -> std::sync::MutexGuard<'_, HashMap<SocketAddr, Wishing>> {
        self.wishing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
