//! What the tests of this folder stand on: certificates, the ConfigMap, and a fake of the little that is asked of a
//! kube-apiserver. The fake exists because a real one cannot be told to hang, to fail, or to answer nonsense.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    ops::Range,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use certs::Peer;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use jiff::Timestamp;
use kube::{Client, client::Body};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::sync::watch;

/// When the tests take place.
pub(super) fn now() -> Timestamp {
    "2026-01-15T12:00:00Z".parse().unwrap()
}

/// An authority, and what it was signed by.
pub(super) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    above: Vec<CertificateDer<'static>>,
    pem: String,
}

/// A certificate to be signed. `days`: from when to when, counted from [`now`].
#[derive(Clone)]
pub(super) struct Wanted<'a> {
    pub(super) name: Option<&'a str>,
    pub(super) groups: &'a [&'a str],
    pub(super) purposes: &'a [ExtendedKeyUsagePurpose],
    pub(super) days: Range<i64>,
}

pub(super) struct Signed {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Signer {
    pub(super) fn new(name: &str) -> Self {
        let (params, key) = authority(name);
        let certificate = params.self_signed(&key).unwrap();
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Self { issuer: Issuer::new(params, key), certificate: der, above: Vec::new(), pem }
    }

    /// An authority that this one vouches for.
    pub(super) fn below(&self, name: &str) -> Self {
        let (params, key) = authority(name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let (der, pem) = (certificate.der().clone(), certificate.pem());
        Self { issuer: Issuer::new(params, key), certificate: der.clone(), above: vec![der], pem }
    }

    pub(super) fn pem(&self) -> &str {
        &self.pem
    }

    pub(super) fn sign(&self, wanted: &Wanted<'_>) -> Signed {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        if let Some(name) = wanted.name {
            params.distinguished_name.push(DnType::CommonName, name);
        }
        // rcgen keeps one name of each kind, and takes the same kind spelled as numbers for another.
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        assert!(wanted.groups.len() <= kinds.len());
        for (group, kind) in wanted.groups.iter().zip(kinds) {
            params.distinguished_name.push(kind, *group);
        }
        params.extended_key_usages = wanted.purposes.to_vec();
        (params.not_before, params.not_after) = (day(wanted.days.start).into(), day(wanted.days.end).into());
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let chain = std::iter::once(leaf.der().clone()).chain(self.above.iter().cloned()).collect();
        Signed { chain, key: PrivateKeyDer::Pkcs8(key.serialize_der().into()) }
    }

    /// The authority's own certificate, as if it were somebody's.
    pub(super) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }
}

impl Wanted<'_> {
    /// A client's, which holds now.
    pub(super) fn client(name: &str) -> Wanted<'_> {
        Wanted { name: Some(name), groups: &[], purposes: &[ExtendedKeyUsagePurpose::ClientAuth], days: -1..1 }
    }
}

fn authority(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (day(-100).into(), day(100).into());
    (params, KeyPair::generate().unwrap())
}

fn day(days: i64) -> SystemTime {
    let seconds = now().as_second() + days * 24 * 3600;
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap())
}

