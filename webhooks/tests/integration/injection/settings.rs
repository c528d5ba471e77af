//! What a wrong annotation says to whoever wrote it, and what any annotation does: never stop a Pod.

use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::{Value, json};
use webhooks::decide::Door;

use super::{done, kept};
use crate::any_bytes::{any_json, places};

fn pod(annotations: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "orders", "namespace": "shop", "labels": {"stillpoint.dev/inject": "true"}, "annotations": annotations},
        "spec": {
            "containers": [{
                "name": "postgres", "image": "postgres:16", "ports": [{"containerPort": 5432}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                "volumeMounts": [{"name": "data", "mountPath": "/var/lib/postgresql/data"}],
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "orders"}}],
        },
    })
}

/// Of each setting a value that it cannot have.
const WRONG: [(&str, &str); 18] = [
    ("engine", "MySQL"),
    ("container", "no such"),
    ("port", "postgresql"),
    ("socket", "run/postgresql"),
    ("shared-socket", "yes"),
    ("credentials-secret", "Orders!"),
    ("username-key", "user/name"),
    ("password-key", ".."),
    ("level", "Perfect"),
    ("ttl", "1 fortnight"),
    ("database", "orders"),
    ("data-volume", "Data"),
    ("agent-image", ""),
    ("agent-user", "0"),
    ("agent-resources", "cpu=1"),
    ("velero-hooks", "please"),
    ("k8up-command", "1"),
    ("json-patch", "{}"),
];

#[test]
fn every_wrong_annotation_is_told_and_stops_nothing() {
    let keys: Vec<&str> = api::inject::SETTINGS.iter().map(|setting| setting.key).collect();
    assert_eq!(WRONG.map(|(key, _)| key).to_vec(), keys, "a setting has no wrong value here");
    let mut said = String::new();
    for (key, value) in WRONG {
        let done = done(&pod(json!({format!("stillpoint.dev/{key}"): value})), Door::of("/inject").unwrap());
        assert_eq!((done.verdict, done.answer.is_allowed()), ("skipped", true), "{key}");
        assert_eq!(done.after["spec"], pod(json!({}))["spec"], "{key}");
        said += &format!("{}\n", done.why);
    }
    insta::assert_snapshot!(said);
}

/// Any text, and texts like those that people write.
fn any_value() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,60}",
        "[a-z0-9./:=,-]{0,40}",
        Just("true".to_owned()),
        Just("/run/postgresql".to_owned()),
        Just("postgres".to_owned()),
        Just("data".to_owned()),
        "(requests|limits)\\.(cpu|memory)=[0-9]{1,4}(m|Mi|Gi|)",
        "[0-9]{1,6}(s|m|h|)",
        any_patch(),
    ]
}

fn any_patch() -> impl Strategy<Value = String> {
    let operation =
        ("(add|remove|replace|test|move)", "(/env/-|/env|/args|/resources/limits|/volumeMounts/0|/x|)", "[a-z]{0,5}");
    vec(operation, 0..4).prop_map(|operations| {
        let written = |(op, path, text): (String, String, String)| json!({"op": op, "path": path, "from": "/args", "value": {"name": text}});
        operations.into_iter().map(written).collect::<Value>().to_string()
    })
}

proptest! {
    /// Whatever a Pod is like: nothing of it is lost, and done twice is done once.
    #[test]
    fn a_pod_with_other_values_in_some_places_is_answered(changes in vec((any::<Index>(), any_json()), 1..4)) {
        let said = json!({
            "stillpoint.dev/socket": "/run/postgresql", "stillpoint.dev/shared-socket": "true", "stillpoint.dev/data-volume": "data",
            "stillpoint.dev/velero-hooks": "true", "stillpoint.dev/credentials-secret": "orders",
        });
        let mut before = pod(said);
        for (place, value) in changes {
            let mut all = Vec::new();
            places(&before, String::new(), &mut all);
            let place = place.get(&all).as_str();
            *before.pointer_mut(place).unwrap() = value;
        }
        for path in ["/inject", "/inject/namespace"] {
            let done = done(&before, Door::of(path).unwrap());
            prop_assert!(done.answer.is_allowed());
            prop_assert_eq!(super::done(&done.after, Door::of(path).unwrap()).answer.patch, None);
            if done.verdict == "injected" {
                prop_assert_eq!(kept::nothing_else(&before, &done.after), Ok(()));
            } else {
                prop_assert_eq!(done.after.get("spec"), before.get("spec"));
            }
        }
    }

    /// Whatever is said: it is allowed, what is added is sound, and done twice is done once.
    #[test]
    fn any_annotations_are_answered(values in vec((0_usize..17, any_value()), 0..6)) {
        let annotations: Value = values
            .into_iter()
            .map(|(at, value)| (format!("stillpoint.dev/{}", api::inject::SETTINGS[at].key), Value::from(value)))
            .collect();
        let before = pod(annotations);
        let done = done(&before, Door::of("/inject").unwrap());
        prop_assert!(done.answer.is_allowed());
        match done.verdict {
            "injected" => {
                let all = done.after.pointer(kept::place(&done.after)).and_then(Value::as_array);
                let agent = all.and_then(|all| all.last()).unwrap().clone();
                let read: Result<k8s_openapi::api::core::v1::Container, _> = serde_json::from_value(agent);
                prop_assert!(read.is_ok(), "kube-apiserver would refuse it with the Pod");
                let is_patched = before["metadata"]["annotations"].get("stillpoint.dev/json-patch").is_some();
                for (what, check) in kept::CHECKS.iter().filter(|_| !is_patched) {
                    prop_assert_eq!(check(&before, &done.after), Ok(()), "{}", what);
                }
            }
            _ => prop_assert_eq!(&done.after["spec"], &before["spec"]),
        }
        prop_assert_eq!(super::done(&done.after, Door::of("/inject").unwrap()).answer.patch, None);
    }
}
