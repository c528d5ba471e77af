//! Somebody else's admission webhook, which is asked about the same marks as ours, at the same time.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use certs::{Authority, Bound, KeyPairPem, Leaf, Limits, Names, Peer};
use cluster::{Cluster, ServicePort};
use http::{Request, Response, header};
use http_body_util::{BodyExt, Collected, Full};
use hyper::body::Incoming;
use jiff::Timestamp;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const NAME: &str = "other";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    /// Nothing until it says something else.
    Nothing,
    No,
    Yes,
    /// Yes, and it changes the object first so often, so that what it was asked about cannot be stored.
    YesAfterChanging(usize),
}

/// Ends with its owner.
pub(super) struct Other {
    says: watch::Sender<Says>,
    /// How often it was asked.
    asked: Arc<AtomicUsize>,
    shown: Arc<Shown>,
    pub(super) port: u16,
    over: CancellationToken,
}

impl Drop for Other {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

/// A certificate, and how often it was shown: whoever does not trust it asks nothing after that.
#[derive(Debug)]
struct Shown {
    leaf: Arc<Leaf>,
    times: AtomicUsize,
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.times.fetch_add(1, Ordering::Relaxed);
        self.leaf.resolve(hello)
    }
}

#[derive(Clone)]
struct Answering {
    says: watch::Receiver<Says>,
    asked: Arc<AtomicUsize>,
    client: Client,
}

impl Other {
    /// Asked from now on about every content that is marked.
    pub(super) async fn install(cluster: &Cluster) -> Result<Self> {
        let now = Timestamp::now();
        let (authority, pem) = Authority::create(NAME, now)?;
        let names = Names { dns: vec![format!("{NAME}.{NAME}.svc")], addresses: vec![] };
        let other = Self::serve(cluster, &authority.serve(&names, now, DAY)?).await?;
        cluster.register_service(NAME, NAME, &[ServicePort::https(&[other.port])]).await?;
        cluster.apply(&configuration(&pem.certificate).to_string()).await?;
        Ok(other)
    }

    /// With this certificate; nobody asks it yet.
    pub(super) async fn serve(cluster: &Cluster, pair: &KeyPairPem) -> Result<Self> {
        let bound = Bound::bind((cluster.address(), 0).into()).await?;
        let (port, over, asked) = (bound.address()?.port(), CancellationToken::new(), Arc::default());
        let (says, hears) = watch::channel(Says::Yes);
        let answering = Answering { says: hears, asked: Arc::clone(&asked), client: cluster.client().await? };
        let service = move |request: Request<Incoming>, _: Peer| answer(answering.clone(), request);
        let shown = Arc::new(Shown { leaf: Leaf::new(pair)?, times: AtomicUsize::new(0) });
        let tls = certs::server_config(Arc::clone(&shown) as Arc<_>)?;
        tokio::spawn(bound.serve(tls, service, Limits::default(), over.clone()));
        Ok(Self { says, asked, shown, port, over })
    }

    pub(super) fn say(&self, what: Says) {
        self.says.send_replace(what);
    }

    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// How often somebody wanted to see its certificate.
    pub(super) fn dialled(&self) -> usize {
        self.shown.times.load(Ordering::Relaxed)
    }
}

async fn answer(mut answering: Answering, request: Request<Incoming>) -> Response<Full<Bytes>> {
    let body = request.into_body().collect().await.map(Collected::to_bytes).unwrap_or_default();
    let review: Value = serde_json::from_slice(&body).unwrap_or_default();
    let asked = answering.asked.fetch_add(1, Ordering::Relaxed);
    let says = answering.says.wait_for(|says| *says != Says::Nothing).await.map_or(Says::Yes, |says| *says);
    if matches!(says, Says::YesAfterChanging(times) if asked < times) {
        // What cannot be changed is told by the test's own count.
        change(&answering.client, review["request"]["name"].as_str().unwrap_or_default(), asked).await.ok();
    }
    let answered = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "response": {
            "uid": review["request"]["uid"], "allowed": says != Says::No,
            "status": {"message": "somebody else does not want it"},
        },
    });
    let mut response = Response::new(Full::new(Bytes::from(answered.to_string())));
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

async fn change(client: &Client, content: &str, number: usize) -> Result<()> {
    let kind = ApiResource {
        group: api::gate::SNAPSHOTS.to_owned(),
        version: "v1".to_owned(),
        api_version: format!("{}/v1", api::gate::SNAPSHOTS),
        kind: "VolumeSnapshotContent".to_owned(),
        plural: "volumesnapshotcontents".to_owned(),
    };
    let contents: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
    let patch = json!({"metadata": {"annotations": {"other/changed": number.to_string()}}});
    contents.patch(content, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

fn configuration(authority: &str) -> Value {
    let mark = api::gate::BEING_CREATED;
    let marked =
        |object: &str| format!("has({object}.metadata.annotations) && '{mark}' in {object}.metadata.annotations");
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": NAME},
        "webhooks": [{
            "name": "other.example.org",
            "clientConfig": {
                "service": {"namespace": NAME, "name": NAME, "path": "/", "port": 443},
                "caBundle": STANDARD.encode(authority),
            },
            "rules": [{
                "apiGroups": [api::gate::SNAPSHOTS], "apiVersions": ["*"], "resources": ["volumesnapshotcontents"],
                "operations": ["UPDATE"], "scope": "Cluster",
            }],
            "matchConditions": [
                {"name": "marked", "expression": format!("{} && !({})", marked("object"), marked("oldObject"))},
            ],
            "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Fail", "timeoutSeconds": 30,
        }],
    })
}
