//! Taken under load, destroyed, restored into an empty server: nothing that was acknowledged before the still point is missing, and
//! nothing is torn.

use std::time::{Duration, Instant, SystemTime};

use fixtures::{Load, Login, Options, Server, ServerKind, Session, compare};
use serde_json::json;

use super::world::World;

async fn round_trip(kind: ServerKind) {
    let world = World::with_programs_of(&[kind]).await;
    let options = match kind.engine {
        fixtures::Engine::PostgreSQL => Options::default(),
        fixtures::Engine::MariaDB => Options::default().set("log-bin", "binlog").set("server-id", "7"),
    };
    let server = Server::start(kind, options).await.unwrap();
    let target = Server::start(kind, Options::default()).await.unwrap();
    Load::prepare(&server).await.unwrap();
    extras(kind, &Login::of(&server)).await;
    let directory = world.repository(&["disk"]).await.remove(0);
    world.register("orders", &server).await;
    world.register("fresh", &target).await;

    let writers = Load::new(4).start(&server);
    writers.next_acknowledgement(Instant::now(), Duration::from_secs(20)).await.expect("nothing is written");
    let (wall, instant) = (SystemTime::now(), Instant::now());
    let status = world.snapshot("first", &["orders"]).await;
    let acknowledged = writers.stop().await;
    assert_eq!(status["consistency"]["verdict"], "application", "{status:#}");
    assert_eq!(status["consistency"]["level"], "Durable");
    assert!(status["contents"][0]["position"].is_object(), "{status:#}");

    // By the clock of this machine, which is the server's, too.
    let at = |field: &str| {
        let text = status["cutBetween"][field].as_str().unwrap();
        let at: jiff::Timestamp = text.parse().unwrap();
        instant + SystemTime::from(at).duration_since(wall).unwrap_or_default()
    };
    let (frozen, thawed) = (at("frozenAt"), at("thawedAt"));
    drop(server);
    world.make("restores", "back", json!({"database": "fresh", "source": {"snapshot": "first"}})).await;
    let done = world.until("restores", "back", |status| status["phase"] == "Complete").await;
    assert!(done["databases"].as_array().unwrap().iter().any(|name| name == "bank"), "{done:#}");

    let login = Login::of(&target);
    let verdict = compare(&login, &acknowledged, frozen).await.unwrap();
    assert!(verdict.is_sound() && verdict.acknowledged > 0, "{verdict:?}");
    for one in acknowledged.iter().filter(|one| one.asked > thawed) {
        assert!(one.number > verdict.last[&one.writer], "a commit that began after the thaw is in the copy");
    }
    // The negative control: much was written after the still point, and is not there.
    assert!(!compare(&login, &acknowledged, Instant::now()).await.unwrap().is_sound());
    extras_are_there(kind, &login).await;

    let restic = std::process::Command::new("restic")
        .args(["--no-cache", "-r", &directory.display().to_string(), "check", "--read-data"])
        .env("RESTIC_PASSWORD", super::world::REPOSITORY_PASSWORD)
        .output()
        .unwrap();
    assert!(restic.status.success(), "{}", String::from_utf8_lossy(&restic.stderr));
}

/// A role, a right, a routine.
async fn extras(kind: ServerKind, login: &Login) {
    let sql = match kind.engine {
        fixtures::Engine::PostgreSQL => {
            "CREATE ROLE \"Auditor: \"\"7\"\"\" LOGIN PASSWORD 'x'; GRANT SELECT ON ledger TO \"Auditor: \"\"7\"\"\"; \
             CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n'; \
             ALTER DATABASE bank SET work_mem TO '7MB'"
        }
        fixtures::Engine::MariaDB => {
            "CREATE USER auditor@localhost IDENTIFIED BY 'x'; GRANT SELECT ON bank.ledger TO auditor@localhost; \
             CREATE FUNCTION twice(n INT) RETURNS INT DETERMINISTIC RETURN 2 * n; \
             CREATE EVENT sometime ON SCHEDULE EVERY 1 YEAR DO SELECT 1"
        }
    };
    Session::at(login, "bank").await.unwrap().run(sql).await.unwrap();
}

async fn extras_are_there(kind: ServerKind, login: &Login) {
    let mut session = Session::at(login, "bank").await.unwrap();
    let asked: &[(&str, &str)] = match kind.engine {
        fixtures::Engine::PostgreSQL => &[
            ("SELECT twice(21)::text", "42"),
            ("SELECT has_table_privilege('Auditor: \"7\"', 'ledger', 'SELECT')::text", "true"),
            ("SELECT current_setting('work_mem')", "7MB"),
        ],
        fixtures::Engine::MariaDB => &[
            ("SELECT CAST(twice(21) AS CHAR)", "42"),
            (
                "SELECT CAST(COUNT(*) AS CHAR) FROM mysql.tables_priv WHERE User = 'auditor' AND Table_name = 'ledger'",
                "1",
            ),
            ("SELECT CAST(COUNT(*) AS CHAR) FROM information_schema.events WHERE event_name = 'sometime'", "1"),
        ],
    };
    for (sql, wanted) in asked {
        assert_eq!(session.scalar(sql).await.unwrap(), *wanted, "{sql}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_15() {
    round_trip(ServerKind::POSTGRESQL_15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgresql_18() {
    round_trip(ServerKind::POSTGRESQL_18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_10_11() {
    round_trip(ServerKind::MARIADB_10_11).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_11_4() {
    round_trip(ServerKind::MARIADB_11_4).await;
}
