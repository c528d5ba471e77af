//! An engine behind an agent's link keeps the same contract, and what only a link can suffer.

mod moments;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use api::{Artifact, Copy, Engine, Incarnation, Level, Position, Undo, agent::Granted};
use async_trait::async_trait;
use fixtures::ServerKind;
use freeze::{
    Driver, Error, Grant, Member, Observed, Plan, Preflight, Prepared, Recovered, ServerInfo, UndoLog,
    contract::{self, Noted, Subject, plan, soon},
    engines::memory::MemoryServer,
    remote::{Host, Link, Remote, Term},
};
use futures::FutureExt;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{memory::member, real::Real};

/// Agents of one engine: one for each member that is asked for, as if there had always been one beside it.
#[derive(Debug)]
struct Agents {
    engine: Arc<dyn Driver>,
    known: Mutex<HashMap<String, Arc<Remote>>>,
}

impl Agents {
    fn of(engine: Arc<dyn Driver>) -> Arc<dyn Driver> {
        Arc::new(Self { engine, known: Mutex::default() })
    }

    fn at(&self, member: &Member) -> Arc<Remote> {
        let password = member.account.as_ref().and_then(|account| account.password.clone());
        let key = format!("{} {password:?}", member.address);
        let mut known = self.known.lock().unwrap();
        Arc::clone(known.entry(key).or_insert_with(|| {
            let link = linked(&Host::new(Arc::clone(&self.engine), member.clone()), &CancellationToken::new());
            Arc::new(Remote::new(link, Arc::clone(&self.engine), term(1)))
        }))
    }
}

fn term(epoch: i64) -> Term {
    Term { database: "orders".to_owned(), epoch }
}

/// A link to a host, as long as neither stops.
fn linked(host: &Host, stop: &CancellationToken) -> Link {
    let (link, sending) = Link::new("pod shop/db-0".to_owned(), Arc::new(|_, _, _| {}));
    let (up, down) = tokio::io::duplex(4096);
    let (at_freezer, host, stop) = (link.clone(), host.clone(), stop.clone());
    let grant = |_| async { Granted::Thawed { freeze: None, proved: None } }.boxed();
    tokio::spawn(async move { at_freezer.run(up, sending, grant).await });
    let (_wishes, wished) = mpsc::channel(1);
    tokio::spawn(async move { host.run(down, wished, |_| {}, stop).await });
    link
}

#[async_trait]
impl Driver for Agents {
    fn engine(&self) -> Engine {
        self.engine.engine()
    }

    async fn probe(&self, member: &Member, deadline: Instant) -> Result<ServerInfo, Error> {
        self.at(member).probe(member, deadline).await
    }

    async fn preflight(&self, member: &Member, plan: &Plan, deadline: Instant) -> Preflight {
        self.at(member).preflight(member, plan, deadline).await
    }

    async fn prepare(
        &self,
        member: &Member,
        plan: &Plan,
        undo: Arc<dyn UndoLog>,
        deadline: Instant,
    ) -> Result<Box<dyn Prepared>, Error> {
        self.at(member).prepare(member, plan, undo, deadline).await
    }

    async fn recover(
        &self,
        member: &Member,
        undo: &Undo,
        of: Option<&Incarnation>,
        deadline: Instant,
    ) -> Result<Recovered, Error> {
        self.at(member).recover(member, undo, of, deadline).await
    }

    async fn observe(&self, member: &Member, freeze_uid: &str, deadline: Instant) -> Result<Observed, Error> {
        self.at(member).observe(member, freeze_uid, deadline).await
    }

