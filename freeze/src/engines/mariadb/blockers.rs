//! Sessions in the way of BACKUP STAGE.
//!
//! Measured on 10.11: START waits for DDL, also DDL that itself waits for a table, and for LOCK TABLES … WRITE, also of an
//! idle session; BLOCK_DDL waits for running writes to non-transactional tables. A SELECT, an open InnoDB transaction, a
//! running InnoDB write, XA PREPARE, an ALTER that copies and FLUSH TABLES WITH READ LOCK delay nothing, so no policy ends
//! them: all of them are told apart by the mode in which they hold the backup lock (sql/mdl.h, `MDL_BACKUP_…`). BLOCK_COMMIT waits
//! for running commits; a commit is short, and whoever commits has done nothing to be ended for (sql/handler.cc,
//! `ha_commit_trans`: MDL_BACKUP_COMMIT).
//!
//! The server shows these locks when its plugin METADATA_LOCK_INFO is installed. Without it statements are judged by their
//! first word: DDL is in the way, another write may be, and an idle holder is not seen.

use std::{convert::Infallible, time::Duration};

use api::BlockerPolicy;
use sqlx::mysql::MySqlRow;
use tokio::time::{Instant, sleep};

use super::connect::{Link, text};
use crate::{
    blocker::Blocker,
    driver::{Member, Plan},
    engines::in_the_way::{Found, InTheWay},
    error::Error,
    lease::LONGEST_SERVER_TTL,
};

/// What to do where idle holders are not seen.
pub(super) const BLIND: &str =
    "to see idle holders of LOCK TABLES … WRITE, and backups, run: INSTALL SONAME 'metadata_lock_info'";

/// What to do where the last stage is not granted, and nobody is named: it waits for commits alone.
pub(super) const COMMIT: &str = "look for sessions that do not get done with their commit, as where semi-synchronous replication \
    waits for its replica";

/// Whether the server shows who holds the backup lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    Locks,
    Statements,
}

/// Of a statement only the first word: the rest is the client's business.
const WORD: &str = "UPPER(SUBSTRING_INDEX(LTRIM(COALESCE(p.INFO, '')), ' ', 1))";

/// As [`found`] reads it: the session, whether it certainly is in the way, and whether it may ever be ended. A backup's own
/// locks begin with these four.
const BY_LOCKS: &str = "SELECT p.ID, p.USER, COALESCE(p.DB, ''), p.TIME_MS, \
    CONCAT(m.LOCK_MODE, ', ', IF({word} = '', 'idle', {word})), \
    p.COMMAND IN ('Query', 'Execute', 'Sleep') AND p.USER NOT IN ('system user', 'event_scheduler') AND NOT BACKUP \
    FROM (SELECT THREAD_ID, MIN(LOCK_MODE) AS LOCK_MODE, \
            MAX(LOCK_MODE REGEXP '^MDL_BACKUP_(START|FLUSH|WAIT_|BLOCK_)') AS BACKUP \
          FROM information_schema.METADATA_LOCK_INFO WHERE LOCK_TYPE = 'Backup lock' \
            AND LOCK_MODE NOT IN ('MDL_BACKUP_TRANS_DML', 'MDL_BACKUP_COMMIT', 'MDL_BACKUP_ALTER_COPY', 'MDL_BACKUP_FTWRL1', 'MDL_BACKUP_FTWRL2') \
          GROUP BY THREAD_ID) m \
    JOIN information_schema.PROCESSLIST p ON p.ID = m.THREAD_ID WHERE p.ID NOT IN (CONNECTION_ID(), {own})";

/// A statement that waits for the backup lock itself is behind us, not before us; of DDL that copies only the end counts.
const BY_STATEMENTS: &str = "SELECT p.ID, p.USER, COALESCE(p.DB, ''), p.TIME_MS, \
    CONCAT(IF({word} IN ({ddl}), '', 'perhaps in the way: '), COALESCE(NULLIF(p.STATE, ''), p.COMMAND), ', ', {word}), \
    {word} IN ({ddl}) \
    FROM information_schema.PROCESSLIST p \
    WHERE p.ID NOT IN (CONNECTION_ID(), {own}) AND p.COMMAND IN ('Query', 'Execute') \
      AND p.USER NOT IN ('system user', 'event_scheduler') \
      AND COALESCE(p.STATE, '') NOT LIKE 'Waiting for backup lock%' AND COALESCE(p.STATE, '') <> 'copy to tmp table' \
      AND {word} IN ({ddl}, 'INSERT', 'UPDATE', 'DELETE', 'REPLACE', 'LOAD', 'CALL', 'LOCK', 'BEGIN')";

const DDL: &str = "'CREATE', 'DROP', 'ALTER', 'TRUNCATE', 'RENAME', 'OPTIMIZE', 'REPAIR'";

