//! What PostgreSQL's settings, planner and versions would change, and must not: on real servers.

use std::{sync::Arc, time::Duration};

use api::{CheckResult, Copy, Level, Position};
use fixtures::{Engine, Options, Server, ServerKind, Session};
use freeze::{
    Driver, Error, Held, Observed, Plan,
    contract::{Noted, plan, soon},
    engines::postgresql::Postgresql,
};

use crate::real::Real;

const KINDS: [ServerKind; 2] = [ServerKind::POSTGRESQL_15, ServerKind::POSTGRESQL_18];

async fn take(server: &Server, plan: &Plan) -> Result<Box<dyn Held>, Error> {
    let driver = Postgresql::default();
    let prepared = driver.prepare(&Real::at(server.port), plan, Arc::new(Noted::default()), soon()).await?;
    Ok(prepared.acquire().await?.0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_a_file_copy_is_seen_once_it_is_let_go() {
    for kind in KINDS {
        let server = Server::start(kind, Options::default()).await.unwrap();
        let (driver, member) = (Postgresql::default(), Real::at(server.port));
        let plan = plan(Level::Durable, Copy::Files);
        let observe = async || driver.observe(&member, &plan.freeze_uid, soon()).await.unwrap();
        let held = take(&server, &plan).await.unwrap();
        let seen = observe().await;
        assert!(matches!(&seen, Observed::Holds(what) if what.contains("slot")), "{kind}: {seen:?}");
        // Its sessions are not closed yet: nobody has said farewell.
        let released = held.release(soon()).await.unwrap();
        assert_eq!(observe().await, Observed::Nothing, "{kind}");
        let slots = server.scalar("postgres", "SELECT count(*)::text FROM pg_replication_slots").await.unwrap();
        assert_eq!(slots, "0", "{kind}");
        assert!(!released.artifacts.is_empty(), "{kind}");
        released.farewell.say().await;
    }
}

/// At 1 ms the time for one attempt came to 0, which is for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadlock_timeout_that_leaves_no_time_is_refused_and_a_short_one_is_not() {
    for (setting, enough) in [("1ms", false), ("9ms", false), ("100ms", true)] {
        let options = Options::default().set("deadlock_timeout", setting);
        let server = Server::start(ServerKind::POSTGRESQL_15, options).await.unwrap();
        server.execute("postgres", "CREATE TABLE t (n int)").await.unwrap();
        for (level, enough) in [(Level::WriteBlocked, enough), (Level::Durable, true)] {
            let plan = plan(level, Copy::Atomic);
            let checks = Postgresql::default().preflight(&Real::at(server.port), &plan, soon()).await.checks;
            let settings = checks.iter().find(|check| check.name == "settings").unwrap();
            assert_eq!(settings.result == CheckResult::Pass, enough, "{setting} {level}: {settings:?}");
            match take(&server, &plan).await {
                Ok(held) => {
                    assert!(enough, "{setting} {level}: it holds, and should not");
                    held.release(soon()).await.unwrap();
                }
                Err(error) => {
                    let refused = matches!(error, Error::UnsafeSettings { .. });
                    assert!(!enough && refused && error.to_string().contains("deadlock_timeout"), "{setting}: {error}");
                }
            }
        }
    }
}

/// The planner tries the cheapest condition first, and an administrator may call anything cheap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thaw_all_ends_nobody_else_in_whatever_order_conditions_are_tried() {
    for kind in KINDS {
        let server = Server::start(kind, Options::default()).await.unwrap();
        let cheap = "ALTER FUNCTION pg_terminate_backend(int, bigint) COST 0.0001";
        server.execute("postgres", cheap).await.unwrap();
        let mut stranger = Session::open(Engine::PostgreSQL, server.port, "postgres").await.unwrap();
        let mut held = take(&server, &plan(Level::Durable, Copy::Atomic)).await.unwrap();
        let ended = Postgresql::default().thaw_all(&Real::at(server.port), soon()).await.unwrap();
        assert_eq!(ended.len(), 1, "{kind}: {ended:?}");
        stranger.run("SELECT 1").await.expect("a stranger's session goes on");
        assert!(held.heartbeat(Duration::from_secs(5), soon()).await.is_err(), "{kind}: it is ended");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_on_the_boundary_of_two_segments_is_in_the_latter_on_every_version() {
    for kind in KINDS {
        let server = Server::start(kind, Options::default()).await.unwrap();
        // What the positions rest on: a segment is 16 MiB long here.
        let names =
            "SELECT pg_walfile_name('0/5000000'::pg_lsn - 1) || ' ' || pg_walfile_name('0/5000000'::pg_lsn + 1)";
        assert_eq!(
            server.scalar("postgres", names).await.unwrap(),
            "000000010000000000000004 000000010000000000000005"
        );
        // What the server writes by itself may move the position on from the boundary.
        let mut on_the_boundary = false;
        for _ in 0..20 {
            let mut held = take(&server, &plan(Level::Durable, Copy::Atomic)).await.unwrap();
            server.execute("postgres", "SELECT pg_switch_wal()").await.unwrap();
            let Some(Position::Postgresql(after)) = held.prove(soon()).await.unwrap().after else { panic!() };
            held.release(soon()).await.unwrap();
            let (_, low) = after.lsn.split_once('/').unwrap();
            let low = u32::from_str_radix(low, 16).unwrap();
            assert_eq!(after.wal_file, Some(format!("0000000100000000{:08X}", low >> 24)), "{kind}: {}", after.lsn);
            on_the_boundary |= low.trailing_zeros() >= 24;
            if on_the_boundary {
                break;
            }
        }
        assert!(on_the_boundary, "{kind}: never met");
    }
}
