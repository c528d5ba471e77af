//! The contract at the top of `store.rs`, for both logs; and what happens when writing fails, stops, or is killed.

use std::{collections::BTreeMap, fs, time::Duration};

use rusqlite::Connection;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;

const RESOURCE: &str = "things.test";
const FILE: &str = "objects.db";

fn key(name: &str) -> Key {
    Key { resource: RESOURCE, namespace: "ns".into(), name: name.into() }
}

fn thing(n: u64) -> Value {
    json!({"metadata": {}, "n": n})
}

/// What every store must do, whatever its log.
async fn contract(store: Store) {
    let first = store.put(key("a"), thing(1), Expect::Absent).await.unwrap();
    assert!(matches!(store.put(key("a"), thing(2), Expect::Absent).await, Err(StoreError::Exists)));
    let mut watch = store.watch(RESOURCE, first.revision).unwrap();
    let second = store.put(key("a"), thing(2), Expect::At(first.revision)).await.unwrap();
    assert!(second.revision > first.revision);
    assert!(matches!(store.put(key("a"), thing(3), Expect::At(first.revision)).await, Err(StoreError::Conflict)));
    assert!(matches!(store.delete(key("b"), 1).await, Err(StoreError::NotFound)));
    let gone = store.delete(key("a"), second.revision).await.unwrap();
    assert!(store.get(&key("a")).is_none());
    let seen = [watch.next().await.unwrap(), watch.next().await.unwrap()];
    assert_eq!(seen.each_ref().map(|event| event.change), [Change::Modified, Change::Deleted]);
    assert_eq!(seen[1].object.revision, gone.revision);
    assert!(matches!(store.watch(RESOURCE, gone.revision + 1), Err(StoreError::Future { .. })));
}

/// A store on disk, and where it is.
fn on_disk() -> (TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    (directory, store)
}

fn open(directory: &TempDir) -> Store {
    tracked(directory, &TaskTracker::new())
}

fn tracked(directory: &TempDir, tasks: &TaskTracker) -> Store {
    Store::open(&directory.path().join(FILE), &[RESOURCE], tasks).unwrap()
}

/// As the server ends: the tracker waits for the writer, which ends with the last store.
async fn end(store: Store, tasks: TaskTracker) {
    drop(store);
    tasks.close();
    timeout(Duration::from_secs(10), tasks.wait()).await.unwrap();
}

/// Past the store, as only a test may.
fn sqlite(directory: &TempDir) -> Connection {
    Connection::open(directory.path().join(FILE)).unwrap()
}

fn rows(directory: &TempDir) -> i64 {
    sqlite(directory).query_row("SELECT count(*) FROM revisions", [], |row| row.get(0)).unwrap()
}

/// The disk refuses objects of this name, and whatever shares their batch.
const REFUSED: &str = "CREATE TRIGGER refuse BEFORE INSERT ON revisions WHEN NEW.name = 'refused' \
                       BEGIN SELECT RAISE(ABORT, 'no room'); END";

#[tokio::test]
async fn memory_keeps_the_contract() {
    contract(Store::in_memory(&[RESOURCE], &TaskTracker::new())).await;
}

#[tokio::test]
async fn sqlite_keeps_the_contract_and_what_was_written() {
    let (directory, tasks) = (tempfile::tempdir().unwrap(), TaskTracker::new());
    let store = tracked(&directory, &tasks);
    contract(store.clone()).await;
    let kept = store.put(key("kept"), thing(7), Expect::Absent).await.unwrap();
    end(store, tasks).await;
    let again = open(&directory);
    assert_eq!(again.get(&key("kept")).unwrap().bytes, kept.bytes);
    assert!(again.get(&key("a")).is_none());
    assert!(again.put(key("next"), thing(8), Expect::Absent).await.unwrap().revision > kept.revision);
}

