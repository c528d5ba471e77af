//! A cluster with a node, and Stillpoint installed in it.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result};
use cluster::{Cluster, Node, Options, image, workload};
use serde_json::{Value, json};

pub(crate) const NAMESPACE: &str = "stillpoint";
pub(crate) const DEPLOYMENT: &str = "deployment/stillpoint-apiserver";
pub(crate) const SOON: Duration = Duration::from_secs(60);
const NAME: &str = "stillpoint-apiserver";
const REFERENCE: &str = "docker.io/library/stillpoint:test";

pub(crate) async fn start() -> Result<Cluster> {
    let node = Some(Node { storage: true });
    let cluster = Cluster::start(Options { fsync: false, node, ..Options::default() }).await?;
    let archive = cluster.root().join("stillpoint.tar");
    let server = tests::binary(NAME)?;
    let archive = archive.display().to_string();
    let archive = image(&["programs", &archive, REFERENCE, &server.display().to_string()]).await?;
    cluster.import_image(&archive).await?;

    cluster.kubectl(&["create", "namespace", NAMESPACE]).await?.ok()?;
    let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    for file in ["crds/databases.yaml", "crds/freezes.yaml", "apiserver/rights.yaml", "apiserver/api.yaml"] {
        cluster.apply(&std::fs::read_to_string(deploy.join(file))?).await.context(file)?;
    }
    for object in server_in_pods() {
        cluster.apply(&object.to_string()).await?;
    }
    rolled_out(&cluster).await?;
    let api = format!("apiservice/{}.{}", api::VERSION, api::LIVE_GROUP);
    cluster.kubectl(&["wait", "--for=condition=Available", "--timeout=60s", &api]).await?.ok()?;
    Ok(cluster)
}

/// Waits until all of the newest Pods, and no others, are ready; else says why they are not.
pub(crate) async fn rolled_out(cluster: &Cluster) -> Result<()> {
    let status = ["rollout", "status", DEPLOYMENT, "-n", NAMESPACE, "--timeout=90s"];
    if let Err(error) = cluster.kubectl(&status).await?.ok() {
        let described = cluster.kubectl(&["describe", "pods", "-n", NAMESPACE]).await?.stdout;
        let log = cluster.kubectl(&["logs", DEPLOYMENT, "-n", NAMESPACE]).await?;
        return Err(error.context(format!("{described}{log:?}")));
    }
    Ok(())
}

/// Two replicas by their ServiceAccount's token, probed, without rights on the node.
fn server_in_pods() -> [Value; 2] {
    let labels = json!({"app": NAME});
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": "https", "scheme": "HTTPS"}, "periodSeconds": 1, "timeoutSeconds": 5});
    let of_pod = |name: &str, field: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}});
    let container = json!({
        "name": "apiserver", "image": REFERENCE, "imagePullPolicy": "Never",
        "command": [NAME, "--listen=0.0.0.0:6443"],
        "env": [of_pod("POD_NAME", "metadata.name"), of_pod("POD_IP", "status.podIP")],
        "ports": [{"name": "https", "containerPort": 6443}],
        "readinessProbe": probe("/readyz"), "livenessProbe": probe("/livez"),
        "securityContext": {
            "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]},
        },
    });
    let metadata = json!({"name": NAME, "namespace": NAMESPACE});
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {"selector": labels, "ports": [{"name": "https", "port": 443, "targetPort": "https"}]},
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {
                "replicas": 2, "selector": {"matchLabels": labels},
                "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
                "template": {"metadata": {"labels": labels}, "spec": {
                    "serviceAccountName": NAME, "containers": [container],
                    "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532},
                }},
            },
        }),
    ]
}

/// PostgreSQL in a Pod, and a Database of it that is ready, in the default namespace.
pub(crate) async fn database(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.import_image(&image(&["postgresql", "18"]).await?).await?;
    let [pod, service] = workload::postgresql(name);
    for object in [workload::claim(name, None), pod, service] {
        cluster.apply(&object.to_string()).await?;
    }
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", &format!("pod/{name}")]).await?.ok()?;
    let subject = format!("--serviceaccount={NAMESPACE}:{NAME}");
    cluster
        .kubectl(&["create", "rolebinding", "credentials", "--clusterrole=stillpoint:credentials", &subject])
        .await?
        .ok()?;
    let address = ["get", "service", name, "-o", "jsonpath={.spec.clusterIP}"];
    let address = cluster.kubectl(&address).await?.ok()?;
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "account"},
        "stringData": {"username": "postgres", "password": workload::PASSWORD},
    });
    let database = json!({
        "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": name},
        "spec": {
            "engine": "PostgreSQL", "endpoint": {"host": address, "port": 5432},
            "credentials": {"secretRef": {"name": "account"}},
            // The image has no certificate, and the network is one machine's.
            "tls": {"mode": "Disable"},
        },
    });
    for object in [secret, database] {
        cluster.apply(&object.to_string()).await?;
    }
    let wait = ["wait", "--for=condition=Ready", "--timeout=60s", "databases.stillpoint.dev", name];
    if let Err(error) = cluster.kubectl(&wait).await?.ok() {
        let object = cluster.kubectl(&["get", "databases.stillpoint.dev", name, "-o", "yaml"]).await?.stdout;
        return Err(error.context(object));
    }
    Ok(())
}

/// A verb of a Database's, by the aggregated API; the status of the answer.
pub(crate) async fn verb(cluster: &Cluster, database: &str, verb: &str) -> Result<Value> {
    let path = format!("/apis/{}/{}/namespaces/default/databases/{database}/{verb}", api::LIVE_GROUP, api::VERSION);
    let answer = cluster.kubectl(&["create", "--raw", &path, "-f", "/dev/null"]).await?.ok()?;
    Ok(serde_json::from_str::<Value>(&answer)?["status"].take())
}

pub(crate) async fn psql(cluster: &Cluster, pod: &str, statement: &str) -> Result<String> {
    let psql = ["exec", pod, "--", "psql", "-h", "localhost", "-U", "postgres", "-tAc", statement];
    Ok(cluster.kubectl(&psql).await?.ok()?.trim().to_owned())
}
