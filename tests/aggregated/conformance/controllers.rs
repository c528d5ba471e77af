//! Garbage collection, namespaces and quota, by the real kube-controller-manager: while our server is there, killed, and
//! stopped. On the world of one test at a time, which is as it was in the end.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster::until;
use fixtures::{Options, Server, ServerKind};
use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::stage::{Stage, paused};
use super::table::{Case, case};
use crate::{
    doors::{Ask, Way, Who},
    replica::Replica,
    world::{APISERVICE, SOON, Space, World},
};

/// Everything goes on when our server has been back for this long.
const BACK: Duration = Duration::from_secs(10);
/// When kube-controller-manager tries again at the latest to delete a namespace that it could not (upstream
/// `pkg/controller/namespace/namespace_controller.go`): its pauses double, so about as late as our server was away.
const TRIED_AGAIN: Duration = Duration::from_secs(60);
/// kube-apiserver asks every 30 s whether it is there, and waits 5 s for the answer; then everything must know.
const NOTICED: Duration = Duration::from_secs(90);

/// A kind that is new is known to the garbage collector when it has looked twice, each 30 s.
const KNOWN: Duration = Duration::from_secs(75);

pub(super) const SAID: &str = include_str!("while_it_is_not_there.md");

pub(super) fn cases() -> Vec<Case> {
    let gone = "it is about kube-apiserver and its controllers";
    let line = |number, what, words, doing| case(number, what).does_through(words, doing).not_directly(gone);
    vec![
        line(
            64,
            "what a Database owns, when it is deleted",
            "it is collected; in the foreground, before its owner",
            collection,
        ),
        line(65, "a namespace with 50 Databases is deleted", "it is gone, and nothing was in the way", crowded),
        line(
            65,
            "a namespace is deleted while a freeze of its is held, and its Secret is gone already",
            "the database is let go, and the namespace is gone",
            held,
        ),
        line(66, "a ResourceQuota on Secrets, and one on Databases", "they count and refuse", quota),
        line(
            95,
            "the server is killed, and starts again",
            "while it is away: `kubectl get pods`, `kubectl api-resources` but for ours, the stored kinds, garbage collection \
             and ResourceQuota work. Within 10 s after it is back the APIService is `Available` and what is ours is found. A \
             namespace that is deleted now is gone within 30 s; those that were deleted meanwhile, also the one in which a \
             freeze was held, within 70 s, for kube-controller-manager tries again within 60 s",
            killed,
        ),
        line(95, "the server is stopped (`SIGSTOP`), and goes on", "the same", stopped),
    ]
}

fn collection(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async { collects(&*World::alone().await).await }.boxed()
}

fn crowded(stage: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let space = stage.world().space("crowded").await?;
        let namespace = |mut database: Value| {
            database["metadata"]["namespace"] = json!(space.name);
            database
        };
        let all: Vec<Value> = (0..50).map(|at| namespace(paused(&format!("database-{at}"), json!({})))).collect();
        stage.world().cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string()).await?;
        is_deleted(&space, Duration::from_secs(60)).await
    }
    .boxed()
}

fn held(stage: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let space = stage.world().space("held").await?;
        let _server = hold(&space).await?;
        is_deleted(&space, SOON).await
    }
    .boxed()
}

fn quota(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async { limits(&*World::alone().await).await }.boxed()
}

fn killed(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        without(&world, |world| world.first(Replica::kill)).await
    }
    .boxed()
}

fn stopped(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        without(&world, |world| world.first(|replica| replica.signal("-STOP"))?).await
    }
    .boxed()
}

/// Everything that must go on without it, and be made up for when it is back.
async fn without(world: &World, leave: impl FnOnce(&World) -> Result<()>) -> Result<()> {
    let (plain, holding) = (world.space("plain").await?, world.space("holding").await?);
    let server = hold(&holding).await?;
    ensure!(is_free(&server).await.is_err(), "the control: while it is held, that is seen");
    leave(world)?;
    let checked = goes_on(world, &[&plain, &holding]).await;
    let checked = checked.and(until("the database is free", SOON, || is_free(&server)).await);
    let back = Instant::now();
    world.back().await?;
    checked?;
    let left = |within: Duration| within.saturating_sub(back.elapsed());
    world.available(left(BACK)).await?;
    println!("back after {:?}: available", back.elapsed());
    let ask = Ask::get("{here}").by(Who::user("root", &["system:masters"]));
    until("what is ours is found", left(BACK), || async {
        let found = world.send(Way::Through, "default", &ask).await?;
        ensure!(found.code == 200, "{}", found.brief());
        Ok(())
    })
    .await?;
    is_deleted(&world.space("new").await?, SOON).await?;
    for space in [&plain, &holding] {
        let gone = space.is_gone(left(TRIED_AGAIN + BACK)).await;
        println!("back after {:?}: {} is gone: {}", back.elapsed(), space.name, gone.is_ok());
        gone.with_context(|| format!("{}: {}", space.name, world.log_end()))?;
    }
    Ok(())
}

