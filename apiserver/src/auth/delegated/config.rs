//! The ConfigMap `kube-system/extension-apiserver-authentication`, which the kube-apiserver writes: by which authorities
//! clients and front proxies are known, and in which headers a front proxy says for whom it asks
//! (apiserver `pkg/server/options/authentication_dynamic_request_header.go`). Pure.

use std::collections::BTreeMap;

use certs::{Authorities, Untrusted};
use http::{HeaderName, header};
use thiserror::Error;

/// What the ConfigMap says. It trusts what it says in full; of one that cannot be read, nothing is trusted.
#[derive(Clone, Debug)]
pub struct RequestHeaderConfig {
    /// Who signs the certificates of end users. The kube-apiserver may have none.
    pub clients: Option<Authorities>,
    pub front_proxy: FrontProxy,
}

/// How a front proxy is known, and where it says for whom it asks.
#[derive(Clone, Debug)]
pub struct FrontProxy {
    pub authorities: Authorities,
    /// Common names. None at all: every name will do.
    pub allowed_names: Vec<String>,
    pub username_headers: Vec<HeaderName>,
    /// Only where the kube-apiserver says so: a header that it does not set is one that it lets through.
    pub uid_headers: Vec<HeaderName>,
    pub group_headers: Vec<HeaderName>,
    /// In lower case.
    pub extra_prefixes: Vec<String>,
}

