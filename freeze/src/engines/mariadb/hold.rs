//! The stages of a hold: prepared, held. One session holds; at WriteBlocked a second one looks who is in the way.

use std::{sync::Arc, time::Duration};

use api::{Artifact, Check, Level, MariadbPosition, Position, Proof, ProofKind};
use async_trait::async_trait;
use futures::FutureExt;
use tokio::time::Instant;

use super::{
    barrier::{self, Way},
    blockers, checks,
    connect::{Link, MARK, Session, limits, literal, text},
    errors,
};
use crate::{
    driver::{Acquired, Farewell, Held, Member, Moment, Plan, Prepared, Pulse, Released, ServerInfo},
    engines::{deadline::left, in_the_way::InTheWay},
    error::Error,
    journal::UndoLog,
    lease::{LONGEST_SERVER_TTL, server_ttl},
};

#[derive(Debug)]
pub(super) struct Ready {
    server: ServerInfo,
    session: Holding,
}

/// The session that holds.
#[derive(Debug)]
struct Holding {
    member: Member,
    plan: Plan,
    link: Link,
    way: Way,
    undo: Arc<dyn UndoLog>,
    position: MariadbPosition,
    /// The server's settings are raised, perhaps.
    raised: bool,
    /// BACKUP STAGE was begun, perhaps.
    backup: bool,
    /// The fresh connection of the last proof: closed when somebody has time for it.
    asked: Option<Session>,
}

/// Connects and marks the session. Blocks nobody but another freeze of ours.
pub(super) async fn prepare(
    member: &Member,
    plan: &Plan,
    undo: Arc<dyn UndoLog>,
    deadline: Instant,
) -> Result<Ready, Error> {
    let mut link = Link::open(member, plan.server_ttl, deadline).await?;
    checks::refuse(&link.hello, plan)?;
    mark(&mut link, &plan.freeze_uid, deadline).await?;
    let way = match plan.level {
        Level::Recoverable => Way::Flush,
        Level::Durable | Level::WriteBlocked => barrier::way(&mut link, deadline).await?,
    };
    let (member, plan, position) = (member.clone(), plan.clone(), MariadbPosition::default());
    let server = link.hello.server();
    Ok(Ready {
        server,
        session: Holding { member, plan, link, way, undo, position, raised: false, backup: false, asked: None },
    })
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
            holder: format!(
                "session {}, a freeze of Stillpoint. A MariaDB server is held by one at a time: where two Databases of a \
                 freeze are on one server, list it once",
                column(2).unwrap_or_else(|| "unknown".to_owned())
            ),
        }),
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

    async fn keep(&mut self, server_ttl: Duration, deadline: Instant) -> Result<(), Error> {
        let limits = limits(server_ttl, barrier::STATEMENT);
        self.session.link.run(deadline, "the heartbeat", &limits).await.map(drop)
    }

    async fn acquire(self: Box<Self>) -> Result<(Box<dyn Held>, Acquired), Error> {
        let Self { mut session, .. } = *self;
        let deadline = Instant::now() + session.plan.acquire_timeout;
        match session.take(deadline).await {
            Ok(acquired) => Ok((Box::new(session), acquired)),
            Err(error) => {
                let deadline = Instant::now() + LET_GO;
                session.let_go(deadline).await.ok();
                session.farewell(deadline).say().await;
                Err(error)
            }
        }
    }

    async fn abandon(self: Box<Self>, deadline: Instant) -> Result<(), Error> {
        let mut session = self.session;
        let gone = session.let_go(deadline).await;
        session.farewell(deadline).say().await;
        gone
    }
}

/// How long undoing a failed attempt may take; closing the connection is what counts.
const LET_GO: Duration = Duration::from_secs(1);

impl Holding {
    async fn take(&mut self, deadline: Instant) -> Result<Acquired, Error> {
        if self.plan.level < Level::WriteBlocked {
            return self.still_point(deadline).await;
        }
        self.raise(deadline).await?;
        let mut in_the_way = InTheWay::default();
        let own = self.link.hello.connection_id;
        self.backup = true;
        let began = Instant::now();
        let blocked = tokio::select! {
            blocked = block_commits(&mut self.link, self.plan.server_ttl, deadline) => blocked,
            never = blockers::watch(&self.member, own, &self.plan, deadline, &mut in_the_way) => match never {},
        };
        let blocked = blocked?;
        if in_the_way.gave_up {
            return Err(Error::Blocked {
                limit: began.elapsed(),
                blockers: in_the_way.seen,
                hint: in_the_way.hint.map(Into::into),
            });
        }
        if let Some(stage) = blocked {
            return Err(self.not_blocked(stage, in_the_way));
        }
        // From here no commit is acknowledged; what was before is flushed now.
        let frozen_at = Moment::now();
        self.way.flush(&mut self.link, self.plan.server_ttl, deadline).await?;
        (self.position, _) = self.link.position(deadline).await?;
        Ok(Acquired { ended_sessions: in_the_way.ended(), ..self.acquired(frozen_at) })
    }