/// The ConfigMap's data, as kubeadm's clusters have it.
pub(super) fn config_map(proxies: &Signer, people: Option<&Signer>) -> Data {
    let mut data: Data = [
        ("requestheader-client-ca-file", proxies.pem()),
        ("requestheader-username-headers", r#"["X-Remote-User"]"#),
        ("requestheader-group-headers", r#"["X-Remote-Group"]"#),
        ("requestheader-extra-headers-prefix", r#"["X-Remote-Extra-"]"#),
        ("requestheader-allowed-names", r#"["front-proxy-client"]"#),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect();
    if let Some(people) = people {
        data.insert("client-ca-file".into(), people.pem().into());
    }
    data
}

pub(super) fn peer(chain: &[CertificateDer<'static>]) -> Peer {
    Peer { address: ([192, 0, 2, 1], 1234).into(), certificates: chain.into() }
}

pub(super) fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

/// What the fake answers a review with.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    Status(Value),
    Fails(u16),
    Hangs,
    Nonsense,
}

/// Answers reviews as it is told, and has one ConfigMap that can be watched. It knows no users and no rights.
#[derive(Clone)]
pub(super) struct FakeKubeApi {
    asked: Arc<Mutex<Vec<Value>>>,
    reply: Arc<dyn Fn(&Value) -> Reply + Send + Sync>,
    map: Arc<watch::Sender<(u64, Option<Data>)>>,
}

/// A ConfigMap's.
type Data = BTreeMap<String, String>;

type Answered = Response<UnsyncBoxBody<Bytes, Infallible>>;

impl FakeKubeApi {
    /// `reply`: what a review's spec is answered with.
    pub(super) fn new(reply: impl Fn(&Value) -> Reply + Send + Sync + 'static) -> Self {
        Self { asked: Arc::default(), reply: Arc::new(reply), map: Arc::new(watch::Sender::new((1, None))) }
    }

    pub(super) fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move { Ok::<_, Infallible>(fake.serve(request).await) }
        });
        Client::new(service, "default")
    }

    /// The specs of all reviews so far, in their order.
    pub(super) fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }

    /// Makes, changes or removes the ConfigMap.
    pub(super) fn put(&self, data: Option<Data>) {
        self.map.send_modify(|(revision, map)| (*revision, *map) = (*revision + 1, data));
    }

    async fn serve(&self, request: Request<Body>) -> Answered {
        let (parts, body) = request.into_parts();
        let query = parts.uri.query().unwrap_or_default().to_owned();
        match (&parts.method, parts.uri.path()) {
            (&Method::GET, "/api/v1/namespaces/kube-system/configmaps") => {
                assert!(query.contains("fieldSelector=metadata.name%3Dextension-apiserver-authentication"), "{query}");
                if query.contains("watch=true") { self.watch(&query) } else { self.list() }
            }
            (
                &Method::POST,
                "/apis/authentication.k8s.io/v1/tokenreviews" | "/apis/authorization.k8s.io/v1/subjectaccessreviews",
            ) => {
                let mut review: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
                self.asked.lock().unwrap().push(review["spec"].clone());
                match (self.reply)(&review["spec"]) {
                    Reply::Status(status) => {
                        review["status"] = status;
                        json_of(201, &review)
                    }
                    Reply::Fails(code) => json_of(code, &failure(code)),
                    Reply::Nonsense => json_of(201, &review),
                    Reply::Hangs => std::future::pending().await,
                }
            }
            other => panic!("the fake does not know {other:?}"),
        }
    }

    fn list(&self) -> Answered {
        let (revision, data) = self.map.borrow().clone();
        let items: Vec<Value> = data.iter().map(|data| object(revision, data)).collect();
        let metadata = json!({"resourceVersion": revision.to_string()});
        json_of(200, &json!({"kind": "ConfigMapList", "apiVersion": "v1", "metadata": metadata, "items": items}))
    }

    fn watch(&self, query: &str) -> Answered {
        let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).unwrap();
        let seen: u64 = from.parse().unwrap();
        let events = stream::unfold((self.map.subscribe(), seen), |(mut map, seen)| async move {
            let (revision, data) = map.wait_for(|(revision, _)| *revision > seen).await.ok()?.clone();
            let event = match data {
                Some(data) => json!({"type": "MODIFIED", "object": object(revision, &data)}),
                None => json!({"type": "DELETED", "object": object(revision, &Data::new())}),
            };
            Some((Ok(Frame::data(Bytes::from(format!("{event}\n")))), (map, revision)))
        });
        Response::new(StreamBody::new(events).boxed_unsync())
    }
}

fn object(revision: u64, data: &Data) -> Value {
    json!({
        "kind": "ConfigMap", "apiVersion": "v1", "data": data, "metadata": {
            "name": "extension-apiserver-authentication", "namespace": "kube-system", "resourceVersion": revision.to_string(),
        },
    })
}

fn failure(code: u16) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "as it was told",
        "reason": "Faked", "code": code,
    })
}

fn json_of(code: u16, value: &Value) -> Answered {
    let body = Full::new(Bytes::from(value.to_string())).boxed_unsync();
    Response::builder().status(code).body(body).unwrap()
}
