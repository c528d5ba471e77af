//! The freezer on servers in memory: claims, groups, faults at every step, recovery.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use api::{BlockerPolicy, Copy, Level, Phase, Role, Stage};
use freeze::{
    AnsweredWhen, CannotJoin, Ending, Plan, Refused, Request, Target,
    engines::memory::{MemoryServer, Step, Strike},
};
use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    book::{freezer, name, request},
    memory::member,
};

pub(crate) fn target(database: &str, server: &MemoryServer, level: Level, copy: Copy) -> Target {
    Target {
        database: database.to_owned(),
        name: "memory:5432".to_owned(),
        via: api::Via::Network,
        driver: server.driver(),
        member: member(5432),
        plan: Plan {
            freeze_uid: format!("freeze-of-{database}"),
            level,
            copy,
            role: Role::Primary,
            acquire_timeout: Duration::from_secs(1),
            blockers: BlockerPolicy::Wait,
            blockers_older_than: Duration::from_secs(5),
            server_ttl: Duration::from_secs(5),
        },
        prepare_timeout: Duration::from_secs(2),
        max_stalled_sessions: None,
    }
}

/// A client that commits all the time: how long it was kept waiting at most.
struct Stall {
    writer: AbortOnDropHandle<()>,
    longest: Arc<Mutex<Duration>>,
    waits_since: Arc<Mutex<Instant>>,
}