    /// Why BACKUP STAGE was not granted.
    fn not_blocked(&self, stage: &str, in_the_way: InTheWay) -> Error {
        if in_the_way.seen.is_empty() && stage == STAGES[0] {
            return Error::ForeignFreeze {
                holder: "another session that runs a backup (BACKUP STAGE), or holds LOCK TABLES … WRITE".to_owned(),
            };
        }
        let by_a_commit = in_the_way.seen.is_empty() && stage == STAGES[3];
        let hint = if by_a_commit { Some(blockers::COMMIT) } else { in_the_way.hint };
        Error::Blocked { limit: self.plan.acquire_timeout, blockers: in_the_way.seen, hint: hint.map(Into::into) }
    }

    /// Recoverable and Durable: nobody is blocked, so the instant comes before the barrier.
    async fn still_point(&mut self, deadline: Instant) -> Result<Acquired, Error> {
        let frozen_at = Moment::now();
        if self.plan.level > Level::Recoverable {
            self.raise(deadline).await?;
            let flushed = self.way.flush(&mut self.link, self.plan.server_ttl, deadline).await;
            let lowered = self.lower(deadline).await;
            flushed.and(lowered)?;
        }
        (self.position, _) = self.link.position(deadline).await?;
        Ok(self.acquired(frozen_at))
    }

    /// The server's patience that fits to what is left until `deadline`: at the lease's end it must not begin anew.
    fn within(&self, deadline: Instant) -> Duration {
        server_ttl(left(deadline)).min(self.plan.server_ttl)
    }

    fn acquired(&self, frozen_at: Moment) -> Acquired {
        Acquired { frozen_at, position: Position::Mariadb(self.position.clone()), ended_sessions: Vec::new() }
    }

    async fn beat(&mut self, ttl: Duration, deadline: Instant) -> Result<Pulse, Error> {
        let limits = limits(ttl, barrier::STATEMENT);
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

    /// On the session that holds: it still does, where the server stands now, and what is not as it was.
    async fn look_back(
        &mut self,
        by_position: bool,
        deadline: Instant,
    ) -> Result<(MariadbPosition, Option<String>), Error> {
        self.link.run(deadline, "the heartbeat", &limits(self.within(deadline), barrier::STATEMENT)).await?;
        let (after, replica) = self.link.position(deadline).await?;
        // Every transaction in the binary log has a GTID. The offset moves also without one: after a rotation the server
        // writes a binlog checkpoint event of its own, a little later.
        let changed = if by_position && self.position.gtid_binlog_pos != after.gtid_binlog_pos {
            Some("CommitEscaped: the binary log moved while writes were blocked".to_owned())
        } else if replica != self.link.hello.incarnation.replica {
            Some("the server changed its role while it was held".to_owned())
        } else {
            None
        };
        Ok((after, changed))
    }

    /// What the barrier needs of the server's settings, as they are now: they are its administrator's between two barriers.
    async fn raise(&mut self, deadline: Instant) -> Result<(), Error> {
        self.way = barrier::way(&mut self.link, deadline).await?;
        self.raised = matches!(self.way, Way::Raise(_));
        self.way.begin(&mut self.link, self.undo.as_ref(), deadline).await
    }

    /// Puts back what was raised, and nothing else.
    async fn lower(&mut self, deadline: Instant) -> Result<(), Error> {
        if !self.raised {
            return Ok(());
        }
        self.way.end(&mut self.link, self.undo.as_ref(), deadline).await?;
        self.raised = false;
        Ok(())
    }

    /// Lets writers go on first, then puts the settings back, then lets the next freeze begin.
    async fn let_go(&mut self, deadline: Instant) -> Result<(), Error> {
        let backup = std::mem::take(&mut self.backup);
        if backup && !self.raised {
            // Nothing to put back in between: one round trip, unless there was no backup yet to end.
            let sql = "BACKUP STAGE END; DO RELEASE_ALL_LOCKS()";
            if self.link.run(deadline, "ending the backup", sql).await.is_ok() {
                return Ok(());
            }
        }
        let ended = if backup {
            self.link.run(deadline, "ending the backup", "BACKUP STAGE END").await.map(drop)
        } else {
            Ok(())
        };
        let restored = self.lower(deadline).await;
        let unmarked = self.link.run(deadline, "letting the mark go", "DO RELEASE_ALL_LOCKS()").await.map(drop);
        ended.and(restored).and(unmarked)
    }

    fn farewell(self, deadline: Instant) -> Farewell {
        Farewell::to(
            std::iter::once(self.link.session).chain(self.asked).map(|session| session.close(deadline).boxed()),
        )
    }
}

#[async_trait]
impl Held for Holding {
    async fn heartbeat(&mut self, server_ttl: Duration, deadline: Instant) -> Result<Pulse, Error> {
        if let Some(asked) = self.asked.take() {
            asked.close(deadline).await;
        }
        self.beat(server_ttl, deadline).await
    }

