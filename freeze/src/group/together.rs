//! A stage that the members of a group go through together: who is done early is kept until the last is, and one failure ends
//! it for all, at once.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{
    FutureExt, TryFutureExt,
    future::{BoxFuture, pending},
};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{ABANDON, OVERRUN, Target, by};
use crate::{
    driver::{Acquired, Held, Prepared, Pulse},
    error::Error,
    lease,
};

pub(super) struct Together {
    under_way: AtomicUsize,
    /// The last is done.
    done: CancellationToken,
    /// Nothing comes of it any more.
    failed: CancellationToken,
    /// The longest that one holds, the wait for the others included.
    longest: Option<Duration>,
    /// That it lasted.
    too_slow: OnceLock<Duration>,
}

/// A member that has nothing to do while others have.
pub(super) trait Waits {
    /// Since when it holds.
    fn since(&self) -> Option<Instant>;

    fn keep(&mut self, server_ttl: Duration, deadline: Instant) -> BoxFuture<'_, Result<Pulse, Error>>;

    /// Lets go: another has failed. What is left of it is closed by dropping it.
    fn give_up(self) -> BoxFuture<'static, ()>;
}

/// How a wait for the others ended.
enum Wait {
    AllDone,
    Failed,
    TooSlow(Duration),
}

impl Waits for Box<dyn Prepared> {
    fn since(&self) -> Option<Instant> {
        None
    }

    fn keep(&mut self, server_ttl: Duration, deadline: Instant) -> BoxFuture<'_, Result<Pulse, Error>> {
        (**self).keep(server_ttl, deadline).map_ok(|()| Pulse::default()).boxed()
    }

    fn give_up(self) -> BoxFuture<'static, ()> {
        timeout(ABANDON + OVERRUN, self.abandon(Instant::now() + ABANDON)).map(drop).boxed()
    }
}

impl Waits for (Box<dyn Held>, Acquired) {
    fn since(&self) -> Option<Instant> {
        Some(self.1.frozen_at.instant)
    }

    fn keep(&mut self, server_ttl: Duration, deadline: Instant) -> BoxFuture<'_, Result<Pulse, Error>> {
        self.0.heartbeat(server_ttl, deadline)
    }

    fn give_up(self) -> BoxFuture<'static, ()> {
        timeout(ABANDON + OVERRUN, self.0.release(Instant::now() + ABANDON)).map(drop).boxed()
    }
}

impl Together {
    pub(super) fn of(members: usize, longest: Option<Duration>) -> Self {
        Self {
            under_way: AtomicUsize::new(members),
            done: CancellationToken::new(),
            failed: CancellationToken::new(),
            longest,
            too_slow: OnceLock::new(),
        }
    }

    /// One member's way through the stage. `None`: it was let go, since nothing comes of the group; the fault is another's.
    pub(super) async fn go<T: Waits>(
        &self,
        target: &Target,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<Option<T>, Error> {
        let Some(done) = self.failed.run_until_cancelled(work).await else {
            // Dropped on its way, and its connections with it. Whoever holds too long for it is not the one at fault.
            return self.too_slow.get().map_or(Ok(None), |limit| Err(Error::TooSlow { limit: *limit }));
        };
        let mut done = done.inspect_err(|_| self.failed.cancel())?;
        if self.under_way.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.done.cancel();
        }
        match self.wait(&mut done, target).await.inspect_err(|_| self.failed.cancel())? {
            Wait::AllDone => return Ok(Some(done)),
            Wait::Failed => {}
            Wait::TooSlow(limit) => {
                self.too_slow.set(limit).ok();
                self.failed.cancel();
            }
        }
        done.give_up().await;
        Ok(None)
    }

    /// Whoever is done early is kept alive: its server's patience is shorter than others may take, and never reaches beyond the
    /// longest that it may be held.
    async fn wait<T: Waits>(&self, member: &mut T, target: &Target) -> Result<Wait, Error> {
        let end = self.longest.zip(member.since()).map(|(longest, since)| (since + longest, longest));
        let left = || end.map_or(Duration::MAX, |(end, _)| lease::left(end, Instant::now()));
        let ended = async {
            match end {
                Some((end, longest)) => {
                    sleep_until(end).await;
                    longest
                }
                None => pending().await,
            }
        };
        tokio::pin!(ended);
        loop {
            let server_ttl = lease::server_ttl(left()).min(target.plan.server_ttl);
            tokio::select! {
                biased;
                () = self.failed.cancelled() => return Ok(Wait::Failed),
                () = self.done.cancelled() => return Ok(Wait::AllDone),
                longest = &mut ended => return Ok(Wait::TooSlow(longest)),
                () = sleep(lease::pause(server_ttl)) => {}
            }
            let server_ttl = lease::server_ttl(left()).min(target.plan.server_ttl);
            let deadline = Instant::now() + server_ttl.min(left());
            let kept = by(deadline, "the heartbeat", member.keep(server_ttl, deadline));
            let Some(kept) = self.failed.run_until_cancelled(kept).await else { return Ok(Wait::Failed) };
            match kept.and_then(|pulse| pulse.within(target.max_stalled_sessions)) {
                Ok(_) => {}
                // Its server did not answer until the end: it is not the heartbeat that failed.
                Err(Error::Timeout { .. }) if left().is_zero() => {}
                Err(error) => return Err(error),
            }
        }
    }
}