/// Why a ConfigMap is not to be trusted.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error(
        "it has no {key}: the kube-apiserver does not say how its front proxy is known; start it with \
         --requestheader-client-ca-file and --requestheader-username-headers (the aggregation layer)"
    )]
    Missing { key: &'static str },
    #[error("{key} is no JSON array of strings ({source}); correct the kube-apiserver's flag --{key}")]
    Json { key: &'static str, source: serde_json::Error },
    #[error("{key} holds {name:?}, which names no header of a front proxy; correct the kube-apiserver's flag --{key}")]
    Header { key: &'static str, name: String },
    #[error("{key} holds no usable certificates: {source}; correct the kube-apiserver's flag --{key}")]
    Authorities { key: &'static str, source: Untrusted },
}

const CLIENT_CA: &str = "client-ca-file";
const FRONT_PROXY_CA: &str = "requestheader-client-ca-file";
const USERNAMES: &str = "requestheader-username-headers";
const UIDS: &str = "requestheader-uid-headers";
const GROUPS: &str = "requestheader-group-headers";
const EXTRA: &str = "requestheader-extra-headers-prefix";
const ALLOWED: &str = "requestheader-allowed-names";

impl RequestHeaderConfig {
    /// Reads the ConfigMap's data.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let authorities = authorities(data, FRONT_PROXY_CA)?.ok_or(ConfigError::Missing { key: FRONT_PROXY_CA })?;
        let username_headers = headers(data, USERNAMES)?;
        if username_headers.is_empty() {
            return Err(ConfigError::Missing { key: USERNAMES });
        }
        let prefixes = strings(data, EXTRA)?.into_iter().map(|prefix| match named(EXTRA, &prefix) {
            Ok(_) => Ok(prefix.trim().to_ascii_lowercase()),
            Err(error) => Err(error),
        });
        let front_proxy = FrontProxy {
            authorities,
            allowed_names: strings(data, ALLOWED)?,
            username_headers,
            uid_headers: headers(data, UIDS)?,
            group_headers: headers(data, GROUPS)?,
            extra_prefixes: prefixes.collect::<Result<_, _>>()?,
        };
        Ok(Self { clients: self::authorities(data, CLIENT_CA)?, front_proxy })
    }
}

fn authorities(data: &BTreeMap<String, String>, key: &'static str) -> Result<Option<Authorities>, ConfigError> {
    let Some(pem) = data.get(key).filter(|pem| !pem.trim().is_empty()) else { return Ok(None) };
    Authorities::parse(pem).map(Some).map_err(|source| ConfigError::Authorities { key, source })
}

/// A key that is absent or empty lists nothing.
fn strings(data: &BTreeMap<String, String>, key: &'static str) -> Result<Vec<String>, ConfigError> {
    match data.get(key).filter(|text| !text.is_empty()) {
        None => Ok(Vec::new()),
        Some(text) => serde_json::from_str(text).map_err(|source| ConfigError::Json { key, source }),
    }
}

fn headers(data: &BTreeMap<String, String>, key: &'static str) -> Result<Vec<HeaderName>, ConfigError> {
    strings(data, key)?.iter().map(|name| named(key, name)).collect()
}

/// An empty prefix would take every header for something that the proxy said.
fn named(key: &'static str, name: &str) -> Result<HeaderName, ConfigError> {
    let header = name.trim().parse::<HeaderName>().ok().filter(|header| header != header::AUTHORIZATION);
    header.ok_or_else(|| ConfigError::Header { key, name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::{
        super::testing::{Signer, config_map},
        *,
    };

    #[test]
    fn every_key_is_read() {
        let (proxies, people) = (Signer::new("front-proxy-ca"), Signer::new("kubernetes"));
        let mut data = config_map(&proxies, Some(&people));
        data.insert(UIDS.into(), r#"["X-Remote-Uid"]"#.into());
        data.insert(USERNAMES.into(), r#"["X-Remote-User", " X-Also-User "]"#.into());
        let config = RequestHeaderConfig::parse(&data).unwrap();
        let proxy = config.front_proxy;
        assert!(config.clients.is_some());
        assert_eq!(proxy.username_headers, ["x-remote-user", "x-also-user"]);
        assert_eq!(proxy.uid_headers, ["x-remote-uid"]);
        assert_eq!(proxy.group_headers, ["x-remote-group"]);
        assert_eq!(proxy.extra_prefixes, ["x-remote-extra-"]);
        assert_eq!(proxy.allowed_names, ["front-proxy-client"]);
    }

    #[test]
    fn what_may_be_absent_lists_nothing() {
        let mut data = config_map(&Signer::new("front-proxy-ca"), None);
        for key in [UIDS, GROUPS, EXTRA] {
            data.remove(key);
        }
        data.insert(ALLOWED.into(), "[]".into());
        let config = RequestHeaderConfig::parse(&data).unwrap();
        assert!(config.clients.is_none());
        assert!(config.front_proxy.uid_headers.is_empty(), "never made up");
        assert!(config.front_proxy.group_headers.is_empty() && config.front_proxy.extra_prefixes.is_empty());
        assert!(config.front_proxy.allowed_names.is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_names_the_key_and_never_half_a_trust() {
        let good = config_map(&Signer::new("front-proxy-ca"), Some(&Signer::new("kubernetes")));
        let broken = "-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
        let cases = [
            (FRONT_PROXY_CA, None),
            (FRONT_PROXY_CA, Some("")),
            (FRONT_PROXY_CA, Some("no PEM")),
            (FRONT_PROXY_CA, Some(broken)),
            (CLIENT_CA, Some(broken)),
            (USERNAMES, None),
            (USERNAMES, Some("[]")),
            (USERNAMES, Some("X-Remote-User")),
            (USERNAMES, Some(r#"[""]"#)),
            (USERNAMES, Some(r#"["Authorization"]"#)),
            (UIDS, Some("{}")),
            (GROUPS, Some(r#"["X Remote Group"]"#)),
            (GROUPS, Some("[1]")),
            (EXTRA, Some(r#"[""]"#)),
            (EXTRA, Some(r#"["  "]"#)),
            (ALLOWED, Some(r#"["front-proxy-client""#)),
            (ALLOWED, Some(r#""front-proxy-client""#)),
        ];
        for (key, value) in cases {
            let mut data = good.clone();
            match value {
                Some(value) => data.insert(key.into(), value.into()),
                None => data.remove(key),
            };
            let error = RequestHeaderConfig::parse(&data).expect_err(&format!("{key} {value:?}"));
            assert!(error.to_string().contains(key), "{error}");
        }
        assert!(RequestHeaderConfig::parse(&BTreeMap::new()).is_err());
    }
}
