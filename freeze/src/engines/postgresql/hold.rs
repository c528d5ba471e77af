//! The stages of a hold: prepared, held. All sessions of a hold are opened before anybody is blocked.

use std::time::Duration;

use api::{Artifact, Check, Copy, Incarnation, Level, Position, PostgresqlPosition, Proof, ProofKind};
use async_trait::async_trait;
use futures::{FutureExt, future::join_all};
use sqlx::postgres::PgRow;
use tokio::time::Instant;

use super::{
    backup::Backup,
    checks,
    connect::{Link, Session, literal, text},
    escaped::Escaped,
    locks::{self, Database, Remembered},
    markers::{Markers, Present},
    search::{Opening, Sought},
};
use crate::{
    driver::{Acquired, Farewell, Held, Member, Moment, Plan, Prepared, Pulse, Released, ServerInfo},
    engines::deadline::left,
    error::Error,
    lease::server_ttl,
};

#[derive(Debug)]
pub(super) struct Ready {
    member: Member,
    plan: Plan,
    server: ServerInfo,
    warnings: Vec<Check>,
    main: Link,
    databases: Vec<Database>,
    backup: Option<Backup>,
    markers: Markers,
}

#[derive(Debug)]
struct Holding {
    member: Member,
    plan: Plan,
    incarnation: Incarnation,
    main: Link,
    databases: Vec<Database>,
    backup: Option<Backup>,
    position: PostgresqlPosition,
    /// WriteBlocked: `pg_current_snapshot()` once every lock was granted.
    snapshot: Option<String>,
    /// Our own commits since then, and those of other holds of ours.
    markers: Present,
    /// The fresh session of the last proof: closed when somebody has time for it.
    asked: Option<Session>,
    /// A fresh connection to look for our session by, begun after the last still point.
    opening: Option<Opening>,
}

/// Opens every session that the plan needs and does what is slow. Blocks nobody.
pub(super) async fn prepare(
    member: &Member,
    plan: &Plan,
    remembered: &Remembered,
    markers: &Markers,
    deadline: Instant,
) -> Result<Ready, Error> {
    let mut warnings = Vec::new();
    let main = async {
        let mut main = Link::open(member, None, Some(&plan.freeze_uid), plan.server_ttl, deadline).await?;
        warnings = checks::refuse_or_warn(&mut main, plan, deadline).await?;
        Ok(main)
    };
    let (mut main, databases) = match plan.level {
        Level::WriteBlocked => Box::pin(locks::prepare(member, plan, remembered, main, deadline)).await?,
        Level::Recoverable | Level::Durable => (main.await?, Vec::new()),
    };
    let backup = match plan.copy {
        Copy::Files => Some(Backup::start(&mut main, &plan.freeze_uid, deadline).await?),
        Copy::Atomic => None,
    };
    let server = main.hello.server();
    Ok(Ready {
        member: member.clone(),
        plan: plan.clone(),
        server,
        warnings,
        main,
        databases,
        backup,
        markers: markers.clone(),
    })
}

#[async_trait]
impl Prepared for Ready {
    fn server(&self) -> &ServerInfo {
        &self.server
    }

    fn warnings(&self) -> Vec<Check> {
        self.warnings.clone()
    }

    async fn keep(&mut self, server_ttl: Duration, deadline: Instant) -> Result<(), Error> {
        let patience = patience(server_ttl);
        let rest = self.databases.iter_mut().map(|database| database.session.run(deadline, "the heartbeat", &patience));
        let (main, rest) = tokio::join!(self.main.run(deadline, "the heartbeat", &patience), join_all(rest));
        std::iter::once(main).chain(rest).collect::<Result<Vec<_>, _>>().map(drop)
    }

