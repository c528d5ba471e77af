//! For every byte string there is an answer, and for every review with a uid there is one that repeats it.

use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::{Value, json};
use webhooks::{
    answer::Answer,
    decide::{Door, decide},
    decision::Decision,
    ours::Ours,
    review::{Unreadable, decode, encode},
};

use crate::{
    injection::{CA, agent},
    reviews::{
        UID, content_create, cut, database, database_update, freeze, group_cut, group_preflight, pod_create, preflight,
    },
};

fn real() -> Vec<Value> {
    let database = || json!({"engine": "PostgreSQL", "endpoint": {"host": "db"}});
    vec![
        cut(),
        group_cut(),
        content_create(),
        preflight(),
        group_preflight(),
        self::database(database()),
        database_update(database(), database()),
        freeze(json!({"targets": [{"database": "orders"}]})),
        pod_create(pod()),
    ]
}

/// One of whom much can be asked.
fn pod() -> Value {
    let said = ["socket", "shared-socket", "data-volume", "velero-hooks", "json-patch"];
    let values = ["/run/mysqld/s", "true", "data", "true", r#"[{"op":"add","path":"/env/-","value":{"name":"A"}}]"#];
    let annotations: Value =
        said.iter().zip(values).map(|(key, value)| (format!("stillpoint.dev/{key}"), value)).collect();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "db", "namespace": "shop", "labels": {"stillpoint.dev/inject": "true"}, "annotations": annotations},
        "spec": {
            "initContainers": [{"name": "first", "image": "busybox"}],
            "containers": [{
                "name": "db", "image": "mariadb:11", "volumeMounts": [{"name": "data", "mountPath": "/var/lib/mysql"}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
            }],
            "volumes": [{"name": "data", "emptyDir": {}}],
        },
    })
}

/// Through every door; what is answered repeats who asked.
fn through_all_doors(bytes: &[u8]) -> Result<Value, Unreadable> {
    let review = decode(bytes)?;
    let ours = Ours::in_namespace("stillpoint").with_agent(agent());
    for (_, door) in Door::ALL {
        let answer = match decide(door, &review.request, &ours, Some(CA)) {
            Decision::Allow(_) | Decision::Spare(_) => Answer::allowed(),
            Decision::Answer(answer) => answer,
            Decision::Injected(answer) | Decision::Skipped(answer) => {
                assert!(answer.is_allowed(), "a Pod was stopped");
                answer
            }
            Decision::Ask(request) => {
                assert_eq!(request.check(), Ok(()));
                Answer::unheld(request.gate, request.required, "nobody is there")
            }
            Decision::Unaskable(why) => Answer::warned(why),
        };
        let answered: Value = serde_json::from_slice(&encode(&review.to, &answer)).unwrap();
        assert_eq!(answered["kind"], "AdmissionReview");
        assert_eq!(answered["apiVersion"], review.to.api_version);
        assert_eq!(answered["response"]["uid"], review.to.uid);
        assert!(answered["response"]["allowed"].is_boolean());
        let warnings = answered["response"]["warnings"].as_array().cloned().unwrap_or_default();
        assert!(warnings.iter().all(|warning| warning.as_str().is_some_and(|text| text.len() <= 120)));
    }
    Ok(json!(review.to.uid))
}

/// Any JSON, of the depth of what people write.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,300}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-zA-Z/.~]{0,9}", inner, 0..4)
                .prop_map(|map| map.into_iter().collect::<Value>()),
        ]
    })
}

/// Every place of a value, the deepest last.
pub(crate) fn places(value: &Value, at: String, all: &mut Vec<String>) {
    all.push(at.clone());
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            places(value, format!("{at}/{}", key.replace('~', "~0").replace('/', "~1")), all);
        }),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, value)| places(value, format!("{at}/{i}"), all)),
        _ => {}
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in vec(any::<u8>(), 0..2000)) {
        through_all_doors(&bytes).ok();
    }

    #[test]
    fn any_json_is_answered(value in any_json()) {
        through_all_doors(value.to_string().as_bytes()).ok();
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u", "object": value, "oldObject": value, "operation": "UPDATE",
                "resource": {"group": "snapshot.storage.k8s.io", "resource": "volumesnapshotcontents"}}});
        prop_assert_eq!(through_all_doors(review.to_string().as_bytes()), Ok(json!("u")));
        let pod = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {"uid": "u", "object": value, "operation": "CREATE", "namespace": "shop",
                "resource": {"group": "", "resource": "pods"}}});
        prop_assert_eq!(through_all_doors(pod.to_string().as_bytes()), Ok(json!("u")));
    }

    #[test]
    fn a_real_review_with_other_values_in_some_places_is_answered(
        which in any::<Index>(),
        changes in vec((any::<Index>(), any_json()), 1..4),
    ) {
        let mut review = which.get(&real()).clone();
        for (place, value) in changes {
            let mut all = Vec::new();
            places(&review["request"], "/request".to_owned(), &mut all);
            let place = place.get(&all).clone();
            if let Some(old) = review.pointer_mut(&place).filter(|_| place != "/request" && place != "/request/uid") {
                *old = value;
            }
        }
        prop_assert_eq!(through_all_doors(review.to_string().as_bytes()), Ok(json!(UID)));
    }

    #[test]
    fn a_real_review_with_other_bytes_or_cut_short_is_answered(
        which in any::<Index>(),
        changes in vec((any::<Index>(), any::<u8>()), 0..8),
        end in any::<Index>(),
    ) {
        let mut bytes = which.get(&real()).to_string().into_bytes();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        through_all_doors(&bytes).ok();
        prop_assert!(decode(&bytes[..end.index(bytes.len())]).is_err(), "half a review is none");
    }
}

#[test]
fn what_is_no_review_is_told_what_is_missing() {
    let said = |bytes: &[u8]| decode(bytes).unwrap_err();
    assert!(matches!(said(b""), Unreadable::NotJson(_)));
    assert_eq!(said(b"[]"), Unreadable::NotAReview);
    assert_eq!(said(br#"{"kind":"AdmissionReview","apiVersion":"v1","request":{"uid":"u"}}"#), Unreadable::NotAReview);
    assert_eq!(said(br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1"}"#), Unreadable::NoUid);
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(matches!(said(deep.as_bytes()), Unreadable::NotJson(_)));
}

#[test]
fn a_review_of_another_version_is_answered_in_its_own() {
    let review = br#"{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v2","request":{"uid":"u","new":[1]}}"#;
    assert_eq!(through_all_doors(review), Ok(json!("u")));
}
