//! Whatever becomes of an agent, or of the way to it, at any moment of a freeze: its database goes on in time, nobody says that it was
//! held who cannot know, and nothing is taken twice.

use api::{Phase, Stage, Via};
use freeze::{
    Target, Whereabouts,
    engines::memory::{Step, Strike},
};
use futures::{StreamExt, stream};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, copy_bidirectional, duplex},
    time::sleep,
};
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::{
    book::{Book, Places, freezer_of, name, request},
    freezer::target,
};

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The process is gone, and its connections with it.
    Killed,
    /// It is told to end, as a kubelet does.
    Stopped,
    /// Nothing comes through, and nobody hears that: a partition, or a process that was paused.
    Silent,
    /// The control.
    None,
}

const LEASE: Duration = Duration::from_secs(3);
/// What is promised is a second; the machine may be busy.
const BEYOND: Duration = Duration::from_secs(2);
/// How long each step takes, so that there are moments within it.
const SLOW: Duration = Duration::from_millis(150);
const MOMENTS: u32 = 18;
/// So many at once: a machine that is too busy would be what is measured.
const TOGETHER: usize = 16;
/// What outlives an agent is put back within this, once another is there.
const TIDY: Duration = Duration::from_secs(30);
const STEPS: [Step; 7] =
    [Step::Connect, Step::Acquire, Step::Barrier, Step::Heartbeat, Step::Stop, Step::Prove, Step::Release];

/// A host, and a way to it that a fault can strike.
struct Agent {
    link: Link,
    stop: CancellationToken,
    silent: CancellationToken,
    tasks: Vec<AbortOnDropHandle<()>>,
}

impl Agent {
    fn beside(server: &MemoryServer) -> Self {
        let host = Host::new(server.driver(), member(5432));
        let (stop, silent) = (CancellationToken::new(), CancellationToken::new());
        let (link, sending) = Link::new("pod shop/db-0".to_owned(), Arc::new(|_, _, _| {}));
        let ((up, near), (far, down)) = (duplex(4096), duplex(4096));
        let grant = |_| async { Granted::Thawed { freeze: None, proved: None } }.boxed();
        let (at_freezer, at_host) = (link.clone(), stop.clone());
        let spawn = |task| AbortOnDropHandle::new(tokio::spawn(task));
        let tasks = vec![
            spawn(async move { host.run(down, mpsc::channel(1).1, |_| {}, at_host).await }.boxed()),
            spawn(network(near, far, silent.clone()).boxed()),
        ];
        // The freezer's end goes on whatever becomes of the agent.
        tokio::spawn(async move { at_freezer.run(up, sending, grant).await });
        Self { link, stop, silent, tasks }
    }

    fn driver(&self, server: &MemoryServer) -> Arc<dyn Driver> {
        Arc::new(Remote::new(self.link.clone(), server.driver(), term(1)))
    }

    fn place(&self, server: &MemoryServer) -> Whereabouts {
        Whereabouts::At(self.driver(server), member(5432))
    }

    fn target(&self, server: &MemoryServer) -> Target {
        let target = target("db", server, Level::WriteBlocked, Copy::Atomic);
        Target { via: Via::Agent, driver: self.driver(server), ..target }
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Killed => self.tasks.clear(),
            Fault::Stopped => self.stop.cancel(),
            Fault::Silent => self.silent.cancel(),
            Fault::None => {}
        }
    }
}

/// Until either end is gone, or for ever when it falls silent.
async fn network(mut near: impl AsyncRead + AsyncWrite + Unpin, mut far: DuplexStream, silent: CancellationToken) {
    tokio::select! {
        _ = copy_bidirectional(&mut near, &mut far) => {}
        () = silent.cancelled() => std::future::pending().await,
    }
}

/// What came of one freeze.
struct Row {
    fault: Fault,
    at: Duration,
    phase: Phase,
    /// It was told that it was held all the time.
    proved: bool,
    /// The longest that a commit waited.
    stall: Duration,
    /// Commits that were acknowledged while it was said to be held.
    slipped: u64,
    left: String,
    /// Afterwards it can be frozen again.
    works: bool,
}

