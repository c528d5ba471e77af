//! What others do while a restore goes on: nothing of theirs is replaced that nobody has given away, and no two restores meet.

use std::time::Instant;

use fixtures::{Login, Options, Server, ServerKind, Session};
use serde_json::{Value, json};
use tokio::time::{Duration, sleep};

use super::world::{LIMIT, World};

/// A copy, `first`, of databases `aaa` and `shop`, and a server to restore it into, by the name `fresh`.
struct Pair {
    world: World,
    target: Server,
}

/// Its rows are stored when nobody holds them back: for that a role is enough, which all databases see.
const HELD_BACK: &str = "CREATE FUNCTION waits() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN \
    WHILE EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'hold') LOOP PERFORM pg_catalog.pg_sleep(0.02); END LOOP; \
    RETURN true; END $$; CREATE TABLE orders (id int CHECK (waits())); INSERT INTO orders VALUES (1)";
const HELD: &str = "SELECT count(*)::text FROM pg_stat_activity WHERE application_name = 'stillpoint/restore' AND wait_event = 'PgSleep'";
/// Of a restore that waits for a global lock.
const QUEUED: &str = "SELECT CAST(COUNT(*) AS CHAR) FROM information_schema.processlist WHERE STATE LIKE 'Waiting for backup lock%' AND INFO LIKE";
const OURS: &str = "SELECT count(*)::text FROM pg_database WHERE datname LIKE 'stillpoint-restore-%'";

impl Pair {
    async fn start(kind: ServerKind, shop: &str) -> Self {
        Self::with(kind, shop, Options::default()).await
    }

    async fn with(kind: ServerKind, shop: &str, options: Options) -> Self {
        let world = World::with_programs_of(&[kind]).await;
        let source = Server::start(kind, Options::default()).await.unwrap();
        let target = Server::start(kind, options).await.unwrap();
        for (name, sql) in [("aaa", "CREATE TABLE first (id int)"), ("shop", shop)] {
            source.execute(default(kind), &format!("CREATE DATABASE {name}")).await.unwrap();
            let mut session = Session::at(&Login::of(&source), name).await.unwrap();
            session.run(sql).await.unwrap();
        }
        world.repository(&["disk"]).await;
        world.register("orders", &source).await;
        world.register("fresh", &target).await;
        world.snapshot("first", &["orders"]).await;
        Self { world, target }
    }

    async fn restore(&self, name: &str, into: &str, existing: &str) {
        let spec = json!({
            "database": into, "source": {"snapshot": "first", "database": "orders"}, "databases": ["aaa", "shop"], "existing": existing,
        });
        self.world.make("restores", name, spec).await;
    }

    async fn complete(&self, name: &str) -> Value {
        self.world.until("restores", name, |status| status["phase"] == "Complete").await
    }

    /// With that reason, and the target in that state.
    async fn fails(&self, name: &str, reason: &str, target: &str) -> Value {
        let status = self.world.until("restores", name, |status| status["phase"] == "Failed").await;
        let complete = status["conditions"].as_array().unwrap().iter().find(|it| it["type"] == "Complete").unwrap();
        assert_eq!(complete["reason"], reason, "{status:#}");
        assert!(status["target"].as_str().unwrap().starts_with(target), "{status:#}");
        status
    }

    async fn session(&self, database: &str) -> Session {
        Session::at(&Login::of(&self.target), database).await.unwrap()
    }

    async fn is(&self, database: &str, sql: &str, wanted: &str) {
        assert_eq!(self.session(database).await.scalar(sql).await.unwrap(), wanted, "{sql}");
    }
}

/// The database that is always there.
fn default(kind: ServerKind) -> &'static str {
    match kind.engine {
        fixtures::Engine::PostgreSQL => "postgres",
        fixtures::Engine::MariaDB => "mysql",
    }
}

