//! Front proxies and client certificates.

use std::{collections::BTreeMap, sync::Arc};

use http::{HeaderValue, StatusCode};
use jiff::ToSpan;
use rcgen::ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
use rustls::pki_types::CertificateDer;
use serde_json::json;

use super::{Cluster, delegated};
use crate::auth::{
    Authenticator, User,
    delegated::{
        Delegated, Trust,
        testing::{FakeKubeApi, Reply, Signer, Wanted, config_map, headers, now, peer},
    },
};

const PROXY: &str = "front-proxy-client";
const ALICE: (&str, &str) = ("X-Remote-User", "alice");

/// Nobody's tokens, and nobody is asked for any of these.
fn no_reviews() -> FakeKubeApi {
    FakeKubeApi::new(|spec| panic!("nobody was to be asked, least of all: {spec}"))
}

/// Who that is; or `None` for 401.
async fn who(delegated: &Delegated, chain: &[CertificateDer<'static>], pairs: &[(&str, &str)]) -> Option<User> {
    let mut headers = headers(pairs);
    match delegated.authenticate(&peer(chain), &mut headers, now()).await {
        Ok(user) => Some(user),
        Err(error) if error.code == StatusCode::UNAUTHORIZED => {
            assert_eq!(error.message, "Unauthorized", "why is for the log");
            None
        }
        Err(error) => panic!("{error:?}"),
    }
}

fn user(name: &str, groups: &[&str]) -> User {
    let groups = groups.iter().map(|&group| group.to_owned()).collect();
    User { name: name.into(), groups, ..User::default() }
}

fn anonymous() -> User {
    user("system:anonymous", &["system:unauthenticated"])
}

fn extra(pairs: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    let owned = |values: &[&str]| values.iter().map(|&value| value.to_owned()).collect();
    pairs.iter().map(|(key, values)| ((*key).to_owned(), owned(values))).collect()
}

#[tokio::test]
async fn headers_are_believed_beside_a_front_proxys_certificate_that_holds_and_never_else() {
    let cluster = Cluster::new();
    let delegated = delegated(cluster.trust(), &no_reviews(), &[]);
    let of = |signer: &Signer, wanted: Wanted<'_>| signer.sign(&wanted).chain;
    let proxy = Wanted::client(PROXY);
    let below = cluster.proxies.below("front-proxy-ca, second");
    let alice = Some(user("alice", &["system:authenticated"]));
    let cases = [
        ("the front proxy", of(&cluster.proxies, proxy.clone()), alice.clone()),
        ("by an intermediate", of(&below, proxy.clone()), alice.clone()),
        ("without any EKU, as Go takes it", of(&cluster.proxies, Wanted { purposes: &[], ..proxy.clone() }), alice),
        ("nothing shown", Vec::new(), Some(anonymous())),
        ("another authority", of(&cluster.others, proxy.clone()), None),
        ("a name that is not allowed", of(&cluster.proxies, Wanted::client("kubelet")), None),
        ("no name", of(&cluster.proxies, Wanted { name: None, ..proxy.clone() }), None),
        ("expired", of(&cluster.proxies, Wanted { days: -9..-1, ..proxy.clone() }), None),
        ("not yet valid", of(&cluster.proxies, Wanted { days: 1..9, ..proxy.clone() }), None),
        ("for servers only", of(&cluster.proxies, Wanted { purposes: &[ServerAuth], ..proxy.clone() }), None),
        ("the authority itself", vec![cluster.proxies.certificate()], None),
        ("no certificate at all", vec![vec![1, 2, 3].into()], None),
        ("a person who names another", of(&cluster.people, Wanted { groups: &["dba"], ..Wanted::client("bob") }), {
            Some(user("bob", &["dba", "system:authenticated"]))
        }),
    ];
    for (what, chain, wanted) in cases {
        let mut found = who(&delegated, &chain, &[ALICE]).await;
        if let Some(found) = &mut found {
            found.extra.clear();
        }
        assert_eq!(found, wanted, "{what}");
    }
}

/// Headers, and who that is.
type Case<'a> = (&'a [(&'a str, &'a str)], Option<User>);

