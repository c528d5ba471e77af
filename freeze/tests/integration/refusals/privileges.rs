//! What the account may not do: each privilege missing in turn, and all of them there.

use std::sync::Arc;

use api::{CheckResult, Copy, Level, conditions::reasons};
use fixtures::{Engine, Options, Server, ServerKind};
use freeze::{
    Driver, Error, Member,
    contract::{Noted, plan, soon},
};

use super::{driver, refused, with_user};
use crate::real::Real;

/// A grant by a part of its statement, and what to expect without it: of the freeze, and of the check of this name.
struct Missing {
    engine: Engine,
    level: Level,
    copy: Copy,
    grant: &'static str,
    without: (Without, &'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Without {
    /// A check fails, and so does the freeze, for this privilege.
    Refused,
    /// The freeze works, and a check says what it lacks.
    Warned,
    /// The freeze works all the same.
    Works,
}
use Without::{Refused, Warned, Works};

const fn postgresql(level: Level, copy: Copy, grant: &'static str, without: (Without, &'static str)) -> Missing {
    Missing { engine: Engine::PostgreSQL, level, copy, grant, without }
}

const fn mariadb(level: Level, grant: &'static str, without: (Without, &'static str)) -> Missing {
    Missing { engine: Engine::MariaDB, level, copy: Copy::Atomic, grant, without }
}

const MISSING: &[Missing] = &[
    postgresql(Level::Recoverable, Copy::Atomic, "pg_read_all_stats", (Works, "")),
    postgresql(Level::Durable, Copy::Atomic, "pg_read_all_stats", (Works, "")),
    postgresql(Level::WriteBlocked, Copy::Atomic, "pg_read_all_stats", (Warned, "privilege-stats")),
    postgresql(Level::WriteBlocked, Copy::Atomic, "pg_write_all_data", (Refused, "privilege-lock")),
    postgresql(Level::WriteBlocked, Copy::Atomic, "pg_signal_backend", (Works, "")),
    postgresql(Level::Durable, Copy::Files, "pg_read_all_stats", (Works, "")),
    postgresql(Level::Durable, Copy::Files, "REPLICATION", (Refused, "privilege-replication")),
    postgresql(Level::Durable, Copy::Files, "pg_backup_start", (Refused, "privilege-backup")),
    mariadb(Level::Recoverable, "BINLOG MONITOR", (Warned, "privilege-binlog-monitor")),
    // SUPER contains it, where SUPER is given.
    mariadb(Level::Durable, "BINLOG MONITOR", (Works, "")),
    mariadb(Level::Durable, "RELOAD", (Refused, "privilege-reload")),
    mariadb(Level::Durable, "SUPER", (Warned, "durability")),
    mariadb(Level::WriteBlocked, "BINLOG MONITOR", (Works, "")),
    mariadb(Level::WriteBlocked, "RELOAD", (Refused, "privilege-reload")),
    mariadb(Level::WriteBlocked, "SUPER", (Warned, "durability")),
    mariadb(Level::WriteBlocked, "PROCESS", (Warned, "privilege-process")),
    mariadb(Level::WriteBlocked, "CONNECTION ADMIN", (Works, "")),
];

async fn server(kind: ServerKind) -> Server {
    let (options, table) = match kind.engine {
        Engine::PostgreSQL => (Options::default(), "CREATE TABLE t (n int)"),
        // The settings under which most rights are used.
        Engine::MariaDB => (Real::lax(), "CREATE DATABASE shop; CREATE TABLE shop.t (n int)"),
    };
    let server = Server::start(kind, options).await.unwrap();
    server.execute("postgres", table).await.unwrap();
    server
}

async fn create(server: &Server, user: &str) {
    let sql = match server.kind.engine {
        Engine::PostgreSQL => format!("CREATE ROLE {user} LOGIN PASSWORD 'pw'"),
        Engine::MariaDB => format!("CREATE USER {user}@'%' IDENTIFIED BY 'pw'"),
    };
    server.execute("postgres", &sql).await.unwrap();
}

async fn hold(driver: &dyn Driver, member: &Member, level: Level, copy: Copy) -> Result<(), Error> {
    let prepared = driver.prepare(member, &plan(level, copy), Arc::new(Noted::default()), soon()).await?;
    let (mut held, _) = prepared.acquire().await?;
    held.heartbeat(plan(level, copy).server_ttl, soon()).await?;
    let proof = held.prove(soon()).await?;
    assert!(proof.held, "{proof:?}");
    held.release(soon()).await.map(drop)
}

/// The account `user` has all grants but one: what the preflight says of it, and what comes of a freeze.
async fn without(driver: &dyn Driver, member: &Member, missing: &Missing) -> (Without, String) {
    let Missing { level, copy, grant, .. } = *missing;
    let checks = driver.preflight(member, &plan(level, copy), soon()).await.checks;
    let names = |result| checks.iter().find(move |check| check.result == result);
    let held = hold(driver, member, level, copy).await;
    let privilege = grant.split_whitespace().next_back().unwrap_or(grant);
    match (names(CheckResult::Fail), held) {
        (Some(check), Err(error)) => {
            assert_eq!(check.reason.as_deref(), Some(reasons::PRIVILEGE_MISSING), "{grant}: {check:?}");
            assert!(matches!(error, Error::Privilege { .. }), "{grant}: {error:?}");
            assert!(format!("{} {:?}", check.message, check.fix).contains(privilege), "{grant}: {check:?}");
            assert!(error.advice().contains("run as an administrator"), "{grant}: {}", error.advice());
            (Refused, check.name.clone())
        }
        (None, Ok(())) => {
            let of_it = checks.iter().find(|check| {
                check.result == CheckResult::Warn && check.fix.as_deref().unwrap_or_default().contains(privilege)
            });
            of_it.map_or((Works, String::new()), |check| (Warned, check.name.clone()))
        }
        (said, held) => panic!("{grant}: the preflight says {said:?}, and the freeze {held:?}"),
    }
}

