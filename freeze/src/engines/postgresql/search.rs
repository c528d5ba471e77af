//! Whether whoever answers at the address now is the server that is held: looked for by a fresh connection, beside the
//! session that holds. No automatic trust: what was not found is not proved.

use std::time::Duration;

use api::Incarnation;
use tokio::{task::JoinError, time::Instant};
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
        let fresh = connect(&self.member, deadline).await?;
        self.found_by(fresh, deadline).await
    }

    /// As [`Sought::found`], by a connection that is there already.
    pub(super) async fn found_by(
        &self,
        mut fresh: Session,
        deadline: Instant,
    ) -> Result<(Session, Option<String>), Error> {
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
        // It may have been reached by another of its addresses.
        let changed = if (Incarnation { host: self.incarnation.host.clone(), ..found.clone() }) == self.incarnation {
            "the server at the address does not know our session".to_owned()
        } else {
            format!("the server at the address is another, or was restarted: {found:?}")
        };
        Ok((fresh, Some(changed)))
    }
}

async fn connect(member: &Member, deadline: Instant) -> Result<Session, Error> {
    Session::open(member, None, None, LONGEST_SERVER_TTL, deadline).await
}

/// A fresh connection, under way beside whatever else there is to do. What makes a copy Durable is settled at the still point,
/// so a connection that was begun after it is fresh enough to look by, for a second. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Opening {
    began: Instant,
    session: AbortOnDropHandle<Result<Session, Error>>,
}

impl Opening {
    pub(super) fn begin(member: Member) -> Self {
        let began = Instant::now();
        let session = tokio::spawn(async move { connect(&member, began + CONNECT).await });
        Self { began, session: AbortOnDropHandle::new(session) }
    }

    pub(super) fn is_young(&self) -> bool {
        self.began.elapsed() < YOUNG
    }

    pub(super) async fn session(self, deadline: Instant) -> Result<Session, Error> {
        let doing = "connecting";
        by(deadline, doing, async {
            let failed = |error: JoinError| Err(Error::Server { doing: doing.into(), detail: error.to_string() });
            self.session.await.unwrap_or_else(failed)
        })
        .await
    }
}

/// How long it may take to connect, whoever waits for it.
const CONNECT: Duration = Duration::from_secs(5);
/// As long as a heartbeat's word holds.
const YOUNG: Duration = Duration::from_secs(1);
