//! What must go on, whatever becomes of the server.

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, future::BoxFuture};
use http::Request;

use super::{
    outages,
    stage::Stage,
    table::{Case, case},
};
use crate::{
    doors::{Way, fill},
    wire::{Protocol, whole},
};

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(1, "the group's resources, while what is stored cannot be reached")
            .not_through("nothing goes through what is gone")
            .does_directly("200 within 1 s", outages::discovery_alone),
        case(5, "discovery and OpenAPI of two servers of one build").does("the same `ETag`", outages::same_etag),
        case(13, "a server that was told to stop")
            .not_through("kube-apiserver answers for its own health; it never asks for ours")
            .does_directly(
                "not ready at once, and serving until all have heard of it; then it ends well",
                outages::goes_down,
            ),
        case(81, "300 requests at once over one connection").does("all are answered", many_at_once),
    ]
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
