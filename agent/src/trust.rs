//! By which certificates replicas are known: those that the injection has written, and whatever a replica that was believed has said
//! since. Their authority is another after some months, and each agent that is connected then hears of it before.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use api::{agent::PROTOCOL, inject::variables};
use rustls::ClientConfig;
use tracing::{info, warn};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Trust(Arc<Mutex<Trusted>>);

#[derive(Debug)]
struct Trusted {
    tls: Arc<ClientConfig>,
    bundle: String,
    /// What was said is kept here: a container that is made anew has its environment of old.
    kept: PathBuf,
}

impl Trust {
    /// What was kept goes before what was written.
    pub(crate) fn begin(written: &str, kept: PathBuf) -> anyhow::Result<Self> {
        let heard = std::fs::read_to_string(&kept).ok();
        let known = heard.and_then(|bundle| Some((certs::client_config(&bundle, PROTOCOL).ok()?, bundle)));
        let (tls, bundle) = match known {
            Some(known) => known,
            None => (certs::client_config(written, PROTOCOL).context(variables::CA)?, written.to_owned()),
        };
        Ok(Self(Arc::new(Mutex::new(Trusted { tls: Arc::new(tls), bundle, kept }))))
    }

    pub(crate) fn tls(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner).tls)
    }

    /// From a replica that is believed.
    pub(crate) fn hear(&self, bundle: String) {
        let mut trusted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if trusted.bundle.trim() == bundle.trim() {
            return;
        }
        match certs::client_config(&bundle, PROTOCOL) {
            Ok(tls) => {
                if let Err(error) = std::fs::write(&trusted.kept, &bundle) {
                    warn!(%error, path = %trusted.kept.display(), "whom to trust could not be kept");
                }
                (trusted.tls, trusted.bundle) = (Arc::new(tls), bundle);
                info!("replicas are known by other certificates now");
            }
            Err(error) => warn!(%error, "what a replica says of its authority cannot be used"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_is_kept_and_what_cannot_be_used_changes_nothing() {
        certs::use_ring();
        let authority = || certs::Authority::create("test", jiff::Timestamp::now()).unwrap().1.certificate;
        let (first, second) = (authority(), authority());
        let directory = tempfile::tempdir().unwrap();
        let kept = directory.path().join("ca.crt");
        let trust = Trust::begin(&first, kept.clone()).unwrap();
        trust.hear("nonsense".to_owned());
        assert!(!kept.exists());
        trust.hear(second.clone());
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), second);
        let again = Trust::begin(&first, kept).unwrap();
        assert_eq!(again.0.lock().unwrap().bundle, second);
        assert!(Trust::begin("nonsense", directory.path().join("none")).is_err());
    }
}
