//! The serving certificate, exchanged without a restart and without touching open connections.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    InconsistentKeys,
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use thiserror::Error;

use crate::authority::KeyPairPem;

/// The serving certificate in force.
pub struct Leaf(ArcSwap<CertifiedKey>);

/// One certificate for those who ask for a name, another for all others (RFC 6066, section 3).
#[derive(Debug)]
pub struct ByName {
    pub name: &'static str,
    pub named: Arc<Leaf>,
    pub others: Arc<Leaf>,
}

#[derive(Debug, Error)]
pub enum LeafError {
    #[error("the serving certificate is not PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the serving key cannot be used: {0}")]
    Key(#[from] rustls::Error),
    #[error("the serving key is not the certificate's")]
    Mismatch,
}

impl Leaf {
    pub fn new(pair: &KeyPairPem) -> Result<Arc<Self>, LeafError> {
        Ok(Arc::new(Self(ArcSwap::from_pointee(certified(pair)?))))
    }

    /// New handshakes use `pair`; on error the old one stays.
    pub fn replace(&self, pair: &KeyPairPem) -> Result<(), LeafError> {
        self.0.store(Arc::new(certified(pair)?));
        Ok(())
    }
}

impl ResolvesServerCert for Leaf {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let leaf = if hello.server_name() == Some(self.name) { &self.named } else { &self.others };
        leaf.resolve(hello)
    }
}

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").finish_non_exhaustive()
    }
}

fn certified(pair: &KeyPairPem) -> Result<CertifiedKey, LeafError> {
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    let certified = CertifiedKey::new(chain, any_supported_type(&key)?);
    match certified.keys_match() {
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(LeafError::Mismatch),
        _ => Ok(certified),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::Timestamp;

    use super::*;
    use crate::authority::{Authority, Names};

    #[test]
    fn a_key_of_another_certificate_is_refused_and_the_old_pair_stays() {
        let (now, day) = (Timestamp::now(), Duration::from_secs(86400));
        let (authority, _) = Authority::create("ours", now).unwrap();
        let serve = || authority.serve(&Names::default(), now, day).unwrap();
        let (old, new) = (serve(), serve());
        let leaf = Leaf::new(&old).unwrap();
        let before = leaf.0.load_full();
        let half = KeyPairPem { certificate: new.certificate.clone(), key: old.key };
        assert!(matches!(leaf.replace(&half), Err(LeafError::Mismatch)));
        assert!(Arc::ptr_eq(&before, &leaf.0.load_full()));
        leaf.replace(&new).unwrap();
        assert!(!Arc::ptr_eq(&before, &leaf.0.load_full()));
    }
}
