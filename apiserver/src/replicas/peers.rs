//! A verb that another replica has to execute: sent there over TLS, with a certificate of our own authority and the user in
//! headers, as a front proxy would; and how such a request is known.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use certs::{KeyPairPem, Peer};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header};
use http_body_util::BodyExt;
use jiff::Timestamp;
use kube::{Client, Config, config::AuthInfo};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio::time::timeout;

use crate::{
    answer::{AUDIT_ID, Answer},
    auth::{
        Authenticator, User,
        delegated::{Delegated, FrontProxy},
    },
    error::ApiError,
    keyring::{Keyring, REPLICAS, Ring},
};

/// The common name of a replica's certificate.
const NAME: &str = "stillpoint-replica";
const GROUP: &str = "stillpoint:replicas";
/// How often a request was sent on.
pub(crate) const HOPS: HeaderName = HeaderName::from_static("stillpoint-hops");
/// The life of the certificate by which the others know us: as long as a process lives, and longer.
const LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
const CONNECT: Duration = Duration::from_secs(3);
/// What an answer may hold.
const MOST: usize = 3 * 1024 * 1024;

/// Clients of the other replicas.
pub(super) struct Peers {
    keyring: Arc<Keyring>,
    us: Mutex<Option<Us>>,
}

/// How the others know us, until our authority is another, or the certificate old.
struct Us {
    ring: Arc<Ring>,
    since: Instant,
    pair: KeyPairPem,
    clients: HashMap<String, Client>,
}

/// A verb to send on.
pub(crate) struct Errand<'a> {
    pub(crate) user: &'a User,
    pub(crate) path: String,
    pub(crate) content_type: Option<&'a str>,
    pub(crate) audit_id: Option<&'a HeaderValue>,
    pub(crate) body: Bytes,
    pub(crate) hops: u32,
}

/// Who asks: another replica for its user, or whoever the cluster knows.
#[derive(Debug)]
pub(crate) struct WithPeers {
    inner: Delegated,
    keyring: Arc<Keyring>,
}

impl Peers {
    pub(super) fn new(keyring: Arc<Keyring>) -> Self {
        Self { keyring, us: Mutex::default() }
    }

    /// The other's answer, as it is. An error is only that it could not be asked.
    pub(super) async fn send(&self, address: &str, errand: Errand<'_>, limit: Duration) -> Result<Answer, ApiError> {
        let away = |why: String| ApiError {
            internal: Some(format!("{address}: {why}")),
            ..ApiError::in_motion("the replica that has this Database cannot be reached; try again in a moment")
        };
        let client = self.client(address).map_err(|error| away(error.to_string()))?;
        let request = errand.request().map_err(|error| away(error.to_string()))?;
        let answered = timeout(limit, async {
            let response = client.send(request).await.map_err(|error| away(error.to_string()))?;
            let (parts, body) = response.into_parts();
            let body = http_body_util::Limited::new(body, MOST).collect().await;
            Ok::<_, ApiError>((parts, body.map_err(|error| away(error.to_string()))?.to_bytes()))
        });
        let (parts, bytes) = answered.await.map_err(|_| away("no answer in time".to_owned()))??;
        Ok(Answer::Json { code: parts.status, bytes, warnings: warnings(&parts.headers) })
    }

