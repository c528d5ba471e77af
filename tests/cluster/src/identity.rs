//! Who one is towards the API server: kubeconfigs, and the clients that read them.

use std::path::Path;

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use crate::pki::{Pair, secret};

/// Somebody other than the administrator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// By impersonation: what kube-apiserver forwards is the same as for one who authenticated.
    User { name: String, groups: Vec<String> },
    /// By a fresh token of its own, for an hour.
    ServiceAccount { namespace: String, name: String },
    /// By whatever this token is.
    Token(String),
}

impl Identity {
    pub fn user(name: &str, groups: &[&str]) -> Self {
        Self::User { name: name.to_owned(), groups: groups.iter().map(|&group| group.to_owned()).collect() }
    }

    pub fn service_account(namespace: &str, name: &str) -> Self {
        Self::ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// JSON, which is YAML too. Everything is in it, so that it can be copied anywhere.
pub(crate) fn by_certificate(server: &str, authority: &str, pair: &Pair) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {
            "server": server, "certificate-authority-data": STANDARD.encode(authority),
        }}],
        "users": [{"name": "test", "user": {
            "client-certificate-data": STANDARD.encode(&pair.certificate),
            "client-key-data": STANDARD.encode(&pair.key),
        }}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "default"}}],
    })
}

/// `admin`'s kubeconfig with another user in its current context.
pub(crate) fn instead_of(admin: &Path, change: impl FnOnce(&mut Value)) -> Result<Value> {
    let mut kubeconfig = serde_json::to_value(Kubeconfig::read_from(admin)?)?;
    let context = kubeconfig["current-context"].as_str().context("the kubeconfig has no current context")?.to_owned();
    let named =
        |list: &Value, name: &str| list.as_array().and_then(|list| list.iter().position(|item| item["name"] == name));
    let context = named(&kubeconfig["contexts"], &context).context("the current context is not there")?;
    let user = kubeconfig["contexts"][context]["context"]["user"].as_str().unwrap_or_default().to_owned();
    let user = named(&kubeconfig["users"], &user).context("the current context's user is not there")?;
    change(&mut kubeconfig["users"][user]["user"]);
    Ok(kubeconfig)
}

pub(crate) fn write(path: &Path, kubeconfig: &Value) -> Result<()> {
    secret(path, &serde_json::to_string_pretty(kubeconfig)?)
}

/// A new client each time: one works only as long as the runtime that made it, and a cluster may outlive a test's.
pub(crate) async fn client(kubeconfig: &Path) -> Result<Client> {
    // An error says that a provider is there already.
    rustls::crypto::ring::default_provider().install_default().ok();
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    // By default it asks again for minutes when it hears 503, and a test would see neither that nor how often.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}
