//! The process that executes freezes: which members are held, by which freeze, and who asked.
//!
//! One task per freeze owns everything that holds; this table only finds it. Locks here are short and never held across
//! an await. What a caller sees is decided by the task; a caller that goes away takes nothing with it but its claim.

mod outcome;
mod recorder;
mod recovery;
mod table;
mod task;
mod undo;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use api::{Check, Claim, Copy, FreezeSpec, FreezeStatus, Level, Stage, TargetStatus, Via};
use tokio::{
    sync::{Notify, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    claims::Wish,
    directory::Directory,
    journal::{FreezeName, Journal},
};
pub use crate::{
    claims::{CannotJoin, Claimant},
    group::Target,
};
pub use recovery::Remains;
use table::{Handle, Member, Table, Vitals};
use task::{Command, Task};

/// Executes freezes. Cheap to clone; all clones are one freezer.
#[derive(Clone, Debug)]
pub struct Freezer(Arc<Inner>);

/// What a claim asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Where a freeze that has to be begun is written to.
    pub freeze: FreezeName,
    /// What it is begun as. `None`: somebody declared the object already.
    pub spec: Option<FreezeSpec>,
    pub claimant: Claimant,
    pub targets: Vec<Target>,
    pub level: Level,
    pub copy: Copy,
    pub ttl: Duration,
    /// The longest that a freeze begun by this request lasts, renewals included.
    pub max_frozen: Duration,
    /// Told when the freeze that this request begins is written down, for whoever does not wait until it holds. A claim that joins
    /// another is told when it is granted only: that freeze may say `Frozen` before this claim's own still point.
    pub accepted: Option<Arc<Notify>>,
    pub answered: AnsweredWhen,
}

/// When whoever asks is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnsweredWhen {
    /// When the journal was told that it holds: what is answered outlives us.
    Written,
    /// When it holds, while the journal is told. For who lets something begin by it, and goes by the journal in the end: what could not
    /// be written was not held, whatever was answered.
    Held,
}

/// A claim that holds.
#[derive(Clone, Debug)]
pub struct Granted {
    pub freeze: FreezeName,
    pub claim: Claim,
    pub status: Arc<FreezeStatus>,
    /// This uid held already; nothing was done.
    pub existing: bool,
    /// Checks that did not pass and did not refuse.
    pub warnings: Vec<Check>,
}

/// Why a claim does not hold.
#[derive(Clone, Debug)]
pub enum Refused {
    /// Held by others in a way that this claim cannot join.
    Conflict { freeze: FreezeName, status: Arc<FreezeStatus>, why: CannotJoin },
    /// Tried, and all undone. `status` is what the freeze ended as.
    NotHeld { freeze: FreezeName, status: Arc<FreezeStatus>, causes: Vec<Check> },
    /// The uid belongs to a freeze that is finished.
    Finished { freeze: FreezeName },
    /// The claim was ended while it waited.
    Withdrawn { freeze: FreezeName },
    /// What an earlier freeze left at this Database is still being undone.
    Undoing { freeze: FreezeName },
    /// This process is going down. `begun`: the freeze that this ended while it was on its way.
    Stopping { begun: Option<FreezeName> },
}

/// What a claim's end answers.
#[derive(Clone, Debug)]
pub struct Ended {
    pub freeze: FreezeName,
    pub status: Arc<FreezeStatus>,
    /// Others that still want it held.
    pub still_claimed_by: Vec<Claim>,
}

/// Why a freeze is ended from outside.
#[derive(Clone, Debug)]
pub enum Ending {
    /// Somebody with the right to do so.
    Forced { by: String },
    /// The Database says `paused`, or its Freeze was deleted.
    Withdrawn { why: &'static str },
}

/// A freeze as it stands now.
#[derive(Clone, Debug)]
pub struct FreezeView {
    pub freeze: FreezeName,
    pub status: Arc<FreezeStatus>,
    pub copy: Copy,
    /// Until the last claim lapses.
    pub remaining: Option<Duration>,
    /// Since all of it held: `frozenAt` of a barrier is when that began.
    pub held_for: Option<Duration>,
    /// Sessions that waited for us at the last heartbeat.
    pub stalled_sessions: Option<u32>,
    /// The user of each claim by its uid, also of those that wait for their still point and are in no status yet.
    pub claimants: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Inner {
    /// This process, for people.
    identity: String,
    /// Fencing: greater than that of every freezer before.
    epoch: i64,
    journal: Arc<dyn Journal>,
    directory: Arc<dyn Directory>,
    table: Mutex<Table>,
    tasks: TaskTracker,
    /// No new freezes.
    draining: AtomicBool,
    /// Thaw now.
    thaw: CancellationToken,
}

/// Claims that can wait for a freeze's task at once; more wait for room.
const COMMANDS: usize = 256;
/// How long thawing, undoing and writing may take when the process goes down.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// How long a claim waits for a freeze that is just ending, before it begins its own.
const ENDING: Duration = Duration::from_secs(10);

impl Freezer {
    /// A freezer that holds nothing. Must be made within a Tokio runtime.
    pub fn new(identity: String, epoch: i64, journal: Arc<dyn Journal>, directory: Arc<dyn Directory>) -> Self {
        Self(Arc::new(Inner {
            identity,
            epoch,
            journal,
            directory,
            table: Mutex::default(),
            tasks: TaskTracker::new(),
            draining: AtomicBool::new(false),
            thaw: CancellationToken::new(),
        }))
    }

