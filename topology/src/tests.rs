//! What is found for which claim.

use api::DatabaseSpec;
use k8s_openapi::api::core::v1::Volume;
use serde_json::json;

use super::*;

fn pod(name: &str, claims: &[&str], phase: &str, ip: &str) -> Pod {
    let volumes: Vec<_> =
        claims.iter().map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}})).collect();
    let mounts: Vec<_> = claims.iter().map(|claim| json!({"name": claim, "mountPath": format!("/{claim}")})).collect();
    let containers = json!([{"name": "c", "volumeMounts": mounts}]);
    serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"containers": containers, "volumes": volumes, "hostname": name, "subdomain": "all"},
        "status": {"phase": phase, "podIPs": [{"ip": ip}]},
    }))
    .unwrap()
}

fn slice(service: &str, pods: &[&str]) -> EndpointSlice {
    let endpoints: Vec<_> = pods
        .iter()
        .map(|pod| json!({"addresses": ["10.0.0.9"], "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod}}))
        .collect();
    serde_json::from_value(json!({
        "metadata": {
            "namespace": "shop", "name": format!("{service}-x"), "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4", "endpoints": endpoints,
    }))
    .unwrap()
}

fn database(host: &str) -> Database {
    serde_json::from_value(json!({
        "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"namespace": "shop", "name": "orders"},
        "spec": {"engine": "PostgreSQL", "endpoint": {"host": host}},
    }))
    .unwrap()
}

/// In the Pod `pg-0`.
fn in_pg_0(claims: BTreeSet<String>) -> Found {
    let names = ["10.0.0.1", "pg-0"].map(str::to_owned).into();
    Found { database: "orders".into(), pod: "pg-0".into(), claims, names, since: None }
}

fn index() -> Index {
    let mut index = Index::new("cluster.local".to_owned());
    index.put_pod(&pod("pg-0", &["data-0", "wal-0"], "Running", "10.0.0.1"));
    index.put_pod(&pod("pg-1", &["data-1"], "Running", "10.0.0.2"));
    index.put_pod(&pod("done", &["old"], "Succeeded", "10.0.0.3"));
    index.put_slice(&slice("primary", &["pg-0"]));
    let service = json!({
        "metadata": {"namespace": "shop", "name": "primary"},
        "spec": {"clusterIPs": ["10.96.0.7"], "clusterIP": "10.96.0.7"},
    });
    index.put_service(&serde_json::from_value(service).unwrap());
    index
}

#[test]
fn every_way_to_name_an_endpoint_leads_to_its_pod_and_no_other_does() {
    let index = index();
    let claims: BTreeSet<String> = ["data-0", "wal-0"].map(str::to_owned).into();
    let found = in_pg_0(claims);
    let found = Holds::Databases(vec![found]);
    for host in [
        "primary",
        "primary.shop",
        "primary.shop.svc",
        "primary.shop.svc.cluster.local",
        "primary.shop.svc.cluster.local.",
        "pg-0.all.shop",
        "pg-0.all.shop.svc",
        "pg-0.all.shop.svc.cluster.local",
        "10.96.0.7",
        "10.0.0.1",
    ] {
        assert_eq!(index.holds("shop", "data-0", [&database(host)]), found, "{host}");
        assert_eq!(index.holds("shop", "data-1", [&database(host)]), Holds::Unknown, "{host}");
    }
    // Others read a name of two as of another namespace; another cluster has such names, too; and whoever is outside has none.
    for host in [
        "primary.other.svc",
        "pg-0.all",
        "pg-0.all.other",
        "primary.svc",
        "primary.shop.svc.clusterset.local",
        "primary.shop.svc.example.org",
        "pg-0.others.shop",
        "db.example.org",
        "10.0.0.9",
        "secondary",
    ] {
        assert_eq!(index.holds("shop", "data-0", [&database(host)]), Holds::Unknown, "{host}");
    }
}

#[test]
fn what_nobody_mounts_who_runs_is_nobodys() {
    let mut index = index();
    let database = database("primary");
    for claim in ["old", "unheard-of"] {
        assert_eq!(index.holds("shop", claim, [&database]), Holds::Nobody, "{claim}");
    }
    assert_eq!(index.holds("other", "data-0", [&database]), Holds::Nobody, "a claim is its namespace's");
    index.remove_pod(&("shop".to_owned(), "pg-0".to_owned()));
    assert_eq!(index.holds("shop", "data-0", [&database]), Holds::Nobody);
    assert!(!index.mounted.keys().any(|(_, claim)| claim == "data-0"), "nothing is left of it");
}

#[test]
fn a_volume_is_known_by_its_driver_and_handle_while_it_is_bound() {
    let named = |name: &str, claim: &str, phase: &str| -> PersistentVolume {
        serde_json::from_value(json!({
            "metadata": {"name": name},
            "spec": {
                "csi": {"driver": "one", "volumeHandle": "h"}, "claimRef": {"namespace": "shop", "name": claim},
            },
            "status": {"phase": phase},
        }))
        .unwrap()
    };
    let mut index = Index::new("cluster.local".to_owned());
    index.put_volume(&named("pv", "data-0", "Bound"));
    let data = ("shop".to_owned(), "data-0".to_owned());
    assert_eq!(index.claim_of("one", "h", None), Some(&data));
    assert_eq!((index.claim_of("other", "h", None), index.claim_of("one", "g", None)), (None, None));
    assert_eq!(index.driver_of("shop", "data-0"), Some("one"));
    index.put_volume(&named("pv", "data-0", "Released"));
    assert_eq!((index.claim_of("one", "h", None), index.driver_of("shop", "data-0")), (None, None));
    // Bound again by another PersistentVolume: what becomes of the old one is none of its business.
    index.put_volume(&named("new", "data-0", "Bound"));
    index.put_volume(&named("pv", "old", "Released"));
    index.remove_volume("pv");
    assert_eq!(index.claim_of("one", "h", None), Some(&data));
    // Bound in another namespace, too: each has its own claim.
    assert!(!index.is_shared("one", "h"));
    let mut shared = named("shared", "theirs", "Bound");
    shared.spec.as_mut().unwrap().claim_ref.as_mut().unwrap().namespace = Some("other".to_owned());
    index.put_volume(&shared);
    let theirs = ("other".to_owned(), "theirs".to_owned());
    assert_eq!(index.claim_of("one", "h", Some("shop")), Some(&data));
    assert_eq!(index.claim_of("one", "h", Some("other")), Some(&theirs));
    assert!(index.is_shared("one", "h"));
    index.remove_volume("new");
    assert_eq!((index.claim_of("one", "h", Some("shop")), index.is_shared("one", "h")), (Some(&theirs), false));
}

#[test]
fn whoever_is_not_led_to_is_not_held_and_of_several_each_is_known_by_its_name() {
    let mut index = index();
    let database = database("primary");
    let several = |ready: [bool; 2]| -> EndpointSlice {
        let mut slice = slice("primary", &["pg-0", "pg-1"]);
        for (endpoint, ready) in slice.endpoints.iter_mut().zip(ready) {
            endpoint.conditions = serde_json::from_value(json!({"ready": ready})).unwrap();
        }
        slice
    };
    let pod = |index: &Index, claim: &str| match index.holds("shop", claim, [&database]) {
        Holds::Databases(found) => Some((found[0].pod.clone(), found[0].names.contains("10.0.0.2"))),
        _ => None,
    };
    let (first, second) = (Some(("pg-0".to_owned(), false)), Some(("pg-1".to_owned(), true)));
    for (ready, of_first, of_second) in [
        ([true, false], &first, &None),
        ([true, true], &first, &second),
        // Nobody can connect: it is tried, and said that it cannot be held.
        ([false, false], &first, &second),
    ] {
        index.put_slice(&several(ready));
        assert_eq!((&pod(&index, "data-0"), &pod(&index, "data-1")), (of_first, of_second), "{ready:?}");
    }
}

#[test]
fn what_was_there_since_when_and_who_is_over_is_told_apart() {
    let mut index = Index::new("cluster.local".to_owned());
    let at = |second: i64| Timestamp::from_second(second).unwrap();
    let mut server = pod("pg-0", &["data-0"], "Running", "10.0.0.1");
    server.status.as_mut().unwrap().start_time = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(5)));
    index.put_pod(&server);
    // A Job's Pod that is done keeps an address that is another's by now.
    index.put_pod(&pod("done", &["old"], "Succeeded", "10.0.0.1"));
    let mut database = database("10.0.0.1");
    let found = |database: &Database| match index.holds("shop", "data-0", [database]) {
        Holds::Databases(found) => found.into_iter().map(|found| found.since).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(found(&database), [Some(at(5))]);
    database.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(9)));
    assert_eq!(found(&database), [Some(at(9))]);
}

#[test]
fn what_is_written_to_and_is_no_claim_is_missing_in_every_copy() {
    let mut index = index();
    let mut pod = pod("pg-0", &["data-0"], "Running", "10.0.0.1");
    let spec = pod.spec.as_mut().unwrap();
    let more = json!([{"name": "wal", "hostPath": {"path": "/wal"}}, {"name": "run", "emptyDir": {}}]);
    spec.volumes.as_mut().unwrap().extend(serde_json::from_value::<Vec<Volume>>(more).unwrap());
    for name in ["wal", "run"] {
        let mount = serde_json::from_value(json!({"name": name, "mountPath": "/x"})).unwrap();
        spec.containers[0].volume_mounts.as_mut().unwrap().push(mount);
    }
    index.put_pod(&pod);
    let mut database = database("primary");
    let of = |database: &Database| match index.holds("shop", "data-0", [database]) {
        Holds::Databases(found) => found[0].claims.iter().cloned().collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    assert_eq!(of(&database), ["data-0", "wal"]);
    database.metadata.annotations = Some([(UNRELATED_CLAIMS.to_owned(), "wal".to_owned())].into());
    assert_eq!(of(&database), ["data-0"]);
}

#[test]
fn what_no_container_writes_to_and_what_a_database_says_it_has_nothing_on_is_not_its_own() {
    let mut index = index();
    let mut reads = pod("pg-0", &["data-0", "wal-0", "backups"], "Running", "10.0.0.1");
    let mounts = reads.spec.as_mut().unwrap().containers[0].volume_mounts.as_mut().unwrap();
    mounts[1].read_only = Some(true);
    index.put_pod(&reads);
    let of = |claim: &str, database: &Database| index.holds("shop", claim, [database]);
    let found = |claims: &[&str]| {
        let claims = claims.iter().map(|claim| (*claim).to_owned()).collect();
        Holds::Databases(vec![in_pg_0(claims)])
    };
    let mut database = database("primary");
    assert_eq!(of("data-0", &database), found(&["backups", "data-0"]));
    assert_eq!(of("wal-0", &database), Holds::Nobody);
    database.metadata.annotations = Some([(UNRELATED_CLAIMS.to_owned(), " backups, x".to_owned())].into());
    assert_eq!(of("data-0", &database), found(&["data-0"]));
    assert_eq!(of("backups", &database), Holds::Unknown);
}

#[test]
fn a_database_follows_its_service_from_pod_to_pod() {
    let mut index = index();
    let database = database("primary");
    index.put_slice(&slice("primary", &["pg-1"]));
    assert_eq!(index.holds("shop", "data-0", [&database]), Holds::Unknown, "it has failed over");
    assert!(matches!(index.holds("shop", "data-1", [&database]), Holds::Databases(_)));
    index.remove_slice(&("shop".to_owned(), "primary-x".to_owned()));
    assert_eq!(index.holds("shop", "data-1", [&database]), Holds::Unknown);
}

#[test]
fn members_are_known_by_their_labels_where_a_database_says_so() {
    let mut index = index();
    let labelled = |mut pod: Pod, app: &str| {
        pod.metadata.labels = Some([("app".to_owned(), app.to_owned())].into());
        pod
    };
    let database: Database = serde_json::from_value(json!({
        "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"namespace": "shop", "name": "orders"},
        "spec": {"engine": "PostgreSQL", "agent": "Required", "podSelector": {"matchLabels": {"app": "orders"}}},
    }))
    .unwrap();
    assert!(index.members("shop", &database).is_empty(), "a Pod without labels");
    for (name, phase, app) in [("a", "Running", "orders"), ("b", "Succeeded", "orders"), ("c", "Running", "other")] {
        index.put_pod(&labelled(pod(name, &[name], phase, "10.0.1.1"), app));
    }
    assert_eq!(index.members("shop", &database), ["a".to_owned()].into());
    assert!(index.members("bank", &database).is_empty(), "those of another namespace");
    assert!(matches!(index.holds("shop", "a", [&database]), Holds::Databases(_)));
    assert_eq!(index.holds("shop", "c", [&database]), Holds::Unknown);
    // In any of several Pods that have an agent a cut is held for that one.
    let mut second = labelled(pod("d", &["d"], "Running", "10.0.1.2"), "orders");
    second.metadata.annotations = Some([(api::inject::STATUS.to_owned(), api::inject::INJECTED.to_owned())].into());
    index.put_pod(&second);
    assert!(index.is_one_of_several("shop", &database, "d") && !index.is_one_of_several("shop", &database, "a"));
    index.remove_pod(&("shop".to_owned(), "d".to_owned()));
    let everybody = Database {
        spec: DatabaseSpec { pod_selector: Some(LabelSelector::default()), ..database.spec.clone() },
        ..database.clone()
    };
    assert!(index.members("shop", &everybody).is_empty(), "whoever says nothing means nobody");
    // It is relabelled, and it goes.
    index.put_pod(&labelled(pod("a", &["a"], "Running", "10.0.1.1"), "other"));
    assert_eq!(index.holds("shop", "a", [&database]), Holds::Unknown);
    index.put_pod(&labelled(pod("c", &["c"], "Running", "10.0.1.1"), "orders"));
    index.remove_pod(&("shop".to_owned(), "c".to_owned()));
    assert!(index.members("shop", &database).is_empty());
}

#[test]
fn a_run_of_ours_is_no_member_whatever_labels_it_was_given() {
    let by_labels: Database = serde_json::from_value(json!({
        "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"namespace": "shop", "name": "orders"},
        "spec": {"engine": "PostgreSQL", "agent": "Required", "podSelector": {"matchLabels": {"app": "orders"}}},
    }))
    .unwrap();
    let mut index = index();
    let mut dump = pod("dump", &["data-0"], "Running", "10.0.1.1");
    let (name, component) = (api::runner::job::NAME, api::runner::job::COMPONENT);
    let labels = [("app", "orders"), name, component].map(|(key, value)| (key.to_owned(), value.to_owned()));
    dump.metadata.labels = Some(labels.into());
    index.put_slice(&slice("primary", &["pg-0", "dump"]));
    index.put_pod(&dump);
    let by_service = database("primary");
    assert!(index.members("shop", &by_labels).is_empty());
    assert_eq!(index.members("shop", &by_service), ["pg-0".to_owned()].into());
    let found = in_pg_0(["data-0", "wal-0"].map(str::to_owned).into());
    assert_eq!(index.holds("shop", "data-0", [&by_service]), Holds::Databases(vec![found]));
    // The control: it is for these two labels alone.
    for (key, _) in [name, component] {
        let mut other = dump.clone();
        other.metadata.labels.as_mut().unwrap().remove(key);
        index.put_pod(&other);
        assert_eq!(index.members("shop", &by_labels), ["dump".to_owned()].into(), "{key}");
        assert_eq!(index.members("shop", &by_service).len(), 2, "{key}");
    }
    // It is found out to be one.
    index.put_pod(&dump);
    assert!(index.members("shop", &by_labels).is_empty());
}
