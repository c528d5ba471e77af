//! Rights, by SubjectAccessReviews that are asked of a fake.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::{advance, timeout};

use crate::{
    auth::{
        User, authorize,
        delegated::{
            KubeReviews, SubjectAccessReviews,
            answers::MOST,
            testing::{FakeKubeApi, Reply},
        },
    },
    error::ApiError,
    query::Query,
    target::target,
};

const ORDERS: &str = "/apis/live.stillpoint.dev/v1alpha1/namespaces/shop/databases/orders";
const ALL: &str = "/apis/live.stillpoint.dev/v1alpha1/databases";

fn reviews(fake: &FakeKubeApi) -> SubjectAccessReviews {
    SubjectAccessReviews::new(Arc::new(KubeReviews::new(fake.client())))
}

fn yes() -> FakeKubeApi {
    FakeKubeApi::new(|_| Reply::Status(json!({"allowed": true})))
}

fn bob() -> User {
    User { name: "bob".into(), groups: vec!["system:authenticated".into()], ..User::default() }
}

/// One request, from its line to permission.
async fn asks(reviews: &SubjectAccessReviews, user: &User, method: &str, uri: &str) -> Result<(), ApiError> {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let (method, query): (Method, _) = (method.parse().unwrap(), Query::parse(Some(query)));
    let target = target(&method, path, query.is_true("watch")).unwrap();
    authorize(reviews, user, target, &method, &query).await.map(drop)
}

#[tokio::test]
async fn a_request_is_asked_for_as_the_kube_apiserver_would_ask() {
    let of = |verb: &str, more: Value| {
        let mut attributes = json!({
            "verb": verb, "group": "live.stillpoint.dev", "version": "v1alpha1", "resource": "databases",
        });
        attributes.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"resourceAttributes": attributes})
    };
    let path = |verb: &str, path: &str| json!({"nonResourceAttributes": {"verb": verb, "path": path}});
    let named = json!({"requirements": [{"key": "metadata.name", "operator": "In", "values": ["orders"]}]});
    let not_named = json!({"requirements": [{"key": "metadata.name", "operator": "NotIn", "values": ["orders"]}]});
    let labels = json!({"requirements": [
        {"key": "app", "operator": "In", "values": ["a", "b"]}, {"key": "old", "operator": "DoesNotExist"},
    ]});
    let one = json!({"namespace": "shop", "name": "orders"});
    let verb_of_ours = json!({"namespace": "shop", "name": "orders", "subresource": "quiesce"});
    let cases = [
        ("GET", ORDERS.to_owned(), of("get", one.clone())),
        ("HEAD", ORDERS.to_owned(), of("get", one.clone())),
        ("POST", format!("{ORDERS}/quiesce"), of("create", verb_of_ours)),
        ("PUT", ORDERS.to_owned(), of("update", one.clone())),
        ("PATCH", ORDERS.to_owned(), of("patch", one.clone())),
        ("DELETE", ORDERS.to_owned(), of("delete", one)),
        ("GET", ALL.to_owned(), of("list", json!({}))),
        ("DELETE", ALL.to_owned(), of("deletecollection", json!({}))),
        (
            "GET",
            format!("{ALL}?watch=1&labelSelector=app+in+(a,b),!old"),
            of("watch", json!({"labelSelector": labels})),
        ),
        (
            "GET",
            format!("{ALL}?fieldSelector=metadata.name%3Dorders"),
            of("list", json!({"name": "orders", "fieldSelector": named})),
        ),
        (
            "GET",
            format!("{ALL}?watch=true&fieldSelector=metadata.name%3D%3Dorders"),
            of("watch", json!({"name": "orders", "fieldSelector": named})),
        ),
        // A right to delete one is none to delete a collection.
        (
            "DELETE",
            format!("{ALL}?fieldSelector=metadata.name%3Dorders"),
            of("deletecollection", json!({"fieldSelector": named})),
        ),
        (
            "GET",
            format!("{ALL}?fieldSelector=metadata.name!%3Dorders"),
            of("list", json!({"fieldSelector": not_named})),
        ),
        ("GET", format!("{ALL}?fieldSelector=nonsense"), of("list", json!({}))),
        ("GET", "/metrics".to_owned(), path("get", "/metrics")),
        ("GET", "/metrics/".to_owned(), path("get", "/metrics")),
        ("POST", "/version".to_owned(), path("post", "/version")),
        ("GET", "/".to_owned(), path("get", "/")),
        ("GET", "/api".to_owned(), path("get", "/api")),
        ("GET", "/api/v1".to_owned(), path("get", "/api/v1")),
        ("GET", "/apis".to_owned(), path("get", "/apis")),
        ("GET", "/apis/live.stillpoint.dev".to_owned(), path("get", "/apis/live.stillpoint.dev")),
        ("GET", "/apis/live.stillpoint.dev/v1alpha1".to_owned(), path("get", "/apis/live.stillpoint.dev/v1alpha1")),
        ("GET", "/openapi/v2".to_owned(), path("get", "/openapi/v2")),
        ("GET", "/openapi/v3".to_owned(), path("get", "/openapi/v3")),
        ("GET", "/openapi/v3/apis/a/v1?hash=b".to_owned(), path("get", "/openapi/v3/apis/a/v1")),
    ];
    for (method, uri, mut wanted) in cases {
        let fake = yes();
        asks(&reviews(&fake), &bob(), method, &uri).await.unwrap();
        wanted["user"] = "bob".into();
        wanted["groups"] = json!(["system:authenticated"]);
        assert_eq!(fake.asked(), [wanted], "{method} {uri}");
    }
}

