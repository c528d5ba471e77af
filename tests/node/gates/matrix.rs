//! Whatever goes wrong around a cut: nothing is held longer than its lease, and the snapshot says what it is worth, and why.
//!
//! The database is held at WriteBlocked, so that it can be seen from outside: in each row commits are first held up, and
//! afterwards they are not.

mod admission;
mod deaths;
mod driver;
mod other;

use anyhow::{Context, Result, bail, ensure};
use cluster::Cluster;
use csi::{Control, Fault};
use fixtures::{Engine, Login};
use futures::future::BoxFuture;
use serde_json::{Value, json};

use super::world::{World, is_held, probed, until_writable};
use crate::installed::NAMESPACE;

const CREATE: &str = "CreateSnapshot";
/// The database of all rows, its Pod, its Service and its claim.
const SHOP: &str = "shop";

/// A cluster in which rows follow one another.
struct Matrix<'c> {
    world: World<'c>,
    driver: Control,
    shop: Login,
}

/// A snapshot that is being taken: its database is held, and commits are held up.
struct Held<'m> {
    matrix: &'m Matrix<'m>,
    snapshot: &'m str,
    /// The uid of its content.
    content: String,
}

/// What came of the rows, so that one that is not as it should be does not hide those after it.
#[derive(Default)]
struct Rows(Vec<String>);

impl Rows {
    async fn row(&mut self, matrix: &Matrix<'_>, name: &str, row: BoxFuture<'_, Result<()>>) {
        let row = async {
            row.await?;
            matrix.driver.clear().await?;
            until_writable(&matrix.shop).await
        };
        if let Err(error) = row.await {
            self.0.push(format!("{name}: {error:#}"));
            matrix.driver.clear().await.ok();
        }
    }

    fn all_are_right(self) {
        assert!(self.0.is_empty(), "{} rows are not right:\n{}", self.0.len(), self.0.join("\n\n"));
    }
}

impl<'c> Matrix<'c> {
    async fn prepare(cluster: &'c Cluster) -> Result<Self> {
        let world = World::prepare(cluster).await?;
        // Sessions in the way are part of some rows.
        let freeze = json!({"level": "WriteBlocked", "acquireTimeoutSeconds": 10});
        let shop = world.database(Engine::PostgreSQL, SHOP, freeze).await?;
        probed(&shop).await?;
        ensure!(!is_held(&shop).await?, "commits are held up before anything began");
        Ok(Self { driver: cluster.csi().await?, world, shop })
    }

    /// Takes a snapshot, and waits until commits are held up for it.
    async fn held<'m>(&'m self, snapshot: &'m str, fault: Fault) -> Result<Held<'m>> {
        self.driver.set(Fault { method: CREATE.to_owned(), ..fault }).await?;
        self.world.snapshot(snapshot, SHOP).await?;
        self.is_held(snapshot).await
    }

    async fn is_held<'m>(&'m self, snapshot: &'m str) -> Result<Held<'m>> {
        let content = self.world.until_held(snapshot).await?;
        if !is_held(&self.shop).await? {
            let (freezes, calls) = (self.world.freezes_of(&content).await?, self.driver.calls(CREATE).await?);
            bail!("{snapshot}: commits are not held up: whatever follows shows nothing: {freezes:?}; {calls:?}");
        }
        Ok(Held { matrix: self, snapshot, content })
    }

    /// The driver hangs until another fault, or none, is set.
    async fn hanging<'m>(&'m self, snapshot: &'m str) -> Result<Held<'m>> {
        self.held(snapshot, Fault { hang: true, ..Fault::default() }).await
    }

    /// What is said of a snapshot is this, with this reason, also to people; and commits are not held up.
    async fn is_worth(&self, snapshot: &str, consistency: &str, reason: &str) -> Result<Value> {
        let said = self.world.worth(snapshot, consistency).await?;
        ensure!(said["annotations"]["stillpoint.dev/reason"] == reason, "{snapshot}: not {reason}: {said}");
        let described = self.world.kubectl(&["describe", "volumesnapshot", snapshot]).await?;
        let events = described.split_once("Events:").context("no Events")?.1;
        ensure!(events.contains(reason), "{snapshot}: the Events do not say {reason}: {described}");
        until_writable(&self.shop).await.with_context(|| snapshot.to_owned())?;
        Ok(said)
    }

    /// The codes that the driver answered with since it was asked so often.
    async fn codes(&self, since: usize) -> Result<Vec<u32>> {
        Ok(self.driver.calls(CREATE).await?.into_iter().skip(since).map(|call| call.code).collect())
    }
}

impl Held<'_> {
    /// Waits until commits go on, though the driver has not answered yet; answers the Freeze.
    async fn is_let_go(&self) -> Result<Value> {
        let freeze = self.matrix.world.until_let_go(&self.content).await?;
        until_writable(&self.matrix.shop).await.with_context(|| self.snapshot.to_owned())?;
        Ok(freeze)
    }

    /// The same, before its lease had ended: somebody noticed.
    async fn is_let_go_early(&self) -> Result<()> {
        let freeze = self.is_let_go().await?;
        let at = |field: &str| freeze["status"][field].as_str().unwrap_or_default().parse::<jiff::Timestamp>();
        ensure!(at("thawedAt")? < at("expiresAt")?, "{}: held until its lease ended: {freeze}", self.snapshot);
        Ok(())
    }

    async fn is_worth(&self, consistency: &str, reason: &str) -> Result<Value> {
        self.matrix.driver.clear().await?;
        let said = self.matrix.is_worth(self.snapshot, consistency, reason).await?;
        self.matrix.world.until_let_go(&self.content).await?;
        Ok(said)
    }
}

/// The processes of a program in the node's Pods.
async fn processes(cluster: &Cluster, program: &str) -> Result<Vec<String>> {
    let found = cluster.on_node("pidof", &[program]).await?;
    Ok(found.split_whitespace().map(str::to_owned).collect())
}

async fn signal(cluster: &Cluster, program: &str, signal: &str) -> Result<()> {
    for process in processes(cluster, program).await? {
        cluster.on_node("kill", &[signal, &process]).await?;
    }
    Ok(())
}

/// As a machine that fails: no goodbye.
async fn kill_pod(cluster: &Cluster, name: &str) -> Result<()> {
    let kill = ["delete", "pod", name, "-n", NAMESPACE, "--grace-period=0", "--force"];
    cluster.kubectl(&kill).await?.ok().map(drop)
}
