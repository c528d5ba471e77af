//! The webhooks: pods that kube-apiserver shows reviews to. They may do nothing in the cluster; what they are asked about they ask the
//! server, by a token that is good for that alone.
//!
//! Their certificate is the server's to make and keep, and what the configuration that leads to them says: here it is empty.

use api::{
    agent, gate,
    install::{ACCOUNT, REPLICAS, webhooks as of},
};
use serde_json::{Value, json};

use crate::{
    pods::{GOING, Pods, container, field, probe},
    settings::{NAMESPACE, OWN_IMAGE, image, set, unless_off},
};

pub(crate) const PODS: Pods = Pods { name: of::NAME, labels: of::LABELS };
/// Where the Secret of the server's making is: a certificate, its key, and the authority of both.
const SERVING: &str = "/etc/stillpoint/serving";
const TOKEN: &str = "/var/run/secrets/stillpoint.dev";
/// The longest that kube-apiserver waits for a review: each that is being answered is answered.
const DRAIN: u32 = 30;

pub(crate) fn account() -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": PODS.metadata(),
        "automountServiceAccountToken": false,
    })
}

pub(crate) fn service() -> Value {
    PODS.service(&json!([{"name": "https", "port": 443, "targetPort": "https", "protocol": "TCP"}]))
}

pub(crate) fn deployment() -> Value {
    let token = json!({"path": "token", "audience": gate::AUDIENCE, "expirationSeconds": 3600});
    let pod = PODS.spec(json!({
        "automountServiceAccountToken": false,
        "terminationGracePeriodSeconds": GOING + DRAIN + 10,
        "containers": [webhooks()],
        "volumes": [
            // Not optional: a pod waits until the server has made it.
            {"name": "serving", "secret": {"secretName": of::SERVING}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        ],
    }));
    PODS.deployment(&set("webhooks.replicas"), &pod)
}

fn webhooks() -> Value {
    container(json!({
        "name": "webhooks",
        "command": ["/usr/local/bin/stillpoint-webhooks"],
        "args": [
            format!("--listen={}:{}", set("listenAddress"), set("webhooks.port")),
            format!("--tls-cert-file={SERVING}/tls.crt"),
            format!("--tls-private-key-file={SERVING}/tls.key"),
            format!("--apiserver=https://{ACCOUNT}.{NAMESPACE}.svc:{}", gate::PORT),
            // Whoever asks by it is shown a certificate of our own authority, also where others see one of somebody else's.
            format!("--apiserver-name={REPLICAS}"),
            format!("--apiserver-ca-file={SERVING}/ca.crt"),
            format!("--token-file={TOKEN}/token"),
            unless_off(
                "agents.enabled",
                &json!(format!("--agent-image={OWN_IMAGE}")).to_string(),
                &format!("--agent-image={}", image("agents.image")),
            ),
            unless_off(
                "agents.enabled",
                &json!(format!("--agent-apiserver={}.stillpoint.svc:{}", agent::SERVICE, agent::PORT)).to_string(),
                &format!("--agent-apiserver={}.{{{{ $.Release.Namespace }}}}.svc:{}", agent::SERVICE, agent::PORT),
            ),
            format!("--shutdown-delay-seconds={GOING}"),
            format!("--drain-seconds={DRAIN}"),
            format!("--log={}", set("log.filter")),
            format!("--log-format={}", set("log.format")),
        ],
        "env": [field("POD_NAMESPACE", "metadata.namespace")],
        "ports": [{"name": "https", "containerPort": set("webhooks.port"), "protocol": "TCP"}],
        "readinessProbe": probe("/readyz", 2, 2),
        "livenessProbe": probe("/livez", 10, 3),
        "resources": set("webhooks.resources"),
        "volumeMounts": [
            {"name": "serving", "mountPath": SERVING, "readOnly": true},
            {"name": "token", "mountPath": TOKEN, "readOnly": true},
        ],
    }))
}

pub(crate) fn budget() -> Value {
    PODS.budget()
}

/// kube-apiserver comes from outside of every pod network, so that nobody can be named.
pub(crate) fn network() -> Value {
    PODS.network(&json!([{"ports": [{"port": "https", "protocol": "TCP"}]}]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::plain;

    #[test]
    fn what_it_is_told_to_read_is_mounted_and_it_has_time_to_end() {
        let deployment = plain(&deployment()).unwrap();
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let arguments: Vec<&str> = container["args"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        let told = |flag: &str| arguments.iter().find_map(|argument| argument.strip_prefix(flag)).unwrap();
        let mounts = container["volumeMounts"].as_array().unwrap();
        for flag in ["--tls-cert-file=", "--tls-private-key-file=", "--apiserver-ca-file=", "--token-file="] {
            let (directory, _) = told(flag).rsplit_once('/').unwrap();
            assert!(mounts.iter().any(|mount| mount["mountPath"] == directory), "{flag}");
        }
        let seconds = |flag| told(flag).parse::<u64>().unwrap();
        let ends = seconds("--shutdown-delay-seconds=") + seconds("--drain-seconds=");
        assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > ends);
        assert_eq!(told("--listen="), format!("0.0.0.0:{}", of::PORT));
    }

    /// The longest that any entry of the configuration has kube-apiserver wait.
    #[test]
    fn a_review_that_waits_when_a_pod_ends_is_answered() {
        let configured = of::Webhooks {
            namespace: "stillpoint",
            ca_bundle: "",
            required: &[],
            databases: None,
            content_drivers: &["d".to_owned()],
            injects: true,
        };
        let configurations = [of::Kind::Validating, of::Kind::Mutating].map(|kind| configured.configuration(kind));
        let entries = configurations.iter().flat_map(|configuration| configuration["webhooks"].as_array().unwrap());
        let longest = entries.map(|entry| &entry["timeoutSeconds"]);
        assert_eq!(longest.filter_map(Value::as_u64).max(), Some(u64::from(DRAIN)));
    }
}
