//! What PostgreSQL's settings, planner and versions would change, and must not: on real servers.

use std::sync::Arc;

use api::{Copy, Level};
use fixtures::{Options, Server, ServerKind};
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