/// However many write at once: events come in the order of their revisions, and replayed they are the list.
async fn total_order(store: Store) {
    let (_, revision, mut watch) = store.list_and_watch(RESOURCE, None).unwrap();
    let writers = (0..8).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            let mut last = 0;
            for n in 0..100 {
                let key = key(&format!("{writer}-{}", n % 7));
                let written = match store.get(&key) {
                    None => store.put(key, thing(n), Expect::Absent).await,
                    Some(found) if n % 3 == 0 => store.delete(key, found.revision).await,
                    Some(found) => store.put(key, thing(n), Expect::At(found.revision)).await,
                };
                let revision = written.unwrap().revision;
                assert!(revision > last, "a later write has a greater revision");
                assert!(store.revision() >= revision, "what is answered is visible");
                last = revision;
            }
        })
    });
    for writer in futures::future::join_all(writers).await {
        writer.unwrap();
    }
    let (list, end) = store.list(RESOURCE, None, None);
    assert_eq!(end, revision + 800);
    let mut replayed = BTreeMap::new();
    for expected in revision + 1..=end {
        let event = watch.next().await.unwrap();
        assert_eq!(event.object.revision, expected);
        match event.change {
            Change::Deleted => replayed.remove(&event.key),
            _ => replayed.insert(event.key.clone(), event.object.bytes.clone()),
        };
    }
    let list: BTreeMap<_, _> = list.into_iter().map(|(key, stored)| (key, stored.bytes)).collect();
    assert_eq!(list, replayed);
}

#[tokio::test]
async fn writers_of_one_thread_are_totally_ordered() {
    total_order(Store::in_memory(&[RESOURCE], &TaskTracker::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_of_many_threads_are_totally_ordered_in_memory_and_on_disk() {
    total_order(Store::in_memory(&[RESOURCE], &TaskTracker::new())).await;
    let (_directory, store) = on_disk();
    total_order(store).await;
}

#[tokio::test]
async fn a_write_that_fails_is_refused_and_invisible_and_the_next_works() {
    let (directory, store) = on_disk();
    let before = store.put(key("a"), thing(1), Expect::Absent).await.unwrap();
    sqlite(&directory).execute_batch(REFUSED).unwrap();
    let mut watch = store.watch(RESOURCE, before.revision).unwrap();
    let refused = store.put(key("refused"), thing(1), Expect::Absent).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(why)) if why.contains("no room")));
    assert!(store.get(&key("refused")).is_none());
    assert_eq!(store.revision(), before.revision);
    let next = store.put(key("b"), thing(2), Expect::Absent).await.unwrap();
    assert_eq!(watch.next().await.unwrap().object.revision, next.revision);
    sqlite(&directory).execute_batch("DROP TRIGGER refuse").unwrap();
    store.put(key("refused"), thing(3), Expect::Absent).await.unwrap();
}

#[tokio::test]
async fn of_a_batch_that_fails_nothing_is_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(FILE);
    let (mut log, found) = Log::open(&path).unwrap();
    sqlite(&directory).execute_batch(REFUSED).unwrap();
    let added = |name: &str, revision| Event {
        change: Change::Added,
        key: key(name),
        object: Stored { revision, bytes: "{}".into() },
        previous: None,
    };
    let batch = [added("good", found.revision + 1), added("refused", found.revision + 2)];
    log.append(batch.iter()).unwrap_err();
    assert_eq!(rows(&directory), 0);
    // The negative control, and that the revision was not used up.
    log.append(batch[..1].iter()).unwrap();
    assert_eq!(rows(&directory), 1);
}

#[tokio::test]
async fn a_caller_that_goes_away_keeps_nobody_waiting() {
    let (_directory, store) = on_disk();
    for n in 0..50 {
        let name = format!("left-{n}");
        let mut left = Box::pin(store.put(key(&name), thing(n), Expect::Absent));
        assert!(futures::poll!(&mut left).is_pending(), "it is on its way");
        drop(left);
        let stays = store.put(key(&format!("stays-{n}")), thing(n), Expect::Absent);
        timeout(Duration::from_secs(10), stays).await.unwrap().unwrap();
        assert!(store.get(&key(&name)).is_some(), "what was on its way comes before what came later");
    }
}