    async fn acquire(self: Box<Self>) -> Result<(Box<dyn Held>, Acquired), Error> {
        let Self { member, plan, server, mut main, mut databases, backup, markers, .. } = *self;
        let deadline = Instant::now() + plan.acquire_timeout;
        let ended_sessions = if plan.level == Level::WriteBlocked {
            locks::acquire(&mut databases, &mut main, &plan, deadline).await?
        } else {
            Vec::new()
        };
        let mut held = Holding {
            member,
            plan,
            markers: markers.present(&server.incarnation),
            incarnation: server.incarnation,
            main,
            databases,
            backup,
            position: PostgresqlPosition::default(),
            snapshot: None,
            asked: None,
            opening: None,
        };
        let mut acquired = held.still_point(deadline).await?;
        acquired.ended_sessions = ended_sessions;
        Ok((Box::new(held), acquired))
    }

    async fn abandon(self: Box<Self>, deadline: Instant) -> Result<(), Error> {
        let Self { mut main, databases, backup, .. } = *self;
        unmark(backup.as_ref(), &mut main, deadline).await;
        close(main, databases, deadline).await;
        Ok(())
    }
}

impl Holding {
    /// Makes true what the level promises, from an instant on, and reads the position: one round trip.
    ///
    /// At Durable the instant `frozen_at` comes before the marker: whatever was acknowledged until then is flushed with it. At
    /// WriteBlocked every lock is granted by it, so nothing is acknowledged any more; the marker then flushes it all.
    async fn still_point(&mut self, deadline: Instant) -> Result<Acquired, Error> {
        let frozen_at = Moment::now();
        // At WriteBlocked what is true at the still point says nothing of the end, so the proof connects by then.
        self.opening = (self.plan.level < Level::WriteBlocked).then(|| Opening::begin(self.member.clone()));
        let rows = if self.plan.level > Level::Recoverable {
            self.mark(deadline, self.position_sql()).await?
        } else {
            self.main.run(deadline, "reading the position", self.position_sql()).await?
        };
        self.position = self.position_in(&rows)?;
        Ok(Acquired { frozen_at, position: Position::Postgresql(self.position.clone()), ended_sessions: Vec::new() })
    }

    /// The server's patience that fits to what is left until `deadline`: at the lease's end it must not begin anew.
    fn within(&self, deadline: Instant) -> Duration {
        server_ttl(left(deadline)).min(self.plan.server_ttl)
    }

    fn sought(&self) -> Sought {
        Sought {
            member: self.member.clone(),
            incarnation: self.incarnation.clone(),
            freeze_uid: self.plan.freeze_uid.clone(),
            backend_pid: self.main.hello.backend_pid,
        }
    }

