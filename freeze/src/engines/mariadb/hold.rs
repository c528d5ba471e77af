//! The stages of a hold: prepared, held. One session holds; at WriteBlocked a second one looks who is in the way.

use std::{sync::Arc, time::Duration};

use api::{Artifact, Check, Level, MariadbPosition, Position, Proof, ProofKind};
use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    barrier::{self, Way},
    blockers::{self, InTheWay},
    checks,
    connect::{Hello, Link, MARK, limits, literal, text},
    errors,
};
use crate::{
    driver::{Acquired, Held, Member, Plan, Prepared, Pulse, Released, ServerInfo},
    engines::deadline::left,
    error::Error,
    journal::UndoLog,
    lease::LONGEST_SERVER_TTL,
};

#[derive(Debug)]
pub(super) struct Ready {
    server: ServerInfo,
    session: Session,
    /// WriteBlocked: looks who is in the way while the session waits.
    control: Option<Link>,
}

/// The session that holds.
#[derive(Debug)]
struct Session {
    member: Member,
    plan: Plan,
    link: Link,
    way: Way,
    undo: Arc<dyn UndoLog>,
    position: MariadbPosition,
}

/// Connects, marks the session, and begins a backup at WriteBlocked. Blocks nobody but other backups.
pub(super) async fn prepare(
    member: &Member,
    plan: &Plan,
    undo: Arc<dyn UndoLog>,
    deadline: Instant,
) -> Result<Ready, Error> {
    let write_blocked = plan.level == Level::WriteBlocked;
    let control = async {
        if write_blocked { Link::open(member, LONGEST_SERVER_TTL, deadline).await.map(Some) } else { Ok(None) }
    };
    let (mut link, control) = tokio::try_join!(Link::open(member, plan.server_ttl, deadline), control)?;
    checks::refuse(&link.hello, plan)?;
    mark(&mut link, &plan.freeze_uid, deadline).await?;
    let way = match plan.level {
        Level::Recoverable => Way::Flush,
        Level::Durable | Level::WriteBlocked => barrier::way(&mut link, deadline).await?,
    };
    if write_blocked {
        begin_backup(&mut link, deadline).await?;
    }
    let (member, plan, position) = (member.clone(), plan.clone(), MariadbPosition::default());
    let server = link.hello.server();
    Ok(Ready { server, session: Session { member, plan, link, way, undo, position }, control })
}

/// One freeze of ours per server: the barrier's settings are the server's, and two would put back each other's.
async fn mark(link: &mut Link, freeze_uid: &str, deadline: Instant) -> Result<(), Error> {
    let (any, this) = (literal(MARK), literal(&format!("{MARK}/{freeze_uid}")));
    let sql = format!("SELECT GET_LOCK({any}, 0), GET_LOCK({this}, 0), IS_USED_LOCK({any})");
    let rows = link.run(deadline, "marking the session", &sql).await?;
    let column = |at| rows.first().and_then(|row| text(row, at));
    match column(0).as_deref() {
        Some("1") => Ok(()),
        _ => Err(Error::ForeignFreeze {
            holder: format!("session {}, a freeze of Stillpoint", column(2).unwrap_or_else(|| "unknown".to_owned())),
        }),
    }
}

/// There is one backup at a time; another's is not waited for.
async fn begin_backup(link: &mut Link, deadline: Instant) -> Result<(), Error> {
    let patience = left(deadline).min(Duration::from_secs(1));
    let sql = format!("{}; BACKUP STAGE START", limits(LONGEST_SERVER_TTL, patience));
    let began = tokio::time::timeout_at(deadline, link.attempt(&sql)).await;
    match began {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if errors::not_granted(&error) => {
            Err(Error::ForeignFreeze { holder: "another session that runs a backup (BACKUP STAGE)".to_owned() })
        }
        Ok(Err(error)) => Err(errors::running(error, "beginning a backup")),
        Err(_) => Err(Error::Timeout { doing: "beginning a backup", limit: patience }),
    }
}

#[async_trait]
impl Prepared for Ready {
    fn server(&self) -> &ServerInfo {
        &self.server
    }

    fn warnings(&self) -> Vec<Check> {
        match self.session.way {
            Way::Wait => vec![Check::warn(
                "durability",
                "the account may not raise innodb_flush_log_at_trx_commit: InnoDB's own flush was waited for",
                "GRANT SUPER, so that it can be flushed at once",
            )],
            Way::Flush | Way::Raise(_) => Vec::new(),
        }
    }

