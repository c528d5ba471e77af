//! Who stands in the way of a write block of MariaDB, who does not, and whom a policy ends: on real servers, with the plugin
//! that shows locks and without.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::{BlockerPolicy, Copy, Level};
use fixtures::{Options, PASSWORD, Server, ServerKind, USER};
use freeze::{
    Acquired, Driver, Drivers, Error, Held, Plan,
    contract::{Noted, plan, soon},
};
use sqlx::{AssertSqlSafe, Connection, MySqlConnection, raw_sql};

use crate::real::Real;

const ACQUIRE: Duration = Duration::from_millis(1500);

/// What another session does, and stays connected.
struct Other {
    what: &'static str,
    /// Run and waited for.
    first: &'static str,
    /// Begun, and left running.
    running: Option<&'static str>,
    in_the_way: bool,
    /// Whether it is seen without METADATA_LOCK_INFO, and is certain enough to be ended.
    seen_by_statement: bool,
}

const OTHERS: &[Other] = &[
    other("an open transaction that has written", "BEGIN; UPDATE shop.t SET v = v + 1 WHERE n = 1", None, false, false),
    other("a long SELECT", "SELECT 1", Some("SELECT SLEEP(60) FROM shop.m LIMIT 1"), false, false),
    other("a long write to InnoDB", "SELECT 1", Some("UPDATE shop.t SET v = v + SLEEP(60) WHERE n = 1"), false, false),
    other("a global read lock", "FLUSH TABLES WITH READ LOCK", None, false, false),
    other("LOCK TABLES … WRITE of an idle session", "LOCK TABLES shop.t WRITE", None, true, false),
    other("a long write to MyISAM", "SELECT 1", Some("INSERT INTO shop.m SELECT SLEEP(60)"), true, false),
    other("DDL that runs", "SELECT 1", Some("CREATE TABLE shop.c AS SELECT SLEEP(60)"), true, true),
];

const fn other(
    what: &'static str,
    first: &'static str,
    running: Option<&'static str>,
    in_the_way: bool,
    seen_by_statement: bool,
) -> Other {
    Other { what, first, running, in_the_way, seen_by_statement }
}

struct Busy {
    id: String,
    _session: Option<MySqlConnection>,
    _running: Option<tokio::task::JoinHandle<()>>,
}

async fn server(with_lock_info: bool) -> Server {
    let server = Server::start(ServerKind::MARIADB_10_11, Options::default().set("log-bin", "bin")).await.unwrap();
    let sql = "CREATE DATABASE shop; CREATE TABLE shop.t (n int PRIMARY KEY, v int); INSERT INTO shop.t VALUES (1, 0); \
               CREATE TABLE shop.m (n int) ENGINE = MyISAM; INSERT INTO shop.m VALUES (1)";
    server.execute("", sql).await.unwrap();
    if with_lock_info {
        server.execute("", "INSTALL SONAME 'metadata_lock_info'").await.unwrap();
    }
    server
}

async fn begin(server: &Server, other: &Other) -> Busy {
    let mut session = server.mariadb(USER, PASSWORD).await.unwrap();
    let id: u64 = sqlx::query_scalar("SELECT CONNECTION_ID()").fetch_one(&mut session).await.unwrap();
    raw_sql(AssertSqlSafe(other.first)).execute(&mut session).await.unwrap();
    let id = id.to_string();
    let Some(running) = other.running else {
        return Busy { id, _session: Some(session), _running: None };
    };
    let task = tokio::spawn(async move { drop(raw_sql(AssertSqlSafe(running)).execute(&mut session).await) });
    let sleeping =
        format!("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {id} AND STATE = 'User sleep'");
    until(server, &sleeping, "1", other.what).await;
    Busy { id, _session: None, _running: Some(task) }
}

