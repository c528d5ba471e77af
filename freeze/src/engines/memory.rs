//! A database server in memory, with faults on demand. A fake, for faults that cannot be produced otherwise and for
//! thousands of servers at once; it passes the same contract suite as the real ones.
//!
//! It knows what matters to a freeze: sessions that end by idle timeout, a write block bound to a session, a durability
//! setting that outlives it, commits that are acknowledged before they are flushed, restarts.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::{
    Artifact, ArtifactKind, Check, Copy, Engine, Incarnation, Level, Position, PostgresqlPosition, Proof, ProofKind,
    Role, Undo,
};
use async_trait::async_trait;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout_at},
};

use crate::{
    driver::{
        Acquired, Driver, Grant, Held, Member, Moment, Observed, Plan, Preflight, Prepared, Pulse, Recovered, Released,
        ServerInfo,
    },
    engines::deadline::by,
    error::Error,
    journal::UndoLog,
};

/// The step of a driver at which a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    Connect,
    Acquire,
    Barrier,
    Heartbeat,
    Stop,
    Prove,
    Release,
    Recover,
}

/// What strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// The server refuses the statement.
    Refuse,
    /// It takes that long, and then goes on.
    Slow(Duration),
    /// Nothing comes back, and nothing happens.
    Hang,
    /// The connection is cut; the server ends the session.
    Cut,
    /// The server is killed and starts again.
    Restart,
}

/// The server. Cheap to clone; all clones are one server.
#[derive(Clone, Debug)]
pub struct MemoryServer(Arc<Shared>);

/// Its driver: one address, one server.
#[derive(Clone, Debug)]
pub struct MemoryDriver(MemoryServer);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Woken whenever writers may go on.
    unblocked: Notify,
}

#[derive(Debug, Default)]
struct State {
    run: u64,
    next_session: u64,
    sessions: BTreeMap<u64, Session>,
    /// The one that blocks writes.
    blocked_by: Option<u64>,
    raised: bool,
    acknowledged: u64,
    flushed: u64,
    waiting: u32,
    faults: Vec<(Step, Strike)>,
}

#[derive(Debug)]
struct Session {
    freeze_uid: Option<String>,
    idle_until: Instant,
    ttl: Duration,
}

/// A connection: the session ends with it.
#[derive(Debug)]
struct Link {
    server: MemoryServer,
    session: u64,
    run: u64,
}

const KIND: &str = "memorySetting";
/// How often writers look whether a silent session has to end.
const LOOK: Duration = Duration::from_millis(10);

impl Default for MemoryServer {
    fn default() -> Self {
        Self(Arc::new(Shared { state: Mutex::default(), unblocked: Notify::new() }))
    }
}

impl MemoryServer {
    pub fn driver(&self) -> Arc<dyn Driver> {
        Arc::new(MemoryDriver(self.clone()))
    }

    /// The next time that `step` is reached, `strike` strikes, once.
    pub fn arm(&self, step: Step, strike: Strike) {
        self.state().faults.push((step, strike));
    }

    /// One commit by an ordinary client: waits while writes are blocked; `false` if not acknowledged within `limit`.
    pub async fn commit(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        self.state().waiting += 1;
        let acknowledged = loop {
            let unblocked = self.0.unblocked.notified();
            {
                let mut state = self.state();
                state.end_silent();
                if state.blocked_by.is_none() {
                    state.acknowledged += 1;
                    if state.raised {
                        state.flushed = state.acknowledged;
                    }
                    break true;
                }
            }
            tokio::select! {
                () = unblocked => {}
                () = sleep(LOOK) => {}
            }
            if Instant::now() >= deadline {
                break false;
            }
        };
        self.state().waiting -= 1;
        acknowledged
    }

    /// Acknowledged commits, and how many of them an atomic copy taken now would hold.
    pub fn copy(&self) -> (u64, u64) {
        let state = self.state();
        (state.acknowledged, state.flushed)
    }

    /// Ends every session: a new run of the server. The raised setting goes with the run that it was made to.
    pub fn restart(&self) {
        let mut state = self.state();
        state.run += 1;
        state.raised = false;
        state.sessions.clear();
        state.blocked_by = None;
        drop(state);
        self.0.unblocked.notify_waiters();
    }

    pub fn kill_sessions(&self) {
        let mut state = self.state();
        state.sessions.clear();
        state.blocked_by = None;
        drop(state);
        self.0.unblocked.notify_waiters();
    }

