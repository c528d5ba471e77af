//! What a write block of PostgreSQL does with those in its way, where the time matters: on real servers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use api::{BlockerPolicy, Copy, Level};
use fixtures::ServerKind;
use freeze::{
    Acquired, Error, Held, Plan,
    contract::{Noted, Subject, plan, soon},
};
use tokio::task::JoinSet;

use crate::real::Real;

/// Nobody waits for as long as this by mistake.
const LONG: Duration = Duration::from_secs(60);

async fn take(real: &Real, blockers: BlockerPolicy, within: Duration) -> Result<(Box<dyn Held>, Acquired), Error> {
    let plan = Plan {
        acquire_timeout: within,
        blockers,
        blockers_older_than: Duration::ZERO,
        ..plan(Level::WriteBlocked, Copy::Atomic)
    };
    real.driver().prepare(&real.member(), &plan, Arc::new(Noted::default()), soon()).await?.acquire().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policy_fail_gives_up_as_soon_as_somebody_is_seen_and_lets_everything_go() {
    for kind in [ServerKind::POSTGRESQL_15, ServerKind::POSTGRESQL_18] {
        let real = Real::start(kind).await;
        let mut busy = real.session().await;
        busy.run("SET application_name = 'in-the-way'; BEGIN; LOCK TABLE t IN ROW EXCLUSIVE MODE").await.unwrap();
        let began = Instant::now();
        let error = take(&real, BlockerPolicy::Fail, LONG).await.unwrap_err();
        assert!(began.elapsed() < LONG / 2, "{kind}: {:?}", began.elapsed());
        assert!(matches!(&error, Error::Blocked { limit, .. } if *limit < LONG / 2), "{kind}: {error:?}");
        assert!(error.to_string().contains("in-the-way"), "{kind}: {error}");
        assert!(real.commit(LONG / 2).await, "{kind}: nothing is held");
        // The control: who waits, waits on.
        let began = Instant::now();
        let patience = Duration::from_secs(2);
        let error = take(&real, BlockerPolicy::Wait, patience).await.unwrap_err();
        assert!(began.elapsed() > patience / 2 && error.to_string().contains("in-the-way"), "{kind}: {error}");
        busy.run("COMMIT").await.unwrap();
        let (mut held, _) = take(&real, BlockerPolicy::Fail, LONG).await.unwrap();
        let proof = held.prove(soon()).await.unwrap();
        assert!(proof.held, "{kind}: nobody in the way: {proof:?}");
        held.release(soon()).await.unwrap();
    }
}

/// Whether `count` sessions wait for a relation lock.
async fn wait(real: &Real, count: u32) {
    let end = Instant::now() + LONG;
    while real.scalar("SELECT count(DISTINCT pid)::text FROM pg_locks WHERE NOT granted").await != count.to_string() {
        assert!(Instant::now() < end, "{count} sessions wait");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_who_waits_for_us_is_stalled() {
    for kind in [ServerKind::POSTGRESQL_15, ServerKind::POSTGRESQL_18] {
        let real = Real::start(kind).await;
        // A catalogue is no user's table, so the strangers' quarrel is not in our way.
        let quarrel = "BEGIN; LOCK TABLE pg_catalog.pg_largeobject IN ACCESS EXCLUSIVE MODE";
        let mut stranger = real.session().await;
        stranger.run(quarrel).await.unwrap();
        // Quarrels with the stranger; then a writer, somebody who wants it all, and a reader who stands behind.
        let waiters =
            [quarrel, "INSERT INTO t DEFAULT VALUES", "BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE", "SELECT FROM t"];
        let (mut waiting, mut seen) = (JoinSet::new(), Vec::new());
        let (mut held, _) = take(&real, BlockerPolicy::Wait, LONG).await.unwrap();
        for (sql, count) in waiters.into_iter().zip(1..) {
            let mut session = real.session().await;
            waiting.spawn(async move { session.run(sql).await.ok() });
            wait(&real, count).await;
            seen.push(held.heartbeat(Duration::from_secs(5), soon()).await.unwrap().stalled_sessions);
        }
        assert_eq!(seen, [Some(0), Some(1), Some(2), Some(3)], "{kind}");
        held.release(soon()).await.unwrap();
        drop(stranger);
    }
}