#[tokio::test]
async fn what_the_front_proxy_says_is_read_whole() {
    let cluster = Cluster::new();
    let delegated = delegated(cluster.trust(), &no_reviews(), &[]);
    let chain = cluster.proxies.sign(&Wanted::client(PROXY)).chain;
    let known = "system:authenticated";
    let odd = extra(&[("acme.com/project", &["p1", "p2"]), ("scopes", &["a, b"]), ("odd%zz", &["kept"])]);
    let cases: [Case<'_>; 9] = [
        (
            &[ALICE, ("X-Remote-Group", "dba"), ("X-Remote-Group", ""), ("x-remote-group", "shop,ops")],
            Some(user("alice", &["dba", "shop,ops", known])),
        ),
        (&[ALICE, ("X-Remote-Group", known)], Some(user("alice", &[known]))),
        (&[("X-Remote-User", "system:aggregator")], Some(user("system:aggregator", &[known]))),
        (&[ALICE, ("X-Remote-User", "root")], Some(user("alice", &[known]))),
        (&[ALICE, ("X-Remote-Uid", "42")], Some(user("alice", &[known]))),
        (
            &[
                ALICE,
                ("X-Remote-Extra-Acme.com%2Fproject", "p1"),
                ("X-Remote-Extra-acme.com%2fProject", "p2"),
                ("X-Remote-Extra-Scopes", "a, b"),
                ("X-Remote-Extra-Odd%zz", "kept"),
            ],
            Some(User { extra: odd, ..user("alice", &[known]) }),
        ),
        // Whom the kube-apiserver does not know either must not get what everybody has who is known.
        (&[("X-Remote-User", "system:anonymous"), ("X-Remote-Group", "system:unauthenticated")], Some(anonymous())),
        (&[("X-Remote-User", "")], None),
        (&[("X-Remote-Group", "system:masters")], None),
    ];
    for (pairs, wanted) in cases {
        assert_eq!(who(&delegated, &chain, pairs).await, wanted, "{pairs:?}");
    }
    let mut odd = headers(&[ALICE]);
    odd.append("x-remote-group", HeaderValue::from_bytes(b"\xff").unwrap());
    assert!(delegated.authenticate(&peer(&chain), &mut odd, now()).await.is_err(), "half of what is said");
}

