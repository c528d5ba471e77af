//! Members that are not equally fast, and claims that come and go together.

use std::{sync::atomic::Ordering, time::Duration};

use api::{Copy, Level, Phase, Stage};
use freeze::{
    Refused, Target,
    engines::memory::{MemoryServer, Step, Strike},
};
use futures::future::join_all;
use jiff::Timestamp;
use tokio::time::{Instant, sleep};

use crate::{
    book::{freezer, name, request},
    freezer::target,
};

const TTL: Duration = Duration::from_secs(2);

fn pair(level: Level) -> (MemoryServer, MemoryServer, Vec<Target>) {
    let (quick, slow) = (MemoryServer::default(), MemoryServer::default());
    let targets = [("quick", &quick), ("slow", &slow)].map(|(name, server)| {
        let mut target = target(name, server, level, Copy::Atomic);
        target.prepare_timeout = Duration::from_secs(20);
        target.plan.acquire_timeout = Duration::from_secs(20);
        target
    });
    (quick, slow, targets.into())
}

/// A server is patient for as long as the lease lasts, at most 5 s; another may need longer to get there.
#[tokio::test(start_paused = true)]
async fn a_member_that_is_ready_early_is_kept_until_the_last_is() {
    for step in [Step::Connect, Step::Acquire] {
        let (freezer, _) = freezer();
        let (_, slow, targets) = pair(Level::WriteBlocked);
        slow.arm(step, Strike::Slow(Duration::from_secs(12)));
        let held = freezer.quiesce(request("f", "a", targets, TTL)).await.unwrap();
        assert_eq!(held.status.phase, Phase::Frozen);
        let ended = freezer.unquiesce("ns", "quick", "a", Stage::Thaw).await.unwrap().unwrap();
        assert!(ended.status.targets.iter().all(|target| target.proof.as_ref().unwrap().held), "{step:?}");
    }
}

/// One member that fails frees the others at once, not when the slowest is done; so do too many that wait.
#[tokio::test(start_paused = true)]
async fn a_member_that_holds_early_lets_go_when_the_group_cannot_come_about() {
    for most in [None, Some(0)] {
        let (freezer, _) = freezer();
        let (quick, slow, mut targets) = pair(Level::WriteBlocked);
        slow.arm(Step::Acquire, Strike::Slow(Duration::from_secs(15)));
        let failing = MemoryServer::default();
        if most.is_none() {
            failing.arm(Step::Acquire, Strike::Refuse);
        }
        targets.push(target("third", &failing, Level::WriteBlocked, Copy::Atomic));
        targets[0].max_stalled_sessions = most;
        let committed = async {
            sleep(Duration::from_millis(200)).await;
            quick.commit(Duration::from_secs(3)).await
        };
        let (refused, committed) = tokio::join!(freezer.quiesce(request("f", "a", targets, TTL)), committed);
        assert!(matches!(refused, Err(Refused::NotHeld { .. })), "{refused:?}");
        assert!(committed, "not kept waiting for the slow one: {most:?}");
    }
}

/// The longest that a freeze lasts counts from its first still point, whatever the others take to follow, and whatever else is
/// slow meanwhile.
#[tokio::test(start_paused = true)]
async fn a_member_that_holds_early_blocks_no_longer_than_a_freeze_may_last() {
    const LONGEST: Duration = Duration::from_secs(6);
    /// Milliseconds that the slow one takes; what strikes the quick one; milliseconds of each write; how it ends.
    type Case = (u64, Option<(Step, Strike)>, u64, Phase);
    const CASES: &[Case] = &[
        (4_000, None, 0, Phase::Expired),
        (9_000, None, 0, Phase::Failed),
        // Its server is silent when it is looked at last.
        (9_000, Some((Step::Heartbeat, Strike::Hang)), 0, Phase::Failed),
        // It comes about with next to nothing left, and the journal is slow.
        (4_900, None, 700, Phase::Expired),
        // A heartbeat is slow, and the other one late.
        (5_500, Some((Step::Heartbeat, Strike::Slow(Duration::from_secs(3)))), 0, Phase::Expired),
    ];
    for (at, (slow_for, strike, write, phase)) in CASES.iter().enumerate() {
        let (freezer, book) = freezer();
        let (quick, slow, targets) = pair(Level::WriteBlocked);
        slow.arm(Step::Acquire, Strike::Slow(Duration::from_millis(*slow_for)));
        if let Some((step, strike)) = strike {
            quick.arm(*step, *strike);
        }
        let request = freeze::Request { max_frozen: LONGEST, ..request("f", "a", targets, LONGEST) };
        let began = Instant::now();
        let blocked = async {
            sleep(Duration::from_millis(200)).await;
            book.delay_ms.store(*write, Ordering::SeqCst);
            assert!(quick.commit(Duration::from_secs(60)).await);
            began.elapsed()
        };
        let held = async {
            let held = freezer.quiesce(request).await;
            (held, began.elapsed())
        };
        let ((held, answered), blocked) = tokio::join!(held, blocked);
        assert!(blocked < LONGEST + Duration::from_millis(700), "{at}: {blocked:?}");
        match held {
            Ok(_) => assert!(answered < LONGEST, "{at}: {answered:?}, and nothing of it was left"),
            Err(Refused::NotHeld { causes, .. }) if *phase == Phase::Failed => {
                assert!(causes.iter().all(|cause| cause.database != "quick" || strike.is_some()), "{at}: {causes:?}");
            }
            Err(refused) => assert!(*phase == Phase::Expired && *write > 0, "{at}: {refused:?}"),
        }
        book.delay_ms.store(0, Ordering::SeqCst);
        freezer.drain(Duration::from_secs(10)).await;
        assert_eq!(book.status(&name("f")).phase, *phase, "{at}");
    }
}

