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
