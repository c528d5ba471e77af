//! A replica: what it can be held at, and what not.

use std::sync::Arc;

use api::{CheckResult, Copy, Level, Role, conditions::reasons};
use fixtures::{Options, Server, ServerKind};
use freeze::{
    Driver, Error, Member, Plan,
    contract::{Noted, plan, soon},
};

use super::driver;
use crate::real::Real;

fn of_a_replica(level: Level) -> Plan {
    Plan { role: Role::Replica, ..plan(level, Copy::Atomic) }
}

async fn refused(driver: &dyn Driver, member: &Member, plan: &Plan) -> Error {
    let error = driver.prepare(member, plan, Arc::new(Noted::default()), soon()).await.unwrap_err();
    let checks = driver.preflight(member, plan, soon()).await.checks;
    let role = checks.iter().find(|check| check.name == "role").unwrap();
    assert_eq!((role.result, role.reason.as_deref()), (CheckResult::Fail, Some(error.reason())), "{checks:?}");
    error
}

async fn is_held_at_recoverable_only(engine: api::Engine, replica: &Server, what: &str) {
    let (driver, member) = (driver(engine), Real::at(replica.port));
    assert_eq!(driver.probe(&member, soon()).await.unwrap().role, Role::Replica, "{what}");
    for level in Level::ALL {
        let error = refused(driver.as_ref(), &member, &plan(*level, Copy::Atomic)).await;
        assert!(matches!(error, Error::Role { found: Role::Replica, wanted: Role::Primary }), "{what}: {error:?}");
        assert_eq!(error.reason(), reasons::WRONG_ROLE);
    }
    for level in [Level::Durable, Level::WriteBlocked] {
        let error = refused(driver.as_ref(), &member, &of_a_replica(level)).await;
        assert!(matches!(error, Error::Unsupported { .. }), "{what}, {level}: {error:?}");
        assert!(error.advice().contains("freeze the primary"), "{what}: {}", error.advice());
    }
    let plan = of_a_replica(Level::Recoverable);
    let checks = driver.preflight(&member, &plan, soon()).await.checks;
    assert!(checks.iter().all(|check| check.result != CheckResult::Fail), "{what}: {checks:?}");
    let prepared = driver.prepare(&member, &plan, Arc::new(Noted::default()), soon()).await.unwrap();
    let (mut held, _) = prepared.acquire().await.unwrap();
    held.heartbeat(plan.server_ttl, soon()).await.unwrap();
    let proof = held.prove(soon()).await.unwrap();
    assert!(proof.held && proof.incarnation.replica, "{what}: {proof:?}");
    held.release(soon()).await.unwrap();
}

/// The control: its primary is none, and is refused as one.
async fn is_no_replica(engine: api::Engine, primary: &Server) {
    let error = refused(driver(engine).as_ref(), &Real::at(primary.port), &of_a_replica(Level::Recoverable)).await;
    assert!(matches!(error, Error::Role { found: Role::Primary, wanted: Role::Replica }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_of_postgresql_is_held_at_recoverable_only() {
    let primary = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    primary.execute("postgres", "CREATE TABLE t (n int)").await.unwrap();
    let standby = Server::replica_of(&primary, Options::default()).await.unwrap();
    is_held_at_recoverable_only(api::Engine::PostgreSQL, &standby, "a streaming standby").await;
    is_no_replica(api::Engine::PostgreSQL, &primary).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_of_mariadb_is_held_at_recoverable_only() {
    let binlog = |server_id: &str| Options::default().set("log-bin", "bin").set("server-id", server_id);
    let primary = Server::start(ServerKind::MARIADB_10_11, binlog("1")).await.unwrap();
    let replica = Server::replica_of(&primary, binlog("2")).await.unwrap();
    is_held_at_recoverable_only(api::Engine::MariaDB, &replica, "a replica that writes").await;
    is_no_replica(api::Engine::MariaDB, &primary).await;
    primary.execute("", "SET GLOBAL read_only = ON").await.unwrap();
    is_held_at_recoverable_only(api::Engine::MariaDB, &primary, "a server that is read only").await;
}
