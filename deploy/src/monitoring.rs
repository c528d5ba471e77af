//! For the Prometheus operator: where the metrics are, and when somebody is to be woken. Only in the chart, and off by default:
//! a cluster without the operator has no such kinds.

use api::install::{ACCOUNT, AUTHORITY, webhooks as of};
use serde_json::{Value, json};

use crate::{
    labels,
    settings::{NAMESPACE, computed, set},
    webhooks,
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

/// Of the gates: what copies are worth, and whether those who are asked before a cut can be asked, and can ask. `Unanswered` is none of
/// it: whoever reaches their port can send what is no review.
const GATE_ALERTS: [Alert; 4] = [
    Alert(
        "StillpointWebhooksDown",
        "5m",
        "critical",
        r#"absent(up{job="stillpoint-webhooks"} == 1)"#,
        "No webhook answers: nothing is held for snapshots, and those of namespaces that are Required are refused. kubectl still doctor says why.",
    ),
    Alert(
        "StillpointWebhooksAskInVain",
        "0m",
        "warning",
        r#"sum by (gate) ((increase(stillpoint_webhook_reviews_total{outcome=~"FailedOpen|FailedClosed"}[15m]) > 0) or (stillpoint_webhook_reviews_total{outcome=~"FailedOpen|FailedClosed"} unless stillpoint_webhook_reviews_total offset 15m)) > 0"#,
        "The webhooks were asked about snapshots, and could not ask the apiserver: these are crash-consistent, or are tried again where the namespace is Required. The log of the pods of stillpoint-webhooks says why.",
    ),
    Alert(
        "StillpointWebhooksCertificate",
        "15m",
        "critical",
        "min(stillpoint_webhook_certificate_expiry_timestamp_seconds) - time() < 5 * 86400",
        "The webhooks' certificate expires within five days, and should have been renewed ten days before: after it nobody is asked before a cut. kubectl still doctor, and the log of the pods of stillpoint-apiserver, say why.",
    ),
    Alert(
        "StillpointSnapshotsInconsistent",
        "0m",
        "warning",
        r#"sum by (consistency) ((increase(stillpoint_snapshots_total{consistency=~"crash|unknown"}[15m]) > 0) or (stillpoint_snapshots_total{consistency=~"crash|unknown"} unless stillpoint_snapshots_total offset 15m)) > 0"#,
        "Snapshots of databases are crash-consistent, or nobody can tell: kubectl get volumesnapshots -A -L stillpoint.dev/consistency names them, kubectl describe says why. Those that asked to be skipped are among them.",
    ),
];

pub(crate) fn monitor() -> Value {
    // cert-manager puts its authority beside the certificate.
    let authority = authority(&format!(r#"($.Values.tls.secretName | default "{AUTHORITY}")"#));
    let mut monitor = monitor_of(ACCOUNT, &labels(), &authority);
    // Prometheus' own account is asked about: it needs `get` on the URL /metrics, which its ClusterRole has.
    let token = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    monitor["spec"]["endpoints"][0]["bearerTokenFile"] = token.into();
    monitor
}

/// They ask about nobody, so that no token is sent to them. Their authority is our own, whoever signs for the server.
pub(crate) fn webhooks_monitor() -> Value {
    monitor_of(of::NAME, &webhooks::PODS.labels(), &authority(&format!(r#""{}""#, of::SERVING)))
}

/// From a Secret, unless there is a copy.
fn authority(secret: &str) -> String {
    computed(
        "{}",
        &format!(
            r#"ternary (dict "secret" (dict "name" {secret} "key" "ca.crt")) (dict "configMap" (dict "name" $.Values.serviceMonitor.caConfigMap "key" "ca.crt")) (empty $.Values.serviceMonitor.caConfigMap)"#
        ),
    )
}

/// `name`: the Service, by which Prometheus calls the job.
fn monitor_of(name: &str, labels: &Value, authority: &str) -> Value {
    json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "ServiceMonitor",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": set("serviceMonitor.labels")},
        "spec": {
            "selector": {"matchLabels": labels},
            "namespaceSelector": {"matchNames": [NAMESPACE]},
            "endpoints": [{
                "port": "https", "scheme": "https", "interval": "30s",
                "tlsConfig": {
                    "serverName": format!("{name}.{NAMESPACE}.svc"),
                    "ca": authority,
                },
            }],
        },
    })
}

pub(crate) fn alerts() -> Value {
    rule(ACCOUNT, "stillpoint", &ALERTS)
}

pub(crate) fn gate_alerts() -> Value {
    rule(of::NAME, "stillpoint-gates", &GATE_ALERTS)
}

fn rule(name: &str, group: &str, alerts: &[Alert]) -> Value {
    let rule = |Alert(name, held, severity, expression, advice): &Alert| {
        json!({
            "alert": name, "expr": expression, "for": held, "labels": {"severity": severity},
            "annotations": {"summary": advice},
        })
    };
    json!({
        "apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": set("alerts.labels")},
        "spec": {"groups": [{"name": group, "rules": alerts.iter().map(rule).collect::<Vec<_>>()}]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::plain;

    #[test]
    fn whoever_is_missed_is_a_job_that_is_monitored_and_no_two_alerts_have_one_name() {
        let monitors = [monitor(), webhooks_monitor()].map(|monitor| plain(&monitor).unwrap());
        let jobs = monitors.each_ref().map(|monitor| monitor["metadata"]["name"].as_str().unwrap());
        let all: Vec<&Alert> = ALERTS.iter().chain(&GATE_ALERTS).collect();
        let missed: Vec<&str> = all.iter().filter_map(|alert| alert.3.strip_prefix("absent(up{job=\"")).collect();
        assert_eq!(missed, jobs.map(|job| format!("{job}\"}} == 1)")));
        let mut names: Vec<&str> = all.iter().map(|alert| alert.0).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
    }

    /// A token is for whoever asks about it.
    #[test]
    fn prometheus_shows_its_token_to_the_server_alone() {
        let [server, others] = [monitor(), webhooks_monitor()].map(|monitor| plain(&monitor).unwrap());
        assert!(server["spec"]["endpoints"][0]["bearerTokenFile"].is_string());
        assert!(others["spec"]["endpoints"][0]["bearerTokenFile"].is_null());
        assert_eq!(others["spec"]["selector"]["matchLabels"], webhooks::PODS.labels());
    }
}
