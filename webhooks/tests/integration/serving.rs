//! A server as it runs in a cluster, over the wire.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use api::gate::TRY_AGAIN;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use certs::{Authority, KeyPairPem};
use http::Method;
use jiff::Timestamp;
use serde_json::json;
use tempfile::TempDir;
use tokio::{net::TcpListener, time::Instant};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use webhooks::{
    connection::Upstream,
    credentials::Files,
    review::LONGEST,
    server::{Ending, Place, Server},
};

use crate::{
    injection::agent,
    reviews::{UID, cut, database, plain_pod, pod_create, preflight, with},
    upstream::{Apiserver, Behaviour, DAY, authority, deny, files, show, upstream_at},
    wire::Wire,
};

/// A server, and what it is trusted by.
pub(crate) struct World {
    pub(crate) authority: Authority,
    files: Files,
    pub(crate) address: SocketAddr,
    stopping: CancellationToken,
    running: AbortOnDropHandle<anyhow::Result<()>>,
    _directory: TempDir,
}

impl World {
    async fn start(authority: Authority, upstream: Upstream, clients: Option<&Authority>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clients = clients.map(|clients| -> PathBuf {
            let path = directory.path().join("clients.crt");
            std::fs::write(&path, clients.certificate()).unwrap();
            path
        });
        let files = Files { clients, ..files(directory.path(), &authority, "secret") };
        let server = Server::bind(Place {
            listen: "127.0.0.1:0".parse().unwrap(),
            upstream,
            files: files.clone(),
            look_every: Duration::from_millis(20),
            namespace: "stillpoint".to_owned(),
            agent: agent(),
            ending: Ending { delay: Duration::from_millis(300), drain: Duration::from_secs(20) },
        });
        let server = server.await.unwrap();
        let (address, stopping) = (server.address(), server.stopping());
        let running = AbortOnDropHandle::new(tokio::spawn(server.run()));
        Self { authority, files, address, stopping, running, _directory: directory }
    }

    async fn with_apiserver() -> (Self, Apiserver) {
        let authority = authority("ours");
        let apiserver = Apiserver::start(&authority, "secret").await;
        let upstream = apiserver.upstream();
        (Self::start(authority, upstream, None).await, apiserver)
    }

    /// Its apiserver is gone.
    pub(crate) async fn alone() -> Self {
        let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        Self::start(authority("ours"), upstream_at(gone), None).await
    }

    pub(crate) async fn wire(&self) -> Wire {
        self.wire_trusting(&self.authority, None).await.unwrap()
    }

    async fn wire_trusting(&self, authority: &Authority, shown: Option<&KeyPairPem>) -> std::io::Result<Wire> {
        Wire::connect(self.address, authority.certificate(), shown).await
    }
}

#[tokio::test]
async fn a_cut_waits_for_the_apiservers_word() {
    let (world, apiserver) = World::with_apiserver().await;
    let wire = world.wire().await;
    assert_eq!(wire.review("/gates/content?timeout=30s", &cut()).await, json!({"uid": UID, "allowed": true}));
    apiserver.will([deny()]);
    let denied = wire.review("/required/content?timeout=30s", &cut()).await;
    assert_eq!((&denied["allowed"], &denied["status"]["message"]), (&json!(false), &json!("orders is held")));
    let asked = apiserver.asked();
    assert_eq!((asked[0].required, asked[1].required), (false, true));
    assert!((20_000..28_000).contains(&asked[0].deadline_milliseconds), "{}", asked[0].deadline_milliseconds);
    // What is no business of ours goes no further.
    let uploading = with(cut(), "/request/object/status/snapshotHandle", "s".into());
    assert_eq!(wire.review("/gates/content", &uploading).await["allowed"], true);
    assert_eq!(apiserver.asked().len(), 2);
}

