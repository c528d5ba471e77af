//! What stands between kube-apiserver and the webhooks, which have no rights of their own: the leader keeps their certificate, and
//! their configurations with whom to trust, which namespaces want nothing less than a consistent copy, and which drivers do not tell
//! when they cut. Nobody else writes these, so that an installation by YAML, Helm or GitOps never takes back what is learnt.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use api::{
    Database,
    install::webhooks::{CONTENT_DRIVERS, Kind, LABELS, NAME, SERVING, Webhooks, left_alone},
};
use certs::{KeyPairPem, Names};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::Gates;
use crate::{
    health::Condition,
    keyring::{Keyring, Ring},
    records::{Following, Seen},
    shown::Namespaces,
};

/// Keeps them.
pub(crate) struct Keeper {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) keyring: Arc<Keyring>,
    /// Met once the authority is the one that all replicas have.
    pub(crate) shared: Arc<Condition>,
    /// Whether agents are let in: without that no Pod needs one.
    pub(crate) injects: bool,
}

/// What is applied of each kind of configuration.
#[derive(Debug, Default)]
struct All {
    validating: Option<Applied>,
    mutating: Option<Applied>,
}

/// What the configurations are to say.
struct Said {
    /// Of what is changed: the content that is about to be cut, and Pods.
    cutting: Value,
    asking: Value,
    /// Whom there is no room for.
    left_out: Vec<String>,
}

/// A configuration as this replica has applied it last: what was said, and the object that came of it.
#[derive(Debug, PartialEq, Eq)]
struct Applied {
    said: Value,
    uid: Option<String>,
    generation: Option<i64>,
}

impl Applied {
    fn of(metadata: &ObjectMeta, said: Value) -> Self {
        Self { said, uid: metadata.uid.clone(), generation: metadata.generation }
    }
}

const LEAF_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
const LOOK_EVERY: Duration = Duration::from_secs(5);
const FIRST_LOOKS: Duration = Duration::from_millis(250);
/// Until every kube-apiserver, which follows its configurations, has heard of another: usually some milliseconds.
const HEARD: Duration = Duration::from_millis(500);
/// How long one look may take.
const LOOK: Duration = Duration::from_secs(10);
/// In the Secret: the authority that signed, so that it is signed anew when another does.
const ISSUER: &str = "issuer.crt";

impl Keeper {
    /// For ever.
    pub(crate) async fn keep(self, gates: Gates) {
        let mut applied = All::default();
        // Until kube-apiserver is told of them, a Database does not say that it is ready.
        gates.0.verbs.shown.are(Namespaces::These(BTreeSet::new()));
        let mut databases = gates.0.verbs.records.follow_databases();
        loop {
            if !self.shared.check().1 || gates.is_known().is_err() {
                sleep(FIRST_LOOKS).await;
                continue;
            }
            let looked = timeout(LOOK, self.look(&gates, &mut applied)).await;
            if let Err(error) = looked.unwrap_or_else(|late| Err(late.into())) {
                let error = format!("{error:#}");
                warn!(error, "what the webhooks need could not be looked after; trying again");
                sleep(LOOK_EVERY).await;
                continue;
            }
            sleep(FIRST_LOOKS).await;
            timeout(LOOK_EVERY, unshown(&gates, &mut databases)).await.ok();
        }
    }

