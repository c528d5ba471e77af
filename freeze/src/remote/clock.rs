//! The clock that leases of an agent are told by: it counts while the machine sleeps, and nobody can set it (`clock_gettime(2)`,
//! `CLOCK_BOOTTIME`).

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::sleep;

/// Since the machine was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Uptime(Duration);

/// Tokio's timers do not count while the machine sleeps: no wait is longer, before it is looked again.
const LOOK: Duration = Duration::from_millis(250);

impl Uptime {
    pub(super) fn now() -> Self {
        // Without that clock every lease is over: nothing would end it.
        Self(clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from))
    }

    pub(super) fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration))
    }

    /// Returns when it is then. Safe to cancel.
    pub(super) async fn reached(self) {
        loop {
            let left = self.0.saturating_sub(Self::now().0);
            if left.is_zero() {
                return;
            }
            sleep(left.min(LOOK)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_time_that_was_is_reached_at_once_and_one_to_come_is_waited_for() {
        let now = Uptime::now();
        now.reached().await;
        let soon = now.after(Duration::from_millis(20));
        soon.reached().await;
        assert!(Uptime::now() >= soon);
        Uptime(Duration::MAX).after(Duration::from_secs(1));
    }
}