/// One freeze, at a moment of which a fault strikes.
async fn life(fault: Fault, at: Duration) -> Row {
    let (server, book, places) = (MemoryServer::default(), Arc::new(Book::default()), Arc::new(Places::default()));
    let freezer = freezer_of("test", &book, &places);
    let mut agent = Agent::beside(&server);
    places.put("db", agent.place(&server));
    for step in STEPS {
        server.arm(step, Strike::Slow(SLOW));
    }
    let wanted = agent.target(&server);
    let writer = {
        let server = server.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            let end = Instant::now() + LEASE + LEASE + BEYOND;
            while Instant::now() < end {
                let began = Instant::now();
                server.commit(Duration::from_secs(60)).await;
                longest = longest.max(began.elapsed());
                sleep(Duration::from_millis(5)).await;
            }
            longest
        }))
    };
    let freezing = {
        let (freezer, server) = (freezer.clone(), server.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            if freezer.quiesce(request("f", "a", vec![wanted], LEASE)).await.is_err() {
                return (false, 0);
            }
            let before = server.copy().0;
            sleep(SLOW * 4).await;
            let after = server.copy().0;
            let ended = freezer.unquiesce("ns", "db", "a", Stage::Thaw).await;
            let proof = ended.and_then(Result::ok).and_then(|ended| ended.status.targets[0].proof.clone());
            (proof.is_some_and(|proof| proof.held), after - before)
        }))
    };
    sleep(at).await;
    if !matches!(fault, Fault::None) {
        places.put("db", Whereabouts::NotNow("its agent is gone".to_owned()));
    }
    agent.strike(fault);
    let (proved, slipped) = freezing.await.unwrap();
    let stall = writer.await.unwrap();
    let phase = book.status(&name("f")).phase;
    // Another agent comes: what outlived the one before is put back by it, and it is obeyed.
    let next = Agent::beside(&server);
    places.put("db", next.place(&server));
    let again = async |number: u32| {
        let uid = format!("again-{number}");
        freezer.quiesce(request(&uid, &uid, vec![next.target(&server)], LEASE)).await.ok()?;
        freezer.unquiesce("ns", "db", &uid, Stage::Thaw).await?.ok()
    };
    let (end, mut tries) = (Instant::now() + TIDY, 0);
    let mut works = again(tries).await.is_some();
    while Instant::now() < end && !(works && server.leftovers().is_empty()) {
        sleep(SLOW).await;
        tries += 1;
        works = works || again(tries).await.is_some();
    }
    Row { fault, at, phase, proved, stall, slipped, left: server.leftovers(), works }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_becomes_of_an_agent_at_any_moment_its_database_goes_on_in_time() {
    // The last is when all is over.
    let moments = (1..=MOMENTS).map(|number| SLOW / 2 * number).chain([LEASE]);
    let lives =
        moments.flat_map(|at| [Fault::Killed, Fault::Stopped, Fault::Silent, Fault::None].map(|fault| life(fault, at)));
    let rows: Vec<Row> = stream::iter(lives).buffer_unordered(TOGETHER).collect().await;
    for row in &rows {
        let Row { fault, at, phase, proved, stall, slipped, left, works } = row;
        println!("{fault:?} at {at:?}: {phase}, proved {proved}, writable after {stall:?}");
        let what = format!("{fault:?} at {at:?}");
        assert!(*stall <= LEASE + BEYOND, "{what}: writable after {stall:?}");
        assert!(phase.is_finished(), "{what}: {phase}");
        assert!(left.is_empty() && *works, "{what}: left is {left:?}, frozen again {works}");
        assert!(!proved || *slipped == 0, "{what}: {slipped} commits were acknowledged");
        assert!(!proved || *phase == Phase::Thawed, "{what}: {phase}");
        if matches!(fault, Fault::None) {
            assert!(*proved && *phase == Phase::Thawed, "{what}: {phase}");
        }
    }
    // It struck before it held, while it did, and after.
    for phase in [Phase::Failed, Phase::Lost, Phase::Thawed] {
        let struck = rows.iter().filter(|row| row.phase == phase && !matches!(row.fault, Fault::None)).count();
        assert!(struck > 0, "nothing ended as {phase}");
    }
}
