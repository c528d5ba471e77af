//! One server, one freezer, the relay between them, and what is measured from outside.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use api::{BlockerPolicy, Copy, Level, Phase, Role, Stage};
use fixtures::{Fault, Proxy, ServerKind};
use freeze::{Freezer, Plan, Request, Target, contract::Subject};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    book::{Book, freezer, name, request},
    real::Real,
};

pub(super) const LEASE: Duration = Duration::from_secs(3);
pub(super) const SECOND: Duration = Duration::from_secs(1);
/// Every wait for a condition ends.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(5);

/// What breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Strike {
    /// The network says nothing any more, and does not say that it does.
    Stall,
    /// It closes every connection, and refuses new ones.
    Cut,
    /// kill -9 of the server, and a new start.
    Kill,
    /// An administrator ends our sessions.
    EndSessions,
}

/// Where it breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// At this piece of the conversation, which does not arrive, or only afterwards.
    Piece(usize),
    /// While another session keeps us waiting; it lets go right after.
    KeptWaiting,
    /// It holds, and nothing was said since.
    JustFrozen,
    /// A heartbeat was answered, and the next is not due.
    BetweenHeartbeats,
}

/// What came of one strike.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) strike: Strike,
    pub(super) place: Place,
    /// What the relay kept.
    piece: String,
    /// The phase that it struck in; `None`: the freeze was over before.
    pub(super) met: Option<Phase>,
    ended: Phase,
    proved: bool,
    /// From the grant, or from the strike if that came first. `None`: not within the time allowed.
    writable: Option<Duration>,
    restart: Duration,
    /// Whoever ended the claim heard of it.
    answered: bool,
    left: String,
    again: Result<(), String>,
}

pub(super) struct Bench {
    pub(super) real: Real,
    relay: Proxy,
    freezer: Freezer,
    book: Arc<Book>,
    freezes: AtomicUsize,
}

impl Strike {
    pub(super) const ALL: [Self; 4] = [Self::Stall, Self::Cut, Self::Kill, Self::EndSessions];
}

impl Bench {
    pub(super) async fn start(kind: ServerKind) -> Self {
        let real = Real::start(kind).await;
        let relay = Proxy::to(real.port).await.unwrap();
        let (freezer, book) = freezer();
        Self { real, relay, freezer, book, freezes: AtomicUsize::new(0) }
    }

    /// A freeze that nothing disturbs; answers of how many pieces its conversation is.
    pub(super) async fn undisturbed(&self) -> usize {
        self.relay.stall_at(usize::MAX);
        let freeze = self.next();
        assert!(self.begin(&freeze).await.is_ok(), "it is granted");
        self.spoken(&freeze).await;
        assert!(self.end(&freeze).await, "it is ended");
        let status = self.book.status(&name(&freeze));
        assert!(status.phase == Phase::Thawed && status.targets[0].proof.as_ref().unwrap().held, "{status:?}");
        self.relay.heard()
    }

    /// A freeze with one strike, and what was seen of it from outside.
    pub(super) async fn strike(&self, strike: Strike, place: Place) -> Row {
        let nth = if let Place::Piece(nth) = place { nth } else { usize::MAX };
        self.relay.stall_at(nth);
        let freeze = self.next();
        let blocker = if place == Place::KeptWaiting { Some(self.real.blocker().await) } else { None };
        let granted = std::sync::OnceLock::new();
        let freezing = async {
            if self.begin(&freeze).await.is_ok() {
                granted.set(Instant::now()).ok();
                match place {
                    Place::Piece(_) => self.spoken(&freeze).await,
                    _ => self.over(&freeze).await,
                }
                return self.end(&freeze).await;
            }
            true
        };
        let striking = async {
            let piece = self.reached(place, &freeze).await;
            let met = self.freezer.view("ns", "db").map(|view| view.status.phase).filter(|phase| !phase.is_finished());
            let struck = Instant::now();
            let restart = self.apply(strike).await;
            // Whatever kept us waiting lets go: what we asked for may be granted now, and nobody hears of it.
            drop(blocker);
            let since = granted.get().copied().unwrap_or(struck);
            let allowed = (LEASE + SECOND + restart).saturating_sub(since.elapsed());
            let writable = self.real.commit(allowed).await.then(|| since.elapsed());
            // The network is back, and nothing of before arrives any more.
            self.relay.stall_at(usize::MAX);
            self.relay.set(Fault::Cut);
            self.relay.set(Fault::Pass);
            (piece, met, restart, writable)
        };
        let both = async { tokio::join!(freezing, striking) };
        let (answered, (piece, met, restart, writable)) =
            timeout(PATIENCE * 2, both).await.unwrap_or_else(|_| panic!("{strike:?} {place:?}: every wait ends"));
        self.until("a finished phase", || self.phase(&freeze).is_finished()).await;
        let left = self.leftovers().await;
        let again = self.again().await;
        let status = self.book.status(&name(&freeze));
        let proved = status.targets.iter().any(|target| target.proof.as_ref().is_some_and(|proof| proof.held));
        Row { strike, place, piece, met, ended: status.phase, proved, writable, restart, answered, left, again }
    }