    /// What of a freeze is left: sessions, the block, the raised setting.
    pub fn leftovers(&self) -> String {
        let mut state = self.state();
        state.end_silent();
        let mut left: Vec<String> = state.sessions.keys().map(|id| format!("session {id}")).collect();
        left.extend(state.blocked_by.map(|_| "a write block".to_owned()));
        left.extend(state.raised.then(|| "a raised setting".to_owned()));
        left.join(", ")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, freeze_uid: Option<&str>, ttl: Duration) -> Link {
        let mut state = self.state();
        state.next_session += 1;
        let session = state.next_session;
        let idle_until = Instant::now() + ttl;
        state.sessions.insert(session, Session { freeze_uid: freeze_uid.map(str::to_owned), idle_until, ttl });
        Link { server: self.clone(), session, run: state.run }
    }

    fn incarnation(&self) -> Incarnation {
        let run = self.state().run;
        let server = format!("memory at {:p}", Arc::as_ptr(&self.0));
        Incarnation { server, host: None, started_at: run.to_string(), timeline: Some(1), replica: false }
    }

    /// What was armed for a step. A hang never ends by itself: the caller's deadline does.
    async fn fault(&self, step: Step, link: Option<&Link>) -> Result<(), Error> {
        let strike = {
            let mut state = self.state();
            let found = state.faults.iter().position(|(armed, _)| *armed == step);
            found.map(|at| state.faults.remove(at).1)
        };
        match strike {
            None => Ok(()),
            Some(Strike::Refuse) => {
                Err(Error::Server { doing: "a statement".into(), detail: "refused on demand".to_owned() })
            }
            Some(Strike::Slow(long)) => {
                // A session whose statement runs is not idle.
                if let Some(link) = link {
                    link.busy(long)?;
                }
                sleep(long).await;
                Ok(())
            }
            Some(Strike::Hang) => std::future::pending().await,
            Some(Strike::Cut) => {
                if let Some(link) = link {
                    link.end();
                }
                Err(Error::Lost { detail: "the connection was cut on demand".to_owned() })
            }
            Some(Strike::Restart) => {
                self.restart();
                Err(Error::Lost { detail: "the server was restarted on demand".to_owned() })
            }
        }
    }
}

impl State {
    /// The server's own patience: sessions that said nothing for too long end, and what they held with them.
    fn end_silent(&mut self) {
        let now = Instant::now();
        self.sessions.retain(|_, session| session.idle_until > now);
        if self.blocked_by.is_some_and(|holder| !self.sessions.contains_key(&holder)) {
            self.blocked_by = None;
        }
    }
}

impl Link {
    /// A statement: the session must still be there.
    fn touch(&self) -> Result<MutexGuard<'_, State>, Error> {
        let mut state = self.server.state();
        state.end_silent();
        match state.sessions.get_mut(&self.session) {
            Some(session) => {
                session.idle_until = Instant::now() + session.ttl;
                Ok(state)
            }
            None => Err(Error::Lost { detail: "the session is gone".to_owned() }),
        }
    }

    /// A statement that runs that long.
    fn busy(&self, long: Duration) -> Result<(), Error> {
        let mut state = self.touch()?;
        if let Some(session) = state.sessions.get_mut(&self.session) {
            session.idle_until += long;
        }
        Ok(())
    }

    /// The server's patience with this session is `ttl` from now on.
    fn renew(&self, ttl: Duration) -> Result<(), Error> {
        let mut state = self.touch()?;
        if let Some(session) = state.sessions.get_mut(&self.session) {
            session.ttl = ttl;
            session.idle_until = Instant::now() + ttl;
        }
        Ok(())
    }

    fn unblock(&self) {
        let mut state = self.server.state();
        if state.blocked_by == Some(self.session) {
            state.blocked_by = None;
        }
        drop(state);
        self.server.0.unblocked.notify_waiters();
    }

    fn end(&self) {
        self.server.state().sessions.remove(&self.session);
        self.unblock();
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.end();
    }
}

#[async_trait]
impl Driver for MemoryDriver {
    fn engine(&self) -> Engine {
        Engine::PostgreSQL
    }

    async fn probe(&self, member: &Member, deadline: Instant) -> Result<ServerInfo, Error> {
        by(deadline, "connecting", self.connect(member)).await?;
        Ok(self.server())
    }

    async fn preflight(&self, member: &Member, _plan: &Plan, deadline: Instant) -> Preflight {
        match by(deadline, "connecting", self.connect(member)).await {
            Ok(()) => Preflight { checks: vec![Check::pass("reachable", "it answers")], server: Some(self.server()) },
            Err(error) => {
                let check = Check::fail("reachable", error.reason(), error.to_string(), error.advice());
                Preflight::unreached(vec![check])
            }
        }
    }

