//! The server itself: pods, how they are found, and how they may be disturbed.

use api::{
    agent, gate,
    install::{self, ACCOUNT},
};
use serde_json::{Value, json};

use crate::{
    labels,
    pods::{GOING, Pods, container, field, probe},
    settings::{NAMESPACE, OWN_IMAGE, computed, image, optional, set, unless_off},
};

const PODS: Pods = Pods { name: ACCOUNT, labels: install::LABELS };
/// Where a serving certificate is, if one was given.
const TLS: &str = "/etc/stillpoint/tls";
/// The server's port, unless told.
const PORT: u16 = 6443;

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

/// Of each replica its own address: an agent dials all.
pub(crate) fn agents() -> Value {
    let mut metadata = PODS.metadata();
    metadata["name"] = agent::SERVICE.into();
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {
            "clusterIP": "None", "selector": PODS.labels(),
            "ports": [{"name": "agents", "port": agent::PORT, "targetPort": "agents", "protocol": "TCP"}],
        },
    })
}

pub(crate) fn service() -> Value {
    let gates = json!({"name": "gates", "port": gate::PORT, "targetPort": "gates", "protocol": "TCP"}).to_string();
    PODS.service(&json!([
        {"name": "https", "port": 443, "targetPort": "https", "protocol": "TCP"},
        unless_off("webhooks.enabled", &gates, &gates),
    ]))
}

pub(crate) fn deployment() -> Value {
    PODS.deployment(&set("replicas"), &pod())
}

pub(crate) fn budget() -> Value {
    PODS.budget()
}

fn pod() -> Value {
    PODS.spec(json!({
        "automountServiceAccountToken": true,
        // How long it goes on as it was, the time to drain, and what letting go takes.
        "terminationGracePeriodSeconds": computed("90", "add $.Values.drainSeconds 30"),
        "containers": [server()],
        "volumes": optional(
            "tls.secretName",
            r#"[{"name": "tls", "secret": {"secretName": {{ $.Values.tls.secretName | quote }}}}]"#,
        ),
    }))
}

fn server() -> Value {
    let (gates, agents) =
        (gates_port(), json!({"name": "agents", "containerPort": agent::PORT, "protocol": "TCP"}).to_string());
    container(json!({
        "name": "apiserver",
        "args": [
            format!("--listen={}:{}", set("listenAddress"), set("port")),
            unless_off(
                "webhooks.enabled",
                &json!(format!("--gates-listen=0.0.0.0:{}", gate::PORT)).to_string(),
                &format!("--gates-listen={{{{ $.Values.listenAddress }}}}:{gates}"),
            ),
            unless_off(
                "agents.enabled",
                &json!(format!("--agents-listen=0.0.0.0:{}", agent::PORT)).to_string(),
                &format!("--agents-listen={{{{ $.Values.listenAddress }}}}:{}", agent::PORT),
            ),
            unless_off(
                "runners.enabled",
                &json!(format!("--runner-image={OWN_IMAGE}")).to_string(),
                &format!("--runner-image={}", image("runners.image")),
            ),
            optional("runners.ambientCredentials", "--ambient-credentials"),
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
        "ports": [
            {"name": "https", "containerPort": set("port"), "protocol": "TCP"},
            unless_off(
                "webhooks.enabled",
                &json!({"name": "gates", "containerPort": gate::PORT, "protocol": "TCP"}).to_string(),
                &format!(r#"{{"name": "gates", "containerPort": {gates}, "protocol": "TCP"}}"#),
            ),
            unless_off("agents.enabled", &agents, &agents),
        ],
        // It is ready when it knows whom to trust and what is stored; that may take long in a large cluster.
        "startupProbe": probe("/livez", 1, 60),
        "readinessProbe": probe("/readyz", 2, 2),
        "livenessProbe": probe("/livez", 10, 3),
        "resources": set("resources"),
        "volumeMounts": optional("tls.secretName", &format!(r#"[{{"name": "tls", "mountPath": "{TLS}", "readOnly": true}}]"#)),
    }))
}

/// In the chart: where gates are asked in a pod. Only the Service and its own webhooks know, so it makes room for `port`.
fn gates_port() -> String {
    format!("{{{{ ternary {PORT} {gates} (eq (int $.Values.port) {gates}) }}}}", gates = gate::PORT)
}

/// kube-apiserver comes from outside of every pod network, so that nobody can be named; the gates are for the webhooks alone. What
/// goes out goes to databases, which are anywhere.
pub(crate) fn network() -> Value {
    let gates = json!({
        "ports": [{"port": "gates", "protocol": "TCP"}],
        "from": [{"podSelector": crate::webhooks::PODS.selector()}],
    })
    .to_string();
    let agents = json!({
        "ports": [{"port": "agents", "protocol": "TCP"}],
        "from": [{"namespaceSelector": {}}],
    })
    .to_string();
    PODS.network(&json!([
        {"ports": [{"port": "https", "protocol": "TCP"}]},
        unless_off("webhooks.enabled", &gates, &gates),
        unless_off("agents.enabled", &agents, &agents),
    ]))
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
