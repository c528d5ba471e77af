//! Sessions in the way of BACKUP STAGE: running DDL, running writes to non-transactional tables, explicit table locks.
//! A long SELECT or an open InnoDB transaction is not in the way (measured on 10.11: they do not delay BLOCK_COMMIT).

use std::{convert::Infallible, time::Duration};

use api::BlockerPolicy;
use sqlx::mysql::MySqlRow;
use tokio::time::{Instant, sleep};

use super::connect::{Link, text};
use crate::{
    driver::{Blocker, Plan},
    error::Error,
};

/// Who stood in the way, as last seen, and who was ended for it.
#[derive(Debug, Default)]
pub(super) struct InTheWay {
    pub(super) seen: Vec<Blocker>,
    pub(super) ended: Vec<String>,
}

/// Clients that run something, and are not themselves waiting for the backup lock. Replication threads (`system user`,
/// `Binlog Dump`), the event scheduler and backups are never among them. Of the statement only the first word.
const SESSIONS: &str = "SELECT ID, USER, COALESCE(DB, ''), TIME_MS, \
    CONCAT(COALESCE(NULLIF(STATE, ''), COMMAND), ', ', COALESCE(UPPER(SUBSTRING_INDEX(LTRIM(INFO), ' ', 1)), 'no statement')), \
    COALESCE(UPPER(SUBSTRING_INDEX(LTRIM(INFO), ' ', 1)), '') = 'SELECT' \
    FROM information_schema.PROCESSLIST \
    WHERE ID <> CONNECTION_ID() AND COMMAND IN ('Query', 'Execute') AND USER NOT IN ('system user', 'event_scheduler') \
      AND COALESCE(STATE, '') NOT LIKE 'Waiting for backup lock%' AND COALESCE(INFO, '') NOT LIKE '%BACKUP STAGE%' \
      AND COALESCE(INFO, '') NOT LIKE '%stillpoint%'";

/// How long we wait before we look who is in the way.
const PATIENCE: Duration = Duration::from_millis(60);

/// Sessions that run for longer than `older`.
pub(super) async fn running_longer(link: &mut Link, older: Duration, deadline: Instant) -> Result<Vec<Blocker>, Error> {
    let sql = format!("{SESSIONS} AND TIME_MS >= {} ORDER BY TIME_MS DESC LIMIT 20", older.as_millis());
    let rows = link.run(deadline, "looking for sessions in the way", &sql).await?;
    Ok(rows.iter().map(|row| session(row).0).collect())
}

/// Looks who may be in the way, and ends them where the policy says so. Never ends by itself.
pub(super) async fn watch(
    link: &mut Link,
    own: u64,
    plan: &Plan,
    deadline: Instant,
    in_the_way: &mut InTheWay,
) -> Infallible {
    loop {
        sleep(PATIENCE).await;
        let sql = format!("{SESSIONS} AND ID <> {own} ORDER BY TIME_MS DESC LIMIT 20");
        let Ok(rows) = link.run(deadline, "looking for sessions in the way", &sql).await else {
            continue;
        };
        let sessions: Vec<(Blocker, bool)> = rows.iter().map(session).collect();
        in_the_way.seen = sessions.iter().map(|(blocker, _)| blocker.clone()).filter(|b| b.age >= PATIENCE).collect();
        for (blocker, reads) in sessions {
            let policy = match plan.blockers {
                BlockerPolicy::KillAll => true,
                BlockerPolicy::KillReads => reads,
                BlockerPolicy::Wait | BlockerPolicy::Fail => false,
            };
            if policy && blocker.age >= plan.blockers_older_than {
                match link
                    .run(deadline, "ending a session in the way", &format!("KILL CONNECTION {}", blocker.id))
                    .await
                {
                    Ok(_) => in_the_way.ended.push(blocker.to_string()),
                    Err(error) => {
                        tracing::warn!(session = blocker.id, %error, "a session in the way could not be ended");
                    }
                }
            }
        }
    }
}

/// The session, and whether it only reads.
fn session(row: &MySqlRow) -> (Blocker, bool) {
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
    (blocker, text(row, 5).as_deref() == Some("1"))
}