async fn goes_on(world: &World, doomed: &[&Space<'_>]) -> Result<()> {
    let timeout = format!("--timeout={}s", NOTICED.as_secs());
    let unavailable = ["wait", "--for=condition=Available=false", &timeout, "apiservice", APISERVICE];
    world.cluster.kubectl(&unavailable).await?.ok().context("it is noticed that it is gone")?;
    for space in doomed {
        world.cluster.kubectl(&["delete", "namespace", &space.name, "--wait=false"]).await?.ok()?;
    }
    let asked = Instant::now();
    world.cluster.kubectl(&["get", "pods", "--all-namespaces"]).await?.ok()?;
    ensure!(asked.elapsed() < BACK, "`kubectl get pods` took {:?}", asked.elapsed());
    // A cache of its own: what another kubectl learned before must not help this one.
    let cache = tempfile::tempdir()?;
    let resources = ["api-resources", "--cache-dir", &cache.path().display().to_string()];
    let listed = world.cluster.kubectl(&resources).await?.stdout;
    ensure!(listed.contains("configmaps") && listed.contains(api::API_VERSION), "{listed}");
    collects(world).await?;
    limits(world).await?;
    // As upstream has it: no namespace goes while a group cannot be asked what it has in it.
    for space in doomed {
        until("the namespace waits", SOON, || async {
            let object = world.cluster.kubectl(&["get", "namespace", &space.name, "-o", "json"]).await?.ok()?;
            let object: Value = serde_json::from_str(&object)?;
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let waits = |one: &Value| one["type"] == "NamespaceDeletionDiscoveryFailure" && one["status"] == "True";
            ensure!(conditions.iter().any(waits), "{object}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// A Database with a declared Freeze that holds, and no Secret any more.
async fn hold(space: &Space<'_>) -> Result<Server> {
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await?;
    space.register("orders", &server).await?;
    let freeze = json!({
        "apiVersion": api::API_VERSION, "kind": "Freeze", "metadata": {"name": "nightly"},
        "spec": {"targets": [{"database": "orders"}], "ttlSeconds": 60},
    });
    space.apply(freeze).await?;
    space.kubectl(&["wait", "--for=jsonpath={.status.phase}=Frozen", "--timeout=30s", "freeze", "nightly"]).await?;
    space.kubectl(&["delete", "secret", "orders-account"]).await?;
    Ok(server)
}

/// Nobody of ours is connected any more.
async fn is_free(server: &Server) -> Result<()> {
    let ours = "SELECT FROM pg_stat_activity WHERE application_name LIKE 'stillpoint/%'";
    let sql = format!("DO $$ BEGIN IF EXISTS ({ours}) THEN RAISE 'it is held'; END IF; END $$");
    server.execute("postgres", &sql).await
}

async fn is_deleted(space: &Space<'_>, within: Duration) -> Result<()> {
    let began = Instant::now();
    space.world.cluster.kubectl(&["delete", "namespace", &space.name, "--wait=false"]).await?.ok()?;
    space.is_gone(within).await?;
    println!("{} was gone after {:?}", space.name, began.elapsed());
    Ok(())
}

/// The stored kinds can be written, and what they own goes with them; in the foreground it goes first.
async fn collects(world: &World) -> Result<()> {
    let space = world.space("collected").await?;
    for (name, cascade) in [("one", "background"), ("two", "foreground")] {
        space.apply(paused(name, json!({}))).await?;
        let uid = space.kubectl(&["get", "databases.stillpoint.dev", name, "-o", "jsonpath={.metadata.uid}"]).await?;
        let owner = json!({
            "apiVersion": api::API_VERSION, "kind": "Database", "name": name, "uid": uid, "blockOwnerDeletion": true,
        });
        let owned =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": [owner]}});
        space.apply(owned).await?;
        let cascade = format!("--cascade={cascade}");
        space.kubectl(&["delete", "databases.stillpoint.dev", name, &cascade, "--timeout=60s"]).await?;
        let left = || async {
            let left = space.kubectl(&["get", "configmap", name, "--ignore-not-found", "-o", "name"]).await?;
            ensure!(left.is_empty(), "{left} is left");
            Ok(())
        };
        if cascade.ends_with("foreground") { left().await? } else { until("it is collected", KNOWN, left).await? }
    }
    Ok(())
}

/// Quotas that their controller counts, and that refuse what exceeds them.
async fn limits(world: &World) -> Result<()> {
    let space = world.space("limited").await?;
    space.kubectl(&["create", "quota", "few", "--hard=count/secrets=1,count/databases.stillpoint.dev=1"]).await?;
    until("the quota is counted", SOON, || async {
        let used = space.kubectl(&["get", "quota", "few", "-o", "jsonpath={.status.used}"]).await?;
        ensure!(used.contains("count/secrets") && used.contains("count/databases.stillpoint.dev"), "{used}");
        Ok(())
    })
    .await?;
    space.kubectl(&["create", "secret", "generic", "one"]).await?;
    space.apply(paused("one", json!({}))).await?;
    let second = space.kubectl(&["create", "secret", "generic", "two"]).await.map_err(|error| error.to_string());
    ensure!(second.as_ref().is_err_and(|error| error.contains("exceeded quota")), "{second:?}");
    let second = space.apply(paused("two", json!({}))).await.map_err(|error| error.to_string());
    ensure!(second.as_ref().is_err_and(|error| error.contains("exceeded quota")), "{second:?}");
    Ok(())
}