    /// Where the server stands, as [`Holding::position_in`] reads it. `allowed_on` saw to it that only Recoverable is asked of a
    /// standby.
    ///
    /// At the boundary of two segments `pg_walfile_name` names the former before PostgreSQL 17, and the latter from then on
    /// (release notes of 17, E.1; xlogfuncs.c); a byte further, and every version names the segment that the position is in:
    /// positions are multiples of 8.
    fn position_sql(&self) -> &'static str {
        match (self.incarnation.replica, self.plan.level) {
            (true, _) => {
                "SELECT pg_last_wal_replay_lsn(), NULL, pg_backend_pid(), pg_is_in_recovery(), \
                 (pg_control_checkpoint()).timeline_id"
            }
            (false, Level::Recoverable) => {
                "SELECT lsn, pg_walfile_name(lsn + 1), pg_backend_pid() FROM pg_current_wal_insert_lsn() lsn"
            }
            (false, _) => "SELECT lsn, pg_walfile_name(lsn + 1), pg_backend_pid() FROM pg_current_wal_flush_lsn() lsn",
        }
    }

    fn position_in(&self, rows: &[PgRow]) -> Result<PostgresqlPosition, Error> {
        let row = rows.last().ok_or(Error::Server { doing: "reading the position".into(), detail: "no row".into() })?;
        Ok(PostgresqlPosition {
            lsn: text(row, 0).unwrap_or_default(),
            timeline: self.incarnation.timeline.unwrap_or_default(),
            wal_file: text(row, 1),
            start_lsn: self.backup.as_ref().map(|backup| backup.start_lsn().to_owned()),
            stop_lsn: self.position.stop_lsn.clone(),
        })
    }

    /// A snapshot, by which later commits are told; then a record in WAL that says who froze, committed and flushed; `then` runs
    /// after it. `local`, or it would wait for a standby that is away. A commit record is flushed before the commit is reported,
    /// and all WAL before it (manual, 20.5.1).
    async fn mark(&mut self, deadline: Instant, then: &str) -> Result<Vec<PgRow>, Error> {
        let sql = format!(
            "SET statement_timeout = {}; SELECT pg_current_snapshot(); BEGIN; SET LOCAL synchronous_commit = local; \
             SELECT pg_current_xact_id(), pg_logical_emit_message(true, 'stillpoint', {}); COMMIT; {then}",
            left(deadline).as_millis(),
            literal(&self.plan.freeze_uid),
        );
        let writing = self.markers.writing();
        let rows = self.main.run(deadline, "writing the marker", &sql).await?;
        let column = |row: usize| rows.get(row).and_then(|row| text(row, 0));
        if self.plan.level == Level::WriteBlocked {
            let missing = Error::Server { doing: "reading the snapshot".into(), detail: "no row".into() };
            self.snapshot = Some(column(0).ok_or(missing)?);
        }
        if let Some(xid) = column(1).and_then(|xid| xid.parse().ok()) {
            writing.wrote(xid);
        }
        Ok(rows)
    }

    /// Every session answers, and the server's patience with each begins anew.
    async fn beat(&mut self, ttl: Duration, deadline: Instant) -> Result<Pulse, Error> {
        let patience = patience(ttl);
        let count = format!("{patience}; {}", locks::stalled(&self.databases));
        let locked = !self.databases.is_empty();
        // Each to its end: a session that is not at fault is not to be lost for another's.
        let beats = join_all(
            self.databases.iter_mut().map(|database| database.session.run(deadline, "the heartbeat", &patience)),
        );
        let main = self.main.run(deadline, "the heartbeat", if locked { &count } else { &patience });
        let (rows, beats) = tokio::join!(main, beats);
        beats.into_iter().collect::<Result<Vec<_>, _>>()?;
        let rows = rows?;
        let stalled = rows.last().and_then(|row| text(row, 0)).and_then(|count| count.parse().ok());
        Ok(Pulse { stalled_sessions: stalled.filter(|_| locked) })
    }

    /// On the session that holds: it still does, what is not as it was, and where the server stands now.
    async fn look_back(&mut self, deadline: Instant) -> Result<(Option<String>, PostgresqlPosition), Error> {
        self.beat(self.within(deadline), deadline).await?;
        let escaped = match &self.snapshot {
            Some(snapshot) => Escaped::since(snapshot, &self.markers, &mut self.main, deadline).await?.told(),
            None => None,
        };
        let rows = self.main.run(deadline, "reading the position", self.position_sql()).await?;
        Ok((escaped.or_else(|| self.moved(&rows)), self.position_in(&rows)?))
    }

    /// A pooler may move us to another session; a standby may be promoted, or follow another timeline, under its sessions. A
    /// primary cannot change so.
    fn moved(&self, rows: &[PgRow]) -> Option<String> {
        let row = rows.last()?;
        let number = |at| text(row, at).and_then(|number| number.parse::<i32>().ok());
        if number(2) != Some(self.main.hello.backend_pid) {
            return Some("another session of the server answers now: a pooler stands in between".to_owned());
        }
        let same = text(row, 3).as_deref() == Some("t") && number(4) == self.incarnation.timeline.map(u32::cast_signed);
        let moved = self.incarnation.replica && !same;
        moved.then(|| format!("the standby was promoted, or changed its timeline to {:?}", number(4)))
    }
}

/// How long the server waits for the next statement of a session, from this one on.
fn patience(ttl: Duration) -> String {
    let ttl = ttl.as_millis();
    format!(
        "SET statement_timeout = 5000; SET idle_session_timeout = {ttl}; \
         SET idle_in_transaction_session_timeout = {ttl}"
    )
}

#[async_trait]
impl Held for Holding {
    async fn heartbeat(&mut self, server_ttl: Duration, deadline: Instant) -> Result<Pulse, Error> {
        // Too old to prove anything by.
        self.opening.take_if(|opening| !opening.is_young());
        if let Some(asked) = self.asked.take() {
            asked.close(deadline).await;
        }
        self.beat(server_ttl, deadline).await
    }

