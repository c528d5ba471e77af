//! What every engine does, as a suite: called for the in-memory engine and for every real server.
//!
//! A case answers `Passed`, or `NotApplicable` with the reason: nothing is skipped silently. [`run`] prints a table and
//! fails if anything failed.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::{BlockerPolicy, CheckResult, Copy, Incarnation, Level, Role, Undo};
use async_trait::async_trait;
use futures::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    driver::{Account, Acquired, Driver, Held, Member, Observed, Plan, Preflight, Prepared, Recovered, ServerInfo},
    error::Error,
    journal::{JournalError, UndoLog},
};

/// A server under test, as an ordinary client and an administrator see it.
#[async_trait]
pub trait Subject: Send + Sync {
    fn name(&self) -> String;
    fn driver(&self) -> Arc<dyn Driver>;
    fn member(&self) -> Member;
    /// A member at whose address everything is swallowed and nothing answered.
    fn black_hole(&self) -> Member;
    /// One commit by an ordinary client, acknowledged within `limit`: `true`.
    async fn commit(&self, limit: Duration) -> bool;
    /// Ends every session of ours, as an administrator would.
    async fn kill_sessions(&self);
    async fn restart(&self);
    /// What of ours is left in the server: sessions, slots, settings. Empty: nothing.
    async fn leftovers(&self) -> String;
}

/// What a case came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    NotApplicable(String),
}

/// One promise.
pub struct Case {
    pub name: &'static str,
    pub check: for<'a> fn(&'a dyn Subject) -> BoxFuture<'a, Outcome>,
}

/// An undo log in memory, which notes what was intended and what was settled.
#[derive(Debug, Default)]
pub struct Noted {
    intended: Mutex<Vec<Undo>>,
    settled: Mutex<Vec<String>>,
}

const PATIENCE: Duration = Duration::from_secs(10);
const COMMIT: Duration = Duration::from_secs(5);
/// Long enough that a commit that is not blocked is answered, on a busy machine too.
const BLOCKED: Duration = Duration::from_millis(700);

/// All of them.
pub const CASES: &[Case] = &[
    Case { name: "probe tells version, role and incarnation", check: |s| probe(s).boxed() },
    Case { name: "preflight passes and touches nothing", check: |s| preflight(s).boxed() },
    Case {
        name: "Recoverable holds, blocks nobody, leaves nothing",
        check: |s| holds(s, Level::Recoverable, Copy::Atomic).boxed(),
    },
    Case {
        name: "Durable holds, blocks nobody, leaves nothing",
        check: |s| holds(s, Level::Durable, Copy::Atomic).boxed(),
    },
    Case {
        name: "WriteBlocked blocks every commit and lets go",
        check: |s| holds(s, Level::WriteBlocked, Copy::Atomic).boxed(),
    },
    Case { name: "Files has two stages and gives what a restore needs", check: |s| files(s).boxed() },
    Case { name: "a later barrier is a later still point", check: |s| barrier(s).boxed() },
    Case { name: "what is prepared is kept beyond the server's patience", check: |s| keep(s).boxed() },
    Case { name: "heartbeats keep it beyond the server's patience", check: |s| heartbeat(s).boxed() },
    Case { name: "silence loses it, and the server lets go by itself", check: |s| silence(s).boxed() },
    Case { name: "dropping what is prepared leaves nothing", check: |s| drop_prepared(s).boxed() },
    Case { name: "dropping what is held lets go", check: |s| drop_held(s).boxed() },
    Case { name: "abandoning leaves nothing", check: |s| abandon(s).boxed() },
    Case { name: "a killed session is lost at the next heartbeat, for good", check: |s| killed(s).boxed() },
    Case { name: "a restart of the server is a lost hold", check: |s| restarted(s).boxed() },
    Case { name: "observe sees a freeze while it holds, and not after", check: |s| observe(s).boxed() },
    Case { name: "thaw_all ends it", check: |s| thaw_all(s).boxed() },
    Case { name: "what outlives the session was intended before, and settled", check: |s| undo(s).boxed() },
    Case { name: "what was done to another server or run is not undone here", check: |s| undo_elsewhere(s).boxed() },
    Case { name: "an undo item of another kind is left alone", check: |s| unknown_undo(s).boxed() },
    Case { name: "a black hole is left in time", check: |s| black_hole(s).boxed() },
    Case { name: "a wrong password is told as such, and never shown", check: |s| wrong_password(s).boxed() },
    Case { name: "what is not supported is refused with an alternative", check: |s| unsupported(s).boxed() },
    Case { name: "grants and recipes say something", check: |s| async move { texts(s) }.boxed() },
];

