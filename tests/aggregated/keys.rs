//! What a cluster of the tests' own signs with: every certificate that could be shown, and some that should not be.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use certs::{Authority, KeyPairPem};
use cluster::Cluster;
use jiff::Timestamp;
use serde_json::Value;

use crate::wire::Server;

const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) struct Keys {
    /// The administrator's.
    pub(crate) admin: KeyPairPem,
    /// What kube-apiserver shows to the servers behind it.
    pub(crate) front_proxy: KeyPairPem,
    /// Who signs front proxies.
    proxies: Authority,
    /// Who signs people.
    people: Authority,
}

impl Keys {
    pub(crate) fn read(cluster: &Cluster) -> Result<Self> {
        let user = &kubeconfig(cluster)?["users"][0]["user"];
        let (certificate, key) = cluster.front_proxy_client()?;
        let proxies = cluster.front_proxy_ca()?;
        let people = proxies.with_file_name("ca.crt");
        Ok(Self {
            admin: KeyPairPem {
                certificate: decoded(&user["client-certificate-data"])?,
                key: decoded(&user["client-key-data"])?,
            },
            front_proxy: KeyPairPem { certificate: fs::read_to_string(certificate)?, key: fs::read_to_string(key)? },
            proxies: authority(&proxies)?,
            people: authority(&people)?,
        })
    }

    /// A certificate by which a person is known.
    pub(crate) fn person(&self, name: &str) -> Result<KeyPairPem> {
        Ok(self.people.client(name, "shop:people", Timestamp::now(), DAY)?)
    }

    /// One of the front proxies' authority, valid for a day that begins `from` hours from now.
    pub(crate) fn proxy(&self, name: &str, from: i64) -> Result<KeyPairPem> {
        Ok(self.proxies.client(name, "", Timestamp::now() + jiff::Span::new().hours(from), DAY)?)
    }
}

/// An authority that nobody trusts, and the front proxy's name signed by it.
pub(crate) fn stranger() -> Result<(Authority, KeyPairPem)> {
    let (authority, _) = Authority::create("stranger", Timestamp::now())?;
    let shown = authority.client("front-proxy-client", "system:masters", Timestamp::now(), DAY)?;
    Ok((authority, shown))
}

/// kube-apiserver, as the administrator's kubeconfig knows it.
pub(crate) fn kube(cluster: &Cluster) -> Result<Server> {
    let known = &kubeconfig(cluster)?["clusters"][0]["cluster"];
    let address = known["server"].as_str().and_then(|url| url.strip_prefix("https://")).context("no server")?;
    let address: std::net::SocketAddr = address.parse()?;
    Ok(Server { address, name: address.ip().to_string(), authority: decoded(&known["certificate-authority-data"])? })
}

fn kubeconfig(cluster: &Cluster) -> Result<Value> {
    Ok(serde_json::from_str(&fs::read_to_string(cluster.kubeconfig())?)?)
}

fn decoded(text: &Value) -> Result<String> {
    Ok(String::from_utf8(STANDARD.decode(text.as_str().context("not in the kubeconfig")?)?)?)
}

fn authority(certificate: &Path) -> Result<Authority> {
    let key = certificate.with_extension("key");
    let pem = KeyPairPem { certificate: fs::read_to_string(certificate)?, key: fs::read_to_string(key)? };
    Ok(Authority::from_pem(&pem)?)
}