impl Stall {
    fn watch(server: &MemoryServer) -> Self {
        let (longest, waits_since) = (Arc::new(Mutex::new(Duration::ZERO)), Arc::new(Mutex::new(Instant::now())));
        let (server, most, since) = (server.clone(), Arc::clone(&longest), Arc::clone(&waits_since));
        let writer = tokio::spawn(async move {
            loop {
                *since.lock().unwrap() = Instant::now();
                server.commit(Duration::from_secs(3600)).await;
                let took = since.lock().unwrap().elapsed();
                {
                    let mut most = most.lock().unwrap();
                    *most = most.max(took);
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        Self { writer: AbortOnDropHandle::new(writer), longest, waits_since }
    }

    /// Until now, also of a commit that is still waiting.
    fn longest(self) -> Duration {
        self.writer.abort();
        let waiting = self.waits_since.lock().unwrap().elapsed();
        self.longest.lock().unwrap().max(waiting)
    }
}

const TTL: Duration = Duration::from_secs(10);
const COMMIT: Duration = Duration::from_secs(8);

#[tokio::test(start_paused = true)]
async fn two_hundred_claims_at_once_are_one_freeze_and_thawed_after_the_last() {
    let (freezer, book) = freezer();
    let server = MemoryServer::default();
    let claims = (0..200).map(|n| {
        let request = request(
            &format!("f{n}"),
            &format!("claim-{n}"),
            vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)],
            TTL,
        );
        let freezer = freezer.clone();
        tokio::spawn(async move { freezer.quiesce(request).await.unwrap() })
    });
    let granted: Vec<_> = join_all(claims).await.into_iter().map(Result::unwrap).collect();
    let freezes: std::collections::BTreeSet<_> = granted.iter().map(|granted| granted.freeze.clone()).collect();
    assert_eq!(freezes.len(), 1, "one freeze");
    for n in 0..199 {
        let ended = freezer.unquiesce("ns", "db", &format!("claim-{n}"), Stage::Thaw).await.unwrap().unwrap();
        assert_eq!(ended.still_claimed_by.len(), 199 - n);
        assert!(ended.status.targets[0].proof.as_ref().unwrap().held);
    }
    assert!(!server.commit(Duration::from_millis(100)).await, "one claim still holds it");
    let last = freezer.unquiesce("ns", "db", "claim-199", Stage::Thaw).await.unwrap().unwrap();
    assert_eq!(last.status.phase, Phase::Thawed);
    assert!(server.commit(COMMIT).await);
    assert_eq!(book.status(freezes.first().unwrap()).claims.len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_freezes_at_once_do_not_wait_for_each_other() {
    let (freezer, _) = freezer();
    let servers: Vec<MemoryServer> = (0..1000).map(|_| MemoryServer::default()).collect();
    // One of them takes its whole acquire timeout: nobody else notices.
    servers[0].arm(Step::Acquire, Strike::Hang);
    let freezes = servers.iter().enumerate().map(|(n, server)| {
        let target = target(&format!("db{n}"), server, Level::Durable, Copy::Atomic);
        let request = request(&format!("f{n}"), &format!("c{n}"), vec![target], TTL);
        let freezer = freezer.clone();
        tokio::spawn(async move { freezer.quiesce(request).await.is_ok() })
    });
    let held = join_all(freezes).await.into_iter().filter(|held| *held.as_ref().unwrap()).count();
    assert_eq!(held, 999);
    assert_eq!(freezer.views().len(), 999);
    freezer.drain(Duration::ZERO).await;
    assert!(servers.iter().all(|server| server.leftovers().is_empty()));
}

/// A hold of one says nothing of the other.
#[tokio::test(start_paused = true)]
async fn of_several_members_one_is_held_at_a_time() {
    let (freezer, _) = freezer();
    let servers = [MemoryServer::default(), MemoryServer::default()];
    let at = |freeze, uid, member: usize| {
        let name = ["pg-0", "pg-1"][member].to_owned();
        let target = target("db", &servers[member], Level::Durable, Copy::Atomic);
        request(freeze, uid, vec![Target { name, via: api::Via::Agent, ..target }], TTL)
    };
    let first = freezer.quiesce(at("f1", "a", 0)).await.unwrap();
    let other = freezer.quiesce(at("f2", "b", 1)).await;
    let Err(Refused::Conflict { why: why @ CannotJoin::Member { .. }, .. }) = other else { panic!("{other:?}") };
    assert_eq!(why.to_string(), "its member pg-0 is held, and pg-1 was asked for");
    let joined = freezer.quiesce(at("f3", "c", 0)).await.unwrap();
    assert_eq!(joined.freeze, first.freeze);
    // The same claim again has the same answer, whoever has the role by now.
    let again = freezer.quiesce(at("f4", "a", 1)).await.unwrap();
    assert!(again.existing && again.freeze == first.freeze);
    for uid in ["a", "c"] {
        freezer.unquiesce("ns", "db", uid, Stage::Thaw).await.unwrap().unwrap();
    }
    let then = freezer.quiesce(at("f5", "b", 1)).await.unwrap();
    assert_eq!(then.status.targets[0].member, "pg-1");
    freezer.drain(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_claim_has_a_still_point_of_its_own_and_what_cannot_join_is_told_why() {
    let (freezer, _) = freezer();
    let server = MemoryServer::default();
    let durable =
        |freeze, uid, ttl| request(freeze, uid, vec![target("db", &server, Level::Durable, Copy::Atomic)], ttl);
    let first = freezer.quiesce(durable("f1", "a", TTL)).await.unwrap();
    let again = freezer.quiesce(durable("f2", "a", TTL)).await.unwrap();
    assert!(again.existing && again.freeze == first.freeze && again.claim.frozen_at == first.claim.frozen_at);
    assert!(server.commit(COMMIT).await);
    let late = freezer.quiesce(durable("f3", "b", TTL)).await.unwrap();
    assert_eq!(late.freeze, first.freeze);
    assert!(late.claim.frozen_at.unwrap().0 > first.claim.frozen_at.unwrap().0, "its own");
    assert_eq!(server.copy(), (1, 1), "and what was acknowledged before it is in the copy");
    let higher = request("f4", "c", vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)], TTL);
    assert!(matches!(freezer.quiesce(higher).await, Err(Refused::Conflict { why: CannotJoin::Level { .. }, .. })));
    let longer = freezer.quiesce(durable("f5", "d", Duration::from_secs(31))).await;
    assert!(matches!(longer, Err(Refused::Conflict { why: CannotJoin::Time { .. }, .. })));
    for uid in ["a", "b"] {
        freezer.unquiesce("ns", "db", uid, Stage::Thaw).await.unwrap().unwrap();
    }
    assert!(matches!(freezer.quiesce(durable("f6", "a", TTL)).await, Err(Refused::Finished { .. })), "410");
    let repeated = freezer.unquiesce("ns", "db", "a", Stage::Thaw).await.unwrap().unwrap();
    assert_eq!(repeated.status.phase, Phase::Thawed, "the stored outcome");
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_by_itself_and_a_renewed_one_later_but_never_past_the_longest() {
    let (freezer, book) = freezer();
    let server = MemoryServer::default();
    let wanted =
        request("f", "a", vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)], Duration::from_secs(3));
    freezer.quiesce(wanted).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    let renewed = freezer.renew("ns", "db", "a", Some(Duration::from_secs(600))).await.unwrap();
    let left = renewed.claim.until.0.duration_since(jiff::Timestamp::now());
    assert!(left <= jiff::SignedDuration::from_secs(30), "{left}");
    assert!(!server.commit(Duration::from_secs(20)).await, "renewed");
    assert!(server.commit(Duration::from_secs(12)).await, "ended by its longest");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(book.status(&name("f")).phase, Phase::Expired);
    assert_eq!(server.leftovers(), "");
}

#[tokio::test(start_paused = true)]
async fn one_member_that_cannot_be_held_thaws_the_group() {
    let (freezer, _) = freezer();
    let (a, b) = (MemoryServer::default(), MemoryServer::default());
    b.arm(Step::Acquire, Strike::Refuse);
    let targets =
        vec![target("a", &a, Level::WriteBlocked, Copy::Atomic), target("b", &b, Level::WriteBlocked, Copy::Atomic)];
    let refused = freezer.quiesce(request("f", "x", targets.clone(), TTL)).await;
    let Err(Refused::NotHeld { causes, status, .. }) = refused else { panic!("{refused:?}") };
    assert_eq!((causes[0].database.as_str(), status.phase), ("b", Phase::Failed));
    for server in [&a, &b] {
        assert!(server.commit(COMMIT).await);
        assert_eq!(server.leftovers(), "");
    }
    freezer.quiesce(request("f2", "y", targets, TTL)).await.unwrap();
    a.kill_sessions();
    sleep(Duration::from_secs(3)).await;
    assert!(b.commit(COMMIT).await, "a group with one member lost holds nothing");
}

#[tokio::test(start_paused = true)]
async fn what_the_journal_does_not_know_does_not_hold() {
    for writes_before in 1..5 {
        let (freezer, book) = freezer();
        let server = MemoryServer::default();
        book.fails_after.store(writes_before, Ordering::SeqCst);
        let held =
            freezer.quiesce(request("f", "a", vec![target("db", &server, Level::Durable, Copy::Atomic)], TTL)).await;
        if held.is_err() {
            assert!(!book.phases.lock().unwrap().contains(&Phase::Frozen));
        }
        book.fails_after.store(0, Ordering::SeqCst);
        freezer.drain(Duration::ZERO).await;
        assert!(server.commit(COMMIT).await);
        assert_eq!(server.leftovers(), "", "with {writes_before} writes");
    }
}

/// Whoever does not wait for the journal goes by it in the end.
#[tokio::test(start_paused = true)]
async fn who_is_answered_when_it_holds_does_not_wait_for_the_journal_and_is_not_believed_without_it() {
    const WRITE: Duration = Duration::from_millis(400);
    for joins in [false, true] {
        let mut took = Vec::new();
        for answered in [AnsweredWhen::Held, AnsweredWhen::Written] {
            let (freezer, book) = freezer();
            let server = MemoryServer::default();
            let targets = vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)];
            let asked = Request { answered, ..request("f", "a", targets.clone(), TTL) };
            if joins {
                freezer.quiesce(request("f", "first", targets, TTL)).await.unwrap();
            }
            book.delay_ms.store(WRITE.as_millis().try_into().unwrap(), Ordering::SeqCst);
            let began = Instant::now();
            let granted = freezer.quiesce(asked).await.unwrap();
            took.push(began.elapsed());
            assert_eq!(granted.status.phase, Phase::Frozen);
            assert!(granted.claim.frozen_at.is_some() && !server.commit(Duration::ZERO).await);
            for uid in if joins { &["a", "first"][..] } else { &["a"] } {
                freezer.unquiesce("ns", "db", uid, Stage::Thaw).await.unwrap().unwrap();
            }
            assert!(server.commit(COMMIT).await);
            assert_eq!(book.status(&name("f")).phase, Phase::Thawed);
        }
        assert_eq!(took[1], took[0] + WRITE, "joins: {joins}");
    }

    let (freezer, book) = freezer();
    let server = MemoryServer::default();
    // The object, what would have to be undone, and no more.
    book.fails_after.store(3, Ordering::SeqCst);
    let targets = vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)];
    let granted = freezer.quiesce(Request { answered: AnsweredWhen::Held, ..request("f", "a", targets, TTL) }).await;
    assert_eq!(granted.unwrap().status.phase, Phase::Frozen);
    assert!(server.commit(COMMIT).await, "what could not be written is let go");
    book.fails_after.store(0, Ordering::SeqCst);
    let ended = freezer.unquiesce("ns", "db", "a", Stage::Thaw).await.unwrap().unwrap();
    assert_eq!((ended.status.phase, ended.status.proved), (Phase::Lost, None));
    freezer.drain(Duration::from_secs(60)).await;
    assert_eq!(book.status(&name("f")).phase, Phase::Lost);
    assert!(!book.phases.lock().unwrap().contains(&Phase::Frozen));
}