/// Runs all cases one after the other and prints what became of each. Fails if any failed.
pub async fn run(subject: &dyn Subject) -> Result<(), String> {
    let mut failed = Vec::new();
    for case in CASES {
        let began = Instant::now();
        let outcome = AssertUnwindSafe((case.check)(subject)).catch_unwind().await;
        let word = match &outcome {
            Ok(Outcome::Passed) => "passed".to_owned(),
            Ok(Outcome::NotApplicable(why)) => format!("not applicable: {why}"),
            Err(_) => {
                failed.push(case.name);
                "FAILED".to_owned()
            }
        };
        println!("{:<18} {:<60} {:>6} ms  {word}", subject.name(), case.name, began.elapsed().as_millis());
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("{}: failed: {}", subject.name(), failed.join("; "))) }
}

/// A plan as a freezer makes it.
pub fn plan(level: Level, copy: Copy) -> Plan {
    Plan {
        freeze_uid: uuid::Uuid::new_v4().to_string(),
        level,
        copy,
        role: Role::Primary,
        acquire_timeout: Duration::from_secs(5),
        blockers: BlockerPolicy::Wait,
        blockers_older_than: Duration::from_secs(5),
        server_ttl: Duration::from_secs(5),
    }
}

pub fn soon() -> Instant {
    Instant::now() + PATIENCE
}

async fn prepare(subject: &dyn Subject, plan: &Plan, undo: Arc<Noted>) -> Result<Box<dyn Prepared>, Error> {
    subject.driver().prepare(&subject.member(), plan, undo, soon()).await
}

async fn take(subject: &dyn Subject, plan: &Plan) -> (Box<dyn Held>, Acquired, Arc<Noted>) {
    let noted = Arc::new(Noted::default());
    let prepared = prepare(subject, plan, Arc::clone(&noted)).await.expect("prepare");
    let (held, acquired) = prepared.acquire().await.expect("acquire");
    (held, acquired, noted)
}

/// Nothing of ours is left, within the time that a server takes to notice a closed connection.
async fn clean(subject: &dyn Subject) {
    let end = Instant::now() + PATIENCE;
    loop {
        let left = subject.leftovers().await;
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < end, "left in the server: {left}");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(subject.commit(COMMIT).await, "writable afterwards");
}

async fn probe(subject: &dyn Subject) -> Outcome {
    let server = subject.driver().probe(&subject.member(), soon()).await.expect("probe");
    assert!(!server.version.is_empty() && !server.incarnation.server.is_empty());
    assert_eq!(server.role, Role::Primary);
    Outcome::Passed
}

async fn preflight(subject: &dyn Subject) -> Outcome {
    for level in Level::ALL {
        let plan = plan(*level, Copy::Atomic);
        let Preflight { checks, server } = subject.driver().preflight(&subject.member(), &plan, soon()).await;
        let probed = subject.driver().probe(&subject.member(), soon()).await.expect("probe");
        let server = server.expect("a server that we know");
        let who = |server: &ServerInfo| (server.incarnation.server.clone(), server.role, server.version.clone());
        assert_eq!(who(&server), who(&probed), "the same server");
        assert_eq!(checks.first().map(|check| check.name.as_str()), Some("reachable"));
        let failed: Vec<_> = checks.iter().filter(|check| check.result == CheckResult::Fail).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }
    clean(subject).await;
    Outcome::Passed
}

async fn holds(subject: &dyn Subject, level: Level, copy: Copy) -> Outcome {
    let before = jiff::Timestamp::now();
    let (mut held, acquired, _) = take(subject, &plan(level, copy)).await;
    assert!(acquired.frozen_at.at >= before && acquired.frozen_at.at <= jiff::Timestamp::now());
    let committed = subject.commit(if level == Level::WriteBlocked { BLOCKED } else { COMMIT }).await;
    assert_eq!(committed, level != Level::WriteBlocked, "a commit while it holds at {level}");
    held.heartbeat(Duration::from_secs(5), soon()).await.expect("heartbeat");
    let proof = held.prove(soon()).await.expect("prove");
    assert!(proof.held, "{proof:?}");
    assert_eq!(proof.before, Some(acquired.position));
    held.release(soon()).await.expect("release");
    clean(subject).await;
    Outcome::Passed
}