    async fn barrier(&mut self, deadline: Instant) -> Result<Acquired, Error> {
        if self.plan.level == Level::WriteBlocked {
            // Nothing was acknowledged since the locks were granted: the first still point is still the last.
            let frozen_at = Moment::now();
            self.beat(self.within(deadline), deadline).await?;
            let position = Position::Postgresql(self.position.clone());
            return Ok(Acquired { frozen_at, position, ended_sessions: Vec::new() });
        }
        self.still_point(deadline).await
    }

    async fn stop(&mut self, deadline: Instant) -> Result<Vec<Artifact>, Error> {
        let Some(backup) = &mut self.backup else {
            return Err(Error::Unsupported {
                what: "an atomic copy has one stage".to_owned(),
                instead: "unquiesce without stage: Stop".to_owned(),
            });
        };
        let artifacts = backup.stop(&mut self.main, &mut self.position, deadline).await?;
        // The segment that the stop position lies in must be on disk before its file is copied.
        self.mark(deadline, "SELECT 1").await?;
        Ok(artifacts)
    }

    async fn prove(&mut self, deadline: Instant) -> Result<Proof, Error> {
        let kind = if self.plan.level == Level::WriteBlocked { ProofKind::NoCommit } else { ProofKind::SessionHeld };
        let before = Position::Postgresql(self.position.clone());
        let (opening, sought) = (self.opening.take().filter(Opening::is_young), self.sought());
        let search = async {
            let Some(opening) = opening else { return sought.found(deadline).await };
            // One that came to nothing says nothing; what one saw counts, whatever another would see.
            let looked = async { sought.found_by(opening.session(deadline).await?, deadline).await };
            match looked.await {
                Ok(seen) => Ok(seen),
                Err(_) => sought.found(deadline).await,
            }
        };
        let (found, seen) = tokio::join!(search, self.look_back(deadline));
        let (changed_here, after) = seen?;
        let reason = match found {
            Ok((fresh, changed)) => {
                self.asked = Some(fresh);
                changed.or(changed_here)
            }
            Err(error) => Some(format!("the server could not be asked on a fresh connection: {error}")),
        };
        Ok(Proof {
            held: reason.is_none(),
            kind,
            before: Some(before),
            after: Some(Position::Postgresql(after)),
            incarnation: self.incarnation.clone(),
            reason,
        })
    }

    async fn release(mut self: Box<Self>, deadline: Instant) -> Result<Released, Error> {
        // Writers first: nothing of what follows concerns them.
        let unlocked =
            join_all(self.databases.iter_mut().map(|database| database.session.run(deadline, "unlocking", "ROLLBACK")));
        let unlocked: Vec<_> = unlocked.await;
        let artifacts = match &mut self.backup {
            Some(backup) => backup.stop(&mut self.main, &mut self.position, deadline).await,
            None => Ok(Vec::new()),
        };
        if artifacts.is_ok() {
            unmark(self.backup.as_ref(), &mut self.main, deadline).await;
        }
        let Self { main, databases, asked, .. } = *self;
        unlocked.into_iter().collect::<Result<Vec<_>, _>>()?;
        let sessions = sessions(main, databases).chain(asked);
        let farewell = Farewell::to(sessions.map(|session| session.close(deadline).boxed()));
        Ok(Released { artifacts: artifacts?, farewell })
    }
}

/// Where it fails, the server takes the marks off when it ends the session.
async fn unmark(backup: Option<&Backup>, main: &mut Link, deadline: Instant) {
    let Some(backup) = backup else { return };
    if let Err(error) = backup.unmark(main, deadline).await {
        tracing::warn!(%error, "the slot could not be dropped; it goes with its session");
    }
}

async fn close(main: Link, databases: Vec<Database>, deadline: Instant) {
    join_all(sessions(main, databases).map(|session| session.close(deadline))).await;
}

fn sessions(main: Link, databases: Vec<Database>) -> impl Iterator<Item = Session> {
    std::iter::once(main.session).chain(databases.into_iter().map(|database| database.session))
}
