//! Several Databases that are on one server: in one group, and in freezes of their own at once.

use std::{sync::Arc, time::Duration};

use api::{Copy, Level, Proof, Stage};
use fixtures::{Options, Server, ServerKind};
use freeze::{
    Driver, Error, Held, Member, Plan, Target,
    contract::{Noted, plan, soon},
    engines::{mariadb::Mariadb, postgresql::Postgresql},
};

use crate::{
    book::{freezer, request},
    real::Real,
};

const KINDS: [ServerKind; 2] = [ServerKind::POSTGRESQL_15, ServerKind::POSTGRESQL_18];
const TTL: Duration = Duration::from_secs(20);

async fn postgresql(kind: ServerKind) -> Server {
    // An autovacuum of the catalogue may look like a commit that escaped (README, "What it cannot do").
    let server = Server::start(kind, Options::default().set("autovacuum", "off")).await.unwrap();
    for database in ["x", "y"] {
        server.execute("postgres", &format!("CREATE DATABASE {database}")).await.unwrap();
        server.execute(database, "CREATE TABLE t (n int)").await.unwrap();
    }
    server
}

fn member(server: &Server, databases: &[&str]) -> Member {
    let databases = databases.iter().map(|name| (*name).to_owned()).collect();
    Member { databases, ..Real::at(server.port) }
}

async fn hold(driver: &dyn Driver, member: &Member, level: Level) -> Box<dyn Held> {
    let plan = plan(level, Copy::Atomic);
    let prepared = driver.prepare(member, &plan, Arc::new(Noted::default()), soon()).await.unwrap();
    prepared.acquire().await.unwrap().0
}

async fn proof(held: &mut Box<dyn Held>) -> Proof {
    held.prove(soon()).await.unwrap()
}

fn escaped(proof: &Proof) -> bool {
    !proof.held && proof.reason.as_deref().is_some_and(|reason| reason.starts_with("CommitEscaped: 1 "))
}

/// A group of Databases, all of one freeze.
fn group(driver: &Arc<dyn Driver>, members: Vec<Member>, level: Level, copy: Copy) -> Vec<Target> {
    let plan = Plan { server_ttl: Duration::from_secs(5), ..plan(level, copy) };
    let target = |(at, member)| Target {
        via: api::Via::Network,
        database: format!("db{at}"),
        name: format!("the server, {at}"),
        driver: Arc::clone(driver),
        member,
        plan: plan.clone(),
        prepare_timeout: Duration::from_secs(10),
        max_stalled_sessions: None,
    };
    members.into_iter().enumerate().map(target).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_databases_on_one_postgresql_is_proved_and_a_foreign_commit_is_not_overlooked() {
    for kind in KINDS {
        let server = postgresql(kind).await;
        let driver: Arc<dyn Driver> = Arc::new(Postgresql::default());
        let members = || vec![member(&server, &["x"]), member(&server, &["x", "y"]), member(&server, &["y"])];
        for (at, foreign) in [false, true].into_iter().enumerate() {
            let (freezer, _) = freezer();
            let request =
                request(&format!("f{at}"), "claim", group(&driver, members(), Level::WriteBlocked, Copy::Atomic), TTL);
            freezer.quiesce(request).await.unwrap();
            if foreign {
                server.execute("postgres", "SELECT pg_current_xact_id()").await.unwrap();
            }
            let ended = freezer.unquiesce("ns", "db0", "claim", Stage::Thaw).await.unwrap().unwrap();
            for target in &ended.status.targets {
                let proof = target.proof.as_ref().unwrap();
                assert_eq!(proof.held, !foreign, "{kind}: {proof:?}");
                assert_eq!(escaped(proof), foreign, "{kind}: {proof:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_databases_on_one_postgresql_are_copied_file_by_file_in_one_freeze() {
    for kind in KINDS {
        let server = postgresql(kind).await;
        let driver: Arc<dyn Driver> = Arc::new(Postgresql::default());
        let members = vec![member(&server, &["x"]), member(&server, &["y"])];
        let (freezer, _) = freezer();
        let targets = group(&driver, members, Level::Durable, Copy::Files);
        freezer.quiesce(request("f", "claim", targets, TTL)).await.unwrap();
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'stillpoint%'";
        assert_eq!(server.scalar("postgres", slots).await.unwrap(), "2", "{kind}");
        let ended = freezer.unquiesce("ns", "db0", "claim", Stage::Thaw).await.unwrap().unwrap();
        for target in &ended.status.targets {
            assert!(target.proof.as_ref().unwrap().held && !target.artifacts.is_empty(), "{kind}: {target:?}");
        }
        assert_eq!(server.scalar("postgres", slots).await.unwrap(), "0", "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn freezes_at_once_on_one_postgresql_do_not_take_each_others_markers_for_commits() {
    for kind in KINDS {
        let server = postgresql(kind).await;
        let (ours, another_process) = (Postgresql::default(), Postgresql::default());
        let mut x = hold(&ours, &member(&server, &["x"]), Level::WriteBlocked).await;
        let mut y = hold(&ours, &member(&server, &["y"]), Level::WriteBlocked).await;
        let mut durable = hold(&ours, &member(&server, &[]), Level::Durable).await;
        durable.barrier(soon()).await.unwrap();
        for held in [&mut x, &mut y] {
            let proof = proof(held).await;
            assert!(proof.held, "{kind}: {proof:?}");
        }
        for over in [y, durable] {
            over.release(soon()).await.unwrap();
        }
        let still = proof(&mut x).await;
        assert!(still.held, "{kind}: the others are over, and their markers are still in its way: {still:?}");
        // The control: nobody here knows the marker of another process.
        let foreign = hold(&another_process, &member(&server, &["y"]), Level::WriteBlocked).await;
        let proof = proof(&mut x).await;
        assert!(escaped(&proof), "{kind}: {proof:?}");
        for over in [x, foreign] {
            over.release(soon()).await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_databases_on_one_mariadb_is_told_to_list_it_once() {
    let server = Server::start(ServerKind::MARIADB_10_11, Options::default()).await.unwrap();
    let held = hold(&Mariadb, &member(&server, &["x"]), Level::WriteBlocked).await;
    let plan = plan(Level::WriteBlocked, Copy::Atomic);
    let second = Mariadb.prepare(&member(&server, &["y"]), &plan, Arc::new(Noted::default()), soon()).await;
    let error = second.err().unwrap();
    assert!(matches!(error, Error::ForeignFreeze { .. }) && error.to_string().contains("list it once"), "{error}");
    held.release(soon()).await.unwrap();
}
