//! Rows in which somebody dies or goes while a database is held: a replica of ours, its namespace, the Pod that it was.

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, until, workload};
use csi::Fault;
use fixtures::Engine;
use futures::FutureExt;
use serde_json::{Value, json};

use super::{
    super::world::{World, is_held, probed, until_writable},
    CREATE, Matrix, Rows, SHOP, kill_pod,
};
use crate::installed::{DEPLOYMENT, NAMESPACE, SOON, rolled_out, start};

#[tokio::test]
async fn whoever_dies_while_a_database_is_held() {
    let cluster = start().await.unwrap();
    let matrix = Matrix::prepare(&cluster).await.unwrap();
    let (m, mut rows) = (&matrix, Rows::default());
    rows.row(m, "shared", shared(m).boxed()).await;
    rows.row(m, "failed over", failed_over(m).boxed()).await;
    rows.row(m, "namespace deleted", namespace_deleted(m).boxed()).await;
    rows.row(m, "leader dies", leader_dies(m).boxed()).await;
    rows.row(m, "holder dies", holder_dies(m).boxed()).await;
    rows.all_are_right();
}

/// Two databases on one claim are both held for a cut of it.
async fn shared(matrix: &Matrix<'_>) -> Result<()> {
    let world = &matrix.world;
    let [mut pod, service] = workload::mariadb("guest");
    pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"] = SHOP.into();
    world.run("guest", [pod, service]).await?;
    let guest = world.register("guest", "guest", Engine::MariaDB, json!({"level": "WriteBlocked"})).await?;
    probed(&guest).await?;
    let held = matrix.held("shared", Fault { delay_ms: 5000, ..Fault::default() }).await?;
    ensure!(is_held(&guest).await?, "the guest's commits are not held up");
    let said = held.is_worth("application", "Proved").await?;
    let positions: Value =
        serde_json::from_str(said["annotations"]["stillpoint.dev/position"].as_str().unwrap_or_default())?;
    ensure!(positions[SHOP].is_object() && positions["guest"].is_object(), "{positions}");
    until_writable(&guest).await?;
    world.kubectl(&["delete", "databases.stillpoint.dev", "guest"]).await?;
    world.kubectl(&["delete", "--now", "pod,service", "guest"]).await.map(drop)
}

/// The Service leads to another server now: what was cut is not what clients write to.
async fn failed_over(matrix: &Matrix<'_>) -> Result<()> {
    let world = &matrix.world;
    world.apply(&workload::claim("standby", None)).await?;
    world.run("standby", workload::postgresql("standby")).await?;
    let held = matrix.hanging("failed-over").await?;
    let to = |app: &str| json!({"spec": {"selector": {"app": app}}}).to_string();
    world.kubectl(&["patch", "service", SHOP, "--patch", &to("standby")]).await?;
    until("the Service leads to the other", SOON, || async {
        let slices = world.list("endpointslices").await?;
        let leads = |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == SHOP;
        let target =
            slices.iter().find(leads).context("no EndpointSlice")?["endpoints"][0]["targetRef"]["name"].clone();
        ensure!(target == "standby", "{target}");
        Ok(())
    })
    .await?;
    matrix.driver.clear().await?;
    let said = world.judged("volumesnapshot", "failed-over").await;
    world.kubectl(&["patch", "service", SHOP, "--patch", &to(SHOP)]).await?;
    held.is_let_go().await?;
    world.remove("standby").await?;
    let ready = ["wait", "--for=condition=Ready", "--timeout=90s", "databases.stillpoint.dev", SHOP];
    world.kubectl(&ready).await?;
    let said = said?;
    // Whether the proof still reached the old server.
    let worth = [&said["labels"][api::gate::CONSISTENCY], &said["annotations"][api::gate::REASON]];
    ensure!(
        [["crash", "NotProved"], ["unknown", "PodGone"]].contains(&worth.map(|text| text.as_str().unwrap_or_default())),
        "{said}"
    );
    Ok(())
}

