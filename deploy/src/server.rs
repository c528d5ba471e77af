//! The server itself: pods, how they are found, and how they may be disturbed.

use api::install::ACCOUNT;
use serde_json::{Value, json};

use crate::{
    labels,
    settings::{NAMESPACE, computed, optional, set},
};

/// As `deploy/Containerfile` has it; a number, for kubelet checks that it is not root's.
pub(crate) const USER: u32 = 65532;
/// After SIGTERM it answers as before for so long: those who dial learn meanwhile that this pod is going. With it, the time to
/// drain, and what letting go takes, a pod is within its grace period.
const GOING: u32 = 10;
/// Where a serving certificate is, if one was given.
const TLS: &str = "/etc/stillpoint/tls";

/// In the plain YAML, where no default namespace is.
pub(crate) fn namespace() -> Value {
    let mut all = labels();
    for mode in ["enforce", "audit", "warn"] {
        all[format!("pod-security.kubernetes.io/{mode}")] = "restricted".into();
    }
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": all}})
}

/// Some clusters (GKE) admit pods of the system's priority classes outside of kube-system only where a quota allows them.
pub(crate) fn quota() -> Value {
    json!({
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": ACCOUNT, "namespace": NAMESPACE, "labels": labels()},
        "spec": {
            "hard": {"pods": "100"},
            "scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": "In", "values": [set("priorityClassName")]},
            ]},
        },
    })
}

pub(crate) fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": ACCOUNT, "namespace": NAMESPACE, "labels": labels()},
        "spec": {
            "selector": labels(),
            "ports": [{"name": "https", "port": 443, "targetPort": "https", "protocol": "TCP"}],
        },
    })
}

pub(crate) fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": ACCOUNT, "namespace": NAMESPACE, "labels": labels()},
        "spec": {
            "replicas": set("replicas"),
            "selector": {"matchLabels": labels()},
            // The next pod goes only when the new one has answered for a while.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "minReadySeconds": 10,
            "template": {
                "metadata": {"labels": labels(), "annotations": set("podAnnotations")},
                "spec": pod(),
            },
        },
    })
}

fn pod() -> Value {
    json!({
        "serviceAccountName": ACCOUNT,
        "automountServiceAccountToken": true,
        "priorityClassName": set("priorityClassName"),
        "terminationGracePeriodSeconds": computed("90", "add $.Values.drainSeconds 30"),
        "imagePullSecrets": set("image.pullSecrets"),
        "nodeSelector": set("nodeSelector"),
        "tolerations": set("tolerations"),
        "securityContext": {
            "runAsNonRoot": true, "runAsUser": USER, "runAsGroup": USER, "seccompProfile": {"type": "RuntimeDefault"},
        },
        "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
            "weight": 100,
            "podAffinityTerm": {"labelSelector": {"matchLabels": labels()}, "topologyKey": "kubernetes.io/hostname"},
        }]}},
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels()},
        }],
        "containers": [container()],
        "volumes": optional(
            "tls.secretName",
            r#"[{"name": "tls", "secret": {"secretName": {{ $.Values.tls.secretName | quote }}}}]"#,
        ),
    })
}

fn container() -> Value {
    let image = computed(
        &format!("\"stillpoint:{}\"", env!("CARGO_PKG_VERSION")),
        r#"$.Values.image.digest | empty | ternary (printf "%s:%s" $.Values.image.repository ($.Values.image.tag | default $.Chart.AppVersion)) (printf "%s@%s" $.Values.image.repository $.Values.image.digest)"#,
    );
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let probe = |path: &str, every: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": "https", "scheme": "HTTPS"},
            "periodSeconds": every, "timeoutSeconds": 5, "failureThreshold": failures,
        })
    };
    json!({
        "name": "apiserver",
        "image": image,
        "imagePullPolicy": set("image.pullPolicy"),
        "args": [
            format!("--listen={}:{}", set("listenAddress"), set("port")),
            format!("--service={NAMESPACE}/{ACCOUNT}"),
            "--identity=$(POD_NAME)",
            "--advertise=$(POD_IP)",
            format!("--shutdown-delay-seconds={GOING}"),
            format!("--drain-seconds={}", set("drainSeconds")),
            format!("--log={}", set("log.filter")),
            format!("--log-format={}", set("log.format")),
            optional("tls.secretName", &format!("--tls-cert-file={TLS}/tls.crt")),
            optional("tls.secretName", &format!("--tls-private-key-file={TLS}/tls.key")),
        ],
        "env": [field("POD_NAME", "metadata.name"), field("POD_IP", "status.podIP")],
        "ports": [{"name": "https", "containerPort": set("port"), "protocol": "TCP"}],
        // It is ready when it knows whom to trust and what is stored; that may take long in a large cluster.
        "startupProbe": probe("/livez", 1, 60),
        "readinessProbe": probe("/readyz", 2, 2),
        "livenessProbe": probe("/livez", 10, 3),
        "resources": set("resources"),
        "volumeMounts": optional("tls.secretName", &format!(r#"[{{"name": "tls", "mountPath": "{TLS}", "readOnly": true}}]"#)),
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
    })
}

/// A node that is drained leaves one to answer; pods that are not ready answer nobody, and keep no node.
pub(crate) fn budget() -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": ACCOUNT, "namespace": NAMESPACE, "labels": labels()},
        "spec": {
            "minAvailable": 1, "selector": {"matchLabels": labels()}, "unhealthyPodEvictionPolicy": "AlwaysAllow",
        },
    })
}

/// kube-apiserver comes from outside of every pod network, so that nobody can be named; what goes out goes to databases, which
/// are anywhere.
pub(crate) fn network() -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": ACCOUNT, "namespace": NAMESPACE, "labels": labels()},
        "spec": {
            "podSelector": {"matchLabels": labels()}, "policyTypes": ["Ingress"],
            "ingress": [{"ports": [{"port": "https", "protocol": "TCP"}]}],
        },
    })
}

/// A Lease that waits behind everybody's requests for 8 s ends every freeze of its replica: they are few, and go where leader
/// elections do. A Freeze that is not written within 1 s is let go, but there may be many: they go beside the cluster's own
/// controllers, and never before elections.
pub(crate) fn flows() -> [Value; 2] {
    let leases = json!({
        "apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "namespaces": [NAMESPACE],
        "verbs": ["create", "delete", "get", "update"],
    });
    let freezes = json!({
        "apiGroups": [api::GROUP], "resources": ["freezes", "freezes/status"], "namespaces": ["*"],
        "verbs": ["create", "delete", "get", "patch", "update"],
    });
    [flow(ACCOUNT, "leader-election", &leases), flow(&format!("{ACCOUNT}-freezes"), "workload-high", &freezes)]
}

fn flow(name: &str, level: &str, rule: &Value) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
        "metadata": {"name": name, "labels": labels()},
        "spec": {
            "matchingPrecedence": 200,
            "priorityLevelConfiguration": {"name": level},
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [{
                "subjects": [{"kind": "ServiceAccount", "serviceAccount": {"name": ACCOUNT, "namespace": NAMESPACE}}],
                "resourceRules": [rule],
            }],
        },
    })
}
