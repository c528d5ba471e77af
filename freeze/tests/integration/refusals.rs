//! What cannot work is refused in time, by its own reason, with what to do.

mod pooler;
mod privileges;
mod replica;
mod tls;

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
