//! The cluster that the tests share, and what they do in it. Each test has a namespace of its own.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, Node, Options, image, until, workload};
use serde_json::Value;

pub(crate) const SOON: Duration = Duration::from_secs(90);
pub(crate) const WITH_STORAGE: Options =
    Options { aggregator_routing: true, fsync: false, node: Some(Node { storage: true }) };

/// A cluster with PostgreSQL's image.
pub(crate) async fn start() -> Result<Cluster> {
    let cluster = Cluster::start(WITH_STORAGE).await?;
    cluster.import_image(&image(&["postgresql", "18"]).await?).await?;
    Ok(cluster)
}

/// The default namespace of a cluster.
pub(crate) struct World<'c>(pub(crate) &'c Cluster);

impl World<'_> {
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.0.kubectl(arguments).await?.ok()
    }

    pub(crate) async fn claim(&self, name: &str, snapshot: Option<&str>) -> Result<()> {
        self.apply(&workload::claim(name, snapshot)).await
    }

    /// On the claim of the same name; waits until it answers.
    pub(crate) async fn postgresql(&self, name: &str) -> Result<()> {
        for object in workload::postgresql(name) {
            self.apply(&object).await?;
        }
        let pod = format!("pod/{name}");
        if let Err(error) = self.kubectl(&["wait", "--for=condition=Ready", "--timeout=90s", &pod]).await {
            let described = self.kubectl(&["describe", &pod]).await?;
            let log = self.0.kubectl(&["logs", &pod]).await?;
            return Err(error.context(format!("{described}{log:?}")));
        }
        Ok(())
    }

    pub(crate) async fn psql(&self, pod: &str, host: &str, statement: &str) -> Result<String> {
        let psql =
            ["psql", "--host", host, "--username=postgres", "--tuples-only", "--no-align", "--command", statement];
        let all: Vec<&str> = ["exec", pod, "--"].into_iter().chain(psql).collect();
        Ok(self.kubectl(&all).await?.trim().to_owned())
    }

    /// Asks for one; nobody waits.
    pub(crate) async fn snapshot(&self, name: &str, claim: &str) -> Result<()> {
        self.apply(&workload::snapshot(name, claim)).await
    }

    /// Waits until the cluster says of a snapshot whether it is ready, and that it is `ready`; its status.
    pub(crate) async fn until_snapshot(&self, name: &str, ready: bool) -> Result<Value> {
        until(&format!("{name} is ready to use: {ready}"), SOON, || async {
            let status = self.status(name).await?;
            ensure!(status["readyToUse"] == ready && !status["creationTime"].is_null(), "{status}");
            Ok(status)
        })
        .await
    }

    pub(crate) async fn status(&self, snapshot: &str) -> Result<Value> {
        let text = self.kubectl(&["get", "volumesnapshot", snapshot, "-o", "json"]).await?;
        Ok(serde_json::from_str::<Value>(&text)?["status"].take())
    }

    /// What the driver holds: the names of its snapshots, or of its volumes.
    pub(crate) async fn images(&self, kind: &str) -> Result<Vec<String>> {
        let folder = self.0.root().join("csi/pool").join(kind).display().to_string();
        let names = self.0.on_node("ls", &[&folder]).await?;
        Ok(names.lines().filter_map(|name| Some(name.strip_suffix(".img")?.to_owned())).collect())
    }

    async fn apply(&self, object: &Value) -> Result<()> {
        let what = || format!("{} {}", object["kind"], object["metadata"]["name"]);
        self.0.apply(&object.to_string()).await.map(drop).with_context(what)
    }
}
