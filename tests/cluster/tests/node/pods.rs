//! A database in a Pod, its snapshot, and one that is restored from it.

use anyhow::ensure;
use cluster::{Component, until};
use tokio::net::TcpStream;

use crate::world::{SOON, World, start};

#[tokio::test]
async fn a_database_on_a_volume_its_snapshot_and_one_that_is_restored_from_it() {
    let cluster = start().await.unwrap();
    let world = World(&cluster);
    let nodes = world.kubectl(&["get", "nodes", "--no-headers"]).await.unwrap();
    assert!(nodes.starts_with("node ") && nodes.contains(" Ready "), "{nodes}");

    world.claim("shop", None).await.unwrap();
    world.postgresql("shop").await.unwrap();
    world.psql("shop", "localhost", "CREATE TABLE orders AS SELECT generate_series(1, 1000) AS n").await.unwrap();
    world.snapshot("noon", "shop").await.unwrap();
    world.until_snapshot("noon", true).await.unwrap();
    // What comes after the cut is not in it.
    world.psql("shop", "localhost", "INSERT INTO orders VALUES (1001)").await.unwrap();

    world.claim("copy", Some("noon")).await.unwrap();
    world.postgresql("copy").await.unwrap();
    let sum = "SELECT count(*), max(n) FROM orders";
    assert_eq!(world.psql("copy", "localhost", sum).await.unwrap(), "1000|1000");
    assert_eq!(world.psql("shop", "localhost", sum).await.unwrap(), "1001|1001");

    services_lead_to_pods(&world).await;
    the_data_outlives_the_pod_and_the_kubelet(&world).await;
    what_is_deleted_is_gone(&world).await;
}

/// From another Pod, from the Pod itself, and from the host, as kube-apiserver dials webhooks.
async fn services_lead_to_pods(world: &World<'_>) {
    let address = ["get", "service", "shop", "-o", "jsonpath={.spec.clusterIP}"];
    let address = world.kubectl(&address).await.unwrap();
    for from in ["copy", "shop"] {
        assert_eq!(world.psql(from, &address, "SELECT max(n) FROM orders").await.unwrap(), "1001");
    }
    TcpStream::connect((address.as_str(), 5432)).await.unwrap();
}

async fn the_data_outlives_the_pod_and_the_kubelet(world: &World<'_>) {
    for component in [Component::Kubelet, Component::CsiDriver] {
        world.0.stop(component).unwrap();
    }
    assert_eq!(world.0.kubectl(&["exec", "shop", "--", "id"]).await.unwrap().code, 1, "no kubelet, no exec");
    for component in [Component::CsiDriver, Component::Kubelet] {
        world.0.start_again(component).await.unwrap();
    }
    world.kubectl(&["delete", "pod", "shop"]).await.unwrap();
    world.postgresql("shop").await.unwrap();
    assert_eq!(world.psql("shop", "localhost", "SELECT max(n) FROM orders").await.unwrap(), "1001");
}

async fn what_is_deleted_is_gone(world: &World<'_>) {
    assert_eq!(world.images("volumes").await.unwrap().len(), 2);
    assert_eq!(world.images("snapshots").await.unwrap().len(), 1);
    world.kubectl(&["delete", "pods", "--all"]).await.unwrap();
    world.kubectl(&["delete", "volumesnapshots", "--all"]).await.unwrap();
    world.kubectl(&["delete", "persistentvolumeclaims", "--all"]).await.unwrap();
    until("the driver holds nothing", SOON, || async {
        let left = [world.images("volumes").await?, world.images("snapshots").await?].concat();
        ensure!(left.is_empty(), "{left:?}");
        let left = world.kubectl(&["get", "persistentvolumes,volumesnapshotcontents", "-o", "name"]).await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await
    .unwrap();
}