    async fn acquire(self: Box<Self>) -> Result<(Box<dyn Held>, Acquired), Error> {
        let Self { mut session, control, .. } = *self;
        let deadline = Instant::now() + session.plan.acquire_timeout;
        match session.take(control, deadline).await {
            Ok(acquired) => Ok((Box::new(session), acquired)),
            Err(error) => {
                session.let_go(Instant::now() + LET_GO).await.ok();
                Err(error)
            }
        }
    }

    async fn abandon(self: Box<Self>, deadline: Instant) -> Result<(), Error> {
        if let Some(control) = self.control {
            control.close(deadline).await;
        }
        self.session.let_go(deadline).await
    }
}

/// How long undoing a failed attempt may take; closing the connection is what counts.
const LET_GO: Duration = Duration::from_secs(1);

impl Session {
    async fn take(&mut self, control: Option<Link>, deadline: Instant) -> Result<Acquired, Error> {
        let Some(mut control) = control else {
            return self.still_point(deadline).await;
        };
        self.way.begin(&mut self.link, self.undo.as_ref(), deadline).await?;
        let mut in_the_way = InTheWay::default();
        let own = self.link.hello.connection_id;
        let blocked = tokio::select! {
            blocked = block_commits(&mut self.link, self.plan.server_ttl, deadline) => blocked,
            never = blockers::watch(&mut control, own, &self.plan, deadline, &mut in_the_way) => match never {},
        };
        control.close(deadline).await;
        if !blocked? {
            return Err(Error::Blocked { limit: self.plan.acquire_timeout, blockers: in_the_way.seen });
        }
        // From here no commit is acknowledged; what was before is flushed now.
        let frozen_at = Timestamp::now();
        self.way.flush(&mut self.link, deadline).await?;
        self.position = self.link.position(deadline).await?;
        Ok(Acquired { ended_sessions: in_the_way.ended, ..self.acquired(frozen_at) })
    }

    /// Recoverable and Durable: nobody is blocked, so the instant comes before the barrier.
    async fn still_point(&mut self, deadline: Instant) -> Result<Acquired, Error> {
        let frozen_at = Timestamp::now();
        if self.plan.level > Level::Recoverable {
            self.way.begin(&mut self.link, self.undo.as_ref(), deadline).await?;
            let flushed = self.way.flush(&mut self.link, deadline).await;
            self.way.end(&mut self.link, self.undo.as_ref(), deadline).await?;
            flushed?;
        }
        self.position = self.link.position(deadline).await?;
        Ok(self.acquired(frozen_at))
    }

    fn acquired(&self, frozen_at: Timestamp) -> Acquired {
        Acquired { frozen_at, position: Position::Mariadb(self.position.clone()), ended_sessions: Vec::new() }
    }

    async fn beat(&mut self, ttl: Duration, deadline: Instant) -> Result<Pulse, Error> {
        let limits = limits(ttl, Duration::from_secs(5));
        if self.plan.level != Level::WriteBlocked {
            self.link.run(deadline, "the heartbeat", &limits).await?;
            return Ok(Pulse::default());
        }
        // Without PROCESS only our own sessions are in the list, and the count says nothing.
        let sql = format!(
            "{limits}; SELECT SUM(STATE LIKE 'Waiting for backup lock%'), COUNT(DISTINCT USER) \
             FROM information_schema.PROCESSLIST"
        );
        let rows = self.link.run(deadline, "the heartbeat", &sql).await?;
        let number = |at| rows.last().and_then(|row| text(row, at)).and_then(|value| value.parse::<u32>().ok());
        Ok(Pulse { stalled_sessions: number(0).filter(|_| number(1).is_some_and(|users| users > 1)) })
    }

