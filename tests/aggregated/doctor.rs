//! `kubectl still doctor`, `enable` and `disable` on a real cluster: all is well, and each way in which it is not.

use anyhow::{Result, ensure};
use cluster::until;
use fixtures::{Options, Server, ServerKind};
use serde_json::Value;

use crate::{
    installation::{Installation, SHOP},
    world::{NAMESPACE, SERVICE, SOON},
};

/// What it found, as programs read it, and its exit code.
async fn doctor(here: &Installation) -> Result<(i32, Vec<Value>)> {
    let said = here.shell("kubectl still doctor -o json").await?;
    let mut report: Value = serde_json::from_str(&said.stdout)?;
    let checks = report["checks"].as_array_mut().map(std::mem::take).unwrap_or_default();
    Ok((said.code, checks))
}

/// Waits until it says so of this check, and answers what it says to do.
async fn says(here: &Installation, check: &str, result: &str, message: &str) -> String {
    let found = until(message, SOON, || async {
        let (code, checks) = doctor(here).await?;
        let of = |found: &&Value| {
            found["check"] == check && found["message"].as_str().is_some_and(|said| said.contains(message))
        };
        let found = checks.iter().find(of);
        let found = found.ok_or_else(|| anyhow::anyhow!("{check}, {message}: {checks:#?}"))?;
        ensure!(found["result"] == result && (result != "Fail" || code == 1), "{code} {found}");
        Ok(found["fix"].as_str().unwrap_or_default().to_owned())
    });
    found.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_doctor_passes_what_stands_and_says_of_what_does_not_what_to_do() {
    let mut here = Installation::begin().await.unwrap();
    assert!(says(&here, "apiservice", "Fail", "is not there").await.contains("install"));
    assert!(says(&here, "crd", "Fail", "CRD databases.stillpoint.dev is not there").await.contains("kubectl apply"));

    here.documented("plain-install").await.unwrap();
    says(&here, "replicas", "Fail", "no replica renews").await;
    assert!(says(&here, "apiservice", "Fail", "MissingEndpoints").await.contains("kubectl -n stillpoint get pods"));
    here.start_pod().await.unwrap();
    says(&here, "replicas", "Warn", "one replica").await;
    here.start_pod().await.unwrap();
    here.until_available().await.unwrap();

    // A Database whose Secret may not be read, and then may.
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    let register = format!(
        "STILLPOINT_PASSWORD={} kubectl still database create orders -n {SHOP} --engine postgresql --host 127.0.0.1 \
         --port {} --user {}",
        fixtures::PASSWORD,
        server.port,
        fixtures::USER
    );
    here.run(&register).await.unwrap();
    let fix = says(&here, "credentials", "Fail", "may not read Secret orders-freezer of namespace shop").await;
    assert_eq!(fix, "kubectl still enable shop");
    says(&here, "ready", "Fail", "CredentialsMissing: Stillpoint may not read Secrets in namespace shop").await;
    enable_and_disable(&here).await.unwrap();
    here.run(&fix).await.unwrap();
    // What cannot be looked at is looked at again once a minute.
    until("all passes but what needs a kubelet", SOON * 3, || async {
        let (_, checks) = doctor(&here).await?;
        let needs_one = |check: &Value| check["check"] == "deployment" || check["check"] == "webhooks";
        let bad: Vec<&Value> = checks.iter().filter(|check| check["result"] != "Pass" && !needs_one(check)).collect();
        ensure!(bad.is_empty(), "{bad:#?}");
        Ok(())
    })
    .await
    .unwrap();
    // No kubelet makes the Deployment's pods ready here, and it says so.
    assert!(
        says(&here, "deployment", "Fail", "0 of 2 pods are ready").await.contains("kubectl -n stillpoint describe")
    );
    assert!(
        says(&here, "deployment", "Fail", "stillpoint-webhooks: 0 of 2")
            .await
            .contains("kubectl -n stillpoint describe")
    );
    assert!(says(&here, "webhooks", "Fail", "leads to nobody").await.contains("component=webhooks"));
    the_gates_are_looked_at(&here).await;
    copies_are_looked_at(&here).await;
    what_is_broken_is_told(&mut here).await;
}

/// What a leader keeps, and what it is told by.
async fn the_gates_are_looked_at(here: &Installation) {
    says(here, "gates", "Pass", "kube-apiserver asks before a snapshot is cut").await;
    says(here, "certificate", "Pass", "is valid until").await;
    says(here, "snapshots", "Pass", "nothing to hold for").await;
    says(here, "shown", "Pass", "namespaces with Databases").await;
    says(here, "required", "Pass", "no namespace says").await;
    here.run("kubectl label namespace shop stillpoint.dev/snapshots=Required").await.unwrap();
    // As docs/gates.md waits for a label with a dot in its name.
    let labelled = r"--for=jsonpath='{.metadata.labels.stillpoint\.dev/snapshots}'=Required";
    here.run(&format!("kubectl wait namespace/shop --timeout=5s {labelled}")).await.unwrap();
    says(here, "required", "Pass", "is taken in shop").await;
    here.run("kubectl label namespace shop stillpoint.dev/snapshots-").await.unwrap();
    says(here, "required", "Pass", "no namespace says").await;
    here.run("kubectl label namespace kube-system stillpoint.dev/snapshots=Required").await.unwrap();
    assert!(says(here, "required", "Warn", "kube-system is left alone").await.contains("take the label off"));
    here.run("kubectl label namespace kube-system stillpoint.dev/snapshots-").await.unwrap();
}

/// Whether what copies are made of may be made where there are some.
async fn copies_are_looked_at(here: &Installation) {
    let (_, before) = doctor(here).await.unwrap();
    assert!(before.iter().all(|check| check["check"] != "copies"), "where there are none nothing is said: {before:#?}");
    let snapshot = r#"{"apiVersion": "stillpoint.dev/v1alpha1", "kind": "Snapshot", "metadata": {"name": "never", "namespace": "shop"},
        "spec": {"databases": ["none"], "method": "VolumeSnapshot"}}"#;
    here.run(&format!("kubectl create -f - <<< '{snapshot}'")).await.unwrap();
    says(here, "copies", "Pass", "rights that copies need").await;
    // As it was granted by an older installation.
    let older = r#"[{"op": "replace", "path": "/rules", "value": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]}]"#;
    here.run(&format!("kubectl patch clusterrole stillpoint:credentials --type=json -p '{older}'")).await.unwrap();
    assert!(says(here, "copies", "Fail", "create jobs.batch in shop").await.contains("rights.yaml"));
    here.run("kubectl apply -f deploy/apiserver/rights.yaml").await.unwrap();
    says(here, "copies", "Pass", "rights that copies need").await;
    here.run("kubectl still disable shop").await.unwrap();
    assert_eq!(says(here, "copies", "Fail", "was not let in").await, "kubectl still enable shop");
    here.run("kubectl still enable shop").await.unwrap();
    says(here, "copies", "Pass", "rights that copies need").await;
    here.run("kubectl delete -n shop snapshots.stillpoint.dev never").await.unwrap();
}

