//! A pooler between us and the server: what it lends is not ours to hold.

use std::time::Duration;

use api::{CheckResult, Copy, Level, conditions::reasons};
use fixtures::{Options, PASSWORD, Pooler, Pooling, Server, ServerKind, USER};
use freeze::{
    Error, Member,
    contract::{plan, soon},
};
use sqlx::Connection;
use tokio::time::{Instant, sleep};

use super::{driver, refused};
use crate::real::Real;

/// What a client like ours says at startup and PgBouncer does not know.
const OURS: &str = "extra_float_digits, options";

async fn is_refused(member: &Member, what: &str) {
    let driver = driver(api::Engine::PostgreSQL);
    let error = driver.probe(member, soon()).await.map(|_| ()).expect_err(what);
    assert!(matches!(error, Error::Pooler { .. }), "{what}: {error:?}");
    for level in Level::ALL {
        let error = refused(driver.as_ref(), member, *level, Copy::Atomic).await;
        assert!(matches!(error, Error::Pooler { .. }), "{what}, {level}: {error:?}");
        assert!(error.advice().contains("the server itself"), "{}", error.advice());
    }
    let checks = driver.preflight(member, &plan(Level::WriteBlocked, Copy::Atomic), soon()).await.checks;
    let last = checks.last().expect(what);
    assert_eq!(
        (last.name.as_str(), last.result, last.reason.as_deref()),
        ("pooler", CheckResult::Fail, Some(reasons::POOLER)),
        "{what}: {checks:?}"
    );
}

async fn server() -> Server {
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    server.execute("postgres", "CREATE TABLE t (n int)").await.unwrap();
    server
}

/// Another client comes, asks something, and goes: its session is the pooler's to lend now, and older than ours can be.
async fn somebody_was_here(server: &Server, pooler: &Pooler) {
    let url = format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/postgres?sslmode=disable", pooler.port);
    let mut client = sqlx::PgConnection::connect(&url).await.unwrap();
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut client).await.unwrap();
    client.close().await.unwrap();
    let old = format!(
        "SELECT count(*)::text FROM pg_stat_activity \
         WHERE pid = {pid} AND clock_timestamp() - backend_start > interval '200 milliseconds'"
    );
    let end = Instant::now() + Duration::from_secs(10);
    while server.scalar("postgres", &old).await.unwrap() == "0" {
        assert!(Instant::now() < end, "the pooler keeps no session");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_is_found_out_by_the_session_that_it_lends() {
    let server = server().await;
    for pooling in [Pooling::Transaction, Pooling::Session] {
        let pooler = Pooler::start(&server, pooling, OURS).await.unwrap();
        somebody_was_here(&server, &pooler).await;
        is_refused(&Real::at(pooler.port), &format!("{pooling:?} pooling")).await;
    }
    // The control: the same server, and nobody in between.
    let checks = driver(api::Engine::PostgreSQL)
        .preflight(&Real::at(server.port), &plan(Level::WriteBlocked, Copy::Atomic), soon())
        .await
        .checks;
    let pooler = checks.iter().find(|check| check.name == "pooler").unwrap();
    assert_eq!(pooler.result, CheckResult::Pass, "{checks:?}");
    assert!(checks.iter().all(|check| check.result != CheckResult::Fail), "{checks:?}");
}

/// Nobody used it before: the session that it lends is as young as our connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_is_as_fresh_as_our_connection_is_found_out_too() {
    let server = server().await;
    let driver = driver(api::Engine::PostgreSQL);
    for pooling in [Pooling::Transaction, Pooling::Session] {
        for level in Level::ALL {
            let pooler = Pooler::start(&server, pooling, OURS).await.unwrap();
            let error = refused(driver.as_ref(), &Real::at(pooler.port), *level, Copy::Atomic).await;
            assert!(matches!(error, Error::Pooler { .. }), "{pooling:?}, {level}: {error:?}");
        }
        let pooler = Pooler::start(&server, pooling, OURS).await.unwrap();
        is_refused(&Real::at(pooler.port), &format!("fresh {pooling:?} pooling")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooler_that_does_not_know_our_limits_is_told_as_one() {
    let server = server().await;
    for swallows in ["", "extra_float_digits"] {
        let pooler = Pooler::start(&server, Pooling::Session, swallows).await.unwrap();
        is_refused_at_startup(&Real::at(pooler.port), swallows).await;
    }
}

/// It never lets us in, so the preflight says so at its first check or at the pooler's.
async fn is_refused_at_startup(member: &Member, what: &str) {
    let driver = driver(api::Engine::PostgreSQL);
    let error = driver.probe(member, soon()).await.map(|_| ()).expect_err(what);
    assert!(matches!(error, Error::Pooler { .. }), "{what:?}: {error:?}");
    let checks = driver.preflight(member, &plan(Level::Durable, Copy::Atomic), soon()).await.checks;
    let last = checks.last().expect(what);
    assert_eq!((last.result, last.reason.as_deref()), (CheckResult::Fail, Some(reasons::POOLER)), "{checks:?}");
}