async fn until(session: &mut Session, sql: &str, wanted: &str) {
    let begun = Instant::now();
    while session.scalar(sql).await.unwrap() != wanted {
        assert!(begun.elapsed() < LIMIT, "{sql}: not {wanted}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn postgresql_leaves_what_is_written_meanwhile(kind: ServerKind) {
    let pair = Pair::start(kind, HELD_BACK).await;
    let mut admin = pair.session("postgres").await;
    for (name, existing) in [("if-empty", "IfEmpty"), ("never", "Never")] {
        admin.run("CREATE ROLE hold").await.unwrap();
        if existing == "IfEmpty" {
            admin.run("CREATE DATABASE shop").await.unwrap();
        }
        pair.restore(name, "fresh", existing).await;
        until(&mut admin, HELD, "1").await;
        if existing == "Never" {
            admin.run("CREATE DATABASE shop").await.unwrap();
        }
        let mut app = pair.session("shop").await;
        app.run("CREATE TABLE theirs AS SELECT 7 AS id").await.unwrap();
        admin.run("DROP ROLE hold").await.unwrap();
        let status = pair.fails(name, "Exists", "as it was").await;
        assert!(status["message"].as_str().unwrap().contains("shop was"), "{status:#}");
        pair.is("shop", "SELECT id::text FROM theirs", "7").await;
        pair.is("postgres", "SELECT count(*)::text FROM pg_database WHERE datname = 'aaa'", "0").await;
        pair.is("postgres", OURS, "0").await;
        // An application that is there all the time does not stop it.
        admin.run("DROP DATABASE shop WITH (FORCE)").await.unwrap();
    }

    // The control: what is empty all the while gives way, and what took its place is open.
    admin.run("CREATE DATABASE shop").await.unwrap();
    pair.restore("empty", "fresh", "IfEmpty").await;
    pair.complete("empty").await;
    pair.is("shop", "SELECT id::text FROM orders", "1").await;
    pair.is("postgres", OURS, "0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_15_leaves_what_is_written_meanwhile() {
    postgresql_leaves_what_is_written_meanwhile(ServerKind::POSTGRESQL_15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_18_leaves_what_is_written_meanwhile() {
    postgresql_leaves_what_is_written_meanwhile(ServerKind::POSTGRESQL_18).await;
}

/// Whoever looks sees all of the old or all of the new, whenever it is.
async fn names_change_at_one_instant(kind: ServerKind) {
    let pair = Pair::start(kind, "CREATE TABLE orders AS SELECT 1 AS id").await;
    let mut admin = pair.session("postgres").await;
    for sql in ["CREATE DATABASE aaa", "CREATE DATABASE shop"] {
        admin.run(sql).await.unwrap();
    }
    let seen = "SELECT string_agg(oid::text, ' ' ORDER BY datname) FROM pg_database WHERE datname IN ('aaa', 'shop')";
    let before = admin.scalar(seen).await.unwrap();
    pair.restore("replaced", "fresh", "Replace").await;
    let (mut states, begun) = (vec![before], Instant::now());
    let done = async || pair.world.status("restores", "replaced").await["phase"] == "Complete";
    let mut is_over = false;
    while !is_over {
        is_over = done().await;
        for _ in 0..200 {
            let now = admin.scalar(seen).await.unwrap();
            if states.last() != Some(&now) {
                states.push(now);
            }
        }
        assert!(begun.elapsed() < LIMIT, "{states:?}");
    }
    assert_eq!(states.len(), 2, "in part, or none: {states:?}");
    assert!(states.iter().all(|state| state.split(' ').count() == 2), "{states:?}");
    pair.is("shop", "SELECT id::text FROM orders", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_15_changes_names_at_one_instant() {
    names_change_at_one_instant(ServerKind::POSTGRESQL_15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_18_changes_names_at_one_instant() {
    names_change_at_one_instant(ServerKind::POSTGRESQL_18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_restore_into_a_postgresql_is_told_that_it_is_not_its_turn() {
    let pair = Pair::start(ServerKind::POSTGRESQL_15, HELD_BACK).await;
    pair.world.register("the-same", &pair.target).await;
    let mut admin = pair.session("postgres").await;
    admin.run("CREATE ROLE hold").await.unwrap();
    pair.restore("one", "fresh", "Never").await;
    until(&mut admin, HELD, "1").await;
    pair.restore("two", "the-same", "Replace").await;
    let status = pair.fails("two", "Blocked", "as it was: nothing was touched").await;
    assert!(status["message"].as_str().unwrap().contains("another restore") && status.to_string().contains("session "));
    admin.run("DROP ROLE hold").await.unwrap();
    pair.complete("one").await;
    pair.is("shop", "SELECT id::text FROM orders", "1").await;
    // The control: when it is over it is anybody's turn.
    pair.restore("three", "the-same", "Replace").await;
    pair.complete("three").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_restore_into_a_mariadb_is_told_that_it_is_not_its_turn() {
    let pair = Pair::start(ServerKind::MARIADB_10_11, "CREATE TABLE orders AS SELECT 1 AS id").await;
    pair.world.register("the-same", &pair.target).await;
    let mut admin = pair.session("mysql").await;
    admin.run("FLUSH TABLES WITH READ LOCK").await.unwrap();
    pair.restore("one", "fresh", "Never").await;
    until(&mut admin, &format!("{QUEUED} 'CREATE DATABASE%aaa%'"), "1").await;
    pair.restore("two", "the-same", "Replace").await;
    pair.fails("two", "Blocked", "as it was: nothing was touched").await;
    admin.run("UNLOCK TABLES").await.unwrap();
    pair.complete("one").await;
    pair.restore("three", "the-same", "Replace").await;
    pair.complete("three").await;
    pair.is("shop", "SELECT CAST(id AS CHAR) FROM orders", "1").await;
}

async fn mariadb_leaves_what_is_written_meanwhile(kind: ServerKind) {
    let pair = Pair::start(kind, "CREATE TABLE orders AS SELECT 1 AS id").await;
    let mut admin = pair.session("mysql").await;
    for (name, existing) in [("if-empty", "IfEmpty"), ("never", "Never")] {
        if existing == "IfEmpty" {
            admin.run("CREATE DATABASE shop").await.unwrap();
        }
        // Both are let go at the same instant: one has a statement to run, and the other a database to fill before.
        admin.run("FLUSH TABLES WITH READ LOCK").await.unwrap();
        pair.restore(name, "fresh", existing).await;
        until(&mut admin, &format!("{QUEUED} 'CREATE DATABASE%aaa%'"), "1").await;
        let mut app = pair.session("mysql").await;
        let writes = tokio::spawn(async move {
            app.run("CREATE DATABASE IF NOT EXISTS shop").await.unwrap();
            app.run("CREATE TABLE shop.theirs AS SELECT 7 AS id").await.unwrap();
        });
        until(&mut admin, &format!("{QUEUED} 'CREATE DATABASE IF%shop%'"), "1").await;
        admin.run("UNLOCK TABLES").await.unwrap();
        writes.await.unwrap();
        pair.fails(name, "Exists", "as it was").await;
        pair.is("shop", "SELECT CAST(id AS CHAR) FROM theirs", "7").await;
        pair.is(
            "mysql",
            "SELECT CAST(COUNT(*) AS CHAR) FROM information_schema.schemata WHERE schema_name = 'aaa'",
            "0",
        )
        .await;
        admin.run("DROP DATABASE shop").await.unwrap();
    }

    admin.run("CREATE DATABASE shop").await.unwrap();
    pair.restore("empty", "fresh", "IfEmpty").await;
    pair.complete("empty").await;
    pair.is("shop", "SELECT CAST(id AS CHAR) FROM orders", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_10_11_leaves_what_is_written_meanwhile() {
    mariadb_leaves_what_is_written_meanwhile(ServerKind::MARIADB_10_11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_11_4_leaves_what_is_written_meanwhile() {
    mariadb_leaves_what_is_written_meanwhile(ServerKind::MARIADB_11_4).await;
}

/// Its second table has a row that the target does not take.
#[tokio::test(flavor = "multi_thread")]
async fn a_mariadb_database_that_was_there_and_empty_is_never_removed() {
    let small = Options::default().set("max-allowed-packet", "1M");
    let shop = "CREATE TABLE big (what LONGBLOB); CREATE TABLE a_first AS SELECT 1 AS id; INSERT INTO big VALUES (REPEAT('x', 3000000))";
    let pair = Pair::with(ServerKind::MARIADB_10_11, shop, small).await;
    let mut admin = pair.session("mysql").await;
    admin.run("CREATE DATABASE shop COMMENT 'of the application'").await.unwrap();
    pair.restore("fails", "fresh", "IfEmpty").await;
    pair.fails("fails", "ToolFailed", "shop was there, and empty").await;
    pair.is("shop", "SELECT CAST(id AS CHAR) FROM a_first", "1").await;
    let was = "SELECT schema_comment FROM information_schema.schemata WHERE schema_name = 'shop'";
    pair.is("mysql", was, "of the application").await;
    pair.is("mysql", "SELECT CAST(COUNT(*) AS CHAR) FROM information_schema.schemata WHERE schema_name = 'aaa'", "0")
        .await;
}