async fn files(subject: &dyn Subject) -> Outcome {
    if let Err(error) = subject.driver().supports(Level::Durable, Copy::Files) {
        return Outcome::NotApplicable(error.to_string());
    }
    let (mut held, _, _) = take(subject, &plan(Level::Durable, Copy::Files)).await;
    assert!(subject.commit(COMMIT).await, "a file copy blocks nobody");
    let artifacts = held.stop(soon()).await.expect("stop");
    assert!(!artifacts.is_empty());
    assert_eq!(held.stop(soon()).await.expect("stop again"), artifacts);
    held.heartbeat(Duration::from_secs(5), soon()).await.expect("the session stays");
    assert!(held.prove(soon()).await.expect("prove").held);
    held.release(soon()).await.expect("release");
    clean(subject).await;
    Outcome::Passed
}

async fn barrier(subject: &dyn Subject) -> Outcome {
    for level in Level::ALL {
        let (mut held, first, _) = take(subject, &plan(*level, Copy::Atomic)).await;
        let asked = crate::Moment::now();
        let second = held.barrier(soon()).await.expect("barrier").frozen_at;
        // Under a paused clock both may be the same instant.
        assert!(second.instant >= asked.instant && second.instant >= first.frozen_at.instant, "its own still point");
        held.release(soon()).await.expect("release");
    }
    clean(subject).await;
    Outcome::Passed
}

async fn keep(subject: &dyn Subject) -> Outcome {
    let ttl = Duration::from_secs(1);
    let wanted = Plan { server_ttl: ttl, ..plan(Level::WriteBlocked, Copy::Atomic) };
    let mut kept = prepare(subject, &wanted, Arc::default()).await.expect("prepare");
    let end = Instant::now() + ttl + ttl;
    while Instant::now() < end {
        kept.keep(ttl, soon()).await.expect("keep");
        sleep(Duration::from_millis(300)).await;
    }
    let (held, _) = kept.acquire().await.expect("acquire");
    held.release(soon()).await.expect("release");
    clean(subject).await;
    // The control: nobody keeps this one.
    let alone = prepare(subject, &wanted, Arc::default()).await.expect("prepare");
    sleep(ttl + ttl).await;
    assert!(alone.acquire().await.is_err(), "the server has ended it");
    clean(subject).await;
    Outcome::Passed
}

async fn heartbeat(subject: &dyn Subject) -> Outcome {
    let ttl = Duration::from_secs(2);
    let (mut held, _, _) = take(subject, &Plan { server_ttl: ttl, ..plan(Level::Durable, Copy::Atomic) }).await;
    let end = Instant::now() + ttl + ttl;
    while Instant::now() < end {
        held.heartbeat(ttl, soon()).await.expect("heartbeat");
        sleep(Duration::from_millis(500)).await;
    }
    assert!(held.prove(soon()).await.expect("prove").held);
    held.release(soon()).await.expect("release");
    Outcome::Passed
}

async fn silence(subject: &dyn Subject) -> Outcome {
    let ttl = Duration::from_secs(1);
    let (mut held, _, noted) = take(subject, &plan(Level::WriteBlocked, Copy::Atomic)).await;
    held.heartbeat(ttl, soon()).await.expect("heartbeat");
    assert!(subject.commit(ttl + COMMIT).await, "the server lets go by itself");
    let error = held.heartbeat(ttl, soon()).await.expect_err("lost");
    assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    held.release(soon()).await.ok();
    noted.undo(subject).await;
    clean(subject).await;
    Outcome::Passed
}

async fn drop_prepared(subject: &dyn Subject) -> Outcome {
    let prepared = prepare(subject, &plan(Level::WriteBlocked, Copy::Atomic), Arc::default()).await.expect("prepare");
    drop(prepared);
    clean(subject).await;
    Outcome::Passed
}

async fn drop_held(subject: &dyn Subject) -> Outcome {
    let (held, _, noted) = take(subject, &plan(Level::WriteBlocked, Copy::Atomic)).await;
    drop(held);
    // What the drop could not undo is in the journal, and is undone from there.
    assert!(subject.commit(COMMIT + COMMIT).await, "writable after the drop");
    noted.undo(subject).await;
    clean(subject).await;
    Outcome::Passed
}

