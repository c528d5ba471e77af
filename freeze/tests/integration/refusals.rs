//! What cannot work is refused in time, by its own reason, with what to do.

use std::sync::Arc;

use api::{Copy, Level, TlsMode};
use fixtures::{Options, Server, ServerKind};
use freeze::{
    Account, Driver, Drivers, Error, Member, Tls,
    contract::{Noted, plan, soon},
};

use crate::real::Real;

fn driver(engine: api::Engine) -> Arc<dyn Driver> {
    Arc::clone(Drivers::real().of(engine).unwrap())
}

fn with_user(member: &Member, user: &str) -> Member {
    let account = Account { user: user.to_owned(), password: Some("pw".to_owned()) };
    Member { account: Some(account), ..member.clone() }
}

async fn refused(driver: &dyn Driver, member: &Member, level: Level, copy: Copy) -> Error {
    let prepared = driver.prepare(member, &plan(level, copy), Arc::new(Noted::default()), soon()).await;
    match prepared {
        Ok(prepared) => prepared.acquire().await.unwrap_err(),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_too_old_is_told_so() {
    for kind in [ServerKind::POSTGRESQL_13, ServerKind::POSTGRESQL_14] {
        let server = Server::start(kind, Options::default()).await.unwrap();
        let error = driver(api::Engine::PostgreSQL).probe(&Real::at(server.port), soon()).await.unwrap_err();
        assert!(matches!(error, Error::Version { .. }) && error.advice().contains("15"), "{kind}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encryption_that_is_wanted_and_absent_and_a_host_that_is_down_have_their_own_reasons() {
    for (kind, engine) in
        [(ServerKind::POSTGRESQL_15, api::Engine::PostgreSQL), (ServerKind::MARIADB_10_11, api::Engine::MariaDB)]
    {
        let server = Server::start(kind, Options::default()).await.unwrap();
        let member = Real::at(server.port);
        let encrypted = Member { tls: Tls { mode: TlsMode::Require, roots: None }, ..member.clone() };
        let error = driver(engine).probe(&encrypted, soon()).await.unwrap_err();
        assert!(matches!(error, Error::TlsUnavailable), "{kind}: {error}");
        drop(server);
        let error = driver(engine).probe(&member, soon()).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{kind}: {error}");
    }
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
