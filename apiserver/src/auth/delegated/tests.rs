//! Who asks and whether they may, against a fake kube-apiserver: tables of cases.

mod access;
mod certificates;
mod connection;
mod following;
mod tokens;

use std::sync::Arc;

use super::{
    Delegated, KubeReviews, Trust,
    testing::{FakeKubeApi, Signer, config_map},
};

/// A cluster's two authorities, and one who belongs to neither.
struct Cluster {
    proxies: Signer,
    people: Signer,
    others: Signer,
}

impl Cluster {
    fn new() -> Self {
        Self {
            proxies: Signer::new("front-proxy-ca"),
            people: Signer::new("kubernetes"),
            others: Signer::new("others"),
        }
    }

    /// What the cluster's ConfigMap says is known already.
    fn trust(&self) -> Arc<Trust> {
        let trust = Arc::new(Trust::default());
        trust.learn(&config_map(&self.proxies, Some(&self.people)));
        trust.ready().unwrap();
        trust
    }
}

fn delegated(trust: Arc<Trust>, fake: &FakeKubeApi, audiences: &[&str]) -> Delegated {
    let audiences = audiences.iter().map(|&audience| audience.to_owned()).collect();
    Delegated::new(trust, Arc::new(KubeReviews::new(fake.client())), audiences, true)
}
