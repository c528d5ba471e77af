//! Dumps in a cluster: a Job in the Database's namespace takes them into a bucket, and brings them back into another Database; whoever
//! leads meanwhile.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, until};
use fixtures::{Engine, Load, S3, Session, compare};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::{
    gates::world::World,
    installed::{DEPLOYMENT, rolled_out, start},
};

/// A run is a Pod of two images, on a busy machine.
const LIMIT: Duration = Duration::from_secs(240);

/// The store as Pods reach it: on this host's address.
async fn reachable(cluster: &Cluster, store: &S3) -> Result<String> {
    let listener = TcpListener::bind((cluster.address(), 0)).await?;
    let (address, port) = (listener.local_addr()?, store.port);
    tokio::spawn(async move {
        while let Ok((mut pod, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut store = TcpStream::connect(("127.0.0.1", port)).await?;
                tokio::io::copy_bidirectional(&mut pod, &mut store).await
            });
        }
    });
    Ok(format!("http://{address}"))
}

async fn repository(world: &World<'_>, store: &S3, endpoint: &str) -> Result<()> {
    let account = json!({"access-key-id": store.access_key, "secret-access-key": store.secret_key});
    for (name, values) in [("bucket-account", account), ("nightly-key", json!({"password": "correct horse"}))] {
        world
            .apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}))
            .await?;
    }
    let bucket = json!({"name": "bucket", "s3": {
        "bucket": store.bucket, "prefix": "shop", "endpoint": endpoint, "region": S3::REGION,
        "credentials": {"secretRef": {"name": "bucket-account"}},
    }});
    let spec = json!({"locations": [bucket], "encryption": {"passwordSecretRef": {"name": "nightly-key"}}});
    world.apply(&object("Repository", "nightly", &spec)).await?;
    world
        .kubectl(&["wait", "--for=condition=Ready", "--timeout=120s", "repositories.stillpoint.dev/nightly"])
        .await
        .map(drop)
}

fn object(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": api::API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

/// Its status, when it is in this phase.
async fn reaches(world: &World<'_>, kind: &str, name: &str, phase: &str) -> Result<Value> {
    let reached = until(&format!("{kind} {name} is {phase}"), LIMIT, || async {
        let mut object = world.object(kind, name).await?;
        let status = object["status"].take();
        ensure!(status["phase"] == phase || status["phase"] == "Failed", "{status:#}");
        Ok(status)
    })
    .await;
    match reached {
        Ok(status) if status["phase"] == phase => Ok(status),
        Ok(status) => Err(anyhow::anyhow!("{status:#}")).context(world.logs().await?),
        Err(error) => {
            let pods = world.kubectl(&["describe", "pods", "-l", "app.kubernetes.io/component=runner"]).await?;
            Err(error.context(pods).context(world.logs().await?))
        }
    }
}

#[tokio::test]
async fn a_job_takes_a_dump_under_load_and_another_brings_it_back() {
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    let store = S3::plain().await.unwrap();
    let endpoint = reachable(&cluster, &store).await.unwrap();
    let login = world.database(Engine::PostgreSQL, "orders", json!({})).await.unwrap();
    let target = world.database(Engine::PostgreSQL, "fresh", json!({})).await.unwrap();
    repository(&world, &store, &endpoint).await.unwrap();
    Load::prepare_at(&login).await.unwrap();
    let mut session = Session::at(&login, "bank").await.unwrap();
    session.run("CREATE ROLE auditor LOGIN PASSWORD 'x'; GRANT SELECT ON ledger TO auditor").await.unwrap();

    let writers = Load::new(2).start_at(&login);
    writers.next_acknowledgement(Instant::now(), Duration::from_secs(30)).await.unwrap();
    let (wall, instant) = (SystemTime::now(), Instant::now());
    world
        .apply(&object("Snapshot", "first", &json!({"databases": ["orders"], "repository": "nightly"})))
        .await
        .unwrap();
    let status = reaches(&world, "snapshots.stillpoint.dev", "first", "Ready").await.unwrap();
    let acknowledged = writers.stop().await;
    assert_eq!(status["consistency"]["verdict"], "application", "{status:#}");
    let at = |field: &str| {
        let at: jiff::Timestamp = status["cutBetween"][field].as_str().unwrap().parse().unwrap();
        instant + SystemTime::from(at).duration_since(wall).unwrap_or_default()
    };
    let (frozen, thawed) = (at("frozenAt"), at("thawedAt"));
    // What took it is gone, and held no token and no Secret but by reference.
    assert_eq!(world.list("jobs").await.unwrap(), Vec::<Value>::new());

    world
        .apply(&object(
            "Restore",
            "back",
            &json!({"database": "fresh", "source": {"repository": "nightly", "latest": true, "database": "orders"}}),
        ))
        .await
        .unwrap();
    reaches(&world, "restores.stillpoint.dev", "back", "Complete").await.unwrap();
    let verdict = compare(&target, &acknowledged, frozen).await.unwrap();
    assert!(verdict.is_sound() && verdict.acknowledged > 0, "{verdict:?}");
    for one in acknowledged.iter().filter(|one| one.asked > thawed) {
        assert!(one.number > verdict.last[&one.writer], "a commit that began after the thaw is in the copy");
    }
    // The negative control.
    assert!(!compare(&target, &acknowledged, Instant::now()).await.unwrap().is_sound());
    let mut back = Session::at(&target, "bank").await.unwrap();
    assert_eq!(back.scalar("SELECT has_table_privilege('auditor', 'ledger', 'SELECT')::text").await.unwrap(), "true");

    // Whoever leads dies while a run waits for a lock; the run goes on, and is heard by whoever leads next.
    session.run("BEGIN; LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE").await.unwrap();
    world
        .apply(&object("Snapshot", "second", &json!({"databases": ["orders"], "repository": "nightly"})))
        .await
        .unwrap();
    let mut looking = Session::at(&login, "postgres").await.unwrap();
    until("pg_dump waits", LIMIT, || async {
        let waiting = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name LIKE 'stillpoint/dump%' AND wait_event_type = 'Lock'";
        let mut looking = Session::at(&login, "postgres").await?;
        ensure!(looking.scalar(waiting).await? == "1", "not yet");
        Ok(())
    })
    .await
    .unwrap();
    let processes = cluster.on_node("pidof", &["stillpoint-apiserver"]).await.unwrap();
    for process in processes.split_whitespace() {
        cluster.on_node("kill", &["-KILL", process]).await.unwrap();
    }
    rolled_out(&cluster, DEPLOYMENT).await.unwrap();
    assert_eq!(looking.scalar("SELECT count(*)::text FROM pg_stat_activity WHERE application_name LIKE 'stillpoint/dump%' AND wait_event_type = 'Lock'").await.unwrap(), "1");
    session.run("COMMIT").await.unwrap();
    let status = reaches(&world, "snapshots.stillpoint.dev", "second", "Ready").await.unwrap();
    assert_eq!(status["attempts"], 1, "{status:#}");

    // Deleted, what it stored goes with it.
    world.kubectl(&["delete", "snapshots.stillpoint.dev", "first", "second", "--timeout=120s"]).await.unwrap();
    let left = std::fs::read_dir(store.directory().join("shop/snapshots")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}