async fn each_alone_is_missed(kind: ServerKind) {
    let server = server(kind).await;
    let engine = if kind.engine == Engine::PostgreSQL { api::Engine::PostgreSQL } else { api::Engine::MariaDB };
    let driver = driver(engine);
    let of_this = || MISSING.iter().filter(|missing| missing.engine == kind.engine).enumerate();
    for (at, missing) in of_this() {
        let Missing { level, copy, grant, .. } = *missing;
        let user = format!("lacks{at}");
        create(&server, &user).await;
        let member = with_user(&Real::at(server.port), &user);
        let (absent, given): (Vec<_>, Vec<_>) = driver.grants(&user, level, copy).into_iter().partition(|one| {
            one.statement.contains(&format!(" {grant} ")) || one.statement.contains(&format!(" {grant}"))
        });
        assert_eq!(absent.len(), 1, "{grant}: one of the grants");
        for one in given {
            server.execute("postgres", &one.statement).await.unwrap();
        }
        let (found, check) = without(driver.as_ref(), &member, missing).await;
        println!(
            "{:<16} {:<13} {:<7} without {grant:<18} {found:<8?} {check}",
            kind.to_string(),
            level.to_string(),
            copy.to_string()
        );
        assert_eq!((found, check.as_str()), missing.without, "{kind} {level} {copy} without {grant}");
        // The control: with it, nothing fails.
        server.execute("postgres", &absent[0].statement).await.unwrap();
        let checks = driver.preflight(&member, &plan(level, copy), soon()).await.checks;
        assert!(checks.iter().all(|check| check.result != CheckResult::Fail), "{checks:?}");
        hold(driver.as_ref(), &member, level, copy).await.unwrap();
    }
    // None that is printed was left out.
    for level in Level::ALL {
        for copy in [Copy::Atomic, Copy::Files] {
            if driver.supports(*level, copy).is_ok() && (copy == Copy::Atomic || *level == Level::Durable) {
                let tried = of_this().filter(|(_, missing)| (missing.level, missing.copy) == (*level, copy)).count();
                assert_eq!(driver.grants("somebody", *level, copy).len(), tried, "{kind} {level} {copy}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_privilege_of_postgresql_is_missed_alone_or_not_needed() {
    each_alone_is_missed(ServerKind::POSTGRESQL_15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_privilege_of_mariadb_is_missed_alone_or_not_needed() {
    each_alone_is_missed(ServerKind::MARIADB_10_11).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_missing_privilege_of_postgresql_is_named_with_its_grant_and_the_grants_suffice() {
    for kind in [ServerKind::POSTGRESQL_15, ServerKind::POSTGRESQL_18] {
        let server = Server::start(kind, Options::default()).await.unwrap();
        server.execute("postgres", "CREATE TABLE t (n int); CREATE ROLE freezer LOGIN PASSWORD 'pw'").await.unwrap();
        let (driver, member) = (driver(api::Engine::PostgreSQL), with_user(&Real::at(server.port), "freezer"));
        for (level, copy) in [(Level::WriteBlocked, Copy::Atomic), (Level::Durable, Copy::Files)] {
            let error = refused(driver.as_ref(), &member, level, copy).await;
            assert!(
                matches!(error, Error::Privilege { .. }) && error.advice().contains("run as"),
                "{kind} {level}: {error}"
            );
            for grant in driver.grants("freezer", level, copy) {
                server.execute("postgres", &grant.statement).await.unwrap();
            }
            let prepared = driver.prepare(&member, &plan(level, copy), Arc::new(Noted::default()), soon()).await;
            let (held, _) = prepared.unwrap_or_else(|error| panic!("{kind} {level}: {error}")).acquire().await.unwrap();
            held.release(soon()).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_privileges_of_mariadb_are_named_and_the_grants_suffice() {
    let server = Server::start(ServerKind::MARIADB_10_11, Options::default().set("log-bin", "bin")).await.unwrap();
    server.execute("", "CREATE USER freezer@'%' IDENTIFIED BY 'pw'").await.unwrap();
    let (driver, member) = (driver(api::Engine::MariaDB), with_user(&Real::at(server.port), "freezer"));
    let error = refused(driver.as_ref(), &member, Level::WriteBlocked, Copy::Atomic).await;
    assert!(matches!(error, Error::Privilege { .. }), "{error:?}");
    for grant in driver.grants("freezer", Level::WriteBlocked, Copy::Atomic) {
        server.execute("", &grant.statement).await.unwrap();
    }
    let plan = plan(Level::WriteBlocked, Copy::Atomic);
    let prepared = driver.prepare(&member, &plan, Arc::new(Noted::default()), soon()).await.unwrap();
    let (held, _) = prepared.acquire().await.unwrap();
    held.release(soon()).await.unwrap();
}
