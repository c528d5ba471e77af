//! Installing, upgrading while something is held, going back, and leaving nothing: Helm and plain YAML, as deploy/README.md says.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use api::install::webhooks;
use cluster::until;
use fixtures::{Options, Server, ServerKind};
use serde_json::{Value, json};

use crate::{
    installation::{Installation, SHOP, block_of_readme},
    world::{NAMESPACE, SERVICE, SOON},
};

/// Everything that an operator may say, said differently.
const EVERYTHING: &str = "--set replicas=3,port=8443,drainSeconds=120,log.filter=debug,log.format=text,image.repository=r.example/s,\
     image.tag=v9,priorityClassName=system-node-critical,podAnnotations.a=b,nodeSelector.disk=fast,networkPolicy.enabled=false,\
     flowSchema.enabled=false,resources.limits.memory=1Gi,webhooks.replicas=1,webhooks.port=10250,'namespaces={shop}'";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_is_upgraded_under_a_freeze_goes_back_and_leaves_nothing() {
    let mut here = Installation::begin().await.unwrap();
    here.documented("helm-install").await.unwrap();
    stands(&mut here).await.unwrap();
    pods_are_admitted(&here).await.unwrap();
    let server = shop(&here).await.unwrap();

    let held = here.verb("orders", "quiesce").await.unwrap();
    let upgrade = format!("helm upgrade stillpoint deploy/chart --namespace {NAMESPACE} {EVERYTHING}");
    // The release takes over the binding that `enable` made, which is the same.
    here.run("kubectl still disable shop").await.unwrap();
    let authority = trusted(&here).await.unwrap();
    let filled = asked(&here).await.unwrap();
    here.run(&upgrade).await.unwrap();
    assert_eq!(trusted(&here).await.unwrap(), authority, "an upgrade does not take away whom kube-apiserver trusts");
    assert_eq!(asked(&here).await.unwrap(), filled, "nor whom it asks before a cut");
    roll(&mut here, &held).await.unwrap();

    here.run(&format!("helm rollback stillpoint 1 --namespace {NAMESPACE}")).await.unwrap();
    let deployment = here.object(&format!("get deployment {SERVICE} -n {NAMESPACE}")).await.unwrap();
    assert_eq!(deployment["spec"]["replicas"], 2);
    here.documented("enable").await.unwrap();
    let held = here.verb("orders", "quiesce").await.unwrap();
    roll(&mut here, &held).await.unwrap();

    leave(&mut here, &server, "helm-uninstall").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_file_installs_again_over_itself_under_a_freeze_and_leaves_nothing() {
    let mut here = Installation::begin().await.unwrap();
    here.documented("plain-install").await.unwrap();
    stands(&mut here).await.unwrap();
    pods_are_admitted(&here).await.unwrap();
    let server = shop(&here).await.unwrap();
    let held = here.verb("orders", "quiesce").await.unwrap();
    let filled = asked(&here).await.unwrap();
    here.documented("plain-install").await.unwrap();
    assert_eq!(asked(&here).await.unwrap(), filled, "whom kube-apiserver asks before a cut stays");
    roll(&mut here, &held).await.unwrap();
    alerts_are_of_metrics_that_there_are(&here).await.unwrap();
    leave(&mut here, &server, "plain-uninstall").await.unwrap();
}

/// As Prometheus reads them, with a token of its own, where something was frozen.
async fn alerts_are_of_metrics_that_there_are(here: &Installation) -> Result<()> {
    here.run("kubectl create serviceaccount prometheus -n shop").await?;
    let mut metrics = String::new();
    let scrape = |port: u16| {
        format!(
            "curl -skf -H \"Authorization: Bearer $(kubectl create token prometheus -n shop)\" https://127.0.0.1:{port}/metrics"
        )
    };
    let port = here.replicas[0].port();
    ensure!(here.shell(&scrape(port)).await?.code != 0, "not everybody may read them");
    here.run("kubectl create clusterrole prometheus --verb=get --non-resource-url=/metrics").await?;
    here.run("kubectl create clusterrolebinding prometheus --clusterrole=prometheus --serviceaccount=shop:prometheus")
        .await?;
    for replica in &here.replicas {
        let scrape = scrape(replica.port());
        metrics += &until("the metrics", SOON, || here.run(&scrape)).await?;
    }
    let template = "helm template stillpoint deploy/chart --kube-version 1.35.0 -s templates/server.yaml --set alerts.enabled=true";
    ensure!(here.shell(template).await?.code != 0, "alerts of metrics that nobody reads");
    let rules = here.run(&format!("{template},serviceMonitor.enabled=true")).await?;
    ensure!(rules.contains(r#"ca: {"secret":{"key":"ca.crt","name":"stillpoint-apiserver-ca"}}"#), "{rules}");
    let copied =
        here.run(&format!("{template},serviceMonitor.enabled=true,serviceMonitor.caConfigMap=stillpoint-ca")).await?;
    ensure!(copied.contains(r#"ca: {"configMap":{"key":"ca.crt","name":"stillpoint-ca"}}"#), "{copied}");
    for refused in ["drainSeconds=59", "port=70000", "log.format=xml", "replicas=0", "webhooks.replicas=0"] {
        ensure!(here.shell(&format!("{template},serviceMonitor.enabled=true,{refused}")).await?.code != 0, "{refused}");
    }
    let template = "helm template stillpoint deploy/chart --kube-version 1.35.0 --set alerts.enabled=true,serviceMonitor.enabled=true";
    let whole = here.run(&format!("{template},serviceMonitor.caConfigMap=copy")).await?;
    ensure!(whole.matches(r#"{"configMap":{"key":"ca.crt","name":"copy"}}"#).count() == 2, "{whole}");
    // Whoever signs for the server, the webhooks' authority is ours.
    let whole = here.run(&format!("{template},tls.secretName=theirs")).await?;
    for secret in ["theirs", webhooks::SERVING] {
        ensure!(
            whole.contains(&format!(r#"ca: {{"secret":{{"key":"ca.crt","name":"{secret}"}}}}"#)),
            "{secret}: {whole}"
        );
    }
    ensure!(whole.contains("StillpointWebhooksDown"), "{whole}");
    let without = here.run(&format!("{template},webhooks.enabled=false")).await?;
    ensure!(without.contains("StillpointDown") && !without.contains("StillpointWebhooks"), "{without}");
    ensure!(without.matches("kind: ServiceMonitor").count() == 1, "{without}");

    let (_, rules) = rules.split_once("kind: PrometheusRule").context("no rules")?;
    let name = |c: char| c.is_ascii_lowercase() || c == '_';
    let named: BTreeSet<&str> = rules
        .split(|c| !name(c))
        .filter(|word| (word.starts_with("stillpoint_") || word.starts_with("apiserver_")) && !word.ends_with('_'))
        .collect();
    ensure!(named.len() >= 4, "{named:?}");
    for name in named {
        ensure!(metrics.lines().any(|line| line.starts_with(name)), "{name} in {metrics}");
    }
    for phase in ["Lost", "Expired", "Failed"] {
        let known: Result<api::Phase, _> = serde_json::from_value(phase.into());
        ensure!(rules.contains(phase) && known.is_ok(), "{phase}");
    }
    Ok(())
}

/// What nobody answers to must not be asked: kube-apiserver would wait for it at each snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_goes_on_without_webhooks_has_nobody_asked() {
    let mut here = Installation::begin().await.unwrap();
    here.documented("helm-install").await.unwrap();
    here.start_pod().await.unwrap();
    asked(&here).await.unwrap();
    let upgrade = format!("helm upgrade stillpoint deploy/chart --namespace {NAMESPACE}");
    here.run(&format!("{upgrade} --set webhooks.enabled=false")).await.unwrap();
    nobody_is_asked(&here).await.unwrap();
    here.start_pod().await.unwrap();
    let old = here.end_pod(0).await.unwrap();
    drop(old);
    let doctor = here.shell("kubectl still doctor").await.unwrap().stdout;
    assert!(doctor.contains("they are off: nobody is asked before a snapshot is cut"), "{doctor}");
    nobody_is_asked(&here).await.unwrap();

    here.run(&format!("{upgrade} --set webhooks.enabled=true")).await.unwrap();
    here.start_pod().await.unwrap();
    drop(here.end_pod(0).await.unwrap());
    asked(&here).await.unwrap();
}

/// What the leader has filled in of whom kube-apiserver asks before a cut; waits until it has.
pub(crate) async fn asked(here: &Installation) -> Result<Value> {
    until("kube-apiserver asks", SOON, || async {
        let configurations = here.object(&format!("get {CONFIGURATIONS} {}", webhooks::NAME)).await?;
        let entries = configurations["items"].as_array().into_iter().flatten();
        let entries = entries.flat_map(|configuration| configuration["webhooks"].as_array().into_iter().flatten());
        let entries: Vec<Value> = entries.cloned().collect();
        ensure!(entries.iter().any(|entry| entry["name"] == "validate.stillpoint.dev"), "{configurations}");
        Ok(entries.into())
    })
    .await
}

async fn nobody_is_asked(here: &Installation) -> Result<()> {
    let there =
        here.run(&format!("kubectl get {CONFIGURATIONS} {} --ignore-not-found -o name", webhooks::NAME)).await?;
    ensure!(there.is_empty(), "{there}");
    Ok(())
}

const CONFIGURATIONS: &str = "validatingwebhookconfigurations,mutatingwebhookconfigurations";

/// The negative control of both: a pod that has no time to drain ends what it holds, and that is seen.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_without_time_to_drain_ends_what_it_holds() {
    let mut here = Installation::begin().await.unwrap();
    here.documented("plain-install").await.unwrap();
    here.start_pod_with(|all| {
        all.into_iter().filter(|one| !one.starts_with("--drain")).chain(["--drain-seconds=0".to_owned()]).collect()
    })
    .await
    .unwrap();
    here.until_available().await.unwrap();
    let _server = shop(&here).await.unwrap();
    let held = here.verb("orders", "quiesce").await.unwrap();
    here.start_pod().await.unwrap();
    let old = here.end_pod(0).await.unwrap();
    let freeze = held["freeze"].as_str().unwrap();
    until("its freeze ends with it", SOON, || async {
        let phase = here.phase(freeze).await?;
        ensure!(phase != "Frozen", "{phase}");
        Ok(())
    })
    .await
    .unwrap();
    drop(old);
}

/// What is declared while a pod is going is still its to follow, and what is declared anew is somebody else's to begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_going_lets_go_of_a_freeze_that_is_deleted_and_spoils_no_new_one() {
    let mut here = Installation::begin().await.unwrap();
    here.documented("plain-install").await.unwrap();
    // One, so that it is the one that holds.
    here.start_pod().await.unwrap();
    here.until_available().await.unwrap();
    let server = shop(&here).await.unwrap();
    declare(&here, "first").await.unwrap();
    assert!(server.execute("postgres", WRITE).await.is_err(), "it holds");
    here.start_pod().await.unwrap();
    let _going = here.end_pod(0).await.unwrap();
    // Far sooner than the end of its lease, or of its time to drain.
    here.run("kubectl delete -n shop freezes.stillpoint.dev first --timeout=5s").await.unwrap();
    server.execute("postgres", WRITE).await.unwrap();
    declare(&here, "second").await.unwrap();
}

/// A kube-apiserver that dials ClusterIPs stays with the connection that it has, also to a pod that is going.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_is_going_and_still_asked_sends_what_is_new_to_another() {
    let mut here = Installation::begin().await.unwrap();
    here.documented("plain-install").await.unwrap();
    here.start_pod().await.unwrap();
    here.until_available().await.unwrap();
    let mut servers = vec![shop(&here).await.unwrap()];
    for name in ["billing", "stock"] {
        let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
        here.register(name, &server).await.unwrap();
        servers.push(server);
    }
    let held = here.verb("orders", "quiesce").await.unwrap();
    here.start_pod().await.unwrap();
    here.terminate(here.replicas[0].pid()).await.unwrap();
    for _ in 0..8 {
        for name in ["billing", "stock"] {
            let frozen = here.verb(name, "quiesce").await.unwrap();
            assert_eq!(frozen["phase"], "Frozen", "{frozen}");
            assert_eq!(here.verb(name, "unquiesce").await.unwrap()["phase"], "Thawed");
        }
    }
    assert_eq!(here.phase(held["freeze"].as_str().unwrap()).await.unwrap(), "Frozen", "it goes on meanwhile");
    assert_eq!(here.verb("orders", "unquiesce").await.unwrap()["proof"]["held"], true);
}

const WRITE: &str = "SET statement_timeout = 500; INSERT INTO t VALUES (1)";

/// A Freeze as an object, which holds.
async fn declare(here: &Installation, name: &str) -> Result<()> {
    let declared = json!({
        "apiVersion": api::API_VERSION, "kind": "Freeze", "metadata": {"name": name, "namespace": SHOP},
        "spec": {"targets": [{"database": "orders"}], "level": "WriteBlocked", "ttlSeconds": 15},
    });
    here.cluster.apply(&declared.to_string()).await?;
    let frozen = format!(
        "kubectl wait -n shop --for=jsonpath={{.status.phase}}=Frozen --timeout=30s freezes.stillpoint.dev {name}"
    );
    here.run(&frozen).await.map(drop)
}

/// Two pods, and the API is there.
async fn stands(here: &mut Installation) -> Result<()> {
    for _ in 0..2 {
        here.start_pod().await?;
    }
    here.until_available().await?;
    // Its own schema is in force, and nobody has to guess which priority level answers.
    for name in [SERVICE.to_owned(), format!("{SERVICE}-freezes")] {
        let flow = here.object(&format!("get flowschema {name}")).await?;
        let conditions = flow["status"]["conditions"].as_array().into_iter().flatten();
        let dangling = conditions.into_iter().find(|one| one["type"] == "Dangling");
        ensure!(dangling.is_none_or(|dangling| dangling["status"] == "False"), "{flow}");
    }
    Ok(())
}

/// A Database of a real server, whose Secrets may be read.
pub(crate) async fn shop(here: &Installation) -> Result<Server> {
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await?;
    server.execute("postgres", "CREATE TABLE t (n int)").await?;
    here.documented("enable").await?;
    here.register("orders", &server).await?;
    Ok(server)
}

/// The namespace admits restricted pods only; it admits these, and one that is a little less so it does not.
async fn pods_are_admitted(here: &Installation) -> Result<()> {
    for name in [SERVICE, webhooks::NAME] {
        let deployment = here.object(&format!("get deployment {name} -n {NAMESPACE}")).await?;
        let template = &deployment["spec"]["template"];
        let component = template["metadata"]["labels"]["app.kubernetes.io/component"].as_str().unwrap_or_default();
        let pods = format!("get pods -n {NAMESPACE} -l app.kubernetes.io/component={component}");
        until("the Deployment's pods are made", SOON, || async {
            let made = here.object(&pods).await?;
            ensure!(made["items"].as_array().is_some_and(|items| items.len() == 2), "{made}");
            Ok(())
        })
        .await?;
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe", "namespace": NAMESPACE},
            "spec": template["spec"],
        });
        here.cluster.apply(&pod.to_string()).await?;
        here.run(&format!("kubectl delete pod probe -n {NAMESPACE} --now")).await?;
        pod["spec"]["containers"][0]["securityContext"]["capabilities"] = Value::Null;
        let refused = here.cluster.apply(&pod.to_string()).await.unwrap_err().to_string();
        ensure!(refused.contains("PodSecurity") && refused.contains("restricted"), "{refused}");
    }
    Ok(())
}

/// What kube-apiserver trusts us by.
async fn trusted(here: &Installation) -> Result<Value> {
    let service = here.object(&format!("get apiservice {}", api::install::api_service())).await?;
    let bundle = service["spec"]["caBundle"].clone();
    ensure!(bundle.is_string(), "{service}");
    Ok(bundle)
}

/// Replaces every pod while a freeze is held, as a Deployment does: a new one is ready before an old one goes. The freeze is the
/// same afterwards, ends when it is told to, and is proved; and every old pod ends by itself.
async fn roll(here: &mut Installation, held: &Value) -> Result<()> {
    let freeze = held["freeze"].as_str().unwrap_or_default().to_owned();
    let mut going = Vec::new();
    for _ in 0..2 {
        here.start_pod().await?;
        going.push(here.end_pod(0).await?);
    }
    for _ in 0..4 {
        let live = here.object(&format!("get databases.live.stillpoint.dev orders -n {SHOP}")).await?;
        ensure!(live["status"]["freeze"] == held["freeze"] && live["status"]["state"] == "Frozen", "{live}");
    }
    ensure!(here.phase(&freeze).await? == "Frozen", "it is held by a pod that is going");
    let ended = here.verb("orders", "unquiesce").await?;
    ensure!(ended["phase"] == "Thawed" && ended["proof"]["held"] == true, "{ended}");
    for replica in &mut going {
        let mut ended = None;
        // Polled from within, as a child is its parent's.
        for _ in 0..300 {
            ended = replica.ended()?;
            if ended.is_some() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        ensure!(ended.is_some_and(|ended| ended.success()), "{ended:?}");
    }
    // Those that are left freeze.
    until("the new pods freeze", SOON, || here.verb("orders", "quiesce")).await?;
    here.verb("orders", "unquiesce").await?;
    Ok(())
}

/// A new release finds what is stored, whoever made its CRDs, and goes again.
async fn comes_back(here: &Installation, were_a_releases: bool) -> Result<()> {
    if were_a_releases {
        here.documented("helm-install").await?;
    } else {
        here.run("kubectl apply -f deploy/apiserver/namespace.yaml").await?;
        let install = "helm install stillpoint deploy/chart --namespace stillpoint";
        ensure!(here.shell(install).await?.code != 0, "CRDs that are no release's are not taken by the way");
        here.run(&format!("{install} --take-ownership")).await?;
    }
    here.run("kubectl get databases.stillpoint.dev orders -n shop").await?;
    here.documented("helm-uninstall").await
}

/// Where nobody answers, snapshots of namespaces that are `Required` are refused.
async fn asked_while_somebody_answers(here: &Installation) -> Result<()> {
    let there = async |what: &str| -> Result<bool> {
        let found = here.run(&format!("kubectl get {what} {} --ignore-not-found -o name", webhooks::NAME)).await?;
        Ok(!found.is_empty())
    };
    let asked = there(CONFIGURATIONS).await?;
    ensure!(!asked || there(&format!("deployment -n {NAMESPACE}")).await?, "nobody is there who is asked");
    Ok(())
}

/// By the documented lines, with a freeze held at the time.
async fn leave(here: &mut Installation, server: &Server, block: &str) -> Result<()> {
    declare(here, "held").await?;
    ensure!(server.execute("postgres", WRITE).await.is_err(), "it holds");
    let before = here.ours().await?;
    for kind in [
        "leases",
        "secrets",
        "clusterroles",
        "rolebindings",
        "apiservices",
        "freezes",
        "deployments",
        "validatingwebhook",
        "mutatingwebhook",
    ] {
        ensure!(before.iter().any(|object| object.starts_with(kind)), "the list would show {kind}: {before:?}");
    }

    ensure!(
        before.contains(&format!("secrets {NAMESPACE}/{}", webhooks::SERVING)),
        "the list would show it: {before:?}"
    );

    for line in block_of_readme(block)? {
        here.run(&line).await?;
        asked_while_somebody_answers(here).await.with_context(|| line)?;
    }
    // What a kubelet does for pods that are deleted.
    for at in (0..here.replicas.len()).rev() {
        drop(here.replicas.remove(at));
    }
    server.execute("postgres", WRITE).await?;
    let stored = here.object(&format!("get databases.stillpoint.dev -n {SHOP}")).await?;
    ensure!(
        stored["items"].as_array().is_some_and(|items| items.len() == 1),
        "what is stored is still there: {stored}"
    );
    comes_back(here, block == "helm-uninstall").await?;
    here.documented("remove-data").await?;
    here.run("kubectl delete namespace shop --timeout=60s").await?;
    until("nothing of ours is left", SOON, || async {
        let left = here.ours().await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await
}
