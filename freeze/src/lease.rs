//! When a freeze ends, and what the server is told of that. Pure arithmetic over instants.
//!
//! ```text
//! server TTL  ≤  the claims' end  ≤  the freeze's hard end = held since + maxFrozen
//! ```
//! The server's idle timeout counts from our last statement, so it is renewed with every heartbeat to
//! `min(5 s, what is left)`: a freezer that vanishes right after a heartbeat still thaws at the lease's end, not later.

use std::time::Duration;

use tokio::time::Instant;

/// How often a hold is checked and the server's idle timeout renewed.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// The longest that a server keeps a session of ours which says nothing: five missed heartbeats.
pub const LONGEST_SERVER_TTL: Duration = Duration::from_secs(5);
/// The shortest idle timeout that every engine can express (MariaDB's `wait_timeout` is in whole seconds).
pub(crate) const SHORTEST_SERVER_TTL: Duration = Duration::from_secs(1);

/// The idle timeout to give the server when `left` of the lease is left.
pub(crate) fn server_ttl(left: Duration) -> Duration {
    left.clamp(SHORTEST_SERVER_TTL, LONGEST_SERVER_TTL)
}

/// How long after a heartbeat that gave the server `server_ttl` the next is due: in time also when one is late.
pub(crate) fn pause(server_ttl: Duration) -> Duration {
    HEARTBEAT.min(server_ttl / 2)
}

/// What is left of a lease, or nothing.
pub(crate) fn left(until: Instant, now: Instant) -> Duration {
    until.saturating_duration_since(now)
}

/// When a claim that is granted `ttl` now lapses; never past `hard_end`.
pub(crate) fn until(now: Instant, ttl: Duration, hard_end: Instant) -> Instant {
    (now + ttl).min(hard_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_never_waits_longer_than_five_seconds_nor_than_what_is_left() {
        assert_eq!(server_ttl(Duration::from_secs(60)), Duration::from_secs(5));
        assert_eq!(server_ttl(Duration::from_millis(3_200)), Duration::from_millis(3_200));
        assert_eq!(server_ttl(Duration::ZERO), Duration::from_secs(1));
        assert_eq!(pause(Duration::from_secs(5)), Duration::from_secs(1));
        assert!(pause(Duration::from_secs(1)) * 2 <= Duration::from_secs(1), "one may be late");
    }

    #[tokio::test]
    async fn a_claim_never_outlives_the_hard_end() {
        let now = Instant::now();
        let hard_end = now + Duration::from_secs(15);
        assert_eq!(until(now, Duration::from_secs(10), hard_end), now + Duration::from_secs(10));
        assert_eq!(until(now, Duration::from_secs(60), hard_end), hard_end);
    }
}
