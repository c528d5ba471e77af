//! What is said of which claim.

use api::{Database, install::webhooks};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1::{PersistentVolume, Pod},
};
use serde_json::{Value, from_value, json};
use topology::Index;

use super::{State, Waits, report, state::claims, summary};
use crate::seen::{Running, Seen};

/// kube-apiserver was told to ask about namespace shop, and there is somebody to be asked.
fn here() -> Waits {
    Waits::of(Some(configuration("'shop'")), Some(true))
}

fn configuration(these: &str) -> MutatingWebhookConfiguration {
    from_value(json!({"metadata": {}, "webhooks": [{
        "name": "cut.gates.stillpoint.dev", "clientConfig": {}, "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "failurePolicy": "Ignore",
        "matchConditions": [{"name": webhooks::IN_THESE, "expression": format!("x in [{these}]")}],
    }]}))
    .unwrap()
}

/// A Pod with one claim of its own name, in a namespace.
fn pod(namespace: &str, name: &str, image: &str, more: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}},
        "spec": {
            "containers": [{"name": "c", "image": image, "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": name}}],
        },
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}]},
    });
    json_patch::merge(&mut pod, &more);
    from_value(pod).unwrap()
}

fn volume(namespace: &str, claim: &str) -> PersistentVolume {
    from_value(json!({
        "metadata": {"name": format!("{namespace}-{claim}")},
        "spec": {
            "claimRef": {"namespace": namespace, "name": claim},
            "csi": {"driver": "csi.example", "volumeHandle": format!("{namespace}-{claim}")},
        },
        "status": {"phase": "Bound"},
    }))
    .unwrap()
}

fn database(name: &str, more: Value) -> Database {
    let mut database = json!({
        "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"namespace": "shop", "name": name},
        "spec": {"engine": "PostgreSQL", "agent": "Required", "podSelector": {"matchLabels": {"app": name}}},
        "status": {"observedGeneration": 1, "conditions": [condition("True")]},
    });
    json_patch::merge(&mut database, &more);
    from_value(database).unwrap()
}

fn condition(status: &str) -> Value {
    json!({
        "type": "Ready", "status": status, "reason": "Because", "message": "of something",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    })
}

fn seen(pods: &[Pod], databases: Vec<Database>) -> Seen {
    let mut index = Index::new("cluster.local".to_owned());
    for pod in pods {
        index.put_pod(pod);
        let meta = &pod.metadata;
        index.put_volume(&volume(meta.namespace.as_deref().unwrap(), meta.name.as_deref().unwrap()));
    }
    let classes = Some(vec![("csi.example".to_owned(), Some("true".to_owned()))]);
    Seen { index, databases, pods: pods.iter().filter_map(Running::of).collect(), volumes: true, classes }
}

