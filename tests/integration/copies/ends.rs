//! A run that is told to end does, whatever it waits for, and leaves nothing: no session, no lock, no copy.

use std::time::{Duration, Instant};

use fixtures::{Login, Options, Server, ServerKind, Session};
use serde_json::json;
use tokio::time::sleep;

use super::world::{LIMIT, REPOSITORY, World};

/// As `pg_dump` itself says: how long it waits for a lock before it gives up by itself.
const GIVES_UP: Duration = Duration::from_secs(60);
const WAITING: &str = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name LIKE 'stillpoint/dump%' AND wait_event_type = 'Lock'";
const SESSIONS: &str =
    "SELECT count(*)::text FROM pg_stat_activity WHERE application_name LIKE 'stillpoint/%' AND datname = 'bank'";

async fn until(session: &mut Session, sql: &str, wanted: &str, limit: Duration) -> Duration {
    let begun = Instant::now();
    loop {
        let seen = session.scalar(sql).await.unwrap();
        if seen == wanted {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < limit, "{sql}: {seen}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_while_pg_dump_waits_for_a_lock() {
    let kind = ServerKind::POSTGRESQL_15;
    let world = World::with_programs_of(&[kind]).await;
    let server = Server::start(kind, Options::default()).await.unwrap();
    server.execute("postgres", "CREATE DATABASE bank").await.unwrap();
    server.execute("bank", "CREATE TABLE ledger (id int)").await.unwrap();
    let directory = world.repository(&["disk"]).await.remove(0);
    world.register("orders", &server).await;
    let login = Login::of(&server);
    let mut migration = Session::at(&login, "bank").await.unwrap();
    migration.run("BEGIN; ALTER TABLE ledger ADD COLUMN amount int").await.unwrap();

    let mut looking = Session::at(&login, "postgres").await.unwrap();
    world.make("snapshots", "first", json!({"databases": ["orders"], "repository": REPOSITORY})).await;
    until(&mut looking, WAITING, "1", LIMIT).await;
    world.stillpoint.delete("/apis/stillpoint.dev/v1alpha1/namespaces/default/snapshots/first").await.unwrap();
    let took = until(&mut looking, SESSIONS, "0", GIVES_UP).await;
    assert!(took < GIVES_UP / 2, "it ended by itself: {took:?}");
    // Gone, with its run's lock, and the migration is in nobody's way.
    let end = Instant::now() + LIMIT;
    while world.stillpoint.get("/apis/stillpoint.dev/v1alpha1/namespaces/default/snapshots/first").await.is_ok() {
        assert!(Instant::now() < end, "it is not gone: {}", world.stillpoint.log().unwrap());
        sleep(Duration::from_millis(50)).await;
    }
    let locks: Vec<_> = std::fs::read_dir(directory.join("locks")).unwrap().flatten().map(|at| at.path()).collect();
    assert!(locks.is_empty(), "{locks:?}");
    migration.run("COMMIT").await.unwrap();
    // The control: with nothing in its way the same is stored.
    world.snapshot("second", &["orders"]).await;
}
