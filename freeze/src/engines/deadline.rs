//! Every wait on a server has an end.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::error::Error;

/// `work` by `deadline`, or [`Error::Timeout`]; past it, it is not begun. A session whose statement is dropped is lost; the
/// server has its own, shorter limits for whatever it was asked.
pub(super) async fn by<T>(
    deadline: Instant,
    doing: &'static str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let began = Instant::now();
    let limit = deadline.saturating_duration_since(began);
    if limit.is_zero() {
        return Err(Error::Timeout { doing: doing.into(), limit });
    }
    timeout_at(deadline, work).await.unwrap_or(Err(Error::Timeout { doing: doing.into(), limit }))
}

/// What is left until `deadline`, at least one millisecond: servers read 0 as "for ever".
pub(super) fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1))
}

/// What a session says of itself after a statement that was dropped before its answer was read: whoever asked next would take
/// that answer, or its error, for his own.
pub(super) fn unanswered() -> sqlx::Error {
    sqlx::Error::Io(std::io::Error::other("an earlier statement was given up before its answer came"))
}