    async fn look(&self, gates: &Gates, applied: &mut All) -> anyhow::Result<()> {
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let there = validating.get_opt(NAME).await.context("the webhooks' configuration")?.map(|there| there.metadata);
        gates.0.learn(there.as_ref());
        let cuts = mutating.get_opt(NAME).await.context("the webhooks' configuration")?.map(|there| there.metadata);
        if there.is_none() && cuts.is_none() {
            gates.0.verbs.shown.are(Namespaces::All);
            bail!("there are no webhook configurations {NAME}; apply deploy/");
        }
        if !gates.0.verbs.leads() {
            *applied = All::default();
            gates.0.verbs.shown.are(Namespaces::These(BTreeSet::new()));
            return Ok(());
        }
        let ring = self.keyring.now();
        let databases = gates.0.verbs.records.databases(None);
        let databases: BTreeSet<String> =
            databases.iter().filter_map(|database| database.metadata.namespace.clone()).collect();
        // Nobody is ever asked about some of them, and nobody is to wait for that.
        let alone = left_alone(&self.namespace).map(str::to_owned);
        let shown: BTreeSet<String> = databases.iter().cloned().chain(alone).collect();
        // Before kube-apiserver is told: of what goes nothing is shown from any moment on.
        gates.0.verbs.shown.keep(&shown);
        let Said { cutting, asking, left_out } = self.configurations(gates, &ring.bundle, &databases);
        let told = apply(&mutating, cuts.as_ref(), cutting, &mut applied.mutating).await?;
        let made = apply(&validating, there.as_ref(), asking, &mut applied.validating).await?;
        if let Some(made) = &made {
            gates.0.learn(Some(made));
        }
        if told.is_some() || made.is_some() {
            if !left_out.is_empty() {
                error!(
                    ?left_out,
                    "there is no room for these in the webhooks' configurations: nobody is asked as they want"
                );
            }
            sleep(HEARD).await;
        }
        let whole = there.is_some() && cuts.is_some();
        gates.0.verbs.shown.are(if whole { Namespaces::These(shown) } else { Namespaces::All });
        // Only now: what signs is trusted already when it is shown.
        self.serving(&ring).await?;
        // What is there is kept all the same: a half of it is worth something.
        ensure!(whole, "one of the two webhook configurations {NAME} is not there; apply deploy/");
        Ok(())
    }

    /// What holds for a cut, and all else.
    fn configurations(&self, gates: &Gates, bundle: &str, databases: &BTreeSet<String>) -> Said {
        let required = gates.0.watched.required();
        let drivers = gates.0.drivers();
        let databases: Vec<String> = databases.iter().cloned().collect();
        let webhooks = Webhooks {
            namespace: &self.namespace,
            ca_bundle: bundle,
            required: &required,
            databases: Some(&databases),
            content_drivers: &drivers,
            injects: self.injects,
        };
        let left_out = webhooks.left_out();
        let mut asking = webhooks.configuration(Kind::Validating);
        if !drivers.is_empty() {
            asking["metadata"]["annotations"] = json!({CONTENT_DRIVERS: drivers.join(",")});
        }
        Said { cutting: webhooks.configuration(Kind::Mutating), asking, left_out }
    }

    /// The Secret that the webhooks show and trust by.
    async fn serving(&self, ring: &Ring) -> anyhow::Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let there = secrets.get_opt(SERVING).await.with_context(|| format!("Secret {SERVING}"))?;
        let now = Timestamp::now();
        let kept = there.as_ref().and_then(|secret| pair(secret, ring, now));
        if let (Some(secret), Some(_)) = (&there, &kept)
            && text(secret, "ca.crt") == Some(&ring.bundle)
        {
            return Ok(());
        }
        let pair = match kept {
            Some(pair) => pair,
            None => ring.signing.serve(&self.names(), now, LEAF_LIFE)?,
        };
        let secret = self.secret(&pair, ring, there.as_ref());
        match &there {
            Some(_) => secrets.replace(SERVING, &PostParams::default(), &secret).await,
            None => secrets.create(&PostParams::default(), &secret).await,
        }
        .with_context(|| format!("Secret {SERVING}"))?;
        info!("the webhooks' certificate is in Secret {}/{SERVING}", self.namespace);
        Ok(())
    }

    fn names(&self) -> Names {
        let service = format!("{NAME}.{}", self.namespace);
        Names {
            dns: vec![format!("{service}.svc"), format!("{service}.svc.cluster.local"), service],
            addresses: vec![],
        }
    }

    fn secret(&self, pair: &KeyPairPem, ring: &Ring, there: Option<&Secret>) -> Secret {
        let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
        let data = [
            ("tls.crt", bytes(&pair.certificate)),
            ("tls.key", bytes(&pair.key)),
            ("ca.crt", bytes(&ring.bundle)),
            (ISSUER, bytes(ring.signing.certificate())),
        ];
        Secret {
            metadata: ObjectMeta {
                name: Some(SERVING.to_owned()),
                namespace: Some(self.namespace.clone()),
                resource_version: there.and_then(|there| there.metadata.resource_version.clone()),
                labels: Some(labels()),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data.map(|(key, value)| (key.to_owned(), value)).into()),
            ..Secret::default()
        }
    }
}