/// Its cut may be over before that is written.
#[tokio::test(start_paused = true)]
async fn who_was_answered_when_it_held_ends_it_without_waiting_for_the_journal_and_nobody_else_does() {
    let (freezer, book) = freezer();
    let server = MemoryServer::default();
    let targets = vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)];
    let asked = || Request { answered: AnsweredWhen::Held, ..request("f", "a", targets.clone(), TTL) };
    book.delay_ms.store(400, Ordering::SeqCst);
    freezer.quiesce(asked()).await.unwrap();
    // Asks for the same, and is gone.
    assert!(timeout(Duration::ZERO, freezer.quiesce(asked())).await.is_err());
    sleep(Duration::from_secs(2)).await;
    assert!(!server.commit(Duration::ZERO).await, "somebody was told that it holds");
    freezer.unquiesce("ns", "db", "a", Stage::Thaw).await.unwrap().unwrap();

    let again = || Request { answered: AnsweredWhen::Held, ..request("g", "b", targets.clone(), TTL) };
    freezer.quiesce(again()).await.unwrap();
    let (began, ending) = (Instant::now(), freezer.unquiesce("ns", "db", "b", Stage::Thaw));
    let (ended, written) = tokio::join!(ending, async {
        assert!(server.commit(COMMIT).await);
        began.elapsed()
    });
    assert!(written < Duration::from_millis(400), "{written:?}");
    let ended = ended.unwrap().unwrap();
    assert_eq!((ended.status.phase, ended.status.proved), (Phase::Thawed, Some(true)));
    assert_eq!(book.status(&name("g")).phase, Phase::Thawed);
}

