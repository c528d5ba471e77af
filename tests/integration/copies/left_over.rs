//! What a restore leaves: databases of one that was killed, and words of one that failed.

use fixtures::{Login, Options, Server, ServerKind, Session};
use serde_json::json;

use super::world::World;

const KIND: ServerKind = ServerKind::POSTGRESQL_15;
/// As a row.
const SECRET: &str = "s3cr3t";
/// Where the role is nothing is allowed.
const STRICT: &str = "CREATE FUNCTION allowed(what text) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN \
    RETURN NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'strict'); END $$; \
    CREATE TABLE orders (id int, what text CONSTRAINT only_what_is_allowed CHECK (allowed(what))); INSERT INTO orders VALUES (1, 's3cr3t')";

async fn world(server: &Server) -> World {
    let world = World::with_programs_of(&[KIND]).await;
    world.repository(&["disk"]).await;
    world.register("orders", server).await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_postgresql_is_not_dumped_and_is_removed_or_named() {
    let server = Server::start(KIND, Options::default()).await.unwrap();
    for sql in ["CREATE DATABASE shop", "CREATE DATABASE \"stillpoint-restore-dead-1-new-0\"", "CREATE DATABASE more"] {
        server.execute("postgres", sql).await.unwrap();
    }
    let oid = server.scalar("postgres", "SELECT oid::text FROM pg_database WHERE datname = 'shop'").await.unwrap();
    let old = format!("stillpoint-restore-dead-1-old-{oid}");
    server.execute("postgres", &format!("CREATE DATABASE \"{old}\"")).await.unwrap();
    let world = world(&server).await;
    let status = world.snapshot("first", &["orders"]).await;
    assert!(status["contents"].to_string().contains("shop.dump"), "{status:#}");
    assert!(!status["contents"].to_string().contains("stillpoint-restore"), "{status:#}");

    // As it is between the instant at which it took its name and the next, at which it is known that it may keep it.
    server.execute("postgres", "ALTER DATABASE shop ALLOW_CONNECTIONS false").await.unwrap();
    let spec =
        json!({"database": "orders", "source": {"snapshot": "first"}, "databases": ["more"], "existing": "IfEmpty"});
    world.make("restores", "back", spec).await;
    let done = world.until("restores", "back", |status| status["phase"] == "Complete").await;
    let named = format!("{old} is left of a restore that died: it is what shop was before");
    assert!(done["warnings"].to_string().contains(&named), "{done:#}");
    let ours =
        "SELECT string_agg(datname, ',' ORDER BY datname) FROM pg_database WHERE datname LIKE 'stillpoint-restore-%'";
    assert_eq!(server.scalar("postgres", ours).await.unwrap(), old);
    let mut shop = Session::at(&Login::of(&server), "shop").await.unwrap();
    shop.run("CREATE TABLE theirs (id int)").await.unwrap();

    let spec = json!({"database": "orders", "source": {"snapshot": "first"}, "databases": ["shop"]});
    world.make("restores", "refused", spec).await;
    let failed = world.until("restores", "refused", |status| status["phase"] == "Failed").await;
    let target = failed["target"].as_str().unwrap();
    assert!(target.starts_with("as it was: nothing was touched; ") && target.contains(&named), "{failed:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_postgresql_in_words_is_the_table_and_no_row() {
    let server = Server::start(KIND, Options::default()).await.unwrap();
    let target = Server::start(KIND, Options::default()).await.unwrap();
    server.execute("postgres", "CREATE DATABASE shop").await.unwrap();
    server.execute("shop", STRICT).await.unwrap();
    target.execute("postgres", "CREATE ROLE strict").await.unwrap();
    let world = world(&server).await;
    world.register("fresh", &target).await;
    world.snapshot("first", &["orders"]).await;
    let spec =
        json!({"database": "fresh", "source": {"snapshot": "first", "database": "orders"}, "databases": ["shop"]});
    world.make("restores", "back", spec.clone()).await;
    let failed = world.until("restores", "back", |status| status["phase"] == "Failed").await;
    let message = failed["message"].as_str().unwrap();
    for wanted in ["COPY failed for table \"orders\"", "only_what_is_allowed", "COPY orders, line 1"] {
        assert!(message.contains(wanted), "{wanted}: {message}");
    }
    let live = "/apis/live.stillpoint.dev/v1alpha1/namespaces/default/restores/back/log";
    let text = http::Request::get(live).body(Vec::new()).unwrap();
    let log = world.stillpoint.client.request_text(text).await.unwrap();
    assert!(log.contains("COPY orders"), "{log}");
    let events = world.stillpoint.get("/api/v1/namespaces/default/events").await.unwrap().to_string();
    for said in [&failed.to_string(), &log, &events, &world.stillpoint.log().unwrap()] {
        assert!(!said.contains(SECRET), "{said}");
    }

    // The control: the row is in the copy.
    target.execute("postgres", "DROP ROLE strict").await.unwrap();
    world.make("restores", "again", spec).await;
    world.until("restores", "again", |status| status["phase"] == "Complete").await;
    let mut shop = Session::at(&Login::of(&target), "shop").await.unwrap();
    assert_eq!(shop.scalar("SELECT what FROM orders").await.unwrap(), SECRET);
}
