//! What must go on, whatever becomes of the server.

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, future::BoxFuture};
use http::Request;
use serde_json::json;

use super::{
    outages,
    stage::{Stage, paused},
    table::{Case, case},
};
use crate::{
    doors::{Way, fill},
    wire::{Protocol, whole},
};

pub(super) fn cases() -> Vec<Case> {
    let gone = "it is about kube-apiserver and its controllers";
    vec![
        case(1, "the group's resources, while what is stored cannot be reached")
            .not_through("nothing goes through what is gone")
            .does_directly("200 within 1 s", outages::discovery_alone),
        case(5, "discovery and OpenAPI of two servers of one build").does("the same `ETag`", outages::same_etag),
        case(13, "a server that was told to stop")
            .not_through("kube-apiserver answers for its own health; it never asks for ours")
            .does_directly("not ready at once, and serving until all have heard of it; then it ends well", outages::goes_down),
        case(65, "a namespace with 50 Databases is deleted").does_through("it is gone, and nothing was in the way", namespace).not_directly(gone),
        case(66, "a ResourceQuota, while the server is there").does_through("it counts and refuses", quota).not_directly(gone),
        case(66, "a ResourceQuota, while the server hangs").does_through("it counts and refuses", outages::hangs).not_directly(gone),
        case(81, "300 requests at once over one connection").does("all are answered", many_at_once),
        case(95, "the server is gone, and comes back").does_through(
            "`kubectl get pods` works; `kubectl api-resources` lists all others; a ResourceQuota counts and refuses; what is ours is found again",
            outages::is_gone,
        ).not_directly(gone),
    ]
}

fn namespace(stage: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let space = stage.world().space("doomed").await?;
        for at in 0..50 {
            space.apply(paused(&format!("database-{at}"), json!({}))).await?;
        }
        let delete = ["delete", "namespace", &space.name, "--timeout=60s"];
        stage.world().cluster.kubectl(&delete).await?.ok().map(drop)
    }
    .boxed()
}

fn quota(stage: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    outages::quota_is_kept(stage.world()).boxed()
}

fn many_at_once(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let server = stage.world().server(way)?;
        let path = fill("{here}/orders", stage.namespace());
        let connection = server.connect(None, Protocol::Http2).await?;
        let all = (0..300).map(|_| {
            let connection = connection.again();
            let request = Request::get(format!("https://{}{path}", server.address))
                .header("authorization", format!("Bearer {}", stage.backup))
                .body(whole(""));
            async move { connection?.send(request?).await }
        });
        let answers = futures::future::try_join_all(all).await?;
        let bad = answers.iter().find(|answer| answer.code != 200);
        ensure!(bad.is_none(), "{}", bad.context("none")?.brief());
        Ok(())
    }
    .boxed()
}
