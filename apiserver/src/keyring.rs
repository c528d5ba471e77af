//! Our authority as all replicas share it, and how it is exchanged while everybody goes on trusting everybody. Pure.
//!
//! ```text
//! one authority ─► a next one is trusted, and signs nothing yet ─► it signs, and the old one is trusted still ─► one authority
//!              asked, or old                                overlap                                      overlap
//! ```
//! What is trusted is always told before anything is signed by it, and taken back after nothing signed by it is in use.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use arc_swap::ArcSwap;
use certs::{Authorities, Authority, KeyPairPem};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};

/// The Secret that holds our authority, in the Service's namespace.
pub(crate) const SECRET: &str = api::install::AUTHORITY;
/// Set by whoever wants a new authority now; removed when it is begun.
pub(crate) const ROTATE: &str = "stillpoint.dev/rotate";
/// When the last step was made.
const STEPPED: &str = "stillpoint.dev/rotation-step-at";
/// The name by which replicas ask each other: whoever asks by it is shown a certificate of our own authority.
pub(crate) const REPLICAS: &str = api::install::REPLICAS;
/// An authority's life; a next one is made when two thirds are over.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// What is trusted and what signs, exchanged without a restart.
#[derive(Debug)]
pub(crate) struct Keyring(ArcSwap<Ring>);

/// What is in force.
#[derive(Debug)]
pub(crate) struct Ring {
    pub(crate) signing: Authority,
    /// Every certificate that is trusted now, PEM.
    pub(crate) bundle: String,
    pub(crate) authorities: Authorities,
    kept: Kept,
}

/// What the Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    signing: Pair,
    next: Option<Pair>,
    previous: Option<String>,
    stepped: Option<Timestamp>,
    asked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pair {
    certificate: String,
    key: String,
}

impl Keyring {
    pub(crate) fn new(ring: Ring) -> Arc<Self> {
        Arc::new(Self(ArcSwap::from_pointee(ring)))
    }

    pub(crate) fn now(&self) -> Arc<Ring> {
        self.0.load_full()
    }

    pub(crate) fn put(&self, ring: Ring) {
        self.0.store(Arc::new(ring));
    }
}

impl Ring {
    pub(crate) fn of(kept: Kept) -> anyhow::Result<Self> {
        let signing = Authority::from_pem(&kept.signing.pem()).context("ca.crt and ca.key")?;
        let next = kept.next.as_ref().map(|pair| pair.certificate.as_str());
        let bundle = [Some(kept.signing.certificate.as_str()), next, kept.previous.as_deref()];
        let bundle: String = bundle.into_iter().flatten().map(|pem| [pem.trim(), "\n"].concat()).collect();
        let authorities = Authorities::parse(&bundle)?;
        Ok(Self { signing, bundle, authorities, kept })
    }

    pub(crate) fn kept(&self) -> &Kept {
        &self.kept
    }

    /// Whether what the other signs is what we sign, and we trust the same.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.kept.signing == other.kept.signing && self.bundle == other.bundle
    }
}

impl Kept {
    /// The first, or one for a cluster that has lost it.
    pub(crate) fn create(now: Timestamp) -> anyhow::Result<Self> {
        Ok(Self { signing: Pair::create(now)?, next: None, previous: None, stepped: None, asked: false })
    }

    pub(crate) fn read(secret: &Secret) -> anyhow::Result<Self> {
        let none = BTreeMap::new();
        let data = secret.data.as_ref().unwrap_or(&none);
        let text = |key: &str| data.get(key).map(|bytes| String::from_utf8(bytes.0.clone())).transpose();
        let pair = |certificate: &str, key: &str| match (text(certificate)?, text(key)?) {
            (Some(certificate), Some(key)) => Ok(Some(Pair { certificate, key })),
            (None, None) => Ok(None),
            _ => bail!(
                "it has only one of {certificate} and {key}; restore it, or delete the Secret to have a new one made"
            ),
        };
        let Some(signing) = pair("ca.crt", "ca.key")? else {
            bail!("it has no ca.crt and ca.key; delete the Secret to have a new authority made");
        };
        let annotation = |name| secret.metadata.annotations.as_ref().and_then(|all| all.get(name));
        Ok(Self {
            signing,
            next: pair("next.crt", "next.key")?,
            previous: text("previous.crt")?,
            stepped: annotation(STEPPED).and_then(|at| at.parse().ok()),
            asked: annotation(ROTATE).is_some(),
        })
    }

    /// Into `secret`, of which everything else stays.
    pub(crate) fn write(&self, secret: &mut Secret) {
        let pair = |pair: &Pair| (pair.certificate.clone(), pair.key.clone());
        let (next_certificate, next_key) = self.next.as_ref().map(pair).unzip();
        let (certificate, key) = pair(&self.signing);
        let all = [
            ("ca.crt", Some(certificate)),
            ("ca.key", Some(key)),
            ("next.crt", next_certificate),
            ("next.key", next_key),
            ("previous.crt", self.previous.clone()),
        ];
        let data = secret.data.get_or_insert_default();
        for (name, value) in all {
            match value {
                Some(pem) => drop(data.insert(name.to_owned(), ByteString(pem.into_bytes()))),
                None => drop(data.remove(name)),
            }
        }
        let annotations = secret.metadata.annotations.get_or_insert_default();
        if !self.asked {
            annotations.remove(ROTATE);
        }
        if let Some(at) = self.stepped {
            annotations.insert(STEPPED.to_owned(), at.to_string());
        }
    }