/// Its namespace is deleted, with the snapshot, the Database and the server.
async fn namespace_deleted(matrix: &Matrix<'_>) -> Result<()> {
    let cluster = matrix.world.cluster;
    cluster.kubectl(&["create", "namespace", "gone"]).await?.ok()?;
    let world = World::of(cluster, "gone").await?;
    let login = world.database(Engine::PostgreSQL, "shop", json!({"level": "WriteBlocked"})).await?;
    probed(&login).await?;
    matrix.driver.set(Fault { method: CREATE.to_owned(), hang: true, ..Fault::default() }).await?;
    world.snapshot("noon", "shop").await?;
    world.until_held("noon").await?;
    ensure!(is_held(&login).await?, "commits are not held up");
    cluster.kubectl(&["delete", "namespace", "gone", "--wait=false"]).await?.ok()?;
    // The server may go before its freeze: then nobody is held up either.
    until("nobody is held up", SOON, || async {
        let held = is_held(&login).await;
        ensure!(!held.as_ref().is_ok_and(|held| *held), "{held:?}");
        Ok(())
    })
    .await?;
    matrix.driver.clear().await?;
    cluster.kubectl(&["wait", "--for=delete", "namespace/gone", "--timeout=120s"]).await?.ok()?;
    // And who did it holds on.
    let held = matrix.held("after-the-namespace", Fault { delay_ms: 3000, ..Fault::default() }).await?;
    held.is_worth("application", "Proved").await.map(drop)
}

/// Another executes the freeze: the leader's death is none of its business. Who executes one is whoever is asked first, so it is
/// tried until it is another; the server that was the leader's is then somebody else's, if the leader is killed.
async fn leader_dies(matrix: &Matrix<'_>) -> Result<()> {
    let cluster = matrix.world.cluster;
    cluster.kubectl(&["scale", DEPLOYMENT, "-n", NAMESPACE, "--replicas=3"]).await?.ok()?;
    rolled_out(cluster, DEPLOYMENT).await?;
    for attempt in 0..8 {
        let name = format!("leaderless-{attempt}");
        let held = matrix.hanging(&name).await?;
        let (holder, leader) = (holder(matrix, &held.content).await?, leader(cluster).await?);
        kill_pod(cluster, &leader).await?;
        if holder != leader {
            held.is_worth("application", "Proved").await?;
            return rolled_out(cluster, DEPLOYMENT).await;
        }
        held.is_let_go().await?;
        held.is_worth("crash", "FreezeEnded").await?;
        rolled_out(cluster, DEPLOYMENT).await?;
    }
    anyhow::bail!("the leader held every time")
}

/// Its sessions die with it, and with them the hold.
async fn holder_dies(matrix: &Matrix<'_>) -> Result<()> {
    let cluster = matrix.world.cluster;
    let held = matrix.hanging("orphaned").await?;
    kill_pod(cluster, &holder(matrix, &held.content).await?).await?;
    held.is_let_go().await?;
    held.is_worth("crash", "FreezeEnded").await?;
    rolled_out(cluster, DEPLOYMENT).await
}

/// The Pod of the replica that executes a freeze.
async fn holder(matrix: &Matrix<'_>, content: &str) -> Result<String> {
    let freeze = matrix.world.freeze_of(content).await?;
    pod_of(freeze["status"]["freezer"].as_str().context("nobody executes it")?)
}

async fn leader(cluster: &Cluster) -> Result<String> {
    let leases = ["get", "leases", "-n", NAMESPACE, "-l", api::install::LEASE, "-o", "json"];
    let leases: Value = serde_json::from_str(&cluster.kubectl(&leases).await?.ok()?)?;
    let leads = |lease: &&Value| {
        lease["metadata"]["annotations"]["stillpoint.dev/member"]
            .as_str()
            .is_some_and(|member| member.ends_with("/leader"))
    };
    let lease = leases["items"].as_array().into_iter().flatten().find(leads).with_context(|| leases.to_string())?;
    pod_of(lease["spec"]["holderIdentity"].as_str().context("nobody leads")?)
}

/// A replica's identity is its Pod's name and a number of its own.
fn pod_of(identity: &str) -> Result<String> {
    Ok(identity.rsplit_once('-').with_context(|| identity.to_owned())?.0.to_owned())
}