    /// Makes the claim hold: joins what is held, or begins a freeze.
    ///
    /// Returns when it holds, or was refused; a bounded wait (prepare and acquire timeouts). Dropping the future
    /// withdraws the claim, unless somebody else waits for the same uid.
    pub async fn quiesce(&self, request: Request) -> Result<Granted, Refused> {
        let give_up = Instant::now() + ENDING;
        loop {
            let (answer, waiting) = oneshot::channel();
            let (handle, join) = self.claim(&request, answer)?;
            if let Some(command) = join {
                // A task that is gone drops the answer, and with it ends the wait below.
                handle.commands.send(Box::new(command)).await.ok();
            }
            if let Ok(answer) = waiting.await {
                return answer;
            }
            // It ended between our claim and its answer: wait until it has let go, then begin another.
            let Handle { mut shown, freeze, .. } = handle;
            let gone = async { while shown.changed().await.is_ok() {} };
            if timeout_at(give_up, gone).await.is_err() {
                return Err(Refused::Undoing { freeze });
            }
        }
    }

    /// Ends the claim `uid` on a Database; `stage: Stop` only ends the data phase of its Files copy.
    /// `None`: nothing is known of it.
    pub async fn unquiesce(
        &self,
        namespace: &str,
        database: &str,
        uid: &str,
        stage: Stage,
    ) -> Option<Result<Ended, Refused>> {
        let Some(handle) = self.table().handle(namespace, database) else {
            return self.outcome(namespace, uid).map(Ok);
        };
        let (answer, waiting) = oneshot::channel();
        // A command that is not taken comes back with its answer in it: it must be dropped, or we wait for ourselves.
        let taken = handle.commands.send(Box::new(Command::End { uid: uid.to_owned(), stage, answer })).await.is_ok();
        match if taken { waiting.await } else { Ok(None) } {
            Ok(Some(answer)) => Some(answer),
            _ => self.outcome(namespace, uid).map(Ok),
        }
    }

    /// Gives the claim `uid` a later end: now + `ttl`, or as long as it was given at first; never past the longest.
    /// `None`: no live claim of this uid.
    pub async fn renew(&self, namespace: &str, database: &str, uid: &str, ttl: Option<Duration>) -> Option<Granted> {
        let handle = self.table().handle(namespace, database)?;
        let (answer, waiting) = oneshot::channel();
        handle.commands.send(Box::new(Command::Renew { uid: uid.to_owned(), ttl, answer })).await.ok()?;
        waiting.await.ok().flatten()
    }

    /// Ends the freeze that covers a Database, whoever claims it. `None`: nothing is held.
    pub async fn end(&self, namespace: &str, database: &str, ending: Ending) -> Option<Ended> {
        let handle = self.table().handle(namespace, database)?;
        let (answer, waiting) = oneshot::channel();
        if handle.commands.send(Box::new(Command::Thaw { ending, answer })).await.is_ok()
            && let Ok(ended) = waiting.await
        {
            return Some(ended);
        }
        let status = handle.shown.borrow().clone();
        Some(Ended { freeze: handle.freeze, status, still_claimed_by: Vec::new() })
    }

    /// The freeze that covers a Database now, from memory.
    pub fn view(&self, namespace: &str, database: &str) -> Option<FreezeView> {
        let handle = self.table().handle(namespace, database)?;
        Some(handle.view())
    }

    /// The status of the freeze that covers a Database now, and every change of it; its end closes the channel.
    pub fn watch(&self, namespace: &str, database: &str) -> Option<watch::Receiver<Arc<FreezeStatus>>> {
        self.table().handle(namespace, database).map(|handle| handle.shown)
    }

