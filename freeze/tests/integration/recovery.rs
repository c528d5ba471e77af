//! What a dead freezer left, and what another makes of it: undone where the server is now, and nowhere else.

use std::{sync::Arc, time::Duration};

use api::{Copy, FreezeStatus, Level, Phase};
use freeze::{Refused, Remains, Whereabouts, engines::memory::MemoryServer};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    book::{Book, Places, at, freezer_of, name, request},
    freezer::target,
};

const TTL: Duration = Duration::from_secs(10);
const COMMIT: Duration = Duration::from_secs(8);
/// What a freeze that blocks writes leaves when its freezer dies: its session goes with it, the setting does not.
const SETTING: &str = "a raised setting";

/// A freezer that held `server` and died.
async fn died(server: &MemoryServer, book: &Arc<Book>, database: &str) -> FreezeStatus {
    let dying = tokio::runtime::Runtime::new().unwrap();
    let first = freezer_of("dying", book, &Arc::default());
    let wanted = request("f", "a", vec![target(database, server, Level::WriteBlocked, Copy::Atomic)], TTL);
    dying.spawn(async move { first.quiesce(wanted).await.map(|_| std::future::pending::<()>()) });
    while book.status(&name("f")).phase != Phase::Frozen {
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!server.commit(Duration::from_millis(50)).await);
    dying.shutdown_background();
    assert!(server.commit(COMMIT).await, "its session died with it");
    assert_eq!(server.leftovers(), SETTING, "and the setting outlived it");
    let status = book.status(&name("f"));
    assert!(!status.targets[0].undo.is_empty(), "the journal knew before");
    status
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < end, "{what}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_freezer_that_dies_leaves_nothing_that_another_does_not_undo() {
    let (server, book, places) = (MemoryServer::default(), Arc::new(Book::default()), Arc::new(Places::default()));
    let status = died(&server, &book, "db").await;
    places.put("db", at(&server));
    let second = freezer_of("second", &book, &places);
    second.recover(vec![Remains { freeze: name("f"), status }]);
    let wanted = request("g", "b", vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)], TTL);
    let held = second.quiesce(wanted).await.unwrap();
    assert_eq!(held.status.phase, Phase::Frozen, "a new freeze waits until all is undone, and works");
    assert_eq!(book.status(&name("f")).phase, Phase::Lost);
    second.drain(Duration::ZERO).await;
    assert_eq!(server.leftovers(), "");
}

/// At the start a Secret may be missing, or an address be another: what counts is how it is when it is tried.
#[tokio::test]
async fn what_cannot_be_reached_yet_keeps_its_database_until_it_is_undone() {
    let (server, book, places) = (MemoryServer::default(), Arc::new(Book::default()), Arc::new(Places::default()));
    let status = died(&server, &book, "db").await;
    // Another Freeze that had joined it, and that no freezer of its own ever began: it has nothing to free.
    let follower = FreezeStatus { freezer: None, ..status.clone() };
    book.knows(name("follower"), follower.clone());
    places.put("db", Whereabouts::NotNow("its Secret is missing".to_owned()));
    let second = freezer_of("second", &book, &places);
    second.recover(vec![Remains { freeze: name("f"), status }, Remains { freeze: name("follower"), status: follower }]);
    until("the follower is laid to rest", || book.status(&name("follower")).phase == Phase::Lost).await;
    assert_eq!(second.view("ns", "db").unwrap().freeze, name("f"), "it is not the follower that has it");
    let wanted = || request("g", "b", vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)], TTL);
    let early = timeout(Duration::from_secs(1), second.quiesce(wanted())).await;
    assert!(matches!(early, Err(_) | Ok(Err(Refused::Undoing { .. }))), "{early:?}");
    assert_eq!(server.leftovers(), SETTING);
    places.put("db", at(&server));
    until("undone where it is now", || server.leftovers().is_empty()).await;
    second.quiesce(wanted()).await.unwrap();
    second.drain(Duration::ZERO).await;
}

/// Another member has the role by now: what was raised was raised at the old one.
#[tokio::test]
async fn what_was_held_at_a_member_is_undone_at_that_member() {
    let (held, other) = (MemoryServer::default(), MemoryServer::default());
    let (book, places) = (Arc::new(Book::default()), Arc::new(Places::default()));
    let status = died(&held, &book, "db").await;
    places.put("db", at(&other));
    places.put("db/memory:5432", Whereabouts::NotNow("its agent is not connected".to_owned()));
    let second = freezer_of("second", &book, &places);
    second.recover(vec![Remains { freeze: name("f"), status }]);
    let wanted = || request("g", "b", vec![target("db", &other, Level::WriteBlocked, Copy::Atomic)], TTL);
    let early = timeout(Duration::from_secs(1), second.quiesce(wanted())).await;
    assert!(matches!(early, Err(_) | Ok(Err(Refused::Undoing { .. }))), "{early:?}");
    assert_eq!(held.leftovers(), SETTING, "the journal has it still");
    places.put("db/memory:5432", at(&held));
    until("undone where it was held", || held.leftovers().is_empty()).await;
    second.quiesce(wanted()).await.unwrap();
    second.drain(Duration::ZERO).await;
}

#[tokio::test]
async fn another_server_at_the_address_is_left_alone() {
    let (old, new) = (MemoryServer::default(), MemoryServer::default());
    let (book, places) = (Arc::new(Book::default()), Arc::new(Places::default()));
    let status = died(&old, &book, "db").await;
    // Somebody else holds the new one, with the setting raised as that freeze needs it.
    let other = freezer_of("other", &Arc::default(), &Arc::default());
    let wanted = request("h", "c", vec![target("elsewhere", &new, Level::WriteBlocked, Copy::Atomic)], TTL);
    other.quiesce(wanted).await.unwrap();
    places.put("db", at(&new));
    let second = freezer_of("second", &book, &places);
    second.recover(vec![Remains { freeze: name("f"), status }]);
    until("given up", || book.status(&name("f")).targets[0].undo.is_empty()).await;
    assert!(new.leftovers().contains(SETTING), "{}", new.leftovers());
    other.drain(Duration::ZERO).await;
}

/// Two that have something to undo at one Database: the first that is done does not free it for both.
#[tokio::test]
async fn a_database_is_free_when_all_that_is_left_there_is_undone() {
    let (server, book, places) = (MemoryServer::default(), Arc::new(Book::default()), Arc::new(Places::default()));
    let status = died(&server, &book, "db").await;
    let nothing_left = FreezeStatus {
        targets: status.targets.iter().cloned().map(|target| api::TargetStatus { undo: vec![], ..target }).collect(),
        ..status.clone()
    };
    let nothing_left = FreezeStatus { mark: None, ..nothing_left };
    book.knows(name("newer"), nothing_left.clone());
    places.put("db", Whereabouts::NotNow("its Secret is missing".to_owned()));
    let second = freezer_of("second", &book, &places);
    second
        .recover(vec![Remains { freeze: name("f"), status }, Remains { freeze: name("newer"), status: nothing_left }]);
    until("the newer is laid to rest", || book.status(&name("newer")).phase == Phase::Lost).await;
    let wanted = request("g", "b", vec![target("db", &server, Level::WriteBlocked, Copy::Atomic)], TTL);
    let early = timeout(Duration::from_secs(1), second.quiesce(wanted)).await;
    assert!(matches!(early, Err(_) | Ok(Err(Refused::Undoing { .. }))), "{early:?}");
}
