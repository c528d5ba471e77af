//! How a kube-apiserver trusts us: our authority in a Secret that all replicas share, a serving certificate for the Service's
//! names, and the authority's certificate in the APIService; or a certificate from files, which is somebody else's to keep.

use std::{net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use certs::{ByName, KeyPairPem, Leaf, Names};
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Secret, kube_aggregator::pkg::apis::apiregistration::v1::APIService};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

use super::keyring::{Kept, Keyring, Ring, SECRET};
use crate::verbs::Verbs;

/// `NAMESPACE/NAME` of the Service that the APIService names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
}

/// Who vouches for the certificate that kube-apiserver sees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Serving {
    /// Our own authority, which is exchanged with so long an overlap, and told in the APIService.
    Own { overlap: Duration },
    /// Somebody else, who also keeps the APIService's `caBundle` (cert-manager's cainjector does).
    Files { certificate: PathBuf, key: PathBuf },
}

/// The name by which replicas ask each other: whoever asks by it is shown a certificate of our own authority.
pub(crate) const REPLICAS: &str = "replicas.stillpoint.internal";

/// The life of a serving certificate, and how often everything here is looked at.
const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// What a server shows, and what keeps it right.
pub(super) struct Certificates {
    service: Service,
    serving: Serving,
    address: SocketAddr,
    pub(super) keyring: Arc<Keyring>,
    /// Of our own authority.
    own: Arc<Leaf>,
    files: Option<Files>,
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
    /// Our authority is the one in the Secret, or a new one that is put there. Whoever is first makes it.
    pub(super) async fn begin(
        client: &Client,
        service: &Service,
        serving: Serving,
        address: SocketAddr,
    ) -> anyhow::Result<Self> {
        let ring = authority(client, service).await.with_context(|| about(service))?;
        let own = Leaf::new(&leaf(&ring, service, address, Timestamp::now())?)?;
        let files = match &serving {
            Serving::Own { .. } => None,
            Serving::Files { .. } => {
                let shown = serving.read()?;
                Some(Files { leaf: Leaf::new(&shown)?, shown })
            }
        };
        Ok(Self { service: service.clone(), serving, address, keyring: Keyring::new(ring), own, files })
    }

    pub(super) fn tls(&self) -> Result<rustls::ServerConfig, rustls::Error> {
        let others = self.files.as_ref().map_or_else(|| Arc::clone(&self.own), |files| Arc::clone(&files.leaf));
        certs::server_config(Arc::new(ByName { name: REPLICAS, named: Arc::clone(&self.own), others }))
    }

    /// Keeps certificates young, the authority the one that all replicas have, and the APIService's `caBundle` ours, for ever.
    pub(super) async fn keep(mut self, client: Client, verbs: Verbs) {
        let mut renewed = Instant::now();
        let mut tick = interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let changed = match self.follow(&client, verbs.leads()).await {
                Ok(changed) => changed,
                Err(error) => {
                    let secret = about(&self.service);
                    warn!(error = %format!("{error:#}"), secret, "our authority could not be looked after; trying again");
                    false
                }
            };
            if changed || renewed.elapsed() > LEAF_LIFE / 3 {
                let ring = self.keyring.now();
                let pair = leaf(&ring, &self.service, self.address, Timestamp::now());
                match pair.and_then(|pair| Ok(self.own.replace(&pair)?)) {
                    Ok(()) => {
                        renewed = Instant::now();
                        info!("our serving certificate was renewed");
                    }
                    Err(error) => warn!(%error, "our serving certificate was not renewed"),
                }
            }
            self.reload();
            if verbs.leads()
                && matches!(self.serving, Serving::Own { .. })
                && let Err(error) = tell(&client, &self.keyring.now().bundle).await
            {
                warn!(%error, "the APIService's caBundle could not be kept; trying again");
            }
        }
    }

    /// The authority as the Secret has it; the leader makes the next step of an exchange. Whether it is another now.
    async fn follow(&self, client: &Client, leads: bool) -> anyhow::Result<bool> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &self.service.namespace);
        let known = self.keyring.now();
        let Some(mut secret) = secrets.get_opt(SECRET).await? else {
            // Everybody trusts what we have in memory; a new one would be trusted by nobody for a while.
            if leads {
                secrets.create(&PostParams::default(), &known.kept().secret()).await?;
                warn!("{} was gone, and was written again", about(&self.service));
            }
            return Ok(false);
        };
        let mut kept = Kept::read(&secret)?;
        if let Serving::Own { overlap } = self.serving
            && leads
            && let Some(next) = kept.step(Timestamp::now(), overlap)?
        {
            next.write(&mut secret);
            // Whoever was faster has made this step.
            secrets.replace(SECRET, &PostParams::default(), &secret).await?;
            info!("our authority: {}", next.state());
            kept = next;
        }
        let ring = Ring::of(kept)?;
        let changed = !ring.is(&known);
        self.keyring.put(ring);
        Ok(changed)
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

async fn authority(client: &Client, service: &Service) -> anyhow::Result<Ring> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &service.namespace);
    if let Some(secret) = secrets.get_opt(SECRET).await? {
        return Ring::of(Kept::read(&secret)?);
    }
    let kept = Kept::create(Timestamp::now())?;
    match secrets.create(&PostParams::default(), &kept.secret()).await {
        Ok(_) => {
            info!("a new authority was made, and is in {}", about(service));
            Ring::of(kept)
        }
        // Another replica was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => Ring::of(Kept::read(&secrets.get(SECRET).await?)?),
        Err(error) => Err(error.into()),
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

/// Puts what is trusted into the APIService, unless it is there.
async fn tell(client: &Client, bundle: &str) -> anyhow::Result<()> {
    let name = format!("{}.{}", api::VERSION, api::LIVE_GROUP);
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