#[tokio::test]
async fn without_an_apiserver_preferred_goes_on_with_a_warning_and_required_is_to_try_again() {
    let world = World::alone().await;
    let wire = world.wire().await;
    let allowed = wire.review("/gates/content", &cut()).await;
    assert_eq!(allowed["allowed"], true);
    let warning = allowed["warnings"][0].as_str().unwrap();
    assert!(warning.starts_with("not frozen: ") && warning.ends_with("will be crash-consistent"), "{warning}");
    let warned = wire.review("/gates/snapshot", &preflight()).await;
    assert!(warned["warnings"][0].as_str().unwrap().starts_with("not checked: "), "{warned}");
    for (path, review) in [("/required/content", cut()), ("/required/snapshot", preflight())] {
        let denied = wire.review(path, &review).await;
        assert_eq!((&denied["allowed"], &denied["status"]["code"]), (&json!(false), &json!(409)), "{denied}");
        assert!(denied["status"]["message"].as_str().unwrap().ends_with(TRY_AGAIN), "{denied}");
    }
    // Our own kinds need nobody.
    let wrong = json!({"engine": "PostgreSQL", "endpoint": {}});
    assert_eq!(wire.review("/validate", &database(wrong)).await["status"]["code"], 422);
}

#[tokio::test]
async fn a_hanging_apiserver_is_waited_for_as_long_as_kubernetes_waits_and_no_longer() {
    let (world, apiserver) = World::with_apiserver().await;
    apiserver.will([Behaviour::Hang]);
    let began = Instant::now();
    let allowed = world.wire().await.review("/gates/content?timeout=1s", &cut()).await;
    assert!(allowed["warnings"][0].as_str().unwrap().contains("no answer in time"), "{allowed}");
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(500) && took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn whatever_is_no_review_is_answered_in_plain_words() {
    let world = World::alone().await;
    let wire = world.wire().await;
    let post = async |path: &str, body: Bytes| wire.send(Method::POST, path, body).await.unwrap();
    let (code, text) = post("/gates/content", "{}".into()).await;
    assert_eq!((code, String::from_utf8_lossy(&text).contains("not an AdmissionReview")), (400, true), "{text:?}");
    assert_eq!(post("/gates/content", Bytes::new()).await.0, 400);
    assert_eq!(post("/gates/elsewhere", cut().to_string().into()).await.0, 404);
    assert_eq!(wire.get("/gates/content").await.0, 405);
    assert_eq!(wire.get("/livez").await.0, 200);
    assert_eq!(wire.get("/readyz").await.0, 200);
    // As long as a review may be, and a byte more.
    let padded = |length: usize| {
        let mut body = cut().to_string().into_bytes();
        body.resize(length, b' ');
        Bytes::from(body)
    };
    assert_eq!(post("/gates/content", padded(LONGEST)).await.0, 200);
    assert_eq!(post("/gates/content", padded(LONGEST + 1)).await.0, 413);
    let (_, metrics) = wire.get("/metrics").await;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    for line in [
        r#"stillpoint_webhook_reviews_total{gate="cut",required="false",outcome="FailedOpen"} 1"#,
        r#"stillpoint_webhook_reviews_total{gate="cut",required="false",outcome="Unanswered"} 3"#,
        r#"stillpoint_webhook_review_seconds_count{gate="cut"} 4"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    let expiry =
        metrics.lines().find_map(|l| l.strip_prefix("stillpoint_webhook_certificate_expiry_timestamp_seconds "));
    let left = expiry.unwrap().parse::<i64>().unwrap() - Timestamp::now().as_second();
    assert!((80_000..=86_400).contains(&left), "{left}");
}

/// With the authority that is in force when it is made.
#[tokio::test]
async fn a_pod_gets_an_agent_that_trusts_whoever_is_to_be_trusted() {
    let world = World::alone().await;
    let wire = world.wire().await;
    let trusted = async |wire: &Wire| -> String {
        let answered = wire.review("/inject?timeout=5s", &pod_create(plain_pod())).await;
        assert_eq!((&answered["allowed"], &answered["patchType"]), (&json!(true), &json!("JSONPatch")), "{answered}");
        let patch = BASE64_STANDARD.decode(answered["patch"].as_str().unwrap()).unwrap();
        let mut pod = plain_pod();
        json_patch::patch(&mut pod, &serde_json::from_slice::<json_patch::Patch>(&patch).unwrap()).unwrap();
        let variables = pod["spec"]["initContainers"][0]["env"].as_array().unwrap().clone();
        let ca = variables.into_iter().find(|variable| variable["name"] == "STILLPOINT_CA").unwrap();
        ca["value"].as_str().unwrap().to_owned()
    };
    assert_eq!(trusted(&wire).await, world.authority.certificate());
    let next = authority("next");
    std::fs::write(&world.files.authority, next.certificate()).unwrap();
    let patience = Instant::now() + Duration::from_secs(20);
    while trusted(&wire).await != next.certificate() {
        assert!(Instant::now() < patience, "the new authority is not given");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let wrong = with(plain_pod(), "/metadata/annotations/stillpoint.dev~1port", "x".into());
    let skipped = wire.review("/inject?timeout=5s", &pod_create(wrong)).await;
    assert_eq!(skipped["allowed"], true);
    assert_eq!(skipped["warnings"][0], r#"not injected: stillpoint.dev/port is "x"; must be a number from 1 to 65535"#);
    assert!(wire.review("/inject/namespace", &pod_create(json!({"kind": "Pod"}))).await.get("patch").is_none());
    let (_, metrics) = wire.get("/metrics").await;
    let metrics = String::from_utf8(metrics.to_vec()).unwrap();
    for line in [
        r#"stillpoint_webhook_reviews_total{gate="pods",required="false",outcome="Skipped"} 1"#,
        r#"stillpoint_webhook_reviews_total{gate="pods of namespaces",required="false",outcome="Passed"} 1"#,
        r#"stillpoint_webhook_reviews_total{gate="pods",required="false",outcome="Injected"}"#,
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_certificate_is_exchanged_while_reviews_are_answered() {
    let (world, _apiserver) = World::with_apiserver().await;
    let open = world.wire().await;
    let next = authority("next");
    // Half of a pair, as one may see it between two writes, changes nothing.
    let key = std::fs::read_to_string(&world.files.key).unwrap();
    show(&world.files, &next);
    let new_key = std::fs::read_to_string(&world.files.key).unwrap();
    std::fs::write(&world.files.key, key).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    world.wire().await.review("/gates/content", &cut()).await;
    std::fs::write(&world.files.key, new_key).unwrap();
    let patience = Instant::now() + Duration::from_secs(20);
    let new = loop {
        // Meanwhile nobody notices.
        assert_eq!(open.review("/gates/content", &cut()).await["allowed"], true);
        if let Ok(wire) = world.wire_trusting(&next, None).await {
            break wire;
        }
        assert!(Instant::now() < patience, "the new certificate is not shown");
    };
    assert_eq!(new.review("/gates/content", &cut()).await["allowed"], true);
    assert_eq!(open.review("/gates/content", &cut()).await["allowed"], true);
    assert!(world.wire_trusting(&world.authority, None).await.is_err(), "the old one is shown to nobody new");
}

#[tokio::test]
async fn when_senders_must_show_a_certificate_others_are_not_heard() {
    let (clients, strangers) = (authority("clients"), authority("strangers"));
    let apiserver = Apiserver::start(&authority("ours"), "secret").await;
    let world = World::start(authority("ours"), apiserver.upstream(), Some(&clients)).await;
    let certificate = |of: &Authority| of.client("kube-apiserver", "masters", Timestamp::now(), DAY).unwrap();
    for (shown, code) in [(None, 401), (Some(certificate(&strangers)), 401), (Some(certificate(&clients)), 200)] {
        let wire = world.wire_trusting(&world.authority, shown.as_ref()).await.unwrap();
        let (answered, body) = wire.send(Method::POST, "/gates/content", cut().to_string().into()).await.unwrap();
        assert_eq!(answered, code, "{body:?}");
        assert_eq!(wire.get("/livez").await.0, 200, "probes show nothing");
    }
}

#[tokio::test]
async fn what_waits_when_it_is_told_to_stop_is_answered_and_then_it_ends() {
    let (world, apiserver) = World::with_apiserver().await;
    let wire = world.wire().await;
    apiserver.will([Behaviour::Hang]);
    let waiting = tokio::spawn({
        let wire = wire.clone();
        async move { wire.review("/required/content?timeout=3s", &cut()).await }
    });
    let patience = Instant::now() + Duration::from_secs(20);
    while apiserver.asked().is_empty() {
        assert!(Instant::now() < patience, "it was not asked");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.stopping.cancel();
    assert_eq!(wire.get("/readyz").await.0, 503);
    assert_eq!(wire.review("/gates/content", &cut()).await["allowed"], true, "others are answered as before");
    assert_eq!(waiting.await.unwrap()["status"]["code"], 409);
    world.running.await.unwrap().unwrap();
    assert!(Wire::connect(world.address, world.authority.certificate(), None).await.is_err());
}