#[tokio::test]
async fn without_a_writer_a_write_is_refused_and_does_not_hang() {
    let (jobs, queue) = mpsc::channel(JOBS);
    drop(queue);
    let store = Store { jobs, ..Store::in_memory(&[RESOURCE], &TaskTracker::new()) };
    let refused = timeout(Duration::from_secs(10), store.put(key("a"), thing(1), Expect::Absent)).await.unwrap();
    assert!(matches!(refused, Err(StoreError::Unavailable(_))));
}

/// The files as they are while the store runs are what a kill leaves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_kill_everything_answered_is_there() {
    let (directory, store) = on_disk();
    let mut answered = Vec::new();
    for n in 0..400 {
        let key = key(&format!("{n}"));
        answered.push((key.clone(), store.put(key, thing(n), Expect::Absent).await.unwrap().bytes));
    }
    let last = store.delete(key("399"), store.revision()).await.unwrap();
    answered.pop();
    let killed = tempfile::tempdir().unwrap();
    for file in [FILE.to_owned(), format!("{FILE}-wal")] {
        fs::copy(directory.path().join(&file), killed.path().join(&file)).unwrap();
    }
    let again = open(&killed);
    for (key, bytes) in &answered {
        assert_eq!(again.get(key).unwrap().bytes, bytes);
    }
    assert_eq!(again.list(RESOURCE, None, None).0.len(), answered.len());
    assert_eq!(again.revision(), last.revision, "also when the newest write was a deletion");
}

#[tokio::test]
async fn superseded_rows_go_and_revisions_never_go_back() {
    let (directory, tasks) = (tempfile::tempdir().unwrap(), TaskTracker::new());
    let store = tracked(&directory, &tasks);
    let mut revision = store.put(key("kept"), thing(0), Expect::Absent).await.unwrap().revision;
    for n in 1..600 {
        revision = store.put(key("kept"), thing(n), Expect::At(revision)).await.unwrap().revision;
    }
    let kept = store.get(&key("kept")).unwrap();
    let gone = store.put(key("gone"), thing(1), Expect::Absent).await.unwrap();
    let last = store.delete(key("gone"), gone.revision).await.unwrap();
    let left = rows(&directory);
    assert!((3..300).contains(&left), "{left} rows are left of 602");
    end(store, tasks).await;
    for _ in 0..2 {
        let tasks = TaskTracker::new();
        let again = tracked(&directory, &tasks);
        assert_eq!(rows(&directory), 2, "what is there, and the newest row");
        assert_eq!(again.get(&key("kept")).unwrap().bytes, kept.bytes);
        assert!(again.get(&key("gone")).is_none());
        assert_eq!(again.revision(), last.revision);
        end(again, tasks).await;
    }
}

#[tokio::test]
async fn a_log_of_before_opens_with_what_is_in_it() {
    let directory = tempfile::tempdir().unwrap();
    sqlite(&directory)
        .execute_batch(
            "PRAGMA journal_mode = WAL; \
             CREATE TABLE revisions (id INTEGER PRIMARY KEY, resource TEXT NOT NULL, namespace TEXT NOT NULL, \
             name TEXT NOT NULL, object BLOB); \
             CREATE INDEX by_key ON revisions (resource, namespace, name, id); \
             WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) \
             INSERT INTO revisions SELECT 1000 + i, 'things.test', 'ns', 'a' || (i % 10), CAST('{}' AS BLOB) FROM n; \
             INSERT INTO revisions VALUES (7000, 'things.test', 'ns', 'a3', NULL), (7001, 'forgotten', '', 'b', CAST('{}' AS BLOB))",
        )
        .unwrap();
    let store = open(&directory);
    let (list, revision) = store.list(RESOURCE, None, None);
    assert_eq!((list.len(), revision), (9, 7001));
    assert!(list.iter().all(|(_, stored)| stored.revision > 5990));
    assert_eq!(rows(&directory), 10, "also what is of no kind that is known now");
}