/// How long we wait before we look who is in the way.
const PATIENCE: Duration = Duration::from_millis(60);
/// Sessions that are looked at, the oldest first.
const MOST: u32 = 20;
/// ER_UNKNOWN_TABLE: information_schema has no METADATA_LOCK_INFO.
const NO_SUCH_TABLE: u16 = 1109;

/// Sessions in the way of `own` now, and how far we see.
pub(super) async fn look(link: &mut Link, own: u64, deadline: Instant) -> Result<(Vec<Found>, Sight), Error> {
    let fill = |sql: &str| {
        let sql = sql.replace("{word}", WORD).replace("{ddl}", DDL).replace("{own}", &own.to_string());
        format!("{sql} ORDER BY p.TIME_MS DESC LIMIT {MOST}")
    };
    let (sight, rows) = match tokio::time::timeout_at(deadline, link.attempt(&fill(BY_LOCKS))).await {
        Ok(Ok(rows)) => (Sight::Locks, rows),
        Ok(Err(error)) if super::errors::number(&error) == Some(NO_SUCH_TABLE) => {
            let doing = "looking for sessions in the way";
            (Sight::Statements, link.run(deadline, doing, &fill(BY_STATEMENTS)).await?)
        }
        Ok(Err(error)) => return Err(super::errors::running(error, "looking for sessions in the way")),
        Err(_) => {
            return Err(Error::Timeout { doing: "looking for sessions in the way".into(), limit: PATIENCE });
        }
    };
    Ok((rows.iter().map(found).collect(), sight))
}

/// Looks who is in the way, and ends them where the policy says so; at `Fail`, ends `own` statement as soon as it sees anybody.
/// Never ends by itself. Connects only when somebody is waited for: who does not get in then can name nobody.
pub(super) async fn watch(
    member: &Member,
    own: u64,
    plan: &Plan,
    deadline: Instant,
    in_the_way: &mut InTheWay,
) -> Infallible {
    sleep(PATIENCE).await;
    let mut link = match Link::open(member, LONGEST_SERVER_TTL, deadline).await {
        Ok(link) => link,
        Err(error) => {
            tracing::warn!(%error, "sessions in the way cannot be looked for");
            return std::future::pending().await;
        }
    };
    loop {
        if let Ok((found, sight)) = look(&mut link, own, deadline).await {
            in_the_way.see(&found);
            in_the_way.hint = (sight == Sight::Statements).then_some(BLIND);
            if plan.blockers == BlockerPolicy::Fail && !found.is_empty() && waits(&mut link, own, deadline).await {
                in_the_way.gave_up = true;
                // Unheard, it ends by the deadline.
                link.run(deadline, "giving up", &format!("KILL QUERY {own}")).await.ok();
                return std::future::pending().await;
            }
            for blocker in in_the_way.to_be_ended(&found, plan) {
                end(&mut link, &blocker, deadline, in_the_way).await;
            }
        }
        sleep(PATIENCE).await;
    }
}

/// Whether a lock is waited for: a stage that is only slow is in nobody's way.
async fn waits(link: &mut Link, own: u64, deadline: Instant) -> bool {
    let sql =
        format!("SELECT COUNT(*) FROM information_schema.PROCESSLIST WHERE ID = {own} AND STATE LIKE 'Waiting for%'");
    let rows = link.run(deadline, "looking whether we wait", &sql).await;
    rows.is_ok_and(|rows| rows.first().and_then(|row| text(row, 0)).as_deref() == Some("1"))
}

async fn end(link: &mut Link, blocker: &Blocker, deadline: Instant, in_the_way: &mut InTheWay) {
    let id = blocker.id;
    // Told before it is done: with the session gone the lock may be granted, and we dropped, before we hear of it.
    in_the_way.ends(blocker);
    if let Err(error) = link.run(deadline, "ending a session in the way", &format!("KILL CONNECTION {id}")).await {
        in_the_way.lives(blocker);
        tracing::warn!(session = id, %error, "a session in the way could not be ended");
    }
}

fn found(row: &MySqlRow) -> Found {
    let number = |at| text(row, at).and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
    let database = text(row, 2).unwrap_or_default();
    let blocker = Blocker {
        #[expect(clippy::cast_possible_truncation, reason = "connection ids are far below 2^53")]
        id: number(0) as i64,
        user: text(row, 1).unwrap_or_default(),
        application: if database.is_empty() { database } else { format!("database {database}") },
        age: Duration::from_secs_f64((number(3) / 1000.0).max(0.0)),
        doing: text(row, 4).unwrap_or_default(),
    };
    // Whoever holds the backup lock in such a mode writes: a reader is never in the way.
    Found { blocker, has_written: true, may_end: text(row, 5).as_deref() == Some("1") }
}