#[tokio::test(start_paused = true)]
async fn who_may_not_hold_any_more_takes_nothing() {
    for fenced in [true, false] {
        let (freezer, book) = freezer();
        let server = MemoryServer::default();
        book.fenced.store(fenced, Ordering::SeqCst);
        let targets = vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)];
        let held = freezer.quiesce(request("f", "a", targets, TTL)).await;
        assert_eq!(held.is_err(), fenced);
        assert_eq!(server.commit(Duration::ZERO).await, fenced, "whether anything is held");
    }
}

#[tokio::test(start_paused = true)]
async fn an_end_that_could_not_be_written_is_written_later() {
    let (freezer, book) = freezer();
    let server = MemoryServer::default();
    freezer.quiesce(request("f", "a", vec![target("db", &server, Level::Durable, Copy::Atomic)], TTL)).await.unwrap();
    book.fails_after.store(1, Ordering::SeqCst);
    let ended = freezer.unquiesce("ns", "db", "a", Stage::Thaw).await.unwrap().unwrap();
    assert_eq!(ended.status.phase, Phase::Thawed, "a thaw does not wait for the journal");
    assert_eq!(book.status(&name("f")).phase, Phase::Frozen);
    book.fails_after.store(0, Ordering::SeqCst);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(book.status(&name("f")).phase, Phase::Thawed);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_comes_to_be_after_its_freeze_has_failed_says_that_it_failed() {
    let (freezer, book) = freezer();
    let server = MemoryServer::default();
    book.delay_ms.store(7_000, Ordering::SeqCst);
    let asked = freezer.quiesce(request("f", "a", vec![target("db", &server, Level::Durable, Copy::Atomic)], TTL));
    assert!(matches!(asked.await, Err(Refused::NotHeld { .. })), "a journal that is not told in time does not hold");
    book.delay_ms.store(0, Ordering::SeqCst);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(*book.phases.lock().unwrap(), [Phase::Preparing, Phase::Failed]);
    assert_eq!(book.status(&name("f")).phase, Phase::Failed);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_gone_holds_nothing() {
    let (freezer, _) = freezer();
    let server = MemoryServer::default();
    let asking =
        freezer.quiesce(request("f", "a", vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)], TTL));
    // The request is dropped before anything answers it.
    assert!(timeout(Duration::ZERO, asking).await.is_err());
    sleep(Duration::from_secs(1)).await;
    assert!(server.commit(COMMIT).await);
    assert!(freezer.views().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_forced_thaw_ends_every_claim() {
    let (freezer, book) = freezer();
    let server = MemoryServer::default();
    freezer
        .quiesce(request("f", "a", vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)], TTL))
        .await
        .unwrap();
    let ended = freezer.end("ns", "db", Ending::Forced { by: "night shift".to_owned() }).await.unwrap();
    assert!(ended.status.message.as_ref().unwrap().contains("night shift"));
    assert!(server.commit(COMMIT).await);
    assert_eq!(book.status(&name("f")).phase, Phase::Thawed);
}

