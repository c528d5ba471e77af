//! See [`Turn`]: an advisory lock (manual, 13.3.5). It is of one database, so all take it in the same.

use tokio::time::Instant;

use super::connect::{Link, text};
use crate::{
    driver::Member,
    engines::turn::{ANSWER, IDLE, Turn, is_due},
    error::Error,
};

/// Held until this is dropped, or its session is lost.
#[derive(Debug)]
pub struct Held {
    /// The database that the session is in: nobody can rename it meanwhile.
    pub database: String,
    link: Link,
}

/// The form of one number: those of freezes have two (`landmark`), and the forms never meet.
const KEY: i64 = 0x5374_696c_6c70_6e74;
/// Where `postgres` was removed.
const PLACES: [&str; 2] = ["postgres", "template1"];
const DOING: &str = "asking whose turn it is";

/// Takes it, if nobody has it. Waits for nobody.
pub async fn turn(member: &Member, deadline: Instant) -> Result<Turn<Held>, Error> {
    let [first, second] = PLACES;
    let (database, mut link) = match Link::open(member, Some(first), None, IDLE, deadline).await {
        Ok(link) => (first, link),
        Err(error) => {
            let link = Link::open(member, Some(second), None, IDLE, deadline).await;
            (second, link.map_err(|_| error)?)
        }
    };
    let rows = link.run(deadline, DOING, &format!("SELECT pg_try_advisory_lock({KEY})")).await?;
    if rows.first().and_then(|row| text(row, 0)).as_deref() == Some("t") {
        return Ok(Turn::Ours(Held { database: database.to_owned(), link }));
    }
    let whose = format!(
        "SELECT format('session %s of %s, since %s', pid, coalesce(host(client_addr), 'the same machine'), backend_start::timestamptz(0)) \
         FROM pg_locks JOIN pg_stat_activity USING (pid) \
         WHERE locktype = 'advisory' AND granted AND objsubid = 1 AND (classid::int8 << 32) | objid::int8 = {KEY}"
    );
    let rows = link.run(deadline, DOING, &whose).await?;
    let whose = rows.first().and_then(|row| text(row, 0));
    link.close(deadline).await;
    Ok(Turn::Theirs(whose.unwrap_or_else(|| "a session that is gone by now".to_owned())))
}

impl Held {
    /// Keeps it until it is not wanted any more, and gives it back; or answers with the error that lost it.
    pub async fn keep(mut self, until: impl Future + Send) -> Option<Error> {
        tokio::pin!(until);
        while is_due(&mut until).await {
            if let Err(error) = self.link.run(Instant::now() + ANSWER, "keeping the turn", "SELECT 1").await {
                return Some(error);
            }
        }
        self.link.close(Instant::now() + ANSWER).await;
        None
    }
}