    fn client(&self, address: &str) -> anyhow::Result<Client> {
        let ring = self.keyring.now();
        let mut us = self.us.lock().unwrap_or_else(PoisonError::into_inner);
        let young = us.take().filter(|us| us.ring.is(&ring) && us.since.elapsed() < LIFE / 2);
        let us = us.insert(match young {
            Some(us) => us,
            None => Us {
                pair: ring.signing.client(NAME, GROUP, Timestamp::now(), LIFE)?,
                since: Instant::now(),
                clients: HashMap::new(),
                ring,
            },
        });
        if let Some(client) = us.clients.get(address) {
            return Ok(client.clone());
        }
        let mut config = Config::new(format!("https://{address}").parse()?);
        let authorities =
            CertificateDer::pem_slice_iter(us.ring.bundle.as_bytes()).map(|one| one.map(|one| one.to_vec()));
        config.root_cert = Some(authorities.collect::<Result<_, _>>()?);
        config.tls_server_name = Some(REPLICAS.to_owned());
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT);
        config.auth_info = AuthInfo {
            client_certificate_data: Some(encoded(&us.pair.certificate)),
            client_key_data: Some(encoded(&us.pair.key).into()),
            ..AuthInfo::default()
        };
        let client = Client::try_from(config)?;
        us.clients.insert(address.to_owned(), client.clone());
        Ok(client)
    }
}

impl Errand<'_> {
    fn request(self) -> Result<Request<kube::client::Body>, http::Error> {
        let mut request = Request::post(&self.path).header(HOPS, self.hops + 1);
        request = request.header(header::CONTENT_TYPE, self.content_type.unwrap_or("application/json"));
        request = request.header("x-remote-user", &self.user.name);
        if let Some(id) = self.audit_id {
            request = request.header(AUDIT_ID, id);
        }
        if let Some(uid) = &self.user.uid {
            request = request.header("x-remote-uid", uid);
        }
        for group in &self.user.groups {
            request = request.header("x-remote-group", group);
        }
        for (key, values) in &self.user.extra {
            for value in values {
                request = request.header(format!("{EXTRA}{}", escaped(key)), value);
            }
        }
        request.body(kube::client::Body::from(self.body))
    }
}

impl WithPeers {
    pub(crate) fn new(inner: Delegated, keyring: Arc<Keyring>) -> Self {
        Self { inner, keyring }
    }

    /// Replicas, as a front proxy.
    fn peers(&self) -> FrontProxy {
        FrontProxy {
            authorities: self.keyring.now().authorities.clone(),
            allowed_names: vec![NAME.to_owned()],
            username_headers: vec![HeaderName::from_static("x-remote-user")],
            uid_headers: vec![HeaderName::from_static("x-remote-uid")],
            group_headers: vec![HeaderName::from_static("x-remote-group")],
            extra_prefixes: vec![EXTRA.to_owned()],
        }
    }
}

#[async_trait]
impl Authenticator for WithPeers {
    async fn authenticate(&self, peer: &Peer, headers: &mut HeaderMap, now: Timestamp) -> Result<User, ApiError> {
        // Only a replica has a certificate of our authority; everybody else is the cluster's to know.
        if !peer.certificates.is_empty() {
            let peers = self.peers();
            if peers.authorities.verify(&peer.certificates, now).is_ok() {
                let user = peers.user(&peer.certificates, headers, now).map_err(ApiError::unauthorized)?;
                peers.strip(headers);
                headers.remove(header::AUTHORIZATION);
                return Ok(user);
            }
        }
        // Nobody else sends anything on.
        headers.remove(HOPS);
        self.inner.authenticate(peer, headers, now).await
    }

    fn ready(&self) -> Result<(), String> {
        self.inner.ready()
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").finish_non_exhaustive()
    }
}

const EXTRA: &str = "x-remote-extra-";

/// Of a key, what a header's name cannot hold.
fn escaped(key: &str) -> String {
    let safe = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    key.bytes().map(|byte| if safe(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

fn encoded(pem: &str) -> String {
    STANDARD.encode(pem)
}

/// `299 - "text"`, taken apart again: whoever answers puts it together.
fn warnings(headers: &HeaderMap) -> Vec<String> {
    let text = |value: &HeaderValue| {
        let text = value.to_str().ok()?.split_once('"')?.1.strip_suffix('"')?;
        Some(text.replace("\\\"", "\"").replace("\\\\", "\\"))
    };
    headers.get_all(header::WARNING).iter().filter_map(text).collect()
}