async fn enable_and_disable(here: &Installation) -> Result<()> {
    let reads = format!("kubectl auth can-i get secrets -n {SHOP} --as system:serviceaccount:{NAMESPACE}:{SERVICE}");
    ensure!(here.shell(&reads).await?.stdout.starts_with("no"), "it may not yet");
    let dry = here.run("kubectl still enable shop --dry-run").await?;
    ensure!(dry.contains("nothing was changed") && here.shell(&reads).await?.stdout.starts_with("no"), "{dry}");
    here.run("kubectl still enable shop").await?;
    until("it may", SOON, || async {
        let said = here.shell(&reads).await?.stdout;
        ensure!(said.starts_with("yes"), "{said}");
        Ok(())
    })
    .await?;
    ensure!(here.run("kubectl still enable shop").await?.contains("already"), "a second time is no error");
    here.run("kubectl still disable shop --dry-run").await?;
    ensure!(here.run("kubectl still enable shop").await?.contains("already"), "a dry run takes nothing back");
    here.run("kubectl still disable shop").await?;
    ensure!(here.run("kubectl still disable shop").await?.contains("was not let"), "a second time is no error");
    let nowhere = here.shell("kubectl still enable nowhere").await?;
    ensure!(nowhere.code == 1 && nowhere.stderr.contains("nowhere"), "{}", nowhere.stderr);
    Ok(())
}

/// Each of them broken, told, and repaired.
async fn what_is_broken_is_told(here: &mut Installation) {
    let service = api::install::api_service();
    let rights = "kubectl apply -f deploy/apiserver/rights.yaml";
    let policies = "kubectl apply -f deploy/apiserver/policies.yaml";
    for (broken, check, result, message, repaired) in [
        (
            "kubectl delete validatingadmissionpolicybinding secrets.stillpoint.dev",
            "policy",
            "Fail",
            "is not bound",
            policies,
        ),
        (
            "kubectl delete clusterrolebinding stillpoint:apiserver",
            "rights",
            "Fail",
            "patch freezes/status.stillpoint.dev",
            rights,
        ),
        (
            "kubectl annotate crd freezes.stillpoint.dev stillpoint.dev/schema=0 --overwrite",
            "crd",
            "Fail",
            "has schema 0",
            "kubectl apply -f deploy/crds/",
        ),
    ] {
        here.run(broken).await.unwrap();
        says(here, check, result, message).await;
        here.run(repaired).await.unwrap();
    }
    // Nobody listens there.
    let patch = r#"{"spec":{"endpoint":{"port":9}}}"#;
    let elsewhere = format!("kubectl patch -n shop databases.stillpoint.dev orders --type=merge -p '{patch}'");
    here.run(&elsewhere).await.unwrap();
    says(here, "ready", "Fail", "Unreachable").await;
    // A hint, for whom a network policy may be in the way.
    let limit = "kubectl create -n shop -f - <<< '{\"apiVersion\": \"networking.k8s.io/v1\", \"kind\": \"NetworkPolicy\", \
                 \"metadata\": {\"name\": \"closed\"}, \"spec\": {\"podSelector\": {}}}'";
    here.run(limit).await.unwrap();
    assert!(
        says(here, "network", "Warn", "limit who reaches it: closed")
            .await
            .contains("app.kubernetes.io/name=stillpoint")
    );

    // Its Service is gone.
    here.run(&format!(
        "kubectl patch apiservice {service} --type=merge -p '{{\"spec\":{{\"service\":{{\"name\":\"other\"}}}}}}'"
    ))
    .await
    .unwrap();
    assert!(says(here, "apiservice", "Fail", "ServiceNotFound").await.contains("its Service is gone"));
    says(here, "api", "Fail", api::LIVE_API_VERSION).await;
}
