//! A member as its agent holds it, for a freezer that sees a [`Driver`] like any other. Where the member is, and who to be there, the
//! agent knows itself: of a [`Member`] only its databases are told.

use std::{sync::Arc, time::Duration};

use api::{Artifact, Check, Copy, Engine, Incarnation, Level, Position, Proof, Undo};
use async_trait::async_trait;
use tokio::time::Instant;

use super::{
    link::{Hold, Link, Unanswered},
    wire::{Frozen, Order, Reply, Term},
};
use crate::{
    driver::{
        Acquired, Driver, Farewell, Grant, Held, Member, Moment, Observed, Plan, Preflight, Prepared, Pulse, Recovered,
        Released, ServerInfo,
    },
    error::Error,
    journal::UndoLog,
};

/// The member beside which an agent stands.
#[derive(Debug)]
pub struct Remote {
    link: Link,
    /// What can be said of the engine without asking anybody.
    engine: Arc<dyn Driver>,
    term: Term,
}

/// Beyond the plan's own timeout, for the way there and back.
const WAYS: Duration = Duration::from_millis(300);

impl Remote {
    /// `term`: of whoever may freeze this member now; the agent obeys nobody of a lower one any more.
    pub fn new(link: Link, engine: Arc<dyn Driver>, term: Term) -> Self {
        Self { link, engine, term }
    }

    /// Asks what holds nothing.
    async fn ask(&self, order: Order, doing: &'static str, deadline: Instant) -> Result<Reply, Error> {
        self.link.ask(order, deadline).await.unwrap_or_else(|why| Err(why.of(&self.link, doing, false)))
    }
}

/// Who the server beside an agent is. Changes nothing; dropping the future is safe.
pub async fn probe(link: &Link, deadline: Instant) -> Result<ServerInfo, Error> {
    let doing = "asking who the server is";
    let reply = link.ask(Order::Probe, deadline).await.unwrap_or_else(|why| Err(why.of(link, doing, false)))?;
    match reply {
        Reply::Server(server) => Ok(server),
        other => Err(nonsense(link, &other)),
    }
}

#[async_trait]
impl Driver for Remote {
    fn engine(&self) -> Engine {
        self.engine.engine()
    }

    async fn probe(&self, _: &Member, deadline: Instant) -> Result<ServerInfo, Error> {
        probe(&self.link, deadline).await
    }

    async fn preflight(&self, member: &Member, plan: &Plan, deadline: Instant) -> Preflight {
        let order = Order::Preflight { databases: member.databases.clone(), plan: plan.clone() };
        match self.ask(order, "looking at the server", deadline).await {
            Ok(Reply::Preflight(preflight)) => preflight,
            Ok(other) => Preflight::unreached(vec![nonsense(&self.link, &other).check("reachable")]),
            Err(error) => Preflight::unreached(vec![error.check("reachable")]),
        }
    }

    async fn prepare(
        &self,
        member: &Member,
        plan: &Plan,
        undo: Arc<dyn UndoLog>,
        deadline: Instant,
    ) -> Result<Box<dyn Prepared>, Error> {
        let hold = self.link.open(undo);
        let (databases, plan) = (member.databases.clone(), plan.clone());
        let acquire = plan.acquire_timeout + WAYS;
        let order = Order::Prepare { hold: hold.number, term: self.term.clone(), databases, plan };
        match self.ask(order, "preparing", deadline).await? {
            Reply::Prepared { server, warnings } => Ok(Box::new(AtAgent { hold, server, warnings, acquire })),
            other => Err(nonsense(&self.link, &other)),
        }
    }

    async fn recover(
        &self,
        member: &Member,
        undo: &Undo,
        of: Option<&Incarnation>,
        deadline: Instant,
    ) -> Result<Recovered, Error> {
        let order = Order::Recover { databases: member.databases.clone(), undo: undo.clone(), of: of.cloned() };
        match self.ask(order, "undoing what a freeze left", deadline).await? {
            Reply::Recovered(recovered) => Ok(recovered),
            other => Err(nonsense(&self.link, &other)),
        }
    }

    async fn observe(&self, _: &Member, freeze_uid: &str, deadline: Instant) -> Result<Observed, Error> {
        let order = Order::Observe { freeze_uid: freeze_uid.to_owned() };
        match self.ask(order, "looking for what a freeze left", deadline).await? {
            Reply::Observed(observed) => Ok(observed),
            other => Err(nonsense(&self.link, &other)),
        }
    }

    async fn thaw_all(&self, _: &Member, deadline: Instant) -> Result<Vec<String>, Error> {
        match self.ask(Order::ThawAll, "ending every freeze", deadline).await? {
            Reply::Ended(ended) => Ok(ended),
            other => Err(nonsense(&self.link, &other)),
        }
    }

    fn grants(&self, user: &str, level: Level, copy: Copy) -> Vec<Grant> {
        self.engine.grants(user, level, copy)
    }

    fn supports(&self, level: Level, copy: Copy) -> Result<(), Error> {
        self.engine.supports(level, copy)
    }

    fn restore_recipe(&self, copy: Copy, position: Option<&Position>, artifacts: &[Artifact]) -> String {
        self.engine.restore_recipe(copy, position, artifacts)
    }
}