    /// A Secret of its own.
    pub(crate) fn secret(&self) -> Secret {
        let metadata = ObjectMeta { name: Some(SECRET.to_owned()), ..ObjectMeta::default() };
        let mut secret = Secret { metadata, ..Secret::default() };
        self.write(&mut secret);
        secret
    }

    /// The certificate of the authority that is to sign next.
    pub(crate) fn next(&self) -> Option<&str> {
        self.next.as_ref().map(|next| next.certificate.as_str())
    }

    /// The next step, if it is time for one. Nothing is to be signed by a next authority that those who trust us were not told of.
    pub(crate) fn step(&self, now: Timestamp, overlap: Duration) -> anyhow::Result<Option<Self>> {
        let settled = self.stepped.is_none_or(|at| now >= at + overlap);
        let stepped = Some(now);
        Ok(match &self.next {
            Some(next) if settled => {
                let previous = Some(self.signing.certificate.clone());
                Some(Self { signing: next.clone(), next: None, previous, stepped, ..self.clone() })
            }
            None if self.previous.is_some() => settled.then(|| Self { previous: None, stepped, ..self.clone() }),
            None if self.asked || self.is_old(now)? => {
                Some(Self { next: Some(Pair::create(now)?), asked: false, stepped, ..self.clone() })
            }
            _ => None,
        })
    }

    fn is_old(&self, now: Timestamp) -> anyhow::Result<bool> {
        let (_, end) = certs::validity(&self.signing.certificate)?;
        Ok(now + LIFE / 3 > end)
    }

    /// For the log.
    pub(crate) fn state(&self) -> &'static str {
        match (&self.next, &self.previous) {
            (Some(_), _) => "a next authority is trusted, and signs after the overlap",
            (None, Some(_)) => "a new authority signs, and the old one is trusted until the overlap is over",
            (None, None) => "one authority is trusted",
        }
    }
}

impl Pair {
    fn create(now: Timestamp) -> anyhow::Result<Self> {
        let (_, KeyPairPem { certificate, key }) = Authority::create_for("stillpoint", now, LIFE)?;
        Ok(Self { certificate, key })
    }

    fn pem(&self) -> KeyPairPem {
        KeyPairPem { certificate: self.certificate.clone(), key: self.key.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVERLAP: Duration = Duration::from_secs(600);

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    /// What another replica knows, that reads the Secret.
    fn reread(kept: &Kept) -> Kept {
        Kept::read(&kept.secret()).unwrap()
    }

    fn trusts(by: &Kept, signed_by: &Kept) -> bool {
        let ring = Ring::of(by.clone()).unwrap();
        ring.bundle.contains(signed_by.signing.certificate.trim())
    }

    #[test]
    fn in_every_step_the_step_before_and_the_step_after_are_trusted() {
        let one = Kept::create(now()).unwrap();
        assert_eq!(one.step(now(), OVERLAP).unwrap(), None, "young, and nobody asks");
        let asked = Kept { asked: true, ..one.clone() };
        let mut steps = vec![one];
        let (mut at, mut kept) = (now(), asked);
        while let Some(next) = kept.step(at, OVERLAP).unwrap() {
            assert_eq!(next.step(at + OVERLAP / 2, OVERLAP).unwrap(), None, "too early: {}", next.state());
            kept = reread(&next);
            assert_eq!(kept, next);
            steps.push(kept.clone());
            at += OVERLAP;
        }
        assert_eq!(steps.len(), 4);
        for pair in steps.windows(2) {
            assert!(
                trusts(&pair[0], &pair[1]) && trusts(&pair[1], &pair[0]),
                "{} / {}",
                pair[0].state(),
                pair[1].state()
            );
        }
        assert!(!trusts(&steps[0], &steps[3]) && !trusts(&steps[3], &steps[0]), "in the end it is another");
    }

    #[test]
    fn an_old_authority_is_exchanged_before_it_ends() {
        let kept = Kept::create(now()).unwrap();
        assert_eq!(kept.step(now() + LIFE / 2, OVERLAP).unwrap(), None);
        assert!(kept.step(now() + LIFE / 4 * 3, OVERLAP).unwrap().is_some_and(|next| next.next.is_some()));
    }

    #[test]
    fn half_an_authority_is_refused_with_what_to_do() {
        let mut secret = Kept::create(now()).unwrap().secret();
        secret.data.as_mut().unwrap().remove("ca.key");
        let said = Kept::read(&secret).unwrap_err().to_string();
        assert!(said.contains("only one of ca.crt and ca.key") && said.contains("delete the Secret"), "{said}");
    }
}
