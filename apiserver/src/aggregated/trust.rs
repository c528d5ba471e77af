//! How a kube-apiserver trusts us: our authority in a Secret that all replicas share, a serving certificate for the Service's
//! names, and the authority's certificate in the APIService.

use std::{collections::BTreeMap, net::SocketAddr, str::FromStr, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use base64::{Engine, engine::general_purpose::STANDARD};
use certs::{Authority, KeyPairPem, Leaf, Names};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::time::interval;
use tracing::{info, warn};

/// `NAMESPACE/NAME` of the Service that the APIService names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
}

/// The Secret that holds our authority, in the Service's namespace.
const AUTHORITY: &str = "stillpoint-apiserver-ca";
/// The life of a serving certificate, and how often it is looked at.
const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
const LOOK_EVERY: Duration = Duration::from_secs(30);

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

/// Our authority: the one in the Secret, or a new one that is put there. Whoever is first makes it.
pub(super) async fn authority(client: &Client, service: &Service) -> anyhow::Result<Arc<Authority>> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &service.namespace);
    let about = || format!("Secret {}/{AUTHORITY}", service.namespace);
    if let Some(secret) = secrets.get_opt(AUTHORITY).await.with_context(about)? {
        return read(&secret).with_context(about);
    }
    let (authority, pem) = Authority::create("stillpoint", Timestamp::now())?;
    let data = [("ca.crt", pem.certificate), ("ca.key", pem.key)];
    let secret = Secret {
        metadata: ObjectMeta { name: Some(AUTHORITY.to_owned()), ..ObjectMeta::default() },
        data: Some(data.map(|(key, pem)| (key.to_owned(), ByteString(pem.into_bytes()))).into()),
        ..Secret::default()
    };
    match secrets.create(&PostParams::default(), &secret).await {
        Ok(_) => {
            info!("a new authority was made, and is in {}", about());
            Ok(Arc::new(authority))
        }
        // Another replica was faster.
        Err(kube::Error::Api(status)) if status.code == 409 => {
            read(&secrets.get(AUTHORITY).await.with_context(about)?).with_context(about)
        }
        Err(error) => Err(error).with_context(about),
    }
}

fn read(secret: &Secret) -> anyhow::Result<Arc<Authority>> {
    let none = BTreeMap::new();
    let data = secret.data.as_ref().unwrap_or(&none);
    let text = |key: &str| -> anyhow::Result<String> {
        let Some(bytes) = data.get(key) else { bail!("has no key {key}; delete it to have a new authority made") };
        Ok(String::from_utf8(bytes.0.clone())?)
    };
    let pem = KeyPairPem { certificate: text("ca.crt")?, key: text("ca.key")? };
    Ok(Arc::new(Authority::from_pem(&pem)?))
}

/// kube-apiserver dials an address, and asks for the Service's name.
pub(super) fn leaf(
    authority: &Authority,
    service: &Service,
    address: SocketAddr,
    now: Timestamp,
) -> anyhow::Result<KeyPairPem> {
    let Service { namespace, name } = service;
    let dns = [
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc.cluster.local"),
        "localhost".to_owned(),
    ];
    let names = Names { dns: dns.into(), addresses: vec![address.ip()] };
    Ok(authority.serve(&names, now, LEAF_LIFE)?)
}

/// Keeps the serving certificate young, and the APIService's `caBundle` ours, for ever.
pub(super) async fn keep(
    client: Client,
    authority: Arc<Authority>,
    leaf: Arc<Leaf>,
    service: Service,
    address: SocketAddr,
) {
    let renew_every = LEAF_LIFE / 3;
    let mut renewed = tokio::time::Instant::now();
    let mut tick = interval(LOOK_EVERY);
    loop {
        tick.tick().await;
        if let Err(error) = tell(&client, &authority).await {
            warn!(%error, "the APIService's caBundle could not be kept; trying again");
        }
        if renewed.elapsed() < renew_every {
            continue;
        }
        let pair = self::leaf(&authority, &service, address, Timestamp::now());
        match pair.and_then(|pair| Ok(leaf.replace(&pair)?)) {
            Ok(()) => {
                renewed = tokio::time::Instant::now();
                info!("the serving certificate was renewed");
            }
            Err(error) => warn!(%error, "the serving certificate was not renewed"),
        }
    }
}

/// Puts our authority into the APIService, unless it is there.
async fn tell(client: &Client, authority: &Authority) -> anyhow::Result<()> {
    let name = format!("{}.{}", api::VERSION, api::LIVE_GROUP);
    let services: Api<APIService> = Api::all(client.clone());
    let Some(service) = services.get_opt(&name).await? else {
        bail!("there is no APIService {name}; apply deploy/");
    };
    let wanted = authority.certificate().as_bytes();
    let has = service.spec.as_ref().and_then(|spec| spec.ca_bundle.as_ref());
    if has.is_some_and(|bundle| bundle.0 == wanted) {
        return Ok(());
    }
    let patch: Value = json!({"spec": {"caBundle": STANDARD.encode(wanted)}});
    services.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    info!("the APIService trusts our authority now");
    Ok(())
}