/// Every step of the life cycle × every fault. After each: writable within the lease and a second, the right finished
/// phase, nothing left, and a new freeze works.
#[tokio::test(start_paused = true)]
async fn no_fault_at_any_step_leaves_anything_frozen() {
    let lease = Duration::from_secs(3);
    for step in [
        Step::Connect,
        Step::Acquire,
        Step::Barrier,
        Step::Heartbeat,
        Step::Stop,
        Step::Prove,
        Step::Release,
        Step::Recover,
    ] {
        for strike in [Strike::Refuse, Strike::Hang, Strike::Cut, Strike::Restart] {
            for level in [Level::Durable, Level::WriteBlocked] {
                let (freezer, book) = freezer();
                let server = MemoryServer::default();
                server.arm(step, strike);
                let wanted =
                    |freeze, uid| request(freeze, uid, vec![target("db", &server, level, Copy::Atomic)], lease);
                let stall = Stall::watch(&server);
                let held = freezer.quiesce(wanted("f", "a")).await.is_ok();
                if held {
                    freezer.quiesce(wanted("g", "late")).await.ok();
                    sleep(Duration::from_millis(1500)).await;
                    freezer.unquiesce("ns", "db", "a", Stage::Stop).await;
                    freezer.unquiesce("ns", "db", "late", Stage::Thaw).await;
                    freezer.unquiesce("ns", "db", "a", Stage::Thaw).await;
                }
                sleep(Duration::from_secs(40)).await;
                let took = stall.longest();
                assert!(took <= lease + Duration::from_secs(1), "{step:?} {strike:?} {level}: {took:?}");
                let phase = book.status(&name("f")).phase;
                assert!(phase.is_finished(), "{step:?} {strike:?} {level}: {phase}");
                assert_eq!(server.leftovers(), "", "{step:?} {strike:?} {level}");
                println!(
                    "{:<10} {:<8} {level:<13} {phase:<8} writable after {took:?}",
                    format!("{step:?}"),
                    format!("{strike:?}")
                );
                freezer.quiesce(wanted("again", "b")).await.unwrap();
                freezer.unquiesce("ns", "db", "b", Stage::Thaw).await.unwrap().unwrap();
            }
        }
    }
}

/// Its sessions are still being closed, or its settings undone: whoever asks for it then gets the stored answer at once.
#[tokio::test(start_paused = true)]
async fn a_freeze_that_is_over_answers_while_it_is_tidied_up() {
    let (freezer, _) = freezer();
    let server = MemoryServer::default();
    let wanted = request("f", "a", vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)], TTL);
    freezer.quiesce(wanted).await.unwrap();
    // What outlived the sessions cannot be undone at once, so the freeze keeps its Database a while.
    for step in [Step::Release, Step::Recover] {
        server.arm(step, Strike::Refuse);
    }
    freezer.unquiesce("ns", "db", "a", Stage::Thaw).await.unwrap().unwrap();
    let again = timeout(Duration::from_secs(1), freezer.unquiesce("ns", "db", "a", Stage::Thaw));
    assert!(again.await.expect("no wait").unwrap().unwrap().status.phase.is_finished());
}

/// What an earlier claim was told of the hold says nothing of how it ended.
#[tokio::test(start_paused = true)]
async fn a_freeze_that_is_lost_after_a_claim_left_keeps_no_proof() {
    let (freezer, _) = freezer();
    let server = MemoryServer::default();
    for (freeze, uid) in [("f", "a"), ("g", "b")] {
        let wanted = request(freeze, uid, vec![target("db", &server, Level::Durable, Copy::Atomic)], TTL);
        freezer.quiesce(wanted).await.unwrap();
    }
    let left = freezer.unquiesce("ns", "db", "a", Stage::Thaw).await.unwrap().unwrap();
    assert!(left.status.targets[0].proof.as_ref().unwrap().held, "the first to leave is told so");
    server.kill_sessions();
    sleep(Duration::from_secs(3)).await;
    let ended = freezer.unquiesce("ns", "db", "b", Stage::Thaw).await.unwrap().unwrap();
    assert_eq!((ended.status.phase, &ended.status.targets[0].proof), (Phase::Lost, &None));
}