    /// Waits until the place is reached; answers the piece, if it is one. A freeze that is over reaches nothing.
    async fn reached(&self, place: Place, freeze: &str) -> String {
        let frozen = || self.phase(freeze) == Phase::Frozen;
        match place {
            Place::Piece(_) => tokio::select! {
                piece = self.relay.stalled() => piece.map(|piece| {
                    format!("{} {}", if piece.from_client { "→" } else { "←" }, piece.text)
                }).unwrap_or_default(),
                () = self.until("a finished phase", || self.phase(freeze).is_finished()) => String::new(),
            },
            Place::KeptWaiting => {
                let end = Instant::now() + PATIENCE;
                while !self.real.waits().await {
                    assert!(Instant::now() < end, "kept waiting");
                }
                String::new()
            }
            Place::JustFrozen => {
                self.until("a grant", frozen).await;
                String::new()
            }
            Place::BetweenHeartbeats => {
                self.until("a grant", frozen).await;
                let heard = self.relay.heard();
                // What is asked is answered before the heartbeat counts as one.
                self.until("a heartbeat", || self.relay.heard() >= heard + 2).await;
                String::new()
            }
        }
    }

    async fn apply(&self, strike: Strike) -> Duration {
        let began = Instant::now();
        match strike {
            Strike::Stall => self.relay.set(Fault::Stall),
            Strike::Cut => self.relay.set(Fault::Cut),
            Strike::Kill => {
                self.real.restart().await;
                self.relay.set(Fault::Pass);
                return began.elapsed();
            }
            Strike::EndSessions => {
                self.real.kill_sessions().await;
                self.relay.set(Fault::Pass);
            }
        }
        Duration::ZERO
    }

    async fn begin(&self, freeze: &str) -> Result<(), String> {
        let granted = self.freezer.quiesce(self.request(freeze)).await;
        granted.map(drop).map_err(|refused| format!("{refused:?}"))
    }

    /// Whether the end of the claim was answered.
    async fn end(&self, freeze: &str) -> bool {
        timeout(PATIENCE / 2, self.freezer.unquiesce("ns", "db", freeze, Stage::Thaw)).await.is_ok()
    }

    /// Waits until the freeze said something while it holds, or is over.
    async fn spoken(&self, freeze: &str) {
        let heard = self.relay.heard();
        self.until("a heartbeat", || self.relay.heard() > heard || self.phase(freeze).is_finished()).await;
    }

    async fn over(&self, freeze: &str) {
        self.until("the end", || self.phase(freeze).is_finished()).await;
    }

    /// A freeze after it, through the same relay.
    async fn again(&self) -> Result<(), String> {
        let freeze = self.next();
        self.begin(&freeze).await?;
        self.end(&freeze).await;
        let status = self.book.status(&name(&freeze));
        let proved = status.targets.iter().all(|target| target.proof.as_ref().is_some_and(|proof| proof.held));
        if status.phase == Phase::Thawed && proved { Ok(()) } else { Err(format!("{status:?}")) }
    }

