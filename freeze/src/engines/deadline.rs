//! Every wait on a server has an end.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::error::Error;

/// `work` by `deadline`, or [`Error::Timeout`]. Dropping the work closes its connection sooner or later; the server has
/// its own, shorter limits for whatever it was asked.
pub(super) async fn by<T>(
    deadline: Instant,
    doing: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let began = Instant::now();
    let limit = deadline.saturating_duration_since(began);
    timeout_at(deadline, work).await.unwrap_or(Err(Error::Timeout { doing, limit }))
}

/// What is left until `deadline`, at least one millisecond: servers read 0 as "for ever".
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}