/// Until Durable nobody is blocked: what is committed at one after its barrier is not in its copy, so it must not count as
/// before the freeze.
#[tokio::test]
async fn a_durable_group_is_frozen_from_its_first_still_point_on() {
    let (freezer, _) = freezer();
    let (quick, slow, targets) = pair(Level::Durable);
    slow.arm(Step::Acquire, Strike::Slow(Duration::from_millis(400)));
    let committed = async {
        // After the quick one's barrier, before the slow one's.
        sleep(Duration::from_millis(200)).await;
        assert!(quick.commit(TTL).await);
        Timestamp::now()
    };
    let (held, committed) = tokio::join!(freezer.quiesce(request("f", "a", targets, TTL)), committed);
    let (acknowledged, in_the_copy) = quick.copy();
    assert_eq!((acknowledged, in_the_copy), (1, 0), "it came after that barrier");
    assert!(held.unwrap().claim.frozen_at.unwrap().0 < committed);
    freezer.drain(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_late_claim_is_not_hurried_by_the_end_of_another() {
    let (freezer, _) = freezer();
    let server = MemoryServer::default();
    let durable = |freeze, uid| request(freeze, uid, vec![target("db", &server, Level::Durable, Copy::Atomic)], TTL);
    freezer.quiesce(durable("f", "early")).await.unwrap();
    sleep(TTL.mul_f64(0.85)).await;
    server.arm(Step::Barrier, Strike::Slow(Duration::from_millis(600)));
    let late = freezer.quiesce(durable("g", "late")).await.unwrap();
    assert_eq!(late.status.phase, Phase::Frozen);
    let ended = freezer.unquiesce("ns", "db", "late", Stage::Thaw).await.unwrap().unwrap();
    assert_eq!(ended.status.phase, Phase::Thawed);
}

#[tokio::test(start_paused = true)]
async fn whoever_waits_for_a_claim_that_is_ended_is_told_so() {
    let (freezer, _) = freezer();
    let server = MemoryServer::default();
    server.arm(Step::Acquire, Strike::Slow(Duration::from_millis(800)));
    let durable = |freeze, uid| request(freeze, uid, vec![target("db", &server, Level::Durable, Copy::Atomic)], TTL);
    let (first, second) = (freezer.quiesce(durable("f", "a")), freezer.quiesce(durable("g", "b")));
    let ended = async {
        sleep(Duration::from_millis(200)).await;
        freezer.unquiesce("ns", "db", "b", Stage::Thaw).await
    };
    let second = async {
        let refused = second.await;
        let still_taking = freezer.view("ns", "db").unwrap().status.phase != Phase::Frozen;
        (refused, still_taking)
    };
    let (first, (second, still_taking), _) = tokio::join!(first, second, ended);
    assert!(matches!(second, Err(Refused::Withdrawn { .. })), "{second:?}");
    assert!(still_taking, "at once, not when the freeze ends");
    assert_eq!(first.unwrap().status.phase, Phase::Frozen, "the other claim is not concerned");
}

/// However many renew at once and however slow the journal is, the server hears of us in time.
#[tokio::test(start_paused = true)]
async fn renewals_share_one_write_and_never_starve_the_heartbeat() {
    let (freezer, book) = freezer();
    let server = MemoryServer::default();
    let claims: Vec<String> = (0..200).map(|n| format!("claim-{n}")).collect();
    let wanted = |uid: &String| {
        let target = target("db", &server, Level::WriteBlocked, Copy::Atomic);
        request("f", uid, vec![target], Duration::from_secs(10))
    };
    for granted in join_all(claims.iter().map(|uid| freezer.quiesce(wanted(uid)))).await {
        granted.unwrap();
    }
    book.delay_ms.store(100, Ordering::SeqCst);
    let renewed = join_all(claims.iter().map(|uid| freezer.renew("ns", "db", uid, None))).await;
    assert!(renewed.iter().all(Option::is_some), "none was lost");
    book.delay_ms.store(0, Ordering::SeqCst);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(freezer.view("ns", "db").unwrap().status.phase, Phase::Frozen);
    freezer.drain(Duration::ZERO).await;
}