async fn until(server: &Server, sql: &str, wanted: &str, what: &str) {
    let end = Instant::now() + Duration::from_secs(10);
    while server.scalar("", sql).await.unwrap() != wanted {
        assert!(Instant::now() < end, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn end(server: &Server, busy: &Busy, what: &str) {
    server.execute("", &format!("KILL CONNECTION {}", busy.id)).await.ok();
    let there = format!("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {}", busy.id);
    until(server, &there, "0", what).await;
}

async fn take(server: &Server, blockers: BlockerPolicy) -> Result<(Box<dyn Held>, Acquired), Error> {
    take_within(server, blockers, ACQUIRE).await
}

async fn take_within(
    server: &Server,
    blockers: BlockerPolicy,
    acquire_timeout: Duration,
) -> Result<(Box<dyn Held>, Acquired), Error> {
    let driver: Arc<dyn Driver> = Arc::clone(Drivers::real().of(api::Engine::MariaDB).unwrap());
    let plan = Plan {
        acquire_timeout,
        blockers,
        blockers_older_than: Duration::ZERO,
        ..plan(Level::WriteBlocked, Copy::Atomic)
    };
    let member = Real::at(server.port);
    driver.prepare(&member, &plan, Arc::new(Noted::default()), soon()).await?.acquire().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stands_in_the_way_is_named_and_nobody_else_is_waited_for_or_ended() {
    for with_lock_info in [true, false] {
        let server = server(with_lock_info).await;
        for other in OTHERS {
            let certain = other.in_the_way && (with_lock_info || other.seen_by_statement);
            for policy in [BlockerPolicy::Wait, BlockerPolicy::KillReads, BlockerPolicy::KillAll] {
                let busy = begin(&server, other).await;
                let began = Instant::now();
                let taken = take(&server, policy).await;
                let what = format!("{} (lock info: {with_lock_info}, {policy:?})", other.what);
                let ends = policy == BlockerPolicy::KillAll && certain;
                match taken {
                    Ok((held, acquired)) => {
                        assert!(!other.in_the_way || ends, "{what}: it holds, and should not");
                        assert_eq!(acquired.ended_sessions.len(), usize::from(ends), "{what}: {acquired:?}");
                        held.release(soon()).await.unwrap();
                        println!(
                            "{what:<72} held after {:>5} ms, ended {:?}",
                            began.elapsed().as_millis(),
                            acquired.ended_sessions
                        );
                    }
                    Err(error) => {
                        assert!(other.in_the_way && !ends, "{what}: {error}");
                        assert!(began.elapsed() < ACQUIRE + Duration::from_secs(1), "{what}: {:?}", began.elapsed());
                        assert!(
                            !certain || error.to_string().contains(&format!("session {} ", busy.id)),
                            "{what}: {error}"
                        );
                        let hinted = format!("{error} {}", error.advice()).contains("LOCK TABLES … WRITE");
                        assert_eq!(hinted, !with_lock_info, "{what}: {error} {}", error.advice());
                        println!("{what:<72} refused: {error}");
                    }
                }
                end(&server, &busy, other.what).await;
                server.execute("", "DROP TABLE IF EXISTS shop.c").await.unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_fail_gives_up_as_soon_as_somebody_is_seen_and_lets_everything_go() {
    /// Nobody waits for as long as this by mistake.
    const LONG: Duration = Duration::from_secs(60);
    for with_lock_info in [true, false] {
        let server = server(with_lock_info).await;
        for other in OTHERS {
            // Without the plugin an idle holder is seen by nobody: nothing is left but to wait.
            let seen = with_lock_info || other.running.is_some();
            let busy = begin(&server, other).await;
            let began = Instant::now();
            let taken = take_within(&server, BlockerPolicy::Fail, if seen { LONG } else { ACQUIRE }).await;
            let what = format!("{} (lock info: {with_lock_info})", other.what);
            match taken {
                Ok((held, _)) => {
                    assert!(!other.in_the_way, "{what}: it holds, and should not");
                    held.release(soon()).await.unwrap();
                }
                Err(error) => {
                    assert!(other.in_the_way, "{what}: {error}");
                    assert_eq!(seen, error.to_string().contains(&format!("session {} ", busy.id)), "{what}: {error}");
                    assert!(!seen || matches!(error, Error::Blocked { .. }), "{what}: {error:?}");
                    assert!(began.elapsed() < LONG / 2, "{what}: {:?}", began.elapsed());
                    println!("{what:<72} {:>5} ms: {error}", began.elapsed().as_millis());
                }
            }
            end(&server, &busy, other.what).await;
            server.execute("", "DROP TABLE IF EXISTS shop.c").await.unwrap();
            let (held, _) = take(&server, BlockerPolicy::Fail).await.unwrap();
            held.release(soon()).await.unwrap();
        }
    }
}

/// A backup of somebody else is named, and never ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_backup_is_never_ended() {
    for with_lock_info in [true, false] {
        let server = server(with_lock_info).await;
        let mut backup = server.mariadb(USER, PASSWORD).await.unwrap();
        raw_sql("BACKUP STAGE START").execute(&mut backup).await.unwrap();
        let error = take(&server, BlockerPolicy::KillAll).await.unwrap_err();
        assert!(
            error.to_string().contains(if with_lock_info { "MDL_BACKUP_START" } else { "BACKUP STAGE" }),
            "{error}"
        );
        backup.ping().await.expect("it goes on");
        raw_sql("BACKUP STAGE END").execute(&mut backup).await.unwrap();
        let (held, _) = take(&server, BlockerPolicy::Wait).await.unwrap();
        held.release(soon()).await.unwrap();
    }
}

/// A commit that takes its time holds the backup lock too, and is nobody's to end: here it waits for a replica that there is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_commits_is_not_ended_and_is_no_reason_to_give_up() {
    let options =
        Options::default().set("log-bin", "bin").set("sync-binlog", "1").set("rpl-semi-sync-master-timeout", "120000");
    let server = Server::start(ServerKind::MARIADB_10_11, options).await.unwrap();
    let sql = "CREATE DATABASE shop; CREATE TABLE shop.t (n int); INSTALL SONAME 'metadata_lock_info'; \
               SET GLOBAL rpl_semi_sync_master_wait_point = AFTER_SYNC";
    server.execute("", sql).await.unwrap();
    for policy in [BlockerPolicy::KillAll, BlockerPolicy::Fail] {
        server.execute("", "SET GLOBAL rpl_semi_sync_master_enabled = ON").await.unwrap();
        let mut committer = server.mariadb(USER, PASSWORD).await.unwrap();
        let commit =
            tokio::spawn(async move { raw_sql("INSERT INTO shop.t VALUES (1)").execute(&mut committer).await });
        let committing =
            "SELECT COUNT(*) FROM information_schema.METADATA_LOCK_INFO WHERE LOCK_MODE = 'MDL_BACKUP_COMMIT'";
        until(&server, committing, "1", "it commits").await;
        let began = Instant::now();
        let error = take(&server, policy).await.unwrap_err();
        assert!(began.elapsed() > ACQUIRE / 2, "{policy:?}: it is waited for: {:?}", began.elapsed());
        assert!(matches!(&error, Error::Blocked { blockers, .. } if blockers.is_empty()), "{policy:?}: {error}");
        assert!(error.advice().contains("done with their commit"), "{policy:?}: {}", error.advice());
        server.execute("", "SET GLOBAL rpl_semi_sync_master_enabled = OFF").await.unwrap();
        commit.await.unwrap().expect("it was left alone");
        let (held, acquired) = take(&server, policy).await.unwrap();
        assert_eq!(acquired.ended_sessions, [""; 0], "{policy:?}");
        held.release(soon()).await.unwrap();
    }
}
