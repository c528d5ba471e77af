//! Bearer tokens, by TokenReviews that are asked of a fake.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::future::join_all;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, advance};

use super::{Cluster, delegated};
use crate::auth::{
    Authenticator, User,
    delegated::{
        Delegated,
        answers::MOST,
        reviews::AT_ONCE,
        testing::{FakeKubeApi, Reply, Wanted, headers, now, peer},
    },
};

async fn who(delegated: &Delegated, pairs: &[(&str, &str)]) -> Result<User, StatusCode> {
    delegated.authenticate(&peer(&[]), &mut headers(pairs), now()).await.map_err(|error| error.code)
}

async fn holder(delegated: &Delegated, token: &str) -> Result<String, StatusCode> {
    let bearer = format!("Bearer {token}");
    who(delegated, &[("Authorization", &bearer)]).await.map(|user| user.name)
}

/// Whose name the token is, unless it is `nobodys`.
fn named(spec: &Value) -> Reply {
    match spec["token"].as_str().unwrap() {
        "nobodys" => Reply::Status(json!({"authenticated": false, "error": "it is nobody's"})),
        name => Reply::Status(json!({"authenticated": true, "user": {"username": name}})),
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_is_reviewed_once_in_ten_seconds_whatever_comes_of_it() {
    let fake = FakeKubeApi::new(named);
    let delegated = delegated(Cluster::new().trust(), &fake, &[]);
    for (token, found) in [("carol", Ok("carol".to_owned())), ("nobodys", Err(StatusCode::UNAUTHORIZED))] {
        let before = fake.asked().len();
        for _ in 0..10 {
            assert_eq!(holder(&delegated, token).await, found);
            advance(Duration::from_millis(900)).await;
        }
        assert_eq!(fake.asked().len() - before, 1, "{token}");
        advance(Duration::from_secs(2)).await;
        assert_eq!(holder(&delegated, token).await, found);
        assert_eq!(fake.asked().len() - before, 2, "{token}: an answer is not kept for ever");
    }
    assert_eq!(fake.asked()[0], json!({"token": "carol"}), "no audience unless one is wanted");
}

#[tokio::test]
async fn a_holder_is_read_whole_and_foreign_certificates_do_not_stand_in_the_way() {
    let fake = FakeKubeApi::new(|_| {
        let extra = json!({"authentication.kubernetes.io/pod-name": ["backup-0"]});
        let user =
            json!({"username": "system:serviceaccount:shop:backup", "uid": "42", "groups": ["sa"], "extra": extra});
        Reply::Status(json!({"authenticated": true, "user": user}))
    });
    let cluster = Cluster::new();
    let delegated = delegated(cluster.trust(), &fake, &[]);
    let foreign = cluster.others.sign(&Wanted::client("front-proxy-client")).chain;
    let mut asks = headers(&[("Authorization", "bearer some-token"), ("X-Remote-User", "root")]);
    let user = delegated.authenticate(&peer(&foreign), &mut asks, now()).await.unwrap();
    assert_eq!(user.name, "system:serviceaccount:shop:backup");
    assert_eq!((user.uid.as_deref(), user.groups), (Some("42"), vec!["sa".into(), "system:authenticated".into()]));
    assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["backup-0"]);
    assert!(asks.is_empty(), "{asks:?}");
}

#[tokio::test]
async fn a_token_must_be_meant_for_us() {
    let meant_for = |audiences: Value| {
        move |_: &Value| {
            Reply::Status(json!({
                "authenticated": true, "user": {"username": "carol"}, "audiences": audiences,
            }))
        }
    };
    let refused = Err(StatusCode::UNAUTHORIZED);
    let carol = Ok("carol".to_owned());
    let cases: [(&[&str], Value, &Result<String, StatusCode>); 6] = [
        (&["stillpoint"], json!(["stillpoint"]), &carol),
        (&["stillpoint", "https://kubernetes"], json!(["https://kubernetes"]), &carol),
        (&["stillpoint"], json!(["vault"]), &refused),
        (&["stillpoint"], json!([]), &refused),
        // Whoever reviewed knows of no audiences: the token is the kube-apiserver's.
        (&["stillpoint"], Value::Null, &refused),
        (&[], Value::Null, &carol),
    ];
    for (audiences, told, wanted) in cases {
        let fake = FakeKubeApi::new(meant_for(told.clone()));
        let delegated = delegated(Cluster::new().trust(), &fake, audiences);
        assert_eq!(&holder(&delegated, "some-token").await, wanted, "{audiences:?} {told}");
        let asked = fake.asked()[0]["audiences"].clone();
        assert_eq!(asked, if audiences.is_empty() { Value::Null } else { json!(audiences) });
    }
}

#[tokio::test(start_paused = true)]
async fn a_review_that_hangs_is_given_up_in_time_and_asked_anew_afterwards() {
    let fake = FakeKubeApi::new(|_| Reply::Hangs);
    let delegated = Arc::new(delegated(Cluster::new().trust(), &fake, &[]));
    for times in 1..=2 {
        let began = Instant::now();
        let all = (0..20).map(|_| holder(&delegated, "carol"));
        for found in join_all(all).await {
            assert_eq!(found, Err(StatusCode::UNAUTHORIZED), "not anonymous");
        }
        assert_eq!(began.elapsed().as_secs(), 10);
        assert_eq!(fake.asked().len(), times, "many who wait for one question");
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_tokens_is_no_flood_of_reviews() {
    let fake = FakeKubeApi::new(|_| Reply::Hangs);
    let delegated = delegated(Cluster::new().trust(), &fake, &[]);
    let tokens: Vec<String> = (0..300).map(|at| format!("made-up-{at}")).collect();
    let began = Instant::now();
    for found in join_all(tokens.iter().map(|token| holder(&delegated, token))).await {
        assert_eq!(found, Err(StatusCode::UNAUTHORIZED));
    }
    assert_eq!(began.elapsed().as_secs(), 10, "also for those whose turn did not come");
    assert_eq!(fake.asked().len(), AT_ONCE);
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_a_few_times_and_nothing_of_it_is_kept() {
    for (reply, tries) in [
        (Reply::Fails(500), 5),
        (Reply::Fails(429), 5),
        (Reply::Fails(403), 1),
        (Reply::Fails(422), 1),
        (Reply::Nonsense, 1),
    ] {
        let told = reply.clone();
        let fake = FakeKubeApi::new(move |_| told.clone());
        let delegated = delegated(Cluster::new().trust(), &fake, &[]);
        for times in 1..=2 {
            let began = Instant::now();
            assert_eq!(holder(&delegated, "carol").await, Err(StatusCode::UNAUTHORIZED), "{reply:?}");
            assert_eq!(fake.asked().len(), times * tries, "{reply:?}");
            assert!(began.elapsed() < Duration::from_secs(6), "{reply:?}");
        }
    }
    let times = AtomicUsize::new(0);
    let fake = FakeKubeApi::new(
        move |spec| {
            if times.fetch_add(1, Ordering::SeqCst) < 3 { Reply::Fails(503) } else { named(spec) }
        },
    );
    let delegated = delegated(Cluster::new().trust(), &fake, &[]);
    assert_eq!(holder(&delegated, "carol").await, Ok("carol".to_owned()), "it passed");
}

#[tokio::test(start_paused = true)]
async fn made_up_tokens_cost_a_bounded_memory() {
    let fake = FakeKubeApi::new(|_| Reply::Status(json!({"authenticated": false})));
    let delegated = delegated(Cluster::new().trust(), &fake, &[]);
    for at in 0..MOST.get() + 50 {
        holder(&delegated, &format!("made-up-{at}")).await.unwrap_err();
    }
    assert_eq!(delegated.tokens.known(), MOST.get());
    let asked = fake.asked().len();
    holder(&delegated, &format!("made-up-{}", MOST.get() + 49)).await.unwrap_err();
    assert_eq!(fake.asked().len(), asked, "the newest are known");
    holder(&delegated, "made-up-0").await.unwrap_err();
    assert_eq!(fake.asked().len(), asked + 1, "the oldest are not");
}

#[tokio::test]
async fn a_holder_without_a_name_is_nobody() {
    for user in [json!({}), json!({"username": ""}), Value::Null] {
        let status = json!({"authenticated": true, "user": user});
        let fake = FakeKubeApi::new(move |_| Reply::Status(status.clone()));
        let delegated = delegated(Cluster::new().trust(), &fake, &[]);
        assert_eq!(holder(&delegated, "some-token").await, Err(StatusCode::UNAUTHORIZED));
    }
}

#[tokio::test]
async fn a_websocket_may_bring_its_token_as_a_protocol() {
    let fake = FakeKubeApi::new(named);
    let delegated = delegated(Cluster::new().trust(), &fake, &[]);
    let token = |name: &str| format!("base64url.bearer.authorization.k8s.io.{}", URL_SAFE_NO_PAD.encode(name));
    let upgrade = [("Connection", "keep-alive, Upgrade"), ("Upgrade", "websocket")];
    let cases = [
        (format!("v4.channel.k8s.io, {}", token("carol")), true, Ok("carol")),
        (token("carol"), true, Err(StatusCode::UNAUTHORIZED)),
        (format!("{}, {}, v4.channel.k8s.io", token("carol"), token("dave")), true, Err(StatusCode::UNAUTHORIZED)),
        ("base64url.bearer.authorization.k8s.io.&, v4.channel.k8s.io".into(), true, Err(StatusCode::UNAUTHORIZED)),
        ("v4.channel.k8s.io".into(), true, Ok("system:anonymous")),
        (format!("v4.channel.k8s.io, {}", token("carol")), false, Ok("system:anonymous")),
    ];
    for (protocols, upgrades, wanted) in cases {
        let mut pairs = vec![("Sec-WebSocket-Protocol", protocols.as_str())];
        pairs.extend(upgrade.iter().filter(|_| upgrades));
        let mut asks = headers(&pairs);
        let user = delegated.authenticate(&peer(&[]), &mut asks, now()).await;
        assert_eq!(user.as_ref().map(|user| user.name.as_str()).map_err(|error| error.code), wanted, "{protocols}");
        if user.is_ok() {
            assert_eq!(asks["sec-websocket-protocol"], "v4.channel.k8s.io");
        }
    }
}
