//! What is told of a server that has lost its kube-apiserver, of one that goes down, and of a cluster that has lost it: on the
//! world of one test at a time, which is as it was in the end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, Component, until};
use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::stage::Stage;
use crate::{
    doors::{Ask, Way, Who},
    keys,
    replica::Replica,
    world::{NAMESPACE, SERVICE, SOON, World},
};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
/// How long a server that was told to stop is still asked by those who have not heard of it.
const LINGERS: Duration = Duration::from_secs(3);
/// How soon such a server says that it is not ready: before it stops serving.
const UNREADY: Duration = LINGERS;
/// kube-apiserver takes us for gone after 5 s without an answer.
const ANSWERED: Duration = Duration::from_secs(5);

async fn direct(world: &World, ask: Ask) -> Result<crate::wire::Answer> {
    world.send(Way::Direct, "default", &ask).await
}

fn alice() -> Who {
    Who::user("alice", &["system:authenticated"])
}

pub(super) fn another_authority(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        let (authority, shown) = keys::stranger()?;
        let ask = || Ask::get("{group}").by(Who::Shown(shown.clone())).header("x-remote-user", "alice");
        let before = direct(&world, ask()).await?;
        ensure!(before.code == 401, "{}", before.brief());
        let map = ["--namespace", "kube-system", "configmap", "extension-apiserver-authentication"];
        let key = "requestheader-client-ca-file";
        let read = world.cluster.kubectl(&[&["get"], &map[..], &["-o", "json"]].concat()).await?.ok()?;
        let old = serde_json::from_str::<Value>(&read)?["data"][key].as_str().unwrap_or_default().to_owned();
        let patch = json!({"data": {key: format!("{old}{}", authority.certificate())}}).to_string();
        world.cluster.kubectl(&[&["patch"], &map[..], &["-p", &patch]].concat()).await?.ok()?;
        until("the new authority holds", SOON, || async {
            let answer = direct(&world, ask()).await?;
            ensure!(answer.code == 200, "{}", answer.brief());
            Ok(())
        })
        .await
    }
    .boxed()
}

pub(super) fn one_review(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        let token = world.cluster.kubectl(&["create", "token", "default"]).await?.ok()?;
        for (token, code) in [(token.trim(), 403), ("e30.e30.e30", 401)] {
            let before = reviews(&world.cluster)?;
            for _ in 0..20 {
                let answer = direct(&world, Ask::get("{here}/orders").by(Who::Token(token.to_owned()))).await?;
                ensure!(answer.code == code, "{}", answer.brief());
            }
            let asked = reviews(&world.cluster)? - before;
            ensure!(asked == 1, "a token of {code} was reviewed {asked} times");
        }
        Ok(())
    }
    .boxed()
}

fn reviews(cluster: &Cluster) -> Result<usize> {
    let ours = format!("system:serviceaccount:{NAMESPACE}:{SERVICE}");
    let of_ours =
        |event: &&Value| event["objectRef"]["resource"] == "tokenreviews" && event["user"]["username"] == ours.as_str();
    Ok(cluster.audit_events()?.iter().filter(of_ours).count())
}

pub(super) fn nobody_reviews(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        without_kube_apiserver(|world| {
            async move {
                let answer =
                    direct(world, Ask::get("{here}/orders").by(Who::Token("never.seen.before".to_owned()))).await?;
                ensure!(answer.code == 401, "{}", answer.brief());
                Ok(())
            }
            .boxed()
        })
        .await
    }
    .boxed()
}

pub(super) fn nobody_authorizes(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        without_kube_apiserver(|world| {
            async move {
                let answer = direct(world, Ask::get("{here}/orders").by(alice())).await?;
                ensure!(answer.code == 500 && answer.json()["reason"] == "InternalError", "{}", answer.brief());
                Ok(())
            }
            .boxed()
        })
        .await
    }
    .boxed()
}

/// The check of availability must not fail with what is stored.
pub(super) fn discovery_alone(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        without_kube_apiserver(|world| {
            async move {
                let who = Who::user("system:kube-aggregator", &["system:masters"]);
                let answer = direct(world, Ask::get("{group}").by(who)).await?;
                ensure!(answer.code == 200 && answer.took < ANSWERED, "{}", answer.brief());
                Ok(())
            }
            .boxed()
        })
        .await
    }
    .boxed()
}

async fn without_kube_apiserver(check: impl for<'a> FnOnce(&'a World) -> BoxFuture<'a, Result<()>>) -> Result<()> {
    let world = World::alone().await;
    world.cluster.stop(Component::Apiserver)?;
    let checked = check(&world).await;
    world.cluster.start_again(Component::Apiserver).await?;
    let again = world.available(SOON).await;
    checked.and(again)
}

pub(super) fn same_etag(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let other = World::alone().await;
        for (path, accept) in [("/apis", AGGREGATED), ("/openapi/v2", "application/json")] {
            let ask = Ask::get(path).accept(accept);
            let one = stage.send(way, &ask).await?;
            let two = other.send(way, "default", &ask).await?;
            ensure!(!one.header("etag").is_empty() && one.header("etag") == two.header("etag"), "{path}");
        }
        Ok(())
    }
    .boxed()
}

pub(super) fn goes_down(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        world.first(|replica| replica.signal("-TERM"))??;
        let told = Instant::now();
        let unready = |world: &World| {
            let server = world.server(Way::Direct);
            async move { server?.get("/readyz").await }
        };
        until("it is not ready", UNREADY, || async {
            let answer = unready(&world).await?;
            ensure!(answer.code == 500 && answer.brief().contains("[-]shutdown failed"), "{}", answer.brief());
            Ok(())
        })
        .await?;
        while told.elapsed() < LINGERS {
            let who = Who::user("system:kube-aggregator", &["system:masters"]);
            let answer = direct(&world, Ask::get("{group}").by(who)).await.context("it serves no longer")?;
            ensure!(answer.code == 200, "{}", answer.brief());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let ended = async {
            loop {
                if let Some(status) = world.first(Replica::ended)?? {
                    return Ok::<_, anyhow::Error>(status);
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let status = tokio::time::timeout(SOON, ended).await.context("it does not end")??;
        let leases = world.cluster.kubectl(&["--namespace", NAMESPACE, "get", "leases", "-o", "name"]).await?.ok()?;
        world.start_again().await?;
        ensure!(!leases.contains("/replica-"), "the others would wait for it: {leases}");
        ensure!(status.success(), "{status}");
        Ok(())
    }
    .boxed()
}
