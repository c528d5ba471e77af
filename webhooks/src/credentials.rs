//! Whom we trust, who we are, and what we show: files that others keep (mounted Secrets, a projected token), read again when they
//! change. What cannot be used leaves the old one in force.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use arc_swap::{ArcSwap, ArcSwapOption};
use certs::{Authorities, KeyPairPem, Leaf};
use http::HeaderValue;
use jiff::Timestamp;
use rustls::{ClientConfig, ServerConfig, pki_types::CertificateDer};
use tokio::time::sleep;
use tracing::{debug, info, warn};

/// Where they are.
#[derive(Clone, Debug)]
pub struct Files {
    /// Our serving certificate and its key.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Who signs the apiserver's certificate.
    pub authority: PathBuf,
    /// Our token for the apiserver.
    pub token: PathBuf,
    /// Who signs those that may send us reviews; none: whoever reaches us may.
    pub clients: Option<PathBuf>,
}

/// What they say.
pub struct Credentials {
    files: Files,
    leaf: Arc<Leaf>,
    shown: ArcSwap<Shown>,
    apiserver: ArcSwapOption<Trusted>,
    token: ArcSwapOption<HeaderValue>,
    clients: Option<ArcSwap<Clients>>,
}

struct Shown {
    pair: KeyPairPem,
    expires: Option<Timestamp>,
}

/// How the apiserver is known.
pub(crate) struct Trusted {
    pem: String,
    pub(crate) tls: Arc<ClientConfig>,
}

struct Clients {
    pem: String,
    authorities: Authorities,
}

/// A kubelet brings a changed Secret within a minute or so; one reading of all is some microseconds.
pub const LOOK_EVERY: Duration = Duration::from_secs(5);
/// No certificate, bundle or token that is one is longer.
const LONGEST: u64 = 1024 * 1024;

impl Credentials {
    /// Reads them. Without a certificate nobody can be served; what the apiserver is asked with may come later.
    pub fn read(files: Files) -> anyhow::Result<Arc<Self>> {
        let pair = pair(&files)?;
        let leaf = Leaf::new(&pair).with_context(|| files.certificate.display().to_string())?;
        let clients = match &files.clients {
            Some(path) => Some(ArcSwap::from_pointee(Clients::parse(text(path)?)?)),
            None => None,
        };
        let credentials = Self {
            leaf,
            shown: ArcSwap::from_pointee(Shown::of(pair)),
            apiserver: ArcSwapOption::empty(),
            token: ArcSwapOption::empty(),
            clients,
            files,
        };
        credentials.look();
        Ok(Arc::new(credentials))
    }

    /// Reads them again, for ever.
    pub async fn keep(self: Arc<Self>, every: Duration) {
        loop {
            sleep(every).await;
            self.look();
        }
    }

    /// What a server of ours shows.
    pub fn server_config(&self) -> Result<ServerConfig, rustls::Error> {
        certs::server_config(Arc::clone(&self.leaf) as Arc<_>)
    }

    /// Until when our certificate is good for something.
    pub fn expires(&self) -> Option<Timestamp> {
        self.shown.load().expires
    }

    /// Whether whoever shows this chain may send us reviews.
    pub fn admits(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> bool {
        self.clients.as_ref().is_none_or(|clients| clients.load().authorities.verify(chain, now).is_ok())
    }

    /// None while there is no authority.
    pub(crate) fn apiserver(&self) -> Option<Arc<Trusted>> {
        self.apiserver.load_full()
    }

    /// `Bearer …`; none while there is no token.
    pub(crate) fn token(&self) -> Option<Arc<HeaderValue>> {
        self.token.load_full()
    }

    fn look(&self) {
        let Files { authority, token, clients, .. } = &self.files;
        self.look_at_pair();
        look_at(authority, |pem| {
            if self.apiserver.load().as_ref().is_none_or(|known| known.pem != pem) {
                self.apiserver.store(Some(Arc::new(Trusted::parse(pem)?)));
                info!("the apiserver's authority was read");
            }
            Ok(())
        });
        look_at(token, |token| {
            let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.trim()))?;
            bearer.set_sensitive(true);
            if self.token.load().as_deref() != Some(&bearer) {
                self.token.store(Some(Arc::new(bearer)));
                debug!("our token was read");
            }
            Ok(())
        });
        if let (Some(path), Some(known)) = (clients, &self.clients) {
            look_at(path, |pem| {
                if known.load().pem != pem {
                    known.store(Arc::new(Clients::parse(pem)?));
                    info!("the authority of those that may send reviews was read");
                }
                Ok(())
            });
        }
    }

    fn look_at_pair(&self) {
        let pair = match pair(&self.files) {
            Ok(pair) => pair,
            Err(error) => return warn!(error = %format!("{error:#}"), "the serving certificate stays as it was"),
        };
        let known = self.shown.load();
        if pair.certificate == known.pair.certificate && pair.key == known.pair.key {
            return;
        }
        match self.leaf.replace(&pair) {
            Ok(()) => {
                self.shown.store(Arc::new(Shown::of(pair)));
                info!("the serving certificate was read again");
            }
            // Half of it may have been exchanged so far.
            Err(error) => debug!(%error, "the serving certificate's files cannot be used; the old one stays"),
        }
    }
}

impl Shown {
    fn of(pair: KeyPairPem) -> Self {
        let expires = certs::validity(&pair.certificate).ok().map(|(_, until)| until);
        Self { pair, expires }
    }
}

impl Trusted {
    /// The bundle that it was read from.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    fn parse(pem: String) -> anyhow::Result<Self> {
        let tls = certs::client_config(&pem, "h2")?;
        Ok(Self { pem, tls: Arc::new(tls) })
    }
}

impl Clients {
    fn parse(pem: String) -> anyhow::Result<Self> {
        Ok(Self { authorities: Authorities::parse(&pem)?, pem })
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("files", &self.files).finish_non_exhaustive()
    }
}

fn pair(files: &Files) -> anyhow::Result<KeyPairPem> {
    Ok(KeyPairPem { certificate: text(&files.certificate)?, key: text(&files.key)? })
}

fn look_at(path: &Path, take: impl FnOnce(String) -> anyhow::Result<()>) {
    let taken = text(path).and_then(|text| take(text).with_context(|| path.display().to_string()));
    if let Err(error) = taken {
        warn!(error = %format!("{error:#}"), "a file cannot be used; what it said before stays in force");
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    let read = || {
        if fs::metadata(path)?.len() > LONGEST {
            return Err(io::Error::other("longer than a MiB"));
        }
        fs::read_to_string(path)
    };
    read().with_context(|| path.display().to_string())
}