/// Has kube-apiserver told of a configuration, if it is not as it should be. Answers what came of it, if it was not.
async fn apply<K>(
    configurations: &Api<K>,
    there: Option<&ObjectMeta>,
    said: Value,
    applied: &mut Option<Applied>,
) -> anyhow::Result<Option<ObjectMeta>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    // One that is not there is the installation's to make.
    let Some(there) = there else { return Ok(None) };
    if applied.as_ref() == Some(&Applied::of(there, said.clone())) {
        return Ok(None);
    }
    let params = PatchParams::apply(api::install::ACCOUNT).force();
    let kind = K::kind(&());
    let made = configurations.patch(NAME, &params, &Patch::Apply(&said)).await;
    let made = made.with_context(|| format!("{kind} {NAME}"))?;
    info!(%kind, "the webhooks' configuration is as it should be");
    *applied = Some(Applied::of(made.meta(), said));
    Ok(Some(made.meta().clone()))
}

/// Until a Database is there whose namespace kube-apiserver is not told of, by whoever tells it; or until that is us.
async fn unshown(gates: &Gates, databases: &mut Following<Database>) {
    let verbs = &gates.0.verbs;
    let led = verbs.leads();
    loop {
        tokio::select! {
            Some(seen) = databases.next() => {
                let Seen::There(database) = seen else { continue };
                let namespace = database.metadata.namespace.as_deref().unwrap_or_default();
                if verbs.leads() && !verbs.shown.contains(namespace) {
                    return;
                }
            }
            () = sleep(FIRST_LOOKS) => {
                if verbs.leads() && !led {
                    return;
                }
            }
        }
    }
}

/// The certificate in it, if what signs now has signed it, and it is young enough.
fn pair(secret: &Secret, ring: &Ring, now: Timestamp) -> Option<KeyPairPem> {
    let pair =
        KeyPairPem { certificate: text(secret, "tls.crt")?.to_owned(), key: text(secret, "tls.key")?.to_owned() };
    let (_, until) = certs::validity(&pair.certificate).ok()?;
    let is_young = until.duration_since(now) > jiff::SignedDuration::try_from(LEAF_LIFE / 3).ok()?;
    (is_young && text(secret, ISSUER) == Some(ring.signing.certificate())).then_some(pair)
}

fn text<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    std::str::from_utf8(&secret.data.as_ref()?.get(key)?.0).ok()
}

fn labels() -> BTreeMap<String, String> {
    LABELS.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::Kept;

    #[test]
    fn a_certificate_is_kept_while_its_authority_signs_and_it_is_young() {
        let now = Timestamp::now();
        let ring = || Ring::of(Kept::create(now).unwrap()).unwrap();
        let (ours, other) = (ring(), ring());
        let secret = |pair: &KeyPairPem, issuer: &Ring| {
            let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
            let data = [
                ("tls.crt", bytes(&pair.certificate)),
                ("tls.key", bytes(&pair.key)),
                (ISSUER, bytes(issuer.signing.certificate())),
            ];
            Secret { data: Some(data.map(|(key, value)| (key.to_owned(), value)).into()), ..Secret::default() }
        };
        let names = Names { dns: vec!["a.b.svc".to_owned()], addresses: vec![] };
        let signed = ours.signing.serve(&names, now, LEAF_LIFE).unwrap();
        assert!(pair(&secret(&signed, &ours), &ours, now).is_some());
        assert!(pair(&secret(&signed, &ours), &other, now).is_none(), "another signs now");
        let late = now + LEAF_LIFE * 3 / 4;
        assert!(pair(&secret(&signed, &ours), &ours, late).is_none(), "it is old");
        let broken = KeyPairPem { certificate: "x".to_owned(), ..signed };
        assert!(pair(&secret(&broken, &ours), &ours, now).is_none(), "nobody can read it");
        assert!(pair(&Secret::default(), &ours, now).is_none());
    }
}