#[tokio::test]
async fn a_user_is_told_of_whole() {
    let fake = yes();
    let user = User {
        name: "alice".into(),
        uid: Some("42".into()),
        groups: vec!["dba".into(), "system:authenticated".into()],
        extra: [("acme.com/project".to_owned(), vec!["p1".to_owned()])].into(),
    };
    asks(&reviews(&fake), &user, "GET", "/metrics").await.unwrap();
    let wanted = json!({
        "user": "alice", "uid": "42", "groups": ["dba", "system:authenticated"], "extra": {"acme.com/project": ["p1"]},
        "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
    });
    assert_eq!(fake.asked(), [wanted]);
}

#[tokio::test]
async fn some_are_never_asked_about() {
    let fake = FakeKubeApi::new(|_| Reply::Fails(500));
    let reviews = reviews(&fake);
    let master = User { groups: vec!["dba".into(), "system:masters".into()], ..bob() };
    asks(&reviews, &master, "DELETE", ALL).await.unwrap();
    for path in ["/healthz", "/livez", "/readyz", "/readyz/ping"] {
        asks(&reviews, &User::default(), "GET", path).await.unwrap();
    }
    assert!(fake.asked().is_empty());
}

#[tokio::test]
async fn a_denial_is_403_and_says_why() {
    let cases = [
        (
            json!({"allowed": false, "reason": "no policy"}),
            "GET",
            ORDERS,
            "databases.live.stillpoint.dev \"orders\" is \
            forbidden: User \"bob\" cannot get resource \"databases\" in API group \"live.stillpoint.dev\" in the namespace \
            \"shop\": no policy",
        ),
        (json!({"allowed": false}), "GET", "/metrics", "forbidden: User \"bob\" cannot get path \"/metrics\""),
        (
            json!({"allowed": false, "denied": true, "reason": "never"}),
            "GET",
            ALL,
            "databases.live.stillpoint.dev is \
            forbidden: User \"bob\" cannot list resource \"databases\" in API group \"live.stillpoint.dev\" at the cluster \
            scope: never",
        ),
    ];
    for (status, method, uri, wanted) in cases {
        let fake = FakeKubeApi::new(move |_| Reply::Status(status.clone()));
        let error = asks(&reviews(&fake), &bob(), method, uri).await.unwrap_err();
        assert_eq!((error.code, error.reason, error.message.as_str()), (StatusCode::FORBIDDEN, "Forbidden", wanted));
    }
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_it_is_500_neither_yes_nor_no_and_nothing_is_kept() {
    let both = Reply::Status(json!({"allowed": true, "denied": true}));
    for (reply, tries) in
        [(Reply::Fails(500), 5), (Reply::Fails(403), 1), (Reply::Hangs, 1), (Reply::Nonsense, 1), (both, 1)]
    {
        let told = reply.clone();
        let fake = FakeKubeApi::new(move |_| told.clone());
        let reviews = reviews(&fake);
        for times in 1..=2 {
            let answered = timeout(Duration::from_secs(11), asks(&reviews, &bob(), "GET", ORDERS)).await;
            let error = answered.expect("a deadline of its own").unwrap_err();
            let code = StatusCode::INTERNAL_SERVER_ERROR;
            assert_eq!((error.code, error.reason), (code, "InternalError"), "{reply:?}");
            assert!(error.internal.is_some_and(|why| why.contains("bob")), "the log says why");
            assert_eq!(fake.asked().len(), times * tries, "{reply:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_holds_for_ten_seconds_be_it_yes_or_no() {
    for allowed in [true, false] {
        let fake = FakeKubeApi::new(move |_| Reply::Status(json!({"allowed": allowed})));
        let reviews = reviews(&fake);
        for _ in 0..100 {
            assert_eq!(asks(&reviews, &bob(), "GET", ORDERS).await.is_ok(), allowed);
            advance(Duration::from_millis(50)).await;
        }
        assert_eq!(fake.asked().len(), 1);
        advance(Duration::from_secs(5)).await;
        assert_eq!(asks(&reviews, &bob(), "GET", ORDERS).await.is_ok(), allowed);
        assert_eq!(fake.asked().len(), 2);
    }
}

#[tokio::test]
async fn whatever_decides_is_asked_for_anew() {
    let fake = yes();
    let reviews = reviews(&fake);
    let dba = User { groups: vec!["dba".into()], ..bob() };
    let uid = User { uid: Some("42".into()), ..bob() };
    let extra = |value: &str| User { extra: [("scope".to_owned(), vec![value.to_owned()])].into(), ..bob() };
    let users = [bob(), User { name: "eve".into(), ..bob() }, dba, uid, extra("a"), extra("b")];
    let shop = ALL.replace("/databases", "/namespaces/shop/databases");
    let others = [ORDERS.to_owned(), ORDERS.replace("shop", "yard"), format!("{ORDERS}/quiesce"), ALL.to_owned(), shop];
    let selecting = [format!("{ALL}?watch=1"), format!("{ALL}?labelSelector=a"), format!("{ALL}?fieldSelector=a%3Db")];
    let mut asked = 0;
    for user in &users {
        for uri in others.iter().chain(&selecting).map(String::as_str).chain(["/metrics", "/version"]) {
            for _ in 0..2 {
                asks(&reviews, user, "GET", uri).await.unwrap();
            }
            asked += 1;
            assert_eq!(fake.asked().len(), asked, "{user:?} {uri}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn equal_questions_at_once_are_one_and_survive_whoever_asked_first() {
    let fake = FakeKubeApi::new(|_| Reply::Fails(503));
    let failing = reviews(&fake);
    for answered in join_all((0..100).map(|_| async { asks(&failing, &bob(), "GET", ORDERS).await })).await {
        assert_eq!(answered.unwrap_err().code, StatusCode::INTERNAL_SERVER_ERROR);
    }
    assert_eq!(fake.asked().len(), 5, "one question, tried five times");

    let times = std::sync::atomic::AtomicUsize::new(0);
    let fake = FakeKubeApi::new(move |_| match times.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Reply::Fails(503),
        _ => Reply::Status(json!({"allowed": true})),
    });
    let reviews = Arc::new(reviews(&fake));
    let asking = |reviews: Arc<SubjectAccessReviews>| async move { asks(&reviews, &bob(), "GET", ORDERS).await };
    let first = tokio::spawn(asking(Arc::clone(&reviews)));
    let second = tokio::spawn(asking(Arc::clone(&reviews)));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.asked().len(), 1, "it waits before it tries again");
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    second.await.unwrap().unwrap();
    assert_eq!(fake.asked().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn answers_take_a_bounded_memory() {
    let fake = yes();
    let reviews = reviews(&fake);
    for at in 0..MOST.get() + 50 {
        asks(&reviews, &bob(), "GET", &format!("{ORDERS}-{at}")).await.unwrap();
    }
    assert_eq!(reviews.known(), MOST.get());
}
