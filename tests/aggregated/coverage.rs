//! `kubectl still coverage` on a real cluster: a claim is unprotected until a Database leads to its Pod, and is ready.

use anyhow::{Context, Result, ensure};
use cluster::{ServicePort, until};
use fixtures::{Options, Server, ServerKind};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::world::{NAMESPACE, SOON, Setup, Space, World};

/// What it says of the claim `data`, and its exit code.
async fn covered(space: &Space<'_>) -> Result<(i32, Value)> {
    let output = Command::new(tests::binary("kubectl-still")?)
        .args(["coverage", "-n", &space.name, "-o", "json"])
        .env("KUBECONFIG", space.world.cluster.kubeconfig())
        .output()
        .await?;
    let report: Value =
        serde_json::from_slice(&output.stdout).with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let claims = report["claims"].as_array().context("no claims")?;
    let claim = claims.iter().find(|claim| claim["claim"] == "data").context("not this one")?;
    Ok((output.status.code().unwrap_or(-1), claim.clone()))
}

async fn is(space: &Space<'_>, state: &str, says: &str) {
    until(says, SOON, || async {
        let (code, claim) = covered(space).await?;
        ensure!(
            claim["state"] == state && claim["message"].as_str().is_some_and(|said| said.contains(says)),
            "{claim}"
        );
        ensure!(code == i32::from(state != "Protected"), "{code}: {claim}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_protected_when_a_database_that_is_ready_leads_to_its_pod() {
    // What is made here all of a cluster would see.
    let world = World::of(Setup { replicas: vec!["one"], ..Setup::default() }).await.unwrap();
    let space = world.space("coverage").await.unwrap();
    space.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}})).await.unwrap();
    space
        .apply(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "orders-0"},
            "spec": {
                "containers": [{
                    "name": "db", "image": "postgres:16", "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }],
                "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}],
            },
        }))
        .await
        .unwrap();
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("{}-data", space.name)},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "csi": {"driver": "ebs.csi.aws.com", "volumeHandle": "one"},
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": space.name, "name": "data"},
        },
    });
    world.cluster.apply(&volume.to_string()).await.unwrap();
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "",
            "volumeName": format!("{}-data", space.name),
        },
    });
    space.apply(claim).await.unwrap();
    is(&space, "Unprotected", "no Database leads to it").await;

    // Its endpoint is where the Pod says that it is.
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    space.register("orders", &server).await.unwrap();
    is(&space, "Unprotected", "no Database leads to it").await;
    let at = json!({"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}}).to_string();
    space.kubectl(&["patch", "pod", "orders-0", "--subresource=status", "-p", &at]).await.unwrap();
    // Here nobody waits for snapshots.
    is(&space, "NotReady", "kube-apiserver was not told to ask").await;
    let mut configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": api::install::webhooks::NAME},
    });
    world.cluster.apply(&configuration.to_string()).await.unwrap();
    is(&space, "NotReady", "kube-apiserver was not told to ask").await;
    // As whoever leads would fill it in.
    configuration["webhooks"] = json!([{
        "name": "cut.gates.stillpoint.dev", "sideEffects": "None", "admissionReviewVersions": ["v1"], "failurePolicy": "Ignore",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [{"apiGroups": ["none.invalid"], "apiVersions": ["v1"], "resources": ["none"], "operations": ["CREATE"]}],
        "matchConditions": [{"name": api::install::webhooks::IN_THESE, "expression": format!("'x' in ['{}']", space.name)}],
    }]);
    world.cluster.apply(&configuration.to_string()).await.unwrap();
    is(&space, "NotReady", "no webhook is ready").await;
    world.cluster.register_service(NAMESPACE, api::install::webhooks::NAME, &[ServicePort::https(&[1])]).await.unwrap();
    is(&space, "Protected", "Database orders").await;
    let pause = json!({"spec": {"paused": true}}).to_string();
    space.kubectl(&["patch", "databases.stillpoint.dev", "orders", "--type=merge", "-p", &pause]).await.unwrap();
    is(&space, "NotReady", "is paused").await;
}
