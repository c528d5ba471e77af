//! The Deployment: who the server is in a Pod, that its probes hold, and that it can be rolled.

use std::collections::BTreeSet;

use anyhow::ensure;
use cluster::{Cluster, until};
use serde_json::Value;

use crate::installed::{DEPLOYMENT, NAMESPACE, SOON, rolled_out, start};

const LIST: &[&str] = &["get", "databases.live.stillpoint.dev", "--all-namespaces"];

#[tokio::test]
async fn a_rolled_deployment_serves_with_new_pods_and_one_that_dies_is_started_again() {
    let cluster = start().await.unwrap();
    cluster.kubectl(LIST).await.unwrap().ok().unwrap();
    let before = pods(&cluster).await;
    assert_eq!(before.len(), 2);
    it_asks_as_its_service_account(&cluster);

    cluster.kubectl(&["rollout", "restart", DEPLOYMENT, "-n", NAMESPACE]).await.unwrap().ok().unwrap();
    rolled_out(&cluster, DEPLOYMENT).await.unwrap();
    until("the old Pods are gone, and the new ones serve", SOON, || async {
        let now = pods(&cluster).await;
        ensure!(now.len() == 2 && now.is_disjoint(&before), "{before:?} became {now:?}");
        cluster.kubectl(LIST).await?.ok().map(drop)
    })
    .await
    .unwrap();

    let Some(pod) = pods(&cluster).await.pop_first() else { panic!("there is no Pod") };
    // The first process of a container minds no signal from within that it has not asked for; from the node it does.
    let processes = cluster.on_node("pidof", &["stillpoint-apiserver"]).await.unwrap();
    for process in processes.split_whitespace() {
        cluster.on_node("kill", &["-KILL", process]).await.unwrap();
    }
    let restarts = ["get", "pod", &pod, "-n", NAMESPACE, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"];
    until("the kubelet starts it again", SOON, || async {
        let restarts = cluster.kubectl(&restarts).await?.ok()?;
        ensure!(restarts == "1", "{restarts} restarts");
        Ok(())
    })
    .await
    .unwrap();
    rolled_out(&cluster, DEPLOYMENT).await.unwrap();
    until("it serves again", SOON, || async { cluster.kubectl(LIST).await?.ok().map(drop) }).await.unwrap();
}

/// With its Pod's token: kube-apiserver knows of which Pod it is.
fn it_asks_as_its_service_account(cluster: &Cluster) {
    let user = format!("system:serviceaccount:{NAMESPACE}:stillpoint-apiserver");
    let events = cluster.audit_events().unwrap();
    let by_it: Vec<&Value> = events.iter().filter(|event| event["user"]["username"] == user.as_str()).collect();
    let of_pods: BTreeSet<&str> = by_it
        .iter()
        .filter_map(|event| event["user"]["extra"]["authentication.kubernetes.io/pod-name"][0].as_str())
        .collect();
    assert_eq!(of_pods.len(), 2, "{:?}", by_it.first());
    let refused = by_it.iter().find(|event| event["responseStatus"]["code"] == 403);
    assert!(refused.is_none(), "its rights do not suffice: {refused:?}");
}

async fn pods(cluster: &Cluster) -> BTreeSet<String> {
    let names = [
        "get",
        "pods",
        "-n",
        NAMESPACE,
        "-l",
        "app.kubernetes.io/component=apiserver",
        "-o",
        "jsonpath={.items[*].metadata.name}",
    ];
    let names = cluster.kubectl(&names).await.unwrap().ok().unwrap();
    names.split_whitespace().map(str::to_owned).collect()
}
