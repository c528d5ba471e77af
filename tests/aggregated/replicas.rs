//! Two replicas behind one API: either answers, one freezes, and the death of one leaves nothing frozen.

use std::time::{Duration, Instant};

use fixtures::{Options, Server, ServerKind};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::world::{NAMESPACE, SOON, Space, World};

async fn servers(space: &Space<'_>) -> Vec<Server> {
    let mut servers = Vec::new();
    for (name, kind) in [("orders", ServerKind::POSTGRESQL_15), ("billing", ServerKind::MARIADB_10_11)] {
        let server = Server::start(kind, Options::default()).await.unwrap();
        space.register(name, &server).await.unwrap();
        servers.push(server);
    }
    servers
}

/// kube-apiserver sends each request to either.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_replica_answers_for_what_the_other_holds() {
    let space = World::get().await.space("replicas").await.unwrap();
    let _servers = servers(&space).await;
    let group = space.file("group", &json!({"spec": {"with": ["billing"], "ttlSeconds": 10}})).unwrap();
    for _ in 0..6 {
        let quiesce = space.verb("orders", "quiesce");
        let held = space.kubectl(&["create", "--raw", &quiesce, "-f", &group]).await.unwrap();
        let held: Value = serde_json::from_str(&held).unwrap();
        assert_eq!(held["status"]["phase"], "Frozen", "{held}");
        // Whoever is asked says the same, of each of them.
        for name in ["orders", "billing"] {
            for _ in 0..4 {
                let live = space.kubectl(&["get", "databases.live.stillpoint.dev", name, "-o", "json"]).await.unwrap();
                let live: Value = serde_json::from_str(&live).unwrap();
                assert_eq!(live["status"]["freeze"], held["status"]["freeze"], "{live}");
            }
        }
        let again = space.kubectl(&["create", "--raw", &quiesce, "-f", &group]).await.unwrap();
        let again: Value = serde_json::from_str(&again).unwrap();
        assert_eq!(again["status"]["frozenAt"], held["status"]["frozenAt"], "the same claim");
        // The claim was made at the other Database of the group: here there is none, and what holds is told.
        let none = space.run("billing", "unquiesce").await.unwrap();
        assert_eq!((&none["freeze"], &none["phase"]), (&held["status"]["freeze"], &json!("Frozen")), "{none}");
        let ended = space.run("orders", "unquiesce").await.unwrap();
        assert!(ended["phase"] == "Thawed", "{ended}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_is_killed_leaves_every_database_writable_and_every_freeze_finished() {
    let world = World::start().await.unwrap();
    let space = world.space("killed").await.unwrap();
    let servers = servers(&space).await;
    for server in &servers {
        let database = if server.kind.engine == fixtures::Engine::PostgreSQL { "postgres" } else { "" };
        server
            .execute(
                database,
                if database.is_empty() {
                    "CREATE DATABASE d; CREATE TABLE d.t (n int)"
                } else {
                    "CREATE TABLE t (n int)"
                },
            )
            .await
            .unwrap();
    }
    let blocked = space.file("blocked", &json!({"spec": {"level": "WriteBlocked", "ttlSeconds": 15}})).unwrap();
    let mut holders = Vec::new();
    for name in ["orders", "billing"] {
        let quiesce = space.verb(name, "quiesce");
        let held = space.kubectl(&["create", "--raw", &quiesce, "-f", &blocked]).await.unwrap();
        let held: Value = serde_json::from_str(&held).unwrap();
        let freeze = held["status"]["freeze"].as_str().unwrap().to_owned();
        let by = space.kubectl(&["get", "freeze", &freeze, "-o", "jsonpath={.status.freezer}"]).await.unwrap();
        holders.push((freeze, by));
        // One that is part of it, and has no freezer of its own.
        let joins = json!({
            "apiVersion": api::API_VERSION, "kind": "Freeze", "metadata": {"name": format!("joins-{name}")},
            "spec": {"targets": [{"database": name}], "level": "WriteBlocked", "ttlSeconds": 8},
        });
        space.apply(joins).await.unwrap();
        let joined = |object: &Value| {
            object["status"]["phase"] == "Frozen" && object["status"]["message"].to_string().contains("joined Freeze")
        };
        let object = ["get", "freeze", &format!("joins-{name}"), "-o", "json"];
        space.until_json("it joins", &object, joined).await.unwrap();
    }
    let victim = if holders[0].1.starts_with("one") { "one" } else { "two" };
    let killed = Instant::now();
    world.kill(victim).await.unwrap();
    let writable = servers.iter().map(|server| async {
        let (database, insert) = if server.kind.engine == fixtures::Engine::PostgreSQL {
            ("postgres", "INSERT INTO t VALUES (1)")
        } else {
            ("", "INSERT INTO d.t VALUES (1)")
        };
        server.execute(database, insert).await.unwrap();
        killed.elapsed()
    });
    // At the latest when the lease of what the other still holds ends.
    for waited in join_all(writable).await {
        assert!(waited < Duration::from_secs(17), "{waited:?}");
    }
    let joined = ["joins-orders", "joins-billing"].map(str::to_owned);
    for freeze in holders.iter().map(|(freeze, _)| freeze).chain(&joined) {
        let done = |object: &Value| {
            ["Lost", "Expired", "Thawed"].contains(&object["status"]["phase"].as_str().unwrap_or_default())
        };
        space.until_json("its Freeze is finished", &["get", "freeze", freeze, "-o", "json"], done).await.unwrap();
    }
    // What is left freezes them all.
    for name in ["orders", "billing"] {
        cluster::until("the other takes over", SOON, || async {
            let held = space.run(name, "quiesce").await?;
            anyhow::ensure!(held["phase"] == "Frozen", "{held}");
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(space.run(name, "unquiesce").await.unwrap()["phase"], "Thawed");
    }
}

/// Stopped while it holds, for longer than the others wait; then it goes on, and must know that nothing is its any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_stopped_and_goes_on_holds_nothing_and_freezes_again() {
    let world = World::start().await.unwrap();
    let space = world.space("stopped").await.unwrap();
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    server.execute("postgres", "CREATE TABLE t (n int)").await.unwrap();
    space.register("orders", &server).await.unwrap();
    let long = space.file("long", &json!({"spec": {"level": "Durable", "ttlSeconds": 60, "uid": "first"}})).unwrap();
    let held = space.kubectl(&["create", "--raw", &space.verb("orders", "quiesce"), "-f", &long]).await.unwrap();
    let held: Value = serde_json::from_str(&held).unwrap();
    let freeze = held["status"]["freeze"].as_str().unwrap().to_owned();
    let by = space.kubectl(&["get", "freeze", &freeze, "-o", "jsonpath={.status.freezer}"]).await.unwrap();
    let victim = if by.starts_with("one") { "one" } else { "two" };
    world.signal(victim, "-STOP").await.unwrap();
    let lost = |object: &Value| object["status"]["phase"] == "Lost";
    space.until_json("the other finishes it", &["get", "freeze", &freeze, "-o", "json"], lost).await.unwrap();
    cluster::until("the other freezes", SOON, || async {
        let held = space.run("orders", "quiesce").await?;
        anyhow::ensure!(held["phase"] == "Frozen", "{held}");
        Ok(())
    })
    .await
    .unwrap();
    world.signal(victim, "-CONT").await.unwrap();
    // Whichever is asked: one freeze, and it is the other's.
    for _ in 0..10 {
        let live = space.kubectl(&["get", "databases.live.stillpoint.dev", "orders", "-o", "json"]).await.unwrap();
        let live: Value = serde_json::from_str(&live).unwrap();
        assert_ne!(live["status"]["freeze"], freeze.as_str(), "{live}");
    }
    assert_eq!(space.run("orders", "unquiesce").await.unwrap()["phase"], "Thawed");
    let object: Value =
        serde_json::from_str(&space.kubectl(&["get", "freeze", &freeze, "-o", "json"]).await.unwrap()).unwrap();
    assert_eq!(object["status"]["phase"], "Lost", "a finished phase never changes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_lease_of_a_database_that_is_gone_is_removed_and_others_stay() {
    let space = World::get().await.space("swept").await.unwrap();
    let _servers = servers(&space).await;
    for name in ["orders", "billing"] {
        assert_eq!(space.run(name, "quiesce").await.unwrap()["phase"], "Frozen");
        assert_eq!(space.run(name, "unquiesce").await.unwrap()["phase"], "Thawed");
    }
    let leases = async || {
        let leases = ["--namespace", NAMESPACE, "get", "leases", "-o", "json"];
        let leases: Value = serde_json::from_str(&space.world.cluster.kubectl(&leases).await?.ok()?)?;
        let of = |lease: &Value| lease["metadata"]["annotations"]["stillpoint.dev/member"].as_str().map(str::to_owned);
        let all = leases["items"].as_array().into_iter().flatten().filter_map(of);
        let mut ours: Vec<String> = all.filter_map(|of| Some(of.strip_prefix(&space.name)?.to_owned())).collect();
        ours.sort();
        anyhow::Ok(ours)
    };
    assert_eq!(leases().await.unwrap(), ["/billing", "/orders"]);
    space.kubectl(&["delete", "databases.stillpoint.dev", "orders"]).await.unwrap();
    // Such Leases are looked for once a minute.
    cluster::until("its Lease is removed", Duration::from_secs(150), async || {
        let left = leases().await?;
        anyhow::ensure!(left == ["/billing"], "{left:?}");
        Ok(())
    })
    .await
    .unwrap();
}

/// It says of a declared Freeze that it begins it, and does not: its status was written, and what was to follow came to nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_freeze_that_its_replica_has_forgotten_is_begun_all_the_same() {
    let world = World::alone().await;
    let space = world.space("forgotten").await.unwrap();
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    space.register("orders", &server).await.unwrap();
    let held = space.run("orders", "quiesce").await.unwrap();
    let freeze = held["freeze"].as_str().unwrap().to_owned();
    let by = space.kubectl(&["get", "freeze", &freeze, "-o", "jsonpath={.status.freezer}"]).await.unwrap();
    assert_eq!(space.run("orders", "unquiesce").await.unwrap()["phase"], "Thawed");
    world.first(|replica| replica.signal("-STOP")).unwrap().unwrap();
    let declared = json!({
        "apiVersion": api::API_VERSION, "kind": "Freeze", "metadata": {"name": "forgotten"},
        "spec": {"targets": [{"database": "orders"}]},
    });
    // Whatever becomes of it, the replica goes on: others' tests need it.
    let applied = space.apply(declared).await;
    let status = json!({"status": {"phase": "Preparing", "freezer": by}}).to_string();
    let patch = ["patch", "freeze", "forgotten", "--subresource=status", "--type=merge", "--patch", &status];
    let patched = space.kubectl(&patch).await;
    world.back().await.unwrap();
    applied.unwrap();
    patched.unwrap();
    let frozen = |object: &Value| object["status"]["phase"] == "Frozen";
    space.until_json("it holds", &["get", "freeze", "forgotten", "-o", "json"], frozen).await.unwrap();
    space.kubectl(&["delete", "freeze", "forgotten", "--timeout=30s"]).await.unwrap();
}
