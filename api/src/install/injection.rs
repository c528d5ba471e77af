//! Of the MutatingWebhookConfiguration: which Pods kube-apiserver shows to `stillpoint-webhooks` before they are made. Those that ask
//! themselves, wherever they are; and of Namespaces that ask for all, those that may be a database's.
//!
//! `Ignore`, and five seconds: a Pod starts without its agent rather than not at all. Conditions only keep traffic away; whoever is
//! asked looks at all of it again.

use k8s_openapi::ByteString;
use serde_json::{Value, json};

use super::{
    WEBHOOKS as NAME,
    rules::{left_alone, not_in, owned, rule},
};
use crate::inject::{self, Asked};

/// Where reviews of Pods are sent.
pub const OF_LABEL: &str = "/inject";
pub const OF_NAMESPACE: &str = "/inject/namespace";
const SECONDS: u32 = 5;

/// Both entries. `ca_bundle`: who signs the webhooks' serving certificate, PEM. The same arguments give the same bytes.
pub(super) fn entries(namespace: &str, ca_bundle: &str) -> [Value; 2] {
    [Asked::Label, Asked::Namespace].map(|asked| entry(namespace, ca_bundle, asked))
}

fn entry(namespace: &str, ca_bundle: &str, asked: Asked) -> Value {
    let label = inject::LABEL;
    let elsewhere = not_in(&owned(&left_alone(namespace)));
    let (name, path, pods, namespaces) = match asked {
        // A label that says something else than `true` is asked about, too: whoever has mistyped it is told.
        Asked::Label => (
            "pods.inject.stillpoint.dev",
            OF_LABEL,
            json!([{"key": label, "operator": "Exists"}, {"key": label, "operator": "NotIn", "values": ["false"]}]),
            elsewhere,
        ),
        Asked::Namespace => (
            "namespaces.inject.stillpoint.dev",
            OF_NAMESPACE,
            json!([{"key": label, "operator": "DoesNotExist"}]),
            and(elsewhere, json!({"key": label, "operator": "In", "values": ["true"]})),
        ),
    };
    let mut conditions = vec![("not-there-yet", not_there_yet()), ("not-a-static-pod", not_a_mirror())];
    if asked == Asked::Namespace {
        conditions.push(("perhaps-a-database", perhaps_a_database()));
    }
    let conditions = conditions.into_iter();
    let conditions: Value =
        conditions.map(|(name, expression)| json!({"name": name, "expression": expression})).collect();
    let service = json!({"namespace": namespace, "name": NAME, "path": path, "port": 443});
    // Of a version that we know: kube-apiserver shows a Pod of any other as one of that (`matchPolicy`).
    let mut rule = rule("", "pods", "CREATE", "Namespaced");
    rule["apiVersions"] = json!(["v1"]);
    json!({
        "name": name,
        "clientConfig": {"service": service, "caBundle": ByteString(ca_bundle.as_bytes().to_vec())},
        "rules": [rule],
        "matchPolicy": "Equivalent",
        "sideEffects": "None",
        "timeoutSeconds": SECONDS,
        "failurePolicy": "Ignore",
        // Others may add containers after us, and so change what class the Pod is of; what is there already stays.
        "reinvocationPolicy": "IfNeeded",
        "objectSelector": {"matchExpressions": pods},
        "namespaceSelector": namespaces,
        "matchConditions": conditions,
        "admissionReviewVersions": ["v1"],
    })
}

/// With one more requirement.
fn and(mut selector: Value, requirement: Value) -> Value {
    if let Some(expressions) = selector["matchExpressions"].as_array_mut() {
        expressions.push(requirement);
    }
    selector
}

/// Whoever has an agent is asked about again only for nothing.
fn not_there_yet() -> String {
    let (name, directory) = (inject::CONTAINER, inject::TOKEN_DIRECTORY);
    let is_in = |list: &str| {
        format!(
            "object.spec.{list}.exists(c, c.name == '{name}' && has(c.volumeMounts) && \
             c.volumeMounts.exists(m, m.mountPath == '{directory}'))"
        )
    };
    format!("!((has(object.spec.initContainers) && {}) || {})", is_in("initContainers"), is_in("containers"))
}

/// What a kubelet makes for a Pod that runs already (`kubernetes.io/config.mirror`).
fn not_a_mirror() -> String {
    "!(has(object.metadata.annotations) && 'kubernetes.io/config.mirror' in object.metadata.annotations)".to_owned()
}

/// By the name of an image, or because somebody has said what agent it is to have.
fn perhaps_a_database() -> String {
    let (prefix, pattern) = (inject::PREFIX, inject::pattern());
    let said = format!("object.metadata.annotations.exists(k, k.startsWith('{prefix}'))");
    let like = |list: &str| format!("object.spec.{list}.exists(c, has(c.image) && c.image.matches('{pattern}'))");
    format!(
        "(has(object.metadata.annotations) && {said}) || {} || (has(object.spec.initContainers) && {})",
        like("containers"),
        like("initContainers"),
    )
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;

    use super::*;

    use super::super::webhooks::Kind;

    fn configuration() -> Value {
        let mut configuration = Kind::Mutating.stub();
        configuration["webhooks"] = json!(entries("stillpoint", "PEM"));
        configuration
    }

    #[test]
    fn who_is_asked_about_which_pods() {
        insta::assert_json_snapshot!(configuration());
    }

    #[test]
    fn it_is_what_kubernetes_reads() {
        let read: MutatingWebhookConfiguration = serde_json::from_value(configuration()).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), configuration(), "a field is not Kubernetes'");
    }

    #[test]
    fn no_pod_waits_for_us_and_none_of_ours_or_the_clusters_own_is_shown() {
        for entry in configuration()["webhooks"].as_array().unwrap() {
            assert_eq!((&entry["failurePolicy"], &entry["sideEffects"]), (&json!("Ignore"), &json!("None")));
            assert!(entry["timeoutSeconds"].as_u64().unwrap() <= 5);
            let names = &entry["namespaceSelector"]["matchExpressions"][0];
            assert_eq!(names["key"], "kubernetes.io/metadata.name");
            assert_eq!(
                (&names["operator"], &names["values"]),
                (&json!("NotIn"), &json!(["kube-system", "stillpoint"]))
            );
        }
    }

    /// A Pod is shown once: what one entry takes the other leaves.
    #[test]
    fn the_two_entries_share_no_pod() {
        let configuration = configuration();
        let wants =
            |at: usize| configuration["webhooks"][at]["objectSelector"]["matchExpressions"][0]["operator"].clone();
        assert_eq!((wants(0), wants(1)), (json!("Exists"), json!("DoesNotExist")));
    }
}