    /// Every freeze that is not finished, from memory.
    pub fn views(&self) -> Vec<FreezeView> {
        let table = self.table();
        let handles: HashMap<_, _> =
            table.by_member.values().flatten().map(|handle| (handle.freeze.clone(), handle.clone())).collect();
        drop(table);
        handles.values().map(Handle::view).collect()
    }

    /// Remembers the claims of a freeze that finished before this process began, so that their uids stay finished.
    pub fn remember(&self, freeze: &FreezeName, status: &FreezeStatus) {
        self.table().remember(freeze, &Arc::new(status.clone()));
    }

    /// No new freezes; waits at most `patience` for those that hold, then thaws them. When it returns nothing is held;
    /// what could not be undone or written within [`LAST_WORDS`] is in the journal for the next freezer.
    pub async fn drain(&self, patience: Duration) {
        self.0.draining.store(true, Ordering::Relaxed);
        self.0.tasks.close();
        if timeout(patience, self.0.tasks.wait()).await.is_err() {
            self.0.thaw.cancel();
            timeout(LAST_WORDS, self.0.tasks.wait()).await.ok();
        }
    }

    /// The process that this is, as Freezes name it.
    pub fn identity(&self) -> &str {
        &self.0.identity
    }

    /// Whether it goes down, and begins nothing more.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table()
    }

    fn outcome(&self, namespace: &str, uid: &str) -> Option<Ended> {
        let uid = (namespace.to_owned(), uid.to_owned());
        let (freeze, status) = self.table().finished.get(&uid)?.clone();
        Some(Ended { freeze, status, still_claimed_by: Vec::new() })
    }

    /// Finds the freeze to join, with the command that joins it; or begins one, which has the claim already.
    fn claim(&self, request: &Request, answer: Answer) -> Result<(Handle, Option<Command>), Refused> {
        let namespace = &request.freeze.namespace;
        let members = request.targets.iter().map(|target| (namespace.clone(), target.database.clone()));
        let members: Arc<[Member]> = members.collect();
        let mut table = self.table();
        let uid = (namespace.clone(), request.claimant.uid.clone());
        if let Some((freeze, _)) = table.finished.get(&uid)
            && request.claimant.chosen
        {
            return Err(Refused::Finished { freeze: freeze.clone() });
        }
        if let Some(held) = members.iter().find_map(|member| table.by_member.get(member)?.last()) {
            if let Some((_, database)) = members.iter().find(|member| !held.members.contains(member)) {
                let (freeze, status) = (held.freeze.clone(), held.shown.borrow().clone());
                return Err(Refused::Conflict {
                    freeze,
                    status,
                    why: CannotJoin::Cover { database: database.clone() },
                });
            }
            if let Some(why) = elsewhere(&held.shown.borrow(), request) {
                let (freeze, status) = (held.freeze.clone(), held.shown.borrow().clone());
                return Err(Refused::Conflict { freeze, status, why });
            }
            let wish = Wish { level: request.level, copy: request.copy, ttl: request.ttl };
            let (claimant, answered) = (request.claimant.clone(), request.answered);
            let command = Command::Join { claimant, wish, answered, answer };
            return Ok((held.clone(), Some(command)));
        }
        if self.0.draining.load(Ordering::Relaxed) {
            return Err(Refused::Stopping { begun: None });
        }
        let (task, handle) = Task::new(Arc::clone(&self.0), request, Arc::clone(&members), answer);
        table.take(&handle);
        self.0.tasks.spawn(task.run());
        Ok((handle, None))
    }
}

/// Why what is held is not what is asked for: it is at another member. Two names that agents go by are two members; an address may
/// be any of them. A claim that is there already is asked for again, whoever has the role by now.
fn elsewhere(held: &FreezeStatus, request: &Request) -> Option<CannotJoin> {
    let again = |claim: &Claim| claim.uid == request.claimant.uid && claim.ended_at.is_none();
    if held.phase.is_finished() || held.claims.iter().any(again) {
        return None;
    }
    let pairs = request.targets.iter().filter_map(|wanted| {
        let held = held.targets.iter().find(|held| held.database == wanted.database)?;
        Some((held, wanted))
    });
    let by_agents = |(held, wanted): &(&TargetStatus, &Target)| held.via == Via::Agent && wanted.via == Via::Agent;
    let mut others = pairs.filter(by_agents).filter(|(held, wanted)| held.member != wanted.name);
    let (held, wanted) = others.next()?;
    Some(CannotJoin::Member { held: held.member.clone(), wanted: wanted.name.clone() })
}

// === impl Inner ===

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Answer = oneshot::Sender<Result<Granted, Refused>>;