/// Prepared there.
#[derive(Debug)]
struct AtAgent {
    hold: Hold,
    server: ServerInfo,
    warnings: Vec<Check>,
    acquire: Duration,
}

#[async_trait]
impl Prepared for AtAgent {
    fn server(&self) -> &ServerInfo {
        &self.server
    }

    fn warnings(&self) -> Vec<Check> {
        self.warnings.clone()
    }

    async fn keep(&mut self, server_ttl: Duration, deadline: Instant) -> Result<(), Error> {
        let order = Order::Keep { hold: self.hold.number, server_ttl };
        self.hold.ask(order, "keeping what is prepared", deadline).await.map(drop)
    }

    async fn acquire(self: Box<Self>) -> Result<(Box<dyn Held>, Acquired), Error> {
        let asked = Moment::now();
        let order = Order::Acquire { hold: self.hold.number };
        match self.hold.ask(order, "taking hold", asked.instant + self.acquire).await? {
            Reply::Acquired(frozen) => {
                let acquired = frozen.heard(asked);
                Ok((Box::new(HeldAtAgent(self.hold)), acquired))
            }
            other => Err(nonsense(self.hold.link(), &other)),
        }
    }

    async fn abandon(self: Box<Self>, deadline: Instant) -> Result<(), Error> {
        let order = Order::Abandon { hold: self.hold.number };
        self.hold.ask(order, "letting go", deadline).await?;
        self.hold.ended();
        Ok(())
    }
}

/// Held there.
#[derive(Debug)]
struct HeldAtAgent(Hold);

#[async_trait]
impl Held for HeldAtAgent {
    async fn heartbeat(&mut self, server_ttl: Duration, deadline: Instant) -> Result<Pulse, Error> {
        let order = Order::Heartbeat { hold: self.0.number, server_ttl };
        match self.0.ask(order, "the heartbeat", deadline).await? {
            Reply::Pulse(pulse) => Ok(pulse),
            other => Err(nonsense(self.0.link(), &other)),
        }
    }

    async fn barrier(&mut self, deadline: Instant) -> Result<Acquired, Error> {
        let asked = Moment::now();
        match self.0.ask(Order::Barrier { hold: self.0.number }, "a further still point", deadline).await? {
            Reply::Acquired(frozen) => Ok(frozen.heard(asked)),
            other => Err(nonsense(self.0.link(), &other)),
        }
    }

    async fn stop(&mut self, deadline: Instant) -> Result<Vec<Artifact>, Error> {
        match self.0.ask(Order::Stop { hold: self.0.number }, "ending the data phase", deadline).await? {
            Reply::Artifacts(artifacts) => Ok(artifacts),
            other => Err(nonsense(self.0.link(), &other)),
        }
    }

    async fn prove(&mut self, deadline: Instant) -> Result<Proof, Error> {
        match self.0.ask(Order::Prove { hold: self.0.number }, "proving", deadline).await? {
            Reply::Proof(proof) => Ok(proof),
            other => Err(nonsense(self.0.link(), &other)),
        }
    }

    async fn release(self: Box<Self>, deadline: Instant) -> Result<Released, Error> {
        match self.0.ask(Order::Release { hold: self.0.number }, "letting go", deadline).await? {
            Reply::Artifacts(artifacts) => {
                self.0.ended();
                // The agent closes its sessions by itself.
                Ok(Released { artifacts, farewell: Farewell::default() })
            }
            other => Err(nonsense(self.0.link(), &other)),
        }
    }
}

impl Hold {
    /// Asks about this hold. Without an answer it is lost: the agent lets go of what it does not hear of.
    async fn ask(&self, order: Order, doing: &'static str, deadline: Instant) -> Result<Reply, Error> {
        let link = self.link();
        link.ask(order, deadline).await.unwrap_or_else(|why| Err(why.of(link, doing, true)))
    }
}

impl Frozen {
    /// By our clocks. The still point is told a little too late, by the way of the answer, and never before it was asked for.
    fn heard(self, asked: Moment) -> Acquired {
        let now = Moment::now();
        let age = self.age.min(now.instant.saturating_duration_since(asked.instant));
        let frozen_at = Moment { at: now.at - age, instant: now.instant - age };
        Acquired { frozen_at, position: self.position, ended_sessions: self.ended_sessions }
    }
}

impl Unanswered {
    /// As an error; `held`: something was held through this link.
    fn of(&self, link: &Link, doing: &'static str, held: bool) -> Error {
        let agent = link.agent();
        match self {
            Self::Late(limit) => Error::Timeout { doing: doing.into(), limit: *limit },
            Self::Gone if held => Error::Lost { detail: format!("the agent in {agent} is gone") },
            Self::Gone => Error::Unreachable { address: agent.to_owned(), detail: "its agent is gone".to_owned() },
        }
    }
}

/// Of an agent that answers something else: it is no longer believed.
fn nonsense(link: &Link, reply: &Reply) -> Error {
    link.close();
    let detail = format!("the agent in {} answered what was not asked: {reply:?}", link.agent());
    Error::Server { doing: "asking an agent".into(), detail }
}
