//! A cluster with a node, and Stillpoint installed in it.

use std::{path::Path, time::Duration};

use anyhow::{Result, ensure};
use cluster::{Cluster, Node, Options, image, workload};
use serde_json::{Value, json};
use tokio::process::Command;

pub(crate) const NAMESPACE: &str = "stillpoint";
pub(crate) const DEPLOYMENT: &str = "deployment/stillpoint-apiserver";
pub(crate) const WEBHOOKS: &str = "deployment/stillpoint-webhooks";
pub(crate) const SOON: Duration = Duration::from_secs(60);
const NAME: &str = "stillpoint-apiserver";
/// What the plain YAML names.
const REFERENCE: &str = "docker.io/library/stillpoint:0.1.0";

pub(crate) async fn start() -> Result<Cluster> {
    let node = Some(Node { storage: true });
    let cluster = Cluster::start(Options { fsync: false, node, ..Options::default() }).await?;
    let archive = cluster.root().join("stillpoint.tar");
    let archive = archive.display().to_string();
    let mut arguments = vec!["programs".to_owned(), archive, REFERENCE.to_owned()];
    for program in [NAME, api::install::webhooks::NAME, "stillpoint-agent", "stillpoint-runner"] {
        arguments.push(tests::binary(program)?.display().to_string());
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let archive = image(&arguments).await?;
    cluster.import_image(&archive).await?;

    // As deploy/README.md has it, to the letter.
    let installed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/stillpoint.yaml");
    cluster.apply(&std::fs::read_to_string(installed)?).await?;
    rolled_out(&cluster, DEPLOYMENT).await?;
    rolled_out(&cluster, WEBHOOKS).await?;
    let api = format!("apiservice/{}.{}", api::VERSION, api::LIVE_GROUP);
    cluster.kubectl(&["wait", "--for=condition=Available", "--timeout=60s", &api]).await?.ok()?;
    Ok(cluster)
}

/// Waits until all of the newest Pods, and no others, are ready; else says why they are not.
pub(crate) async fn rolled_out(cluster: &Cluster, deployment: &str) -> Result<()> {
    let status = ["rollout", "status", deployment, "-n", NAMESPACE, "--timeout=90s"];
    if let Err(error) = cluster.kubectl(&status).await?.ok() {
        let described = cluster.kubectl(&["describe", "pods", "-n", NAMESPACE]).await?.stdout;
        let log = cluster.kubectl(&["logs", deployment, "-n", NAMESPACE]).await?;
        return Err(error.context(format!("{described}{log:?}")));
    }
    Ok(())
}

/// PostgreSQL in a Pod, and a Database of it that is ready, in the default namespace.
pub(crate) async fn database(cluster: &Cluster, name: &str) -> Result<()> {
    cluster.import_image(&image(&["postgresql", "18"]).await?).await?;
    let [pod, service] = workload::postgresql(name);
    for object in [workload::claim(name, None), pod, service] {
        cluster.apply(&object.to_string()).await?;
    }
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", &format!("pod/{name}")]).await?.ok()?;
    grant_credentials(cluster, "default").await?;
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

/// Stillpoint may read the Secrets of a namespace.
pub(crate) async fn grant_credentials(cluster: &Cluster, namespace: &str) -> Result<()> {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "credentials", "namespace": namespace},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": api::install::CREDENTIALS,
        },
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}],
    });
    cluster.apply(&binding.to_string()).await.map(drop)
}

/// What the replicas of a component, which serve at this port, count, one after the other: as Prometheus reads it.
pub(crate) async fn metrics(cluster: &Cluster, component: &str, port: u16) -> Result<String> {
    let group = "rbac.authorization.k8s.io";
    for object in [
        json!({
            "apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": {"name": "scrape"},
            "rules": [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}],
        }),
        json!({
            "apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "scrape"},
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "scrape"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
        }),
    ] {
        cluster.apply(&object.to_string()).await?;
    }
    let token = cluster.kubectl(&["create", "token", "default"]).await?.ok()?;
    let selector = format!("app.kubernetes.io/component={component}");
    let pods = ["get", "pods", "-n", NAMESPACE, "-l", &selector, "--field-selector=status.phase=Running"];
    let addresses = [&pods[..], &["-o", "jsonpath={.items[*].status.podIP}"]].concat();
    let addresses = cluster.kubectl(&addresses).await?.ok()?;
    ensure!(!addresses.is_empty(), "no Pod is a {component}");
    let mut metrics = String::new();
    for address in addresses.split_whitespace() {
        let curl = Command::new("curl")
            .args(["--silent", "--fail", "--insecure", "--max-time", "30"])
            .args(["--header", &format!("authorization: Bearer {}", token.trim())])
            .arg(format!("https://{address}:{port}/metrics"))
            .output()
            .await?;
        ensure!(curl.status.success(), "the metrics of {address}: {curl:?}");
        metrics += &String::from_utf8(curl.stdout)?;
    }
    Ok(metrics)
}

/// A series, which all of `metrics` have with these very labels, added up; 0 where there is none of it.
pub(crate) fn sum(metrics: &str, series: &str) -> f64 {
    let values = metrics.lines().filter_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    values.filter_map(|value| value.parse::<f64>().ok()).sum()
}

/// How many cuts of this outcome the gates were asked about.
pub(crate) async fn gated(cluster: &Cluster, outcome: &str) -> Result<f64> {
    let metrics = metrics(cluster, "apiserver", 6443).await?;
    Ok(sum(&metrics, &format!("stillpoint_gate_seconds_count{{outcome=\"{outcome}\"}}")))
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