    async fn prepare(
        &self,
        member: &Member,
        plan: &Plan,
        undo: Arc<dyn UndoLog>,
        deadline: Instant,
    ) -> Result<Box<dyn Prepared>, Error> {
        by(deadline, "connecting", self.connect(member)).await?;
        self.supports(plan.level, plan.copy)?;
        let link = self.0.open(Some(&plan.freeze_uid), plan.server_ttl);
        Ok(Box::new(MemoryHold {
            link,
            plan: plan.clone(),
            undo,
            server: self.server(),
            raised: false,
            stopped: None,
            committed: 0,
        }))
    }

    async fn recover(
        &self,
        member: &Member,
        undo: &Undo,
        of: Option<&Incarnation>,
        deadline: Instant,
    ) -> Result<Recovered, Error> {
        if undo.kind != KIND || undo.version != 1 {
            return Ok(Recovered::Unknown);
        }
        by(deadline, "undoing", async {
            self.connect(member).await?;
            self.0.fault(Step::Recover, None).await
        })
        .await?;
        let found = self.0.incarnation();
        match of {
            Some(of) if of.server != found.server => Ok(Recovered::Elsewhere(format!("{found:?}"))),
            Some(of) if *of != found => Ok(Recovered::Undone),
            _ => {
                self.0.state().raised = false;
                Ok(Recovered::Undone)
            }
        }
    }

    async fn observe(&self, member: &Member, freeze_uid: &str, deadline: Instant) -> Result<Observed, Error> {
        by(deadline, "connecting", self.connect(member)).await?;
        let mut state = self.0.state();
        state.end_silent();
        let held = state.sessions.iter().find(|(_, session)| session.freeze_uid.as_deref() == Some(freeze_uid));
        Ok(held.map_or(Observed::Nothing, |(id, _)| Observed::Holds(format!("session {id}"))))
    }

    async fn thaw_all(&self, member: &Member, deadline: Instant) -> Result<Vec<String>, Error> {
        by(deadline, "connecting", self.connect(member)).await?;
        let ended = self.0.state().sessions.keys().map(|id| format!("session {id}")).collect();
        self.0.kill_sessions();
        Ok(ended)
    }

    fn grants(&self, user: &str, _level: Level, _copy: Copy) -> Vec<Grant> {
        vec![Grant { statement: format!("-- nothing for {user}"), reason: "it is in memory".to_owned() }]
    }

