//! For the Prometheus operator: where the metrics are, and when somebody is to be woken. Only in the chart, and off by default:
//! a cluster without the operator has no such kinds.

use api::install::{ACCOUNT, AUTHORITY};
use serde_json::{Value, json};

use crate::{
    labels,
    settings::{NAMESPACE, computed, set},
};

/// A name, how long it holds, how bad it is, an expression, and what to do.
struct Alert(&'static str, &'static str, &'static str, &'static str, &'static str);

const ALERTS: [Alert; 6] = [
    Alert(
        "StillpointDown",
        "5m",
        "critical",
        r#"absent(up{job="stillpoint-apiserver"} == 1)"#,
        "No replica answers: nothing can be frozen, and kubectl and the deletion of namespaces suffer. kubectl still doctor says why.",
    ),
    Alert(
        "StillpointFreezeLost",
        "0m",
        "warning",
        // The first of its kind begins a series, which is no increase; and `increase` is 0, not nothing, from the second scrape
        // on, so that it must not stand in the way of the other.
        r#"sum by (engine, phase) ((increase(stillpoint_freezes_total{phase=~"Lost|Expired"}[15m]) > 0) or (stillpoint_freezes_total{phase=~"Lost|Expired"} unless stillpoint_freezes_total offset 15m)) > 0"#,
        "A freeze ended before its claims did: throw away the copy that was taken during it. kubectl describe freeze says why.",
    ),
    Alert(
        "StillpointFreezesFail",
        "15m",
        "warning",
        r#"sum by (engine) (increase(stillpoint_freezes_total{phase="Failed"}[15m])) > 2"#,
        "Freezes cannot be taken. kubectl still preflight NAME says what is in the way.",
    ),
    Alert(
        "StillpointFrozenLong",
        "7h",
        "warning",
        "sum(stillpoint_frozen) > 0",
        "Something was held all the time, for longer than any freeze may last: who freezes so often? kubectl still status says.",
    ),
    Alert(
        "StillpointNoProvedFreeze",
        "0m",
        "warning",
        "time() - max(stillpoint_last_success_timestamp_seconds > 0) > 2 * 86400",
        "For two days no freeze was proved: do the backups run?",
    ),
    Alert(
        "StillpointErrors",
        "15m",
        "warning",
        r#"sum(rate(apiserver_request_total{job="stillpoint-apiserver",code=~"5.."}[5m])) / sum(rate(apiserver_request_total{job="stillpoint-apiserver"}[5m])) > 0.05"#,
        "One request in twenty fails. The log of the pods of stillpoint-apiserver says why.",
    ),
];

pub(crate) fn monitor() -> Value {
    // cert-manager puts its authority beside the certificate.
    let authority = computed(
        "{}",
        &format!(
            r#"ternary (dict "secret" (dict "name" ($.Values.tls.secretName | default "{AUTHORITY}") "key" "ca.crt")) (dict "configMap" (dict "name" $.Values.serviceMonitor.caConfigMap "key" "ca.crt")) (empty $.Values.serviceMonitor.caConfigMap)"#
        ),
    );
    json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor",
        "metadata": {"name": ACCOUNT, "namespace": NAMESPACE, "labels": set("serviceMonitor.labels")},
        "spec": {
            "selector": {"matchLabels": labels()},
            "namespaceSelector": {"matchNames": [NAMESPACE]},
            // Prometheus' own account is asked about: it needs `get` on the URL /metrics, which its ClusterRole has.
            "endpoints": [{
                "port": "https", "scheme": "https", "interval": "30s",
                "bearerTokenFile": "/var/run/secrets/kubernetes.io/serviceaccount/token",
                "tlsConfig": {
                    "serverName": format!("{ACCOUNT}.{NAMESPACE}.svc"),
                    "ca": authority,
                },
            }],
        },
    })
}

pub(crate) fn alerts() -> Value {
    let rule = |Alert(name, held, severity, expression, advice): &Alert| {
        json!({
            "alert": name, "expr": expression, "for": held, "labels": {"severity": severity},
            "annotations": {"summary": advice},
        })
    };
    json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
        "metadata": {"name": ACCOUNT, "namespace": NAMESPACE, "labels": set("alerts.labels")},
        "spec": {"groups": [{"name": "stillpoint", "rules": ALERTS.iter().map(rule).collect::<Vec<_>>()}]},
    })
}