async fn abandon(subject: &dyn Subject) -> Outcome {
    let prepared = prepare(subject, &plan(Level::WriteBlocked, Copy::Atomic), Arc::default()).await.expect("prepare");
    assert!(subject.commit(COMMIT).await, "what is only prepared blocks nobody");
    prepared.abandon(soon()).await.expect("abandon");
    clean(subject).await;
    Outcome::Passed
}

async fn killed(subject: &dyn Subject) -> Outcome {
    let (mut held, _, noted) = take(subject, &plan(Level::WriteBlocked, Copy::Atomic)).await;
    subject.kill_sessions().await;
    for _ in 0..2 {
        let error = held.heartbeat(Duration::from_secs(5), soon()).await.expect_err("lost");
        assert!(matches!(error, Error::Lost { .. }), "{error:?}");
    }
    assert!(subject.commit(COMMIT).await, "writable at once");
    held.release(soon()).await.ok();
    noted.undo(subject).await;
    clean(subject).await;
    Outcome::Passed
}

async fn restarted(subject: &dyn Subject) -> Outcome {
    let (mut held, _, noted) = take(subject, &plan(Level::Durable, Copy::Atomic)).await;
    subject.restart().await;
    assert!(held.heartbeat(Duration::from_secs(5), soon()).await.is_err());
    assert!(held.prove(soon()).await.map_or(true, |proof| !proof.held), "nothing is proved across a restart");
    drop(held);
    noted.undo(subject).await;
    clean(subject).await;
    Outcome::Passed
}

async fn observe(subject: &dyn Subject) -> Outcome {
    let plan = plan(Level::Durable, Copy::Atomic);
    let see = async || subject.driver().observe(&subject.member(), &plan.freeze_uid, soon()).await.expect("observe");
    assert_eq!(see().await, Observed::Nothing);
    let (held, _, _) = take(subject, &plan).await;
    assert!(matches!(see().await, Observed::Holds(_)));
    held.release(soon()).await.expect("release");
    let end = Instant::now() + PATIENCE;
    while see().await != Observed::Nothing {
        assert!(Instant::now() < end, "still seen after the release");
        sleep(Duration::from_millis(50)).await;
    }
    Outcome::Passed
}

async fn thaw_all(subject: &dyn Subject) -> Outcome {
    let (mut held, _, noted) = take(subject, &plan(Level::WriteBlocked, Copy::Atomic)).await;
    let ended = subject.driver().thaw_all(&subject.member(), soon()).await.expect("thaw_all");
    assert!(!ended.is_empty());
    assert!(subject.commit(COMMIT).await, "writable at once");
    assert!(held.heartbeat(Duration::from_secs(5), soon()).await.is_err());
    drop(held);
    noted.undo(subject).await;
    clean(subject).await;
    Outcome::Passed
}

async fn undo(subject: &dyn Subject) -> Outcome {
    let (held, _, noted) = take(subject, &plan(Level::WriteBlocked, Copy::Atomic)).await;
    held.release(soon()).await.expect("release");
    clean(subject).await;
    let intended = noted.intended.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if intended.is_empty() {
        return Outcome::NotApplicable("nothing outlives a session of this engine with these settings".to_owned());
    }
    let settled = noted.settled.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert!(intended.iter().all(|undo| settled.contains(&undo.kind)), "{intended:?} {settled:?}");
    for _ in 0..2 {
        for undo in &intended {
            assert_eq!(recover(subject, undo, None).await, Recovered::Undone, "idempotent");
        }
    }
    clean(subject).await;
    Outcome::Passed
}

async fn undo_elsewhere(subject: &dyn Subject) -> Outcome {
    let (held, _, noted) = take(subject, &plan(Level::WriteBlocked, Copy::Atomic)).await;
    held.release(soon()).await.expect("release");
    let intended = noted.intended.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let Some(undo) = intended.first() else {
        return Outcome::NotApplicable("nothing outlives a session of this engine with these settings".to_owned());
    };
    let this = subject.driver().probe(&subject.member(), soon()).await.expect("probe").incarnation;
    let another = Incarnation { server: "another".to_owned(), ..this.clone() };
    let earlier = Incarnation { started_at: "1".to_owned(), ..this.clone() };
    assert!(matches!(recover(subject, undo, Some(&another)).await, Recovered::Elsewhere(_)));
    assert_eq!(recover(subject, undo, Some(&earlier)).await, Recovered::Undone, "it went with that run");
    assert_eq!(recover(subject, undo, Some(&this)).await, Recovered::Undone);
    clean(subject).await;
    Outcome::Passed
}

