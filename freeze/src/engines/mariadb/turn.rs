//! See [`Turn`]: a user lock (MariaDB documentation, "GET_LOCK"), which is of the whole server.

use tokio::time::Instant;

use super::connect::{Link, text};
use crate::{
    driver::Member,
    engines::turn::{ANSWER, IDLE, Turn, is_due},
    error::Error,
};

/// Held until this is dropped, or its session is lost.
#[derive(Debug)]
pub struct Held(Link);

/// Those of freezes have a freeze's uid in their names.
const NAME: &str = "'stillpoint/restore'";
const DOING: &str = "asking whose turn it is";

/// Takes it, if nobody has it. Waits for nobody.
pub async fn turn(member: &Member, deadline: Instant) -> Result<Turn<Held>, Error> {
    let mut link = Link::open(member, IDLE, deadline).await?;
    let rows = link.run(deadline, DOING, &format!("SELECT GET_LOCK({NAME}, 0)")).await?;
    if rows.first().and_then(|row| text(row, 0)).as_deref() == Some("1") {
        return Ok(Turn::Ours(Held(link)));
    }
    let whose = format!(
        "SELECT CONCAT('session ', ID, ' of ', USER, '@', HOST) FROM information_schema.PROCESSLIST WHERE ID = IS_USED_LOCK({NAME})"
    );
    let rows = link.run(deadline, DOING, &whose).await?;
    let whose = rows.first().and_then(|row| text(row, 0));
    link.close(deadline).await;
    Ok(Turn::Theirs(whose.unwrap_or_else(|| "a session that is gone by now, or that only others may see".to_owned())))
}

impl Held {
    /// Keeps it until it is not wanted any more, and gives it back; or answers with the error that lost it.
    pub async fn keep(mut self, until: impl Future + Send) -> Option<Error> {
        tokio::pin!(until);
        while is_due(&mut until).await {
            if let Err(error) = self.0.run(Instant::now() + ANSWER, "keeping the turn", "DO 1").await {
                return Some(error);
            }
        }
        self.0.close(Instant::now() + ANSWER).await;
        None
    }
}