    /// Asks whoever answers at the address now, and whether our session is still among its sessions.
    async fn still_the_same(&self, deadline: Instant) -> Result<Option<String>, Error> {
        let mut fresh = Link::open(&self.member, LONGEST_SERVER_TTL, deadline).await?;
        let sql = format!("SELECT IS_USED_LOCK({})", literal(&format!("{MARK}/{}", self.plan.freeze_uid)));
        let rows = fresh.run(deadline, "looking for our session", &sql).await?;
        let found: Hello = fresh.hello.clone();
        fresh.close(deadline).await;
        if !self.link.hello.same_incarnation(&found) {
            return Ok(Some(format!(
                "the server at the address is another, or was restarted: {:?}",
                found.incarnation
            )));
        }
        let holder = rows.first().and_then(|row| text(row, 0));
        let ours = holder == Some(self.link.hello.connection_id.to_string());
        Ok((!ours).then(|| "the server at the address does not know our session".to_owned()))
    }

    /// Lets writers go on first, then puts the settings back, then ends the session.
    async fn let_go(mut self, deadline: Instant) -> Result<(), Error> {
        let ended = match self.plan.level {
            Level::WriteBlocked => self.link.run(deadline, "ending the backup", "BACKUP STAGE END").await.map(drop),
            Level::Recoverable | Level::Durable => Ok(()),
        };
        let restored = self.way.end(&mut self.link, self.undo.as_ref(), deadline).await;
        self.link.close(deadline).await;
        ended.and(restored)
    }
}

#[async_trait]
impl Held for Session {
    async fn heartbeat(&mut self, server_ttl: Duration, deadline: Instant) -> Result<Pulse, Error> {
        self.beat(server_ttl, deadline).await
    }

    async fn barrier(&mut self, deadline: Instant) -> Result<Acquired, Error> {
        if self.plan.level != Level::WriteBlocked {
            return self.still_point(deadline).await;
        }
        // Nothing was acknowledged since commits were blocked: the first still point is still the last.
        let frozen_at = Timestamp::now();
        self.beat(self.plan.server_ttl, deadline).await?;
        Ok(self.acquired(frozen_at))
    }

    async fn stop(&mut self, _deadline: Instant) -> Result<Vec<Artifact>, Error> {
        Err(Error::Unsupported {
            what: "an atomic copy has one stage".to_owned(),
            instead: "unquiesce without stage: Stop".to_owned(),
        })
    }

    async fn prove(&mut self, deadline: Instant) -> Result<Proof, Error> {
        let before = self.position.clone();
        let by_position = self.plan.level == Level::WriteBlocked && before.gtid_binlog_pos.is_some();
        self.beat(self.plan.server_ttl, deadline).await?;
        let after = self.link.position(deadline).await?;
        // Every transaction in the binary log has a GTID. The offset moves also without one: after a rotation the server
        // writes a binlog checkpoint event of its own, a little later.
        let moved = before.gtid_binlog_pos != after.gtid_binlog_pos;
        let reason = match self.still_the_same(deadline).await {
            Ok(None) if by_position && moved => {
                Some("CommitEscaped: the binary log moved while writes were blocked".to_owned())
            }
            Ok(changed) => changed,
            Err(error) => Some(format!("the server could not be asked on a fresh connection: {error}")),
        };
        Ok(Proof {
            held: reason.is_none(),
            kind: if by_position { ProofKind::PositionEqual } else { ProofKind::SessionHeld },
            before: Some(Position::Mariadb(before)),
            after: Some(Position::Mariadb(after)),
            incarnation: self.link.hello.incarnation.clone(),
            reason,
        })
    }

    async fn release(self: Box<Self>, deadline: Instant) -> Result<Released, Error> {
        self.let_go(deadline).await?;
        Ok(Released::default())
    }
}

/// `true` when commits are blocked, `false` when somebody stood in the way until the deadline. The stages in between are
/// run by the server when they are skipped, but said here: each has its own wait, and its own limit.
async fn block_commits(link: &mut Link, server_ttl: Duration, deadline: Instant) -> Result<bool, Error> {
    let sql = format!(
        "{}; BACKUP STAGE FLUSH; BACKUP STAGE BLOCK_DDL; BACKUP STAGE BLOCK_COMMIT; {}",
        limits(server_ttl, left(deadline)),
        limits(server_ttl, Duration::from_secs(5)),
    );
    match tokio::time::timeout_at(deadline + LET_GO, link.attempt(&sql)).await {
        Ok(Ok(_)) => Ok(true),
        Ok(Err(error)) if errors::not_granted(&error) => Ok(false),
        Ok(Err(error)) => Err(errors::running(error, "blocking commits")),
        Err(_) => Ok(false),
    }
}
