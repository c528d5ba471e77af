//! Waiting for conditions, never for time.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};

const PAUSE: Duration = Duration::from_millis(50);

/// Asks `probe` until it answers, and says after `limit` what it said last.
pub async fn until<T, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let end = Instant::now() + limit;
    let mut last = anyhow!("it did not answer at all");
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, probe()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = error,
            Err(_) => {}
        }
        if Instant::now() >= end {
            return Err(last.context(format!("{what}: not within {} s", limit.as_secs_f32())));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// For what has to be waited for where nothing can be awaited: until `is_so`, or long enough.
pub(crate) fn wait_blocking(is_so: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() && Instant::now() < end {
        thread::park_timeout(Duration::from_millis(10));
    }
}

/// The last lines of a log, for error messages.
pub(crate) fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    format!("the end of {}:\n{}", log.display(), lines[lines.len().saturating_sub(15)..].join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_with_what_was_said_last() {
        let probe = || async { Err::<(), _>(anyhow!("still closed")) };
        let error = until("the door", Duration::from_millis(120), probe).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "the door: not within 0.12 s: still closed");
        let error = until("the door", Duration::from_millis(20), std::future::pending::<Result<()>>).await.unwrap_err();
        assert!(format!("{error:#}").ends_with("it did not answer at all"));
        assert_eq!(until("the door", Duration::ZERO, || async { Ok(7) }).await.unwrap(), 7);
    }
}
