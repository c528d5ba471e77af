//! How a kube-apiserver trusts us: our authority in a Secret that all replicas share, a serving certificate for the Service's
//! names, and the authority's certificate in the APIService; or a certificate from files, which is somebody else's to keep.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, anyhow, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use certs::{ByName, KeyPairPem, Leaf, Names};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Secret, kube_aggregator::pkg::apis::apiregistration::v1::APIService};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::{
    health::Condition,
    keyring::{Kept, Keyring, REPLICAS, Ring, SECRET},
};

/// `NAMESPACE/NAME` of the Service that the APIService names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
}

/// Who vouches for the certificate that kube-apiserver sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serving {
    /// Our own authority, which we tell in the APIService.
    Own,
    /// Somebody else, who also keeps the APIService's `caBundle` (cert-manager's cainjector does).
    Files { certificate: PathBuf, key: PathBuf },
}

/// The life of a serving certificate, and how often everything here is looked at.
const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Until the authority is known.
const FIRST_LOOKS: Duration = Duration::from_millis(250);
/// How long one look may take.
const LOOK: Duration = Duration::from_secs(10);

/// What a server shows, and what keeps it right.
pub(super) struct Certificates {
    service: Service,
    serving: Serving,
    overlap: Duration,
    address: SocketAddr,
    /// Met once the authority is the one that all replicas have.
    shared: Arc<Condition>,
    pub(super) keyring: Arc<Keyring>,
    /// Of our own authority.
    own: Arc<Leaf>,
    files: Option<Files>,
}

/// What a look at the shared authority came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Followed {
    /// It could not be looked at, or there is none yet.
    Unknown,
    Same,
    Changed,
}

struct Files {
    leaf: Arc<Leaf>,
    shown: KeyPairPem,
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err("must be NAMESPACE/NAME".to_owned()),
        }
    }
}

impl Certificates {
    /// Begins with an authority of its own, so that probes are answered also while no API server is: [`Self::keep`] takes the one
    /// in the Secret, or puts this one there.
    pub(super) fn begin(
        service: &Service,
        serving: Serving,
        overlap: Duration,
        address: SocketAddr,
        shared: &Arc<Condition>,
    ) -> anyhow::Result<Self> {
        let ring = Ring::of(Kept::create(Timestamp::now())?)?;
        let own = Leaf::new(&leaf(&ring, service, address, Timestamp::now())?)?;
        let files = match &serving {
            Serving::Own => None,
            Serving::Files { .. } => {
                let shown = serving.read()?;
                Some(Files { leaf: Leaf::new(&shown)?, shown })
            }
        };
        let (service, shared, keyring) = (service.clone(), Arc::clone(shared), Keyring::new(ring));
        Ok(Self { service, serving, overlap, address, shared, keyring, own, files })
    }

    pub(super) fn tls(&self) -> Result<rustls::ServerConfig, rustls::Error> {
        let others = self.files.as_ref().map_or_else(|| Arc::clone(&self.own), |files| Arc::clone(&files.leaf));
        certs::server_config(Arc::new(ByName { name: REPLICAS, named: Arc::clone(&self.own), others }))
    }

