//! What must go on, whatever becomes of the server.

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, future::BoxFuture};
use http::Request;
use serde_json::json;

use super::{
    outages, rolling,
    stage::{Stage, paused},
    table::{Case, case},
};
use crate::{
    doors::{Ask, Way, fill},
    wire::{Protocol, whole},
};

pub(super) fn cases() -> Vec<Case> {
    let gone = "it is about which replica kube-apiserver asks";
    vec![
        case(1, "the group's resources, while what is stored cannot be reached")
            .not_through("nothing goes through what is gone")
            .does_directly("200 within 5 s", outages::discovery_alone),
        case(5, "discovery and OpenAPI of two servers of one build").does("the same `ETag`", outages::same_etag),
        case(13, "a server that was told to stop")
            .not_through("kube-apiserver answers for its own health; it never asks for ours")
            .does_directly(
                "not ready at once, and serving until all have heard of it; then it ends well",
                outages::goes_down,
            ),
        case(93, "a replica is replaced, under 50 requests a second")
            .does_through("every one is answered 200, and the APIService is `Available` throughout", rolling::replaced)
            .not_directly(gone),
        case(94, "one of two replicas is killed")
            .does_through("within 10 s every request is answered by the other", rolling::killed)
            .not_directly(gone),
        case(96, "a Database is made; at once it is asked for at every replica")
            .does("a list that is not older has it", at_once),
        case(81, "300 requests at once over one connection").does("all are answered", many_at_once),
    ]
}

fn at_once(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let world = stage.world();
        let servers = if way == Way::Direct { world.servers() } else { vec![world.server(way)?; 10] };
        for (at, server) in servers.iter().enumerate() {
            let name = format!("new-{way:?}-{at}").to_lowercase();
            stage.space.apply(paused(&name, json!({}))).await?;
            let version = ["get", "databases.stillpoint.dev", &name, "-o", "jsonpath={.metadata.resourceVersion}"];
            let version = stage.space.kubectl(&version).await?;
            let ask = Ask::get(&format!("{{here}}?resourceVersion={version}&resourceVersionMatch=NotOlderThan"));
            let answer = world.send_to(server, way, stage.namespace(), &ask).await?;
            let list = answer.json();
            let found = list["items"].as_array().into_iter().flatten().any(|item| item["metadata"]["name"] == *name);
            ensure!(answer.code == 200 && found, "{}", answer.brief());
            stage.space.kubectl(&["delete", "databases.stillpoint.dev", &name]).await?;
        }
        Ok(())
    }
    .boxed()
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