async fn recover(subject: &dyn Subject, undo: &Undo, of: Option<&Incarnation>) -> Recovered {
    subject.driver().recover(&subject.member(), undo, of, soon()).await.expect("recover")
}

async fn unknown_undo(subject: &dyn Subject) -> Outcome {
    let undo = Undo { version: 99, kind: "fromTheFuture".to_owned(), data: serde_json::Map::new() };
    assert_eq!(recover(subject, &undo, None).await, Recovered::Unknown);
    Outcome::Passed
}

async fn black_hole(subject: &dyn Subject) -> Outcome {
    let (driver, hole) = (subject.driver(), subject.black_hole());
    let limit = Duration::from_millis(800);
    let deadline = || Instant::now() + limit;
    let plan = plan(Level::Durable, Copy::Atomic);
    let all = async {
        assert!(matches!(driver.probe(&hole, deadline()).await, Err(Error::Timeout { .. })));
        let refused = driver.prepare(&hole, &plan, Arc::new(Noted::default()), deadline()).await;
        assert!(matches!(refused, Err(Error::Timeout { .. })));
        let Preflight { checks, server } = driver.preflight(&hole, &plan, deadline()).await;
        assert!(server.is_none());
        assert_eq!(checks.first().and_then(|check| check.reason.as_deref()), Some("Timeout"));
    };
    timeout(limit * 3 + Duration::from_secs(2), all).await.expect("every wait ends");
    Outcome::Passed
}

async fn wrong_password(subject: &dyn Subject) -> Outcome {
    const SECRET: &str = "wrong-Xy7-password";
    let Some(account) = subject.member().account else {
        return Outcome::NotApplicable("this server asks for no password".to_owned());
    };
    let member = Member { account: Some(Account { password: Some(SECRET.to_owned()), ..account }), ..subject.member() };
    let error = subject.driver().probe(&member, soon()).await.expect_err("refused");
    assert!(matches!(error, Error::Authentication { .. }), "{error:?}");
    let shown = format!("{error} {error:?} {} {member:?}", error.advice());
    assert!(!shown.contains(SECRET), "{shown}");
    Outcome::Passed
}

async fn unsupported(subject: &dyn Subject) -> Outcome {
    let driver = subject.driver();
    let mut refused = 0;
    for level in Level::ALL {
        for copy in [Copy::Atomic, Copy::Files] {
            if let Err(error) = driver.supports(*level, copy) {
                assert!(matches!(error, Error::Unsupported { .. }) && !error.advice().is_empty());
                let prepared = prepare(subject, &plan(*level, copy), Arc::default()).await;
                assert!(matches!(prepared, Err(Error::Unsupported { .. })), "prepare refuses what is not supported");
                refused += 1;
            }
        }
    }
    if refused == 0 { Outcome::NotApplicable("it supports everything".to_owned()) } else { Outcome::Passed }
}

fn texts(subject: &dyn Subject) -> Outcome {
    let driver = subject.driver();
    for level in Level::ALL {
        assert!(!driver.grants("somebody", *level, Copy::Atomic).is_empty());
    }
    assert!(!driver.restore_recipe(Copy::Atomic, None, &[]).is_empty());
    Outcome::Passed
}

impl Noted {
    /// Undoes what was intended and not settled, as a freezer does after a lost hold.
    async fn undo(&self, subject: &dyn Subject) {
        let intended = self.intended.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for undo in intended {
            assert_eq!(recover(subject, &undo, None).await, Recovered::Undone);
        }
    }
}

#[async_trait]
impl UndoLog for Noted {
    async fn intend(&self, undo: Undo) -> Result<(), JournalError> {
        self.intended.lock().unwrap_or_else(PoisonError::into_inner).push(undo);
        Ok(())
    }

    async fn settled(&self, kind: &str) -> Result<(), JournalError> {
        self.settled.lock().unwrap_or_else(PoisonError::into_inner).push(kind.to_owned());
        Ok(())
    }
}
