//! An unmodified kubectl, both ways: it needs no kube-apiserver to talk to us.

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{FutureExt, future::BoxFuture};
use serde_json::json;

use super::stage::Stage;
use crate::doors::Way;

pub(super) fn explain(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let version = format!("--api-version={}", api::LIVE_API_VERSION);
        let said = run(stage, way, &["explain", &version, "databases.status", "--recursive"]).await?;
        ensure!(said.contains("remainingMilliseconds") && said.contains("KIND:       LiveDatabase"), "{said}");
        let said = run(stage, way, &["explain", &version, "databases.status.claims"]).await?;
        ensure!(said.contains("DESCRIPTION:") && said.contains("FIELDS:"), "{said}");
        Ok(())
    }
    .boxed()
}

pub(super) fn resources(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let said = run(stage, way, &["api-resources", "--api-group", api::LIVE_GROUP, "-o", "wide"]).await?;
        let line = said.lines().find(|line| line.starts_with("databases")).context("no databases")?;
        let words: Vec<_> = line.split_whitespace().collect();
        ensure!(words[..5] == ["databases", "splive", api::LIVE_API_VERSION, "true", "LiveDatabase"], "{line}");
        Ok(())
    }
    .boxed()
}

pub(super) fn version(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let said = run(stage, way, &["version"]).await?;
        ensure!(said.contains("Server Version: v1."), "{said}");
        Ok(())
    }
    .boxed()
}

/// With columns for those who look closely, and in the short form.
pub(super) fn get(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let said = run(stage, way, &["get", "databases.live.stillpoint.dev", "-o", "wide"]).await?;
        let (head, rows) = said.split_once('\n').context("one line")?;
        ensure!(head.starts_with("NAME") && head.contains("STALLED"), "{said}");
        ensure!(rows.lines().any(|row| row.starts_with("orders") && row.contains("PostgreSQL")), "{said}");
        let said = run(stage, way, &["get", "splive", "orders"]).await?;
        ensure!(!said.contains("STALLED") && said.lines().count() == 2, "{said}");
        Ok(())
    }
    .boxed()
}

async fn run(stage: &Stage, way: Way, arguments: &[&str]) -> Result<String> {
    let kubeconfig = kubeconfig(stage, way)?;
    let mut all = vec!["--kubeconfig", &kubeconfig, "--namespace", stage.namespace()];
    all.extend(arguments);
    stage.world().cluster.kubectl(&all).await?.ok()
}

/// Service account `backup`'s.
fn kubeconfig(stage: &Stage, way: Way) -> Result<String> {
    let server = stage.world().server(way)?;
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {
            "server": format!("https://{}", server.address), "tls-server-name": server.name,
            "certificate-authority-data": STANDARD.encode(&server.authority),
        }}],
        "users": [{"name": "backup", "user": {"token": stage.backup}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "backup"}}],
    });
    let path = stage.world().cluster.root().join(format!("conformance-{way:?}.kubeconfig"));
    std::fs::write(&path, kubeconfig.to_string())?;
    Ok(path.display().to_string())
}
