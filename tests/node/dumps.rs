//! Dumps in a cluster: a Job in the Database's namespace takes them into a bucket, and brings them back into another Database; whoever
//! leads meanwhile.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster::{Cluster, image, until};
use fixtures::{Engine, Load, S3, Session, compare};
use serde_json::{Value, json};
use tests::cuts::instant;
use tokio::net::{TcpListener, TcpStream};

use crate::{
    copies::{KINDS, Kind},
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
    cluster.import_image(&image(&["postgresql", "15"]).await.unwrap()).await.unwrap();
    let store = S3::plain().await.unwrap();
    let endpoint = reachable(&cluster, &store).await.unwrap();
    repository(&world, &store, &endpoint).await.unwrap();
    for kind in &KINDS {
        round_trip(&world, kind).await;
    }
    a_tool_runs_beside_the_database(&cluster, &world).await;
    whoever_leads_next_hears_it(&cluster, &world).await;

    // Deleted, what they stored goes with them.
    let all = ["snapshots.stillpoint.dev", "--all", "--timeout=120s"];
    world.kubectl(&[&["delete"], all.as_slice()].concat()).await.unwrap();
    let left = std::fs::read_dir(store.directory().join("shop/snapshots")).map_or(0, Iterator::count);
    assert_eq!(left, 0);
}

/// Into another server of the same version, by its own programs.
async fn round_trip(world: &World<'_>, kind: &Kind) {
    let (name, fresh) = (kind.name, format!("{}-fresh", kind.name));
    let login = kind.database(world, name).await.unwrap();
    let target = kind.database(world, &fresh).await.unwrap();
    Load::prepare_at(&login).await.unwrap();
    let extra = match kind.engine {
        Engine::PostgreSQL => "CREATE ROLE auditor LOGIN PASSWORD 'x'; GRANT SELECT ON ledger TO auditor",
        Engine::MariaDB => {
            "CREATE USER auditor@localhost IDENTIFIED BY 'x'; GRANT SELECT ON bank.ledger TO auditor@localhost"
        }
    };
    Session::at(&login, "bank").await.unwrap().run(extra).await.unwrap();

    let writers = Load::new(2).start_at(&login);
    writers.next_acknowledgement(Instant::now(), Duration::from_secs(30)).await.unwrap();
    let spec = json!({"databases": [name], "repository": "nightly"});
    world.apply(&object("Snapshot", name, &spec)).await.unwrap();
    let status = reaches(world, "snapshots.stillpoint.dev", name, "Ready").await.unwrap();
    let cut = &status["cutBetween"];
    let (frozen, thawed) = (instant(&cut["frozenAt"]).unwrap(), instant(&cut["thawedAt"]).unwrap());
    writers.next_acknowledgement(thawed, Duration::from_secs(30)).await.unwrap();
    let acknowledged = writers.stop().await;
    assert_eq!(status["consistency"]["verdict"], "application", "{status:#}");
    // What took it is gone.
    until("no Job is left", LIMIT, || async {
        let jobs = world.list("jobs").await?;
        ensure!(jobs.is_empty(), "{jobs:?}");
        Ok(())
    })
    .await
    .unwrap();

    let source = json!({"repository": "nightly", "latest": true, "database": name});
    world.apply(&object("Restore", name, &json!({"database": fresh, "source": source}))).await.unwrap();
    reaches(world, "restores.stillpoint.dev", name, "Complete").await.unwrap();
    let verdict = compare(&target, &acknowledged, frozen).await.unwrap();
    assert!(verdict.is_sound() && verdict.acknowledged > 0, "{verdict:?}");
    for one in acknowledged.iter().filter(|one| one.asked > thawed) {
        assert!(one.number > verdict.last[&one.writer], "a commit that began after the thaw is in the copy");
    }
    // The negative control.
    assert!(!compare(&target, &acknowledged, Instant::now()).await.unwrap().is_sound());
    let (may, yes) = match kind.engine {
        Engine::PostgreSQL => ("SELECT has_table_privilege('auditor', 'ledger', 'SELECT')::text", "true"),
        Engine::MariaDB => (
            "SELECT CAST(COUNT(*) AS CHAR) FROM mysql.tables_priv WHERE User = 'auditor' AND Table_name = 'ledger'",
            "1",
        ),
    };
    assert_eq!(Session::at(&target, "bank").await.unwrap().scalar(may).await.unwrap(), yes);
}

/// In the image of its Pod; and what ends with an error is no copy.
async fn a_tool_runs_beside_the_database(cluster: &Cluster, world: &World<'_>) {
    let program = ["pg_dumpall", "--host=$(HOST)", "--port=$(PORT)", "--username=$(USERNAME)", "--no-password"];
    let wrong = [&program[..], &["--no-such-option"]].concat();
    for (name, command, phase) in [("all", program.to_vec(), "Ready"), ("broken", wrong, "Pending")] {
        let tool = object("DumpTool", name, &json!({"dump": {"command": command, "file": "all.sql"}}));
        cluster.apply(&tool.to_string()).await.unwrap();
        let spec = json!({"databases": ["shop"], "repository": "nightly", "tool": {"name": name}});
        world.apply(&object("Snapshot", name, &spec)).await.unwrap();
        let status = until(&format!("Snapshot {name} is {phase} after a run"), LIMIT, || async {
            let mut object = world.object("snapshots.stillpoint.dev", name).await?;
            let status = object["status"].take();
            ensure!(status["phase"] == phase && status["attempts"].as_u64() >= Some(1), "{status:#}");
            Ok(status)
        })
        .await
        .unwrap();
        assert_eq!(status["contents"][0]["dumpTool"]["name"] == "all", phase == "Ready", "{status:#}");
        assert_eq!(status["id"].is_string(), phase == "Ready", "{status:#}");
    }
}

/// Whoever leads dies while a run waits for a lock; the run goes on, and is heard by whoever leads next.
async fn whoever_leads_next_hears_it(cluster: &Cluster, world: &World<'_>) {
    let login = world.login(Engine::PostgreSQL, "shop").await.unwrap();
    let mut session = Session::at(&login, "bank").await.unwrap();
    session.run("BEGIN; LOCK TABLE ledger IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let spec = json!({"databases": ["shop"], "repository": "nightly"});
    world.apply(&object("Snapshot", "second", &spec)).await.unwrap();
    let waiting = async || {
        let mut looking = Session::at(&login, "postgres").await?;
        looking.scalar(WAITING).await
    };
    until("pg_dump waits", LIMIT, || async {
        ensure!(waiting().await? == "1", "not yet");
        Ok(())
    })
    .await
    .unwrap();
    let processes = cluster.on_node("pidof", &["stillpoint-apiserver"]).await.unwrap();
    for process in processes.split_whitespace() {
        cluster.on_node("kill", &["-KILL", process]).await.unwrap();
    }
    rolled_out(cluster, DEPLOYMENT).await.unwrap();
    assert_eq!(waiting().await.unwrap(), "1");
    session.run("COMMIT").await.unwrap();
    let status = reaches(world, "snapshots.stillpoint.dev", "second", "Ready").await.unwrap();
    assert_eq!(status["attempts"], 1, "{status:#}");
}

/// Runs of dumps that wait for somebody's lock.
const WAITING: &str = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name LIKE 'stillpoint/dump%' AND wait_event_type = 'Lock'";