    /// Keeps certificates young, the authority the one that all replicas have, and the APIService's `caBundle` ours, for ever.
    pub(super) async fn keep(mut self, client: Client, leads: impl Fn() -> bool + Send + Sync) {
        // Whether what is shown is not what it should be.
        let (mut renewed, mut due) = (Instant::now(), false);
        loop {
            sleep(if self.shared.check().1 { LOOK_EVERY } else { FIRST_LOOKS }).await;
            let followed = timeout(LOOK, self.follow(&client, leads())).await;
            let followed = match followed.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", LOOK.as_secs()))) {
                Ok(followed) => followed,
                Err(error) => {
                    let secret = about(&self.service);
                    warn!(error = %format!("{error:#}"), secret, "our authority could not be looked after; trying again");
                    Followed::Unknown
                }
            };
            due |= followed == Followed::Changed || renewed.elapsed() > LEAF_LIFE / 3;
            if due {
                let ring = self.keyring.now();
                let pair = leaf(&ring, &self.service, self.address, Timestamp::now());
                match pair.and_then(|pair| Ok(self.own.replace(&pair)?)) {
                    Ok(()) => {
                        (renewed, due) = (Instant::now(), false);
                        info!("our serving certificate was renewed");
                    }
                    Err(error) => warn!(%error, "our serving certificate was not renewed"),
                }
            }
            // Only now: whoever believes us ready is shown a certificate that all trust.
            if followed != Followed::Unknown && !due {
                self.shared.is_met();
            }
            self.reload();
            if leads()
                && self.shared.check().1
                && self.serving == Serving::Own
                && let Err(error) = timeout(LOOK, tell(&client, &self.keyring.now().bundle))
                    .await
                    .unwrap_or_else(|late| Err(late.into()))
            {
                warn!(%error, "the APIService's caBundle could not be kept; trying again");
            }
        }
    }

    /// The authority as the Secret has it; the leader makes the next step of an exchange.
    async fn follow(&self, client: &Client, leads: bool) -> anyhow::Result<Followed> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &self.service.namespace);
        let known = self.keyring.now();
        let Some(mut secret) = secrets.get_opt(SECRET).await? else {
            // If it was there before, everybody trusts what we have in memory.
            if !leads {
                return Ok(Followed::Unknown);
            }
            secrets.create(&PostParams::default(), &known.kept().secret()).await?;
            info!("our authority is in {} now", about(&self.service));
            return Ok(Followed::Same);
        };
        let mut kept = Kept::read(&secret)?;
        if leads && let Some(next) = kept.step(Timestamp::now(), self.overlap)? {
            let told = match self.serving {
                Serving::Own => is_told(client, &kept).await,
                Serving::Files { .. } => Ok(true),
            };
            match told {
                Ok(true) => {
                    next.write(&mut secret);
                    // Whoever was faster has made this step.
                    secrets.replace(SECRET, &PostParams::default(), &secret).await?;
                    info!("our authority: {}", next.state());
                    kept = next;
                }
                Ok(false) => warn!("our next authority signs nothing before the APIService trusts it"),
                Err(error) => warn!(%error, "it is not known whether the APIService trusts our next authority"),
            }
        }
        let ring = Ring::of(kept)?;
        let same = ring.is(&known);
        self.keyring.put(ring);
        Ok(if same { Followed::Same } else { Followed::Changed })
    }

    /// From files that have changed. What cannot be used leaves the old one in force.
    fn reload(&mut self) {
        let Some(files) = &mut self.files else { return };
        match self.serving.read() {
            Ok(pair) if pair.certificate == files.shown.certificate && pair.key == files.shown.key => {}
            Ok(pair) => match files.leaf.replace(&pair) {
                Ok(()) => {
                    files.shown = pair;
                    info!("the serving certificate was read again");
                }
                // Half of it may have been exchanged so far.
                Err(error) => debug!(%error, "the serving certificate's files cannot be used; the old one stays"),
            },
            Err(error) => warn!(error = %format!("{error:#}"), "the serving certificate stays as it was"),
        }
    }
}

impl Serving {
    /// Of files only.
    fn read(&self) -> anyhow::Result<KeyPairPem> {
        let Self::Files { certificate, key } = self else { bail!("no files were given") };
        let read = |path: &PathBuf| std::fs::read_to_string(path).with_context(|| path.display().to_string());
        Ok(KeyPairPem { certificate: read(certificate)?, key: read(key)? })
    }
}

fn about(service: &Service) -> String {
    format!("Secret {}/{SECRET}", service.namespace)
}

/// kube-apiserver dials an address, and asks for the Service's name.
fn leaf(ring: &Ring, service: &Service, address: SocketAddr, now: Timestamp) -> anyhow::Result<KeyPairPem> {
    let Service { namespace, name } = service;
    let dns = [
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc.cluster.local"),
        REPLICAS.to_owned(),
        "localhost".to_owned(),
    ];
    let names = Names { dns: dns.into(), addresses: vec![address.ip()] };
    Ok(ring.signing.serve(&names, now, LEAF_LIFE)?)
}

/// Whether the APIService trusts what signs next: nothing is signed by what nobody was told of.
async fn is_told(client: &Client, kept: &Kept) -> Result<bool, kube::Error> {
    let Some(next) = kept.next() else { return Ok(true) };
    let service = Api::<APIService>::all(client.clone()).get_opt(&api_service()).await?;
    let bundle = service.and_then(|service| service.spec?.ca_bundle).unwrap_or_default();
    Ok(String::from_utf8_lossy(&bundle.0).contains(next.trim()))
}

fn api_service() -> String {
    format!("{}.{}", api::VERSION, api::LIVE_GROUP)
}

/// Puts what is trusted into the APIService, unless it is there.
async fn tell(client: &Client, bundle: &str) -> anyhow::Result<()> {
    let name = api_service();
    let services: Api<APIService> = Api::all(client.clone());
    let Some(service) = services.get_opt(&name).await? else {
        bail!("there is no APIService {name}; apply deploy/");
    };
    let has = service.spec.as_ref().and_then(|spec| spec.ca_bundle.as_ref());
    if has.is_some_and(|has| has.0 == bundle.as_bytes()) {
        return Ok(());
    }
    let patch: Value = json!({"spec": {"caBundle": STANDARD.encode(bundle)}});
    services.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    info!("the APIService trusts our authority now");
    Ok(())
}
