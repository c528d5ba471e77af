//! The serving certificate, exchanged without a restart and without touching open connections.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwap;
use rustls::{
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use thiserror::Error;

use crate::authority::KeyPairPem;

/// The serving certificate in force.
pub struct Leaf(ArcSwap<CertifiedKey>);

#[derive(Debug, Error)]
pub enum LeafError {
    #[error("the serving certificate is not PEM: {0}")]
    Pem(#[from] rustls::pki_types::pem::Error),
    #[error("the serving key cannot be used: {0}")]
    Key(#[from] rustls::Error),
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

impl fmt::Debug for Leaf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaf").finish_non_exhaustive()
    }
}

fn certified(pair: &KeyPairPem) -> Result<CertifiedKey, LeafError> {
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    Ok(CertifiedKey::new(chain, any_supported_type(&key)?))
}