    async fn leftovers(&self) -> String {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = self.real.leftovers().await;
            if left.is_empty() || Instant::now() > end {
                return left;
            }
            sleep(LOOK * 10).await;
        }
    }

    async fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < end, "{what} is not reached");
            sleep(LOOK).await;
        }
    }

    fn phase(&self, freeze: &str) -> Phase {
        self.book.status(&name(freeze)).phase
    }

    fn next(&self) -> String {
        format!("f{}", self.freezes.fetch_add(1, Ordering::Relaxed))
    }

    fn request(&self, freeze: &str) -> Request {
        let target = Target {
            database: "db".to_owned(),
            name: "the server".to_owned(),
            via: api::Via::Network,
            driver: self.real.driver(),
            member: Real::at(self.relay.port),
            plan: Plan {
                freeze_uid: format!("{freeze}-of-{}", self.relay.port),
                level: Level::WriteBlocked,
                copy: Copy::Atomic,
                role: Role::Primary,
                acquire_timeout: LEASE / 2,
                blockers: BlockerPolicy::Wait,
                blockers_older_than: Duration::ZERO,
                server_ttl: LEASE,
            },
            prepare_timeout: LEASE / 2,
            max_stalled_sessions: None,
        };
        request(freeze, freeze, vec![target], LEASE)
    }
}

impl Row {
    /// How the freeze may have ended. Whoever did not hold yet failed, whoever held lost it; only where nothing of ours was
    /// struck (no session that is marked, the last words after the proof) it ends as if nothing were.
    fn may_end(&self) -> &'static [Phase] {
        match (self.met, self.strike) {
            (Some(Phase::Preparing), Strike::EndSessions) => &[Phase::Failed, Phase::Thawed],
            // What the relay kept arrives afterwards, and may have been the last that was missing.
            (Some(Phase::Acquiring), Strike::Kill | Strike::EndSessions) => &[Phase::Failed, Phase::Lost],
            (Some(Phase::Preparing | Phase::Acquiring), _) => &[Phase::Failed],
            (Some(Phase::Frozen), Strike::Stall) => &[Phase::Lost, Phase::Expired],
            (Some(Phase::Frozen), _) => &[Phase::Lost],
            (Some(_), _) => &[Phase::Lost, Phase::Thawed],
            (None, _) => &[Phase::Thawed],
        }
    }

    /// What must not be, if anything.
    pub(super) fn wrong(&self) -> Option<String> {
        let mut wrong = Vec::new();
        if self.writable.is_none() {
            wrong.push("not writable in time".to_owned());
        }
        if !self.may_end().contains(&self.ended) {
            wrong.push(format!("it ended as {}, and not as one of {:?}", self.ended, self.may_end()));
        }
        if self.proved && self.ended != Phase::Thawed {
            wrong.push("it is called proved".to_owned());
        }
        if !self.answered {
            wrong.push("the end of its claim was never answered".to_owned());
        }
        if !self.left.is_empty() {
            wrong.push(format!("left in the server: {}", self.left));
        }
        if let Err(error) = &self.again {
            wrong.push(format!("no new freeze: {error}"));
        }
        (!wrong.is_empty()).then(|| format!("{self}: {}", wrong.join("; ")))
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::Piece(nth) => format!("{nth:>3} {}", self.piece.chars().take(48).collect::<String>()),
            other => format!("    {other:?}"),
        };
        let met = self.met.map_or("over".to_owned(), |phase| phase.to_string());
        let writable = self.writable.map_or("never".to_owned(), |took| format!("{:.2} s", took.as_secs_f64()));
        let proved = if self.proved { "proved" } else { "" };
        write!(
            f,
            "{:<12} {place:<54} {met:<10} {:<8} {proved:<7}",
            format!("{:?}", self.strike),
            self.ended.to_string()
        )?;
        write!(f, "writable after {writable}")?;
        if self.restart.is_zero() {
            Ok(())
        } else {
            write!(f, ", {:.2} s of them the restart", self.restart.as_secs_f64())
        }
    }
}