    async fn thaw_all(&self, member: &Member, deadline: Instant) -> Result<Vec<String>, Error> {
        self.at(member).thaw_all(member, deadline).await
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

/// A subject whose driver is behind agents.
struct BehindAgents<S> {
    subject: S,
    driver: Arc<dyn Driver>,
}

impl<S: Subject> BehindAgents<S> {
    fn new(subject: S) -> Self {
        let driver = Agents::of(subject.driver());
        Self { subject, driver }
    }
}

#[async_trait]
impl<S: Subject> Subject for BehindAgents<S> {
    fn name(&self) -> String {
        format!("agent, {}", self.subject.name())
    }

    fn driver(&self) -> Arc<dyn Driver> {
        Arc::clone(&self.driver)
    }

    fn member(&self) -> Member {
        self.subject.member()
    }

    fn black_hole(&self) -> Member {
        self.subject.black_hole()
    }

    async fn commit(&self, limit: Duration) -> bool {
        self.subject.commit(limit).await
    }

    async fn kill_sessions(&self) {
        self.subject.kill_sessions().await;
    }

    async fn restart(&self) {
        self.subject.restart().await;
    }

    async fn leftovers(&self) -> String {
        self.subject.leftovers().await
    }
}

#[tokio::test(start_paused = true)]
async fn the_server_in_memory_keeps_the_contract_behind_its_agent() {
    contract::run(&BehindAgents::new(crate::memory::InMemory::default())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_15_keeps_the_contract_behind_its_agent() {
    contract::run(&BehindAgents::new(Real::start(ServerKind::POSTGRESQL_15).await)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_10_11_keeps_the_contract_behind_its_agent() {
    contract::run(&BehindAgents::new(Real::start(ServerKind::MARIADB_10_11).await)).await.unwrap();
}

/// A server, the host beside it, and a link.
fn one() -> (MemoryServer, Host, Link) {
    let server = MemoryServer::default();
    let host = Host::new(server.driver(), member(5432));
    let link = linked(&host, &CancellationToken::new());
    (server, host, link)
}

/// Commits are acknowledged again, long before any lease is over.
async fn is_free(server: &MemoryServer) {
    assert!(server.commit(Duration::from_secs(4)).await, "writable again");
    let end = Instant::now() + Duration::from_secs(10);
    while server.leftovers() != "" {
        assert!(Instant::now() < end, "left: {}", server.leftovers());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn write_blocked() -> Plan {
    Plan { server_ttl: Duration::from_secs(60), ..plan(Level::WriteBlocked, Copy::Atomic) }
}

#[tokio::test]
async fn a_link_that_ends_lets_go_at_once_and_what_it_held_is_lost() {
    let (server, _host, link) = one();
    let driver = Remote::new(link.clone(), server.driver(), term(1));
    let prepared = driver.prepare(&member(1), &write_blocked(), Arc::new(Noted::default()), soon()).await.unwrap();
    let (mut held, _) = prepared.acquire().await.unwrap();
    held.heartbeat(Duration::from_secs(60), soon()).await.unwrap();
    assert!(!server.commit(Duration::from_millis(200)).await, "held");
    link.close();
    is_free(&server).await;
    let lost = held.heartbeat(Duration::from_secs(60), soon()).await.unwrap_err();
    assert!(matches!(lost, Error::Lost { .. }), "{lost:?}");
    let gone = driver.probe(&member(1), soon()).await.unwrap_err();
    assert!(matches!(gone, Error::Unreachable { .. }), "{gone:?}");
}

#[tokio::test]
async fn what_nobody_keeps_is_let_go_by_the_agent_itself() {
    let (server, _host, link) = one();
    let driver = Remote::new(link, server.driver(), term(1));
    // Whoever executes for us forgets the server's own patience: the agent's is what is left.
    let short = Plan { server_ttl: Duration::from_secs(1), ..write_blocked() };
    let prepared = driver.prepare(&member(1), &short, Arc::new(Noted::default()), soon()).await.unwrap();
    let (mut held, _) = prepared.acquire().await.unwrap();
    is_free(&server).await;
    let lost = held.heartbeat(Duration::from_secs(1), soon()).await.unwrap_err();
    assert!(matches!(lost, Error::Lost { .. }), "{lost:?}");
}

#[tokio::test]
async fn a_freezer_of_a_lower_epoch_has_no_say_any_more() {
    let (server, host, first) = one();
    let second = linked(&host, &CancellationToken::new());
    let (old, new) = (Remote::new(first, server.driver(), term(3)), Remote::new(second, server.driver(), term(4)));
    let take = async |driver: &Remote| {
        let prepared = driver.prepare(&member(1), &write_blocked(), Arc::new(Noted::default()), soon()).await?;
        prepared.acquire().await
    };
    let (mut held, _) = take(&old).await.unwrap();
    // Whoever comes has the member; what the old one held is let go, also if nobody tells it to.
    let harmless = plan(Level::Recoverable, Copy::Atomic);
    new.prepare(&member(1), &harmless, Arc::new(Noted::default()), soon()).await.map(drop).ok();
    is_free(&server).await;
    let lost = held.heartbeat(Duration::from_secs(60), soon()).await.unwrap_err();
    assert!(matches!(&lost, Error::Lost { detail } if detail.contains("another freezer")), "{lost:?}");
    let refused = take(&old).await.unwrap_err();
    assert!(matches!(refused, Error::Journal(_)), "an order of an older epoch: {refused:?}");
    assert!(take(&new).await.is_ok(), "the control");
}

#[tokio::test]
async fn an_agent_that_is_told_to_stop_lets_go_first() {
    let server = MemoryServer::default();
    let (host, stop) = (Host::new(server.driver(), member(5432)), CancellationToken::new());
    let link = linked(&host, &stop);
    let driver = Remote::new(link.clone(), server.driver(), term(1));
    let prepared = driver.prepare(&member(1), &write_blocked(), Arc::new(Noted::default()), soon()).await.unwrap();
    let (_held, _) = prepared.acquire().await.unwrap();
    stop.cancel();
    is_free(&server).await;
    link.closed().await;
}
