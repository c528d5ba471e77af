//! Sessions in the way of a write block: who they are, and ending them where the policy says so.

use std::time::Duration;

use api::BlockerPolicy;
use sqlx::postgres::PgRow;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::connect::{Link, MARK, literal, text};
use crate::{
    blocker::Blocker,
    driver::Plan,
    engines::in_the_way::{Found, InTheWay},
};

/// How long its transaction, else its statement, has been running, in milliseconds.
macro_rules! age {
    () => {
        "(extract(epoch FROM clock_timestamp() - coalesce(a.xact_start, a.query_start, a.backend_start)) * 1000)::bigint"
    };
}

/// A session that a policy may end: a client's, of no freeze and no backup.
macro_rules! client {
    () => {
        "(a.backend_type = 'client backend' AND a.application_name NOT LIKE 'stillpoint%' \
         AND NOT EXISTS (SELECT FROM pg_stat_progress_basebackup b WHERE b.pid = a.pid))"
    };
}

/// The pause between attempts, in which those who queued behind us go on.
pub(super) const DRAIN: Duration = Duration::from_millis(250);
const AGE: &str = age!();
const CLIENT: &str = client!();

/// One row per session, as [`session`] reads it. Of its statement only the first word: the rest is the client's business.
pub(super) const SESSIONS: &str = concat!(
    "SELECT a.pid, coalesce(a.usename, ''), coalesce(a.application_name, ''), ",
    age!(),
    ", coalesce(a.state, a.backend_type) || ', ' || coalesce(upper(substring(a.query FROM '^\\s*(\\w+)')), 'no statement'), \
     a.backend_xid IS NOT NULL, ",
    client!(),
    " FROM pg_stat_activity a"
);

/// How long we wait before we look who is in the way.
const PATIENCE: Duration = Duration::from_millis(60);

/// Reads a row of [`SESSIONS`].
pub(super) fn session(row: &PgRow) -> Found {
    let number = |at| text(row, at).and_then(|value| value.parse::<i64>().ok()).unwrap_or(0);
    let is = |at| text(row, at).as_deref() == Some("t");
    let blocker = Blocker {
        id: number(0),
        user: text(row, 1).unwrap_or_default(),
        application: text(row, 2).unwrap_or_default(),
        age: Duration::from_millis(u64::try_from(number(3)).unwrap_or(0)),
        doing: text(row, 4).unwrap_or_default(),
    };
    Found { blocker, has_written: is(5), may_end: is(6) }
}

/// Looks who is in the way of `pids` until they are `answered`, and ends them where the policy says so; at `Fail` it gives up
/// as soon as it sees anybody. Never dropped in the middle of a statement: the main session is used further.
pub(super) async fn watch(
    main: &mut Link,
    pids: &[i32],
    plan: &Plan,
    deadline: Instant,
    answered: &CancellationToken,
    in_the_way: &mut InTheWay,
) {
    let ours = pids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mark = literal(&format!("{MARK}%"));
    let sql = format!(
        "{SESSIONS} WHERE a.application_name NOT LIKE {mark} AND a.pid IN \
         (SELECT unnest(pg_blocking_pids(ours)) FROM unnest(ARRAY[{ours}]::int[]) ours)",
    );
    while answered.run_until_cancelled(sleep(PATIENCE)).await.is_some() {
        let Ok(rows) = main.run(deadline + DRAIN, "looking for sessions in the way", &sql).await else {
            continue;
        };
        let sessions: Vec<_> = rows.iter().map(session).collect();
        in_the_way.see(&sessions);
        if plan.blockers == BlockerPolicy::Fail && !sessions.is_empty() {
            in_the_way.gave_up = true;
            // What waits for its lock hears of it at once; unheard, it ends with its attempt.
            let sql = format!(
                "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE pid IN ({ours}) AND application_name LIKE {mark}"
            );
            main.run(deadline + DRAIN, "giving up", &sql).await.ok();
            return;
        }
        for blocker in in_the_way.to_be_ended(&sessions, plan) {
            if !answered.is_cancelled() {
                end(main, &blocker, (plan, &ours), deadline, in_the_way).await;
            }
        }
    }
}

/// Looks once more in the statement that ends it: since it was seen it may have got out of the way, begun another transaction or
/// to write, or its number may be another session's.
async fn end(
    main: &mut Link,
    blocker: &Blocker,
    (plan, ours): (&Plan, &str),
    deadline: Instant,
    in_the_way: &mut InTheWay,
) {
    let writers = if plan.blockers == BlockerPolicy::KillAll { "" } else { " AND a.backend_xid IS NULL" };
    let sql = format!(
        "SELECT pg_terminate_backend(a.pid) FROM pg_stat_activity a WHERE a.pid = {pid}{writers} \
         AND {CLIENT} AND {AGE} >= {age} AND a.pid IN \
         (SELECT unnest(pg_blocking_pids(ours)) FROM unnest(ARRAY[{ours}]::int[]) ours)",
        pid = blocker.id,
        age = plan.blockers_older_than.as_millis(),
    );
    match main.run(deadline, "ending a session in the way", &sql).await {
        Ok(rows) if rows.first().and_then(|row| text(row, 0)).as_deref() == Some("t") => {
            in_the_way.ends(blocker);
        }
        Ok(_) => {}
        Err(error) => tracing::warn!(session = blocker.id, %error, "a session in the way could not be ended"),
    }
}
