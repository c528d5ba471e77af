//! Whether whoever answers at the address now is the server that is held: looked for by a fresh connection, beside the
//! session that holds. No automatic trust: what was not found is not proved.

use std::time::Duration;

use api::Incarnation;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::connect::{Session, landmark, text};
use crate::{driver::Member, engines::deadline::by, error::Error, lease::LONGEST_SERVER_TTL};

/// A session that holds, as a fresh connection to the same address looks for it.
#[derive(Debug)]
pub(super) struct Sought {
    pub(super) member: Member,
    pub(super) incarnation: Incarnation,
    pub(super) freeze_uid: String,
    /// Of the session that is looked for.
    pub(super) backend_pid: i32,
}

impl Sought {
    /// Looks for the landmark: our session has it on the same run of the same server while our session is there, and nowhere else.
    /// Answers the session that looked, and what is not as it was.
    pub(super) async fn found(&self, deadline: Instant) -> Result<(Session, Option<String>), Error> {
        let mut fresh = Session::open(&self.member, None, None, LONGEST_SERVER_TTL, deadline).await?;
        // Never by trying to lock: what a search took, the next one would find.
        let (high, low) = landmark(&self.freeze_uid);
        let sql = format!(
            "SELECT count(*) FROM pg_lock_status() WHERE locktype = 'advisory' AND granted AND pid = {} \
             AND classid = {high} AND objid = {low}",
            self.backend_pid
        );
        let rows = fresh.run(deadline, "looking for our session", &sql).await?;
        if rows.first().and_then(|row| text(row, 0)).as_deref() == Some("1") {
            return Ok((fresh, None));
        }
        let found = fresh.hello(None, deadline).await?.incarnation;
        let changed = if found == self.incarnation {
            "the server at the address does not know our session".to_owned()
        } else {
            format!("the server at the address is another, or was restarted: {found:?}")
        };
        Ok((fresh, Some(changed)))
    }
}

/// The search, under way. What makes a copy Durable is settled at the still point, so it begins there, and a proof within the
/// same second waits for the rest of it; a later one begins another. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Seeking {
    began: Instant,
    search: AbortOnDropHandle<Result<(Session, Option<String>), Error>>,
}

impl Seeking {
    pub(super) fn begin(sought: Sought) -> Self {
        let began = Instant::now();
        let search = tokio::spawn(async move { sought.found(began + SEARCH).await });
        Self { began, search: AbortOnDropHandle::new(search) }
    }

    pub(super) fn is_young(&self) -> bool {
        self.began.elapsed() < YOUNG
    }

    pub(super) async fn found(self, deadline: Instant) -> Result<(Session, Option<String>), Error> {
        by(deadline, "looking for our session", async {
            self.search.await.unwrap_or_else(|error| {
                Err(Error::Server { doing: "looking for our session", detail: error.to_string() })
            })
        })
        .await
    }
}

/// How long a search may last, whoever waits for it.
const SEARCH: Duration = Duration::from_secs(5);
/// What a search found holds for as long as a heartbeat's word does.
const YOUNG: Duration = Duration::from_secs(1);