    fn supports(&self, level: Level, copy: Copy) -> Result<(), Error> {
        match (level, copy) {
            (Level::WriteBlocked, Copy::Files) => Err(Error::Unsupported {
                what: "copy: Files cannot be held at WriteBlocked".to_owned(),
                instead: "use Durable".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn restore_recipe(&self, _copy: Copy, _position: Option<&Position>, _artifacts: &[Artifact]) -> String {
        "Nothing can be restored from memory.\n".to_owned()
    }
}

impl MemoryDriver {
    fn server(&self) -> ServerInfo {
        let incarnation = self.0.incarnation();
        ServerInfo { version: "memory".to_owned(), role: Role::Primary, incarnation, started_at: None }
    }

    /// The port 1 is a black hole.
    async fn connect(&self, member: &Member) -> Result<(), Error> {
        if matches!(member.address, api::ConnectionAddress::Tcp { port: 1, .. }) {
            return std::future::pending().await;
        }
        self.0.fault(Step::Connect, None).await
    }
}

/// Prepared, then held: it is in memory, so one type is enough behind the two traits.
#[derive(Debug)]
struct MemoryHold {
    link: Link,
    plan: Plan,
    undo: Arc<dyn UndoLog>,
    server: ServerInfo,
    raised: bool,
    stopped: Option<Vec<Artifact>>,
    /// Acknowledged commits when it took hold.
    committed: u64,
}

#[async_trait]
impl Prepared for MemoryHold {
    fn server(&self) -> &ServerInfo {
        &self.server
    }

    fn warnings(&self) -> Vec<Check> {
        Vec::new()
    }

    async fn keep(&mut self, server_ttl: Duration, _deadline: Instant) -> Result<(), Error> {
        self.link.renew(server_ttl)
    }

    async fn acquire(mut self: Box<Self>) -> Result<(Box<dyn Held>, Acquired), Error> {
        let deadline = Instant::now() + self.plan.acquire_timeout;
        let acquired = by(deadline, "taking hold", self.take()).await;
        match acquired {
            Ok(acquired) => Ok((self, acquired)),
            Err(error) => {
                self.lower().await.ok();
                Err(error)
            }
        }
    }

    async fn abandon(self: Box<Self>, _deadline: Instant) -> Result<(), Error> {
        Ok(())
    }
}

impl MemoryHold {
    async fn take(&mut self) -> Result<Acquired, Error> {
        self.link.server.fault(Step::Acquire, Some(&self.link)).await?;
        if self.plan.level == Level::WriteBlocked {
            while !self.block()? {
                sleep(LOOK).await;
            }
        }
        self.still_point().await
    }

    /// Blocks writes, unless somebody else does.
    fn block(&self) -> Result<bool, Error> {
        let mut state = self.link.touch()?;
        let free = state.blocked_by.is_none();
        if free {
            state.blocked_by = Some(self.link.session);
        }
        Ok(free)
    }

    /// Raises the setting, as the real barrier does, and flushes.
    fn flush(&self) -> Result<(), Error> {
        let mut state = self.link.touch()?;
        state.raised = true;
        state.flushed = state.acknowledged;
        Ok(())
    }

    async fn still_point(&mut self) -> Result<Acquired, Error> {
        let frozen_at = Moment::now();
        if self.plan.level > Level::Recoverable {
            let undo = Undo { version: 1, kind: KIND.to_owned(), data: serde_json::Map::new() };
            self.undo.intend(undo).await?;
            self.raised = true;
            self.flush()?;
            if self.plan.level == Level::Durable {
                self.lower().await?;
            }
        }
        self.committed = self.link.touch()?.acknowledged;
        Ok(Acquired { frozen_at, position: self.position(), ended_sessions: Vec::new() })
    }

    async fn lower(&mut self) -> Result<(), Error> {
        if self.raised {
            self.link.touch()?.raised = false;
            self.raised = false;
            self.undo.settled(KIND).await?;
        }
        Ok(())
    }

    fn position(&self) -> Position {
        let lsn = format!("0/{:X}", self.committed);
        Position::Postgresql(PostgresqlPosition { lsn, timeline: 1, ..PostgresqlPosition::default() })
    }
}

#[async_trait]
impl Held for MemoryHold {
    async fn heartbeat(&mut self, server_ttl: Duration, deadline: Instant) -> Result<Pulse, Error> {
        timeout_at(deadline, self.link.server.fault(Step::Heartbeat, Some(&self.link)))
            .await
            .unwrap_or(Err(Error::Timeout { doing: "the heartbeat".into(), limit: server_ttl }))?;
        self.link.renew(server_ttl)?;
        Ok(Pulse { stalled_sessions: Some(self.link.server.state().waiting) })
    }

    async fn barrier(&mut self, deadline: Instant) -> Result<Acquired, Error> {
        by(deadline, "the barrier", self.link.server.fault(Step::Barrier, Some(&self.link))).await?;
        if self.plan.level == Level::WriteBlocked {
            drop(self.link.touch()?);
            return Ok(Acquired { frozen_at: Moment::now(), position: self.position(), ended_sessions: Vec::new() });
        }
        self.still_point().await
    }

    async fn stop(&mut self, deadline: Instant) -> Result<Vec<Artifact>, Error> {
        by(deadline, "stopping", self.link.server.fault(Step::Stop, Some(&self.link))).await?;
        drop(self.link.touch()?);
        if self.plan.copy != Copy::Files {
            return Err(Error::Unsupported {
                what: "an atomic copy has one stage".to_owned(),
                instead: "thaw".to_owned(),
            });
        }
        let label =
            Artifact { kind: ArtifactKind::BackupLabel, name: "label".to_owned(), content: "in memory".to_owned() };
        Ok(self.stopped.get_or_insert_with(|| vec![label]).clone())
    }

    async fn prove(&mut self, deadline: Instant) -> Result<Proof, Error> {
        by(deadline, "the proof", self.link.server.fault(Step::Prove, Some(&self.link))).await?;
        let write_blocked = self.plan.level == Level::WriteBlocked;
        let escaped = self.link.touch()?.acknowledged - self.committed;
        let same = self.link.run == self.link.server.state().run;
        let reason = match (same, write_blocked && escaped > 0) {
            (false, _) => Some("the server was restarted".to_owned()),
            (true, true) => Some(format!("CommitEscaped: {escaped} commits")),
            (true, false) => None,
        };
        Ok(Proof {
            held: reason.is_none(),
            kind: if write_blocked { ProofKind::NoCommit } else { ProofKind::SessionHeld },
            before: Some(self.position()),
            after: None,
            incarnation: self.server.incarnation.clone(),
            reason,
        })
    }

    async fn release(mut self: Box<Self>, deadline: Instant) -> Result<Released, Error> {
        by(deadline, "letting go", self.link.server.fault(Step::Release, Some(&self.link))).await?;
        // As the real ones do: writers wait for nothing that is only to be tidied up.
        self.link.unblock();
        self.lower().await?;
        Ok(Released::default())
    }
}