    async fn barrier(&mut self, deadline: Instant) -> Result<Acquired, Error> {
        if self.plan.level != Level::WriteBlocked {
            return self.still_point(deadline).await;
        }
        // Nothing was acknowledged since commits were blocked: the first still point is still the last.
        let frozen_at = Moment::now();
        self.beat(self.within(deadline), deadline).await?;
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
        let sought = Sought {
            member: self.member.clone(),
            freeze_uid: self.plan.freeze_uid.clone(),
            connection_id: self.link.hello.connection_id,
        };
        // The fresh connection takes longest, so it begins.
        let (found, seen) = tokio::join!(sought.found(deadline), self.look_back(by_position, deadline));
        let (after, changed_here) = seen?;
        let reason = match found {
            Ok((fresh, changed)) => {
                self.asked = Some(fresh);
                changed.or(changed_here)
            }
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

    async fn release(mut self: Box<Self>, deadline: Instant) -> Result<Released, Error> {
        self.let_go(deadline).await?;
        Ok(Released { artifacts: Vec::new(), farewell: self.farewell(deadline) })
    }
}

/// A session that holds, as a fresh connection to the same address looks for it.
#[derive(Debug)]
struct Sought {
    member: Member,
    freeze_uid: String,
    connection_id: u64,
}

impl Sought {
    /// Asks whoever answers at the address now who holds our user lock: only the server that our session is in knows it, and
    /// no other run of it does. Answers the session that asked, and what is not as it was.
    async fn found(&self, deadline: Instant) -> Result<(Session, Option<String>), Error> {
        let mut fresh = Session::open(&self.member, deadline).await?;
        let lock = literal(&format!("{MARK}/{}", self.freeze_uid));
        let sql = format!("{}; SELECT IS_USED_LOCK({lock})", limits(LONGEST_SERVER_TTL, left(deadline)));
        let rows = fresh.run(deadline, "looking for our session", &sql).await?;
        if rows.last().and_then(|row| text(row, 0)) == Some(self.connection_id.to_string()) {
            return Ok((fresh, None));
        }
        let found = fresh.hello(LONGEST_SERVER_TTL, deadline).await?.incarnation;
        Ok((fresh, Some(format!("the server at the address does not know our session; it is {found:?}"))))
    }
}

/// In this order (MariaDB documentation, "BACKUP STAGE").
const STAGES: [&str; 4] = ["START", "FLUSH", "BLOCK_DDL", "BLOCK_COMMIT"];

/// Nothing when commits are blocked; else the stage at which somebody stood in the way until the deadline. The server would
/// run stages that are skipped, and a statement knows no end of the next: each is said by itself, with what is left, so that
/// the server is done by the deadline also when we are gone.
async fn block_commits(
    link: &mut Link,
    server_ttl: Duration,
    deadline: Instant,
) -> Result<Option<&'static str>, Error> {
    for stage in STAGES {
        let sql = format!("{}; BACKUP STAGE {stage}", limits(server_ttl, left(deadline)));
        match tokio::time::timeout_at(deadline + LET_GO, link.attempt(&sql)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if errors::not_granted(&error) => return Ok(Some(stage)),
            Ok(Err(error)) => return Err(errors::running(error, "blocking commits")),
            // The server was to be done by then, and whatever it says now is not to be read as another's answer.
            Err(_) => return Err(Error::Timeout { doing: "blocking commits".into(), limit: LET_GO }),
        }
    }
    Ok(None)
}