/// One Pod in namespace shop, what differs of the Database `orders` that there may be, and what is said of the Pod's claim.
struct Case {
    what: &'static str,
    image: &'static str,
    pod: Value,
    database: Option<Value>,
    said: Option<(State, &'static str)>,
}

fn case(
    what: &'static str,
    image: &'static str,
    pod: Value,
    database: Option<Value>,
    said: impl Into<Option<(State, &'static str)>>,
) -> Case {
    Case { what, image, pod, database, said: said.into() }
}

#[test]
fn each_claim_is_what_would_become_of_its_snapshot() {
    use State::{NoDriver, NotReady, Operator, Partial, Protected, Standby, Unprotected};
    let plain = || json!({});
    let members = json!({"status": {"members": [
        {"name": "other", "role": "Primary", "version": "16", "id": "1"},
        {"name": "orders", "role": "Replica", "version": "16", "id": "1"},
    ]}});
    let skipped = json!({"metadata": {"annotations": {
        "stillpoint.dev/inject-status": "skipped", "stillpoint.dev/inject-message": "level is wrong",
    }}});
    let unrelated = json!({"metadata": {"annotations": {"stillpoint.dev/unrelated-claims": "orders"}}});
    let of_an_operator = json!({"metadata": {"labels": {"cnpg.io/cluster": "c"}}});
    let not_ready = json!({"status": {"conditions": [condition("False")]}});
    let with_wal = json!({"spec": {
        "containers": [{"name": "c", "image": "postgres", "volumeMounts": [
            {"name": "data", "mountPath": "/data"}, {"name": "wal", "mountPath": "/wal"},
        ]}],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": "orders"}}, {"name": "wal", "hostPath": {"path": "/wal"}},
        ],
    }});
    let changed = json!({"metadata": {"generation": 2}});
    for case in [
        case("ready", "postgres", plain(), Some(plain()), (Protected, "Database orders")),
        case("of an image that says nothing", "base", plain(), Some(plain()), (Protected, "Database orders")),
        case("nobody's", "postgres", plain(), None, (Unprotected, "no Database")),
        case("no database's", "nginx", plain(), None, None),
        case("Redis", "redis:7", plain(), None, (NoDriver, "Redis")),
        case("an operator's", "postgres", of_an_operator, None, (Operator, "cnpg.io")),
        case("one that was skipped", "postgres", skipped, None, (Unprotected, "level is wrong")),
        case("paused", "postgres", plain(), Some(json!({"spec": {"paused": true}})), (NotReady, "paused")),
        case("not ready", "postgres", plain(), Some(not_ready), (NotReady, "Because: of something")),
        case("a standby's", "postgres", plain(), Some(members), (Standby, "of which the Primary is held")),
        case("one of several volumes", "postgres", with_wal, Some(plain()), (Partial, "it writes to wal, too")),
        case("changed since", "postgres", plain(), Some(changed), (NotReady, "not looked at since")),
        case("said to hold nothing", "postgres", plain(), Some(unrelated), None),
        case("over", "postgres", json!({"status": {"phase": "Succeeded"}}), None, None),
    ] {
        let Case { what, image, pod, database, said } = case;
        let databases = database.map(|more| self::database("orders", more)).into_iter().collect();
        let found = claims(&seen(&[self::pod("shop", "orders", image, pod)], databases), &here());
        match (found.first(), said) {
            (Some(claim), Some((wanted, says))) => {
                assert!(claim.said.state == wanted && claim.said.message.contains(says), "{what}: {claim:?}");
                assert_eq!(claim.said.fix.is_some(), !matches!(wanted, Protected | NoDriver), "{what}");
            }
            (found, said) => assert!(found.is_none() && said.is_none(), "{what}: {found:?}"),
        }
    }
    let own = claims(&seen(&[pod("kube-system", "pg", "postgres", plain())], Vec::new()), &here());
    assert!(own[0].said.state == Unprotected && own[0].said.message.contains("ever held"), "{own:?}");
    let etcd = claims(&seen(&[pod("kube-system", "etcd", "etcd:3", plain())], Vec::new()), &here());
    assert_eq!(etcd[0].said.state, NoDriver, "whatever its namespace");
}

#[test]
fn what_is_not_waited_for_or_cannot_be_cut_is_not_protected() {
    let pods = [pod("shop", "orders", "postgres", json!({}))];
    let mut seen = seen(&pods, vec![database("orders", json!({}))]);
    let state = |seen: &Seen, waits: &Waits| claims(seen, waits).first().map(|claim| claim.said.state);
    assert_eq!(state(&seen, &here()), Some(State::Protected));
    let unknown = Waits::of(None, None);
    assert_eq!((state(&seen, &unknown), unknown.is_in_the_dark()), (Some(State::Protected), true));
    let of_another = Waits::of(Some(configuration("'other'")), Some(true));
    let empty = from_value(json!({"metadata": {}})).unwrap();
    for (what, waits) in [
        ("of another namespace", of_another),
        ("installed, and not filled in", Waits::of(Some(empty), Some(true))),
        ("nobody is there", Waits::of(Some(configuration("'shop'")), Some(false))),
    ] {
        assert_eq!(state(&seen, &waits), Some(State::NotReady), "{what}");
    }
    seen.classes = Some(Vec::new());
    assert_eq!(state(&seen, &here()), Some(State::NotReady), "its driver may copy one file after the other");
    seen.classes = Some(vec![("csi.example".to_owned(), Some("false".to_owned()))]);
    assert_eq!(state(&seen, &here()), Some(State::NotReady), "its class has the last word");
    seen.classes = None;
    assert_eq!(state(&seen, &here()), Some(State::Protected), "nobody could see its class");
    seen.index.remove_volume("shop-orders");
    assert_eq!(state(&seen, &here()), Some(State::Unprotected), "no CSI driver has it");
    seen.volumes = false;
    assert_eq!(state(&seen, &here()), Some(State::Protected), "nobody could see its volume");
}

/// Two Pods behind one name: which of them would be held nobody can say.
#[test]
fn of_several_members_each_has_to_be_known() {
    use State::{NotReady, Protected, Standby};
    let labels = json!({"metadata": {"labels": {"app": "orders"}}});
    let pods = [pod("shop", "orders", "postgres", labels.clone()), pod("shop", "orders-1", "postgres", labels)];
    let members = |names: &[(&str, &str)]| {
        let members: Vec<Value> =
            names.iter().map(|(name, role)| json!({"name": name, "role": role, "version": "16", "id": "1"})).collect();
        let seen = seen(&pods, vec![database("orders", json!({"status": {"members": members}}))]);
        claims(&seen, &here()).iter().map(|claim| claim.said.state).collect::<Vec<_>>()
    };
    assert_eq!(members(&[("orders", "Primary"), ("orders-1", "Replica")]), [Protected, Standby]);
    assert_eq!(members(&[("orders", "Primary")]), [Protected, NotReady]);
    assert_eq!(members(&[("10.0.0.1:5432", "Primary")]), [NotReady, NotReady]);
}

/// What is no Database's is somebody's all the same.
#[test]
fn a_claim_that_is_said_to_be_unrelated_is_whoevers_it_looks_like() {
    let unrelated = json!({"metadata": {"annotations": {"stillpoint.dev/unrelated-claims": "audit"}}});
    let pods = [pod("shop", "orders", "postgres", json!({})), pod("shop", "audit", "postgres", json!({}))];
    let found = claims(&seen(&pods, vec![database("orders", unrelated)]), &here());
    let states: Vec<_> = found.iter().map(|claim| (claim.claim.as_str(), claim.said.state)).collect();
    assert_eq!(states, [("audit", State::Unprotected), ("orders", State::Protected)]);
}

#[test]
fn all_are_counted() {
    let pods = [pod("shop", "orders", "postgres", json!({})), pod("shop", "cache", "redis", json!({}))];
    let claims = claims(&seen(&pods, vec![database("orders", json!({}))]), &here());
    assert_eq!(
        summary(&claims, None),
        "1 of 2 claims that keep a database's data are protected; 1 of systems that no driver is there for"
    );
    assert_eq!(report(&claims)["counts"]["Protected"], 1);
    assert_eq!(summary(&[], Some("shop")), "no claim in namespace shop looks like a database's");
}