#[tokio::test]
async fn the_config_map_says_which_headers_and_names_count() {
    let cluster = Cluster::new();
    let mut data = config_map(&cluster.proxies, None);
    data.insert("requestheader-allowed-names".into(), "[]".into());
    data.insert("requestheader-username-headers".into(), r#"["X-First", "X-Second"]"#.into());
    data.insert("requestheader-group-headers".into(), r#"["X-Group", "X-Team"]"#.into());
    data.insert("requestheader-uid-headers".into(), r#"["X-Uid"]"#.into());
    let trust = Arc::new(Trust::default());
    trust.learn(&data);
    let delegated = delegated(trust, &no_reviews(), &[]);
    let nameless = Wanted { name: None, ..Wanted::client(PROXY) };
    let chain = cluster.proxies.sign(&nameless).chain;
    let pairs = [
        ("X-First", ""),
        ("X-Second", "alice"),
        ("X-Team", "ops"),
        ("X-Group", "dba"),
        ("X-Uid", "42"),
        ("X-Remote-Group", "system:masters"),
        ("Accept", "application/json"),
    ];
    let wanted = User { uid: Some("42".into()), ..user("alice", &["dba", "ops", "system:authenticated"]) };
    assert_eq!(who(&delegated, &chain, &pairs).await, Some(wanted));
    let mut headers = headers(&pairs);
    delegated.authenticate(&peer(&chain), &mut headers, now()).await.unwrap();
    let left: Vec<&str> = headers.keys().map(http::HeaderName::as_str).collect();
    assert_eq!(left, ["accept"], "what follows sees nothing of who asks but the user");
    assert_eq!(who(&delegated, &chain, &[ALICE]).await, None, "not a header that counts here");
}

#[tokio::test]
async fn a_person_is_who_the_certificate_says() {
    let cluster = Cluster::new();
    let delegated = delegated(cluster.trust(), &no_reviews(), &[]);
    let wanted = Wanted { groups: &["dba", "ops"], ..Wanted::client("bob") };
    let bob = who(&delegated, &cluster.people.sign(&wanted).chain, &[]).await.unwrap();
    assert_eq!((bob.name.as_str(), bob.groups.len()), ("bob", 3));
    let ids = &bob.extra["authentication.kubernetes.io/credential-id"];
    let hex = ids[0].strip_prefix("X509SHA256=").unwrap();
    assert!(hex.len() == 64 && hex.chars().all(|digit| matches!(digit, '0'..='9' | 'a'..='f')), "{ids:?}");
    let late = now() + 48.hours();
    let chain = cluster.people.sign(&wanted).chain;
    let error = delegated.authenticate(&peer(&chain), &mut headers(&[]), late).await.unwrap_err();
    assert_eq!(error.code, StatusCode::UNAUTHORIZED, "a certificate that has expired is nobody's, not anonymous");
}

#[tokio::test]
async fn until_the_config_map_was_read_no_certificate_and_no_header_counts() {
    let cluster = Cluster::new();
    let trust = Arc::new(Trust::default());
    let fake = FakeKubeApi::new(|_| Reply::Status(json!({"authenticated": true, "user": {"username": "carol"}})));
    let delegated = delegated(Arc::clone(&trust), &fake, &[]);
    assert!(delegated.ready().unwrap_err().contains("extension-apiserver-authentication"));
    let proxy = cluster.proxies.sign(&Wanted::client(PROXY)).chain;
    assert_eq!(who(&delegated, &proxy, &[ALICE]).await, None);
    let carol = who(&delegated, &proxy, &[ALICE, ("Authorization", "Bearer carols")]).await;
    assert_eq!(carol, Some(user("carol", &["system:authenticated"])), "a token needs no ConfigMap");
    trust.learn(&config_map(&cluster.proxies, None));
    assert_eq!(delegated.ready(), Ok(()));
    assert_eq!(who(&delegated, &proxy, &[ALICE]).await, Some(user("alice", &["system:authenticated"])));
}

#[tokio::test]
async fn anonymous_is_who_shows_nothing_and_only_where_that_is_served() {
    let cluster = Cluster::new();
    let served = delegated(cluster.trust(), &no_reviews(), &[]);
    let unserved = Delegated { anonymous: false, ..delegated(cluster.trust(), &no_reviews(), &[]) };
    assert_eq!(who(&served, &[], &[ALICE, ("X-Remote-Group", "system:masters")]).await, Some(anonymous()));
    assert_eq!(who(&unserved, &[], &[ALICE]).await, None);
    for header in ["Basic YWxpY2U6c2VjcmV0", "Bearer", "Bearer  ", "alice"] {
        assert_eq!(who(&served, &[], &[("Authorization", header)]).await, None, "{header}");
    }
}

#[tokio::test]
async fn impersonation_is_refused_and_said_to_be() {
    let cluster = Cluster::new();
    let delegated = delegated(cluster.trust(), &no_reviews(), &[]);
    let chain = cluster.people.sign(&Wanted { purposes: &[ClientAuth], ..Wanted::client("bob") }).chain;
    for name in ["Impersonate-User", "Impersonate-Group", "Impersonate-Uid", "Impersonate-Extra-Scopes"] {
        let mut asks = headers(&[(name, "root")]);
        let error = delegated.authenticate(&peer(&chain), &mut asks, now()).await.unwrap_err();
        assert_eq!((error.code, error.reason), (StatusCode::FORBIDDEN, "Forbidden"));
        assert!(error.message.contains("\"bob\" cannot impersonate"), "{}", error.message);
        let foreign = cluster.others.sign(&Wanted::client("bob")).chain;
        let error = delegated.authenticate(&peer(&foreign), &mut asks, now()).await.unwrap_err();
        assert_eq!(error.code, StatusCode::UNAUTHORIZED, "first of all, who asks");
    }
}
