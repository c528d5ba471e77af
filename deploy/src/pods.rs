//! What all pods of ours have in common: as whom they run, and how they are spread, probed, replaced and disturbed.

use serde_json::{Value, json};

use crate::settings::{NAMESPACE, computed, set};

/// As `deploy/Containerfile` has it; a number, for kubelet checks that it is not root's.
const USER: u32 = 65532;
/// After SIGTERM a pod answers as before for so long: those who dial learn meanwhile that it is going.
pub(crate) const GOING: u32 = 10;

/// Pods of one kind. What is theirs has their name, and their labels select them and no others.
pub(crate) struct Pods {
    pub(crate) name: &'static str,
    pub(crate) labels: [(&'static str, &'static str); 2],
}

impl Pods {
    pub(crate) fn labels(&self) -> Value {
        self.labels.into_iter().collect()
    }

    /// Of an object of theirs.
    pub(crate) fn metadata(&self) -> Value {
        json!({"name": self.name, "namespace": NAMESPACE, "labels": self.labels()})
    }

    pub(crate) fn selector(&self) -> Value {
        json!({"matchLabels": self.labels()})
    }

    pub(crate) fn service(&self, ports: &Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": self.metadata(),
            "spec": {"selector": self.labels(), "ports": ports},
        })
    }

    pub(crate) fn deployment(&self, replicas: &str, pod: &Value) -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": self.metadata(),
            "spec": {
                "replicas": replicas,
                "selector": self.selector(),
                // The next pod goes only when the new one has answered for a while.
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "minReadySeconds": 10,
                "template": {
                    "metadata": {"labels": self.labels(), "annotations": set("podAnnotations")},
                    "spec": pod,
                },
            },
        })
    }

    /// The spec of one, with what is its own.
    pub(crate) fn spec(&self, own: Value) -> Value {
        let all = json!({
            "serviceAccountName": self.name,
            "priorityClassName": set("priorityClassName"),
            "imagePullSecrets": set("image.pullSecrets"),
            "nodeSelector": set("nodeSelector"),
            "tolerations": set("tolerations"),
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"},
            },
            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                "weight": 100,
                "podAffinityTerm": {"labelSelector": self.selector(), "topologyKey": "kubernetes.io/hostname"},
            }]}},
            "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": self.selector(),
            }],
        });
        with(all, own)
    }

    /// A node that is drained leaves one to answer; pods that are not ready answer nobody, and keep no node.
    pub(crate) fn budget(&self) -> Value {
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": self.metadata(),
            "spec": {
                "minAvailable": 1, "selector": self.selector(), "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        })
    }

    /// Only what these let in reaches them; what they send goes wherever it must.
    pub(crate) fn network(&self, ingress: &Value) -> Value {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": self.metadata(),
            "spec": {"podSelector": self.selector(), "policyTypes": ["Ingress"], "ingress": ingress},
        })
    }
}

/// A container of our image, with what is its own.
pub(crate) fn container(own: Value) -> Value {
    let all = json!({
        "image": image(),
        "imagePullPolicy": set("image.pullPolicy"),
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
    });
    with(all, own)
}

/// Our image, which has all commands.
pub(crate) fn image() -> String {
    computed(
        &format!("\"stillpoint:{}\"", env!("CARGO_PKG_VERSION")),
        r#"$.Values.image.digest | empty | ternary (printf "%s:%s" $.Values.image.repository ($.Values.image.tag | default $.Chart.AppVersion)) (printf "%s@%s" $.Values.image.repository $.Values.image.digest)"#,
    )
}

/// Asked every so many seconds at the port `https`.
pub(crate) fn probe(path: &str, every: u32, failures: u32) -> Value {
    json!({
        "httpGet": {"path": path, "port": "https", "scheme": "HTTPS"},
        "periodSeconds": every, "timeoutSeconds": 5, "failureThreshold": failures,
    })
}

/// A variable from a field of the pod.
pub(crate) fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

fn with(mut all: Value, own: Value) -> Value {
    if let (Some(all), Value::Object(own)) = (all.as_object_mut(), own) {
        all.extend(own);
    }
    all
}
