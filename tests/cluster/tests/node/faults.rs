//! The driver is slow, fails and lies when it is told to, and not otherwise.

use std::time::Duration;

use anyhow::ensure;
use cluster::{Cluster, Component, until};
use csi::{Call, Control, Fault};
use serde_json::Value;

use crate::world::{SOON, WITH_STORAGE, World};

const CREATE: &str = "CreateSnapshot";
/// Of gRPC.
const CANCELLED: u32 = 1;
const UNAVAILABLE: u32 = 14;
const DELAY: Duration = Duration::from_secs(3);

fn fault() -> Fault {
    Fault { method: CREATE.to_owned(), ..Fault::default() }
}

fn took(call: &Call) -> Duration {
    Duration::from_nanos(call.ended_ns - call.began_ns)
}

fn codes(calls: &[Call]) -> Vec<u32> {
    calls.iter().map(|call| call.code).collect()
}

/// A world with the claim `data`, the driver's switches, and how many times it was asked before.
struct Faulty<'c> {
    world: World<'c>,
    control: Control,
}

impl Faulty<'_> {
    /// Takes a snapshot with `fault`, waits for it, and answers what the driver was asked for it.
    async fn with(&self, name: &str, fault: Option<Fault>) -> (Vec<Call>, Value) {
        self.control.clear().await.unwrap();
        if let Some(fault) = fault {
            self.control.set(fault).await.unwrap();
        }
        let before = self.control.calls(CREATE).await.unwrap().len();
        self.world.snapshot(name, "data").await.unwrap();
        let status = self.world.until_snapshot(name, true).await.unwrap();
        let calls = self.control.calls(CREATE).await.unwrap().split_off(before);
        self.control.clear().await.unwrap();
        (calls, status)
    }
}

#[tokio::test]
async fn delays_and_faults_are_what_was_asked_for_and_nothing_without() {
    let cluster = Cluster::start(WITH_STORAGE).await.unwrap();
    let faulty = Faulty { world: World(&cluster), control: cluster.csi().await.unwrap() };
    faulty.world.claim("data", None).await.unwrap();

    // The control of all that follows: nothing is wrong unless it was asked for.
    let (plain, _) = faulty.with("plain", None).await;
    assert_eq!(codes(&plain), [0], "{plain:?}");
    assert!(took(&plain[0]) < DELAY, "{plain:?}");

    let delay_ms = u64::try_from(DELAY.as_millis()).unwrap();
    let (slow, _) = faulty.with("slow", Some(Fault { delay_ms, ..fault() })).await;
    assert!(codes(&slow) == [0] && took(&slow[0]) >= DELAY, "{slow:?}");

    let (late, _) = faulty.with("late-answer", Some(Fault { answer_delay_ms: delay_ms, ..fault() })).await;
    assert!(codes(&late) == [0] && took(&late[0]) >= DELAY, "{late:?}");

    let (failing, _) = faulty.with("failing", Some(Fault { failures: 2, ..fault() })).await;
    assert_eq!(codes(&failing), [UNAVAILABLE, UNAVAILABLE, 0], "it is asked again until it succeeds");
    let (other, _) =
        faulty.with("other", Some(Fault { failures: 1, method: "DeleteSnapshot".to_owned(), ..fault() })).await;
    assert_eq!(codes(&other), [0], "a fault is one method's");

    let lost = Fault { failures: 1, code: 4, answer_is_lost: true, ..fault() };
    let (lost, status) = faulty.with("lost", Some(lost)).await;
    assert_eq!(codes(&lost), [4, 0]);
    let images = faulty.world.images("snapshots").await.unwrap();
    assert_eq!(images.len(), 6, "the cut was made once: {images:?}");
    let made: jiff::Timestamp = status["creationTime"].as_str().unwrap().parse().unwrap();
    let again = i128::from(lost[1].began_ns);
    assert!(made.as_nanosecond() < again, "the one that was answered is the first");

    let (timeless, status) = faulty.with("timeless", Some(Fault { no_creation_time: true, ..fault() })).await;
    assert_eq!((codes(&timeless), &status["creationTime"]), (vec![0], &Value::from("1970-01-01T00:00:00Z")));

    a_snapshot_that_is_not_ready_becomes_ready(&faulty).await;
    a_call_hangs_until_it_is_let_go(&faulty).await;
    a_cut_that_comes_after_the_answer(&faulty).await;
    a_call_that_is_given_up_succeeds_late(&faulty).await;
}

async fn a_snapshot_that_is_not_ready_becomes_ready(faulty: &Faulty<'_>) {
    for method in [CREATE, "ListSnapshots"] {
        faulty.control.set(Fault { method: method.to_owned(), not_ready: true, ..fault() }).await.unwrap();
    }
    faulty.world.snapshot("uploading", "data").await.unwrap();
    faulty.world.until_snapshot("uploading", false).await.unwrap();
    faulty.control.clear().await.unwrap();
    faulty.world.until_snapshot("uploading", true).await.unwrap();
}

async fn a_call_hangs_until_it_is_let_go(faulty: &Faulty<'_>) {
    faulty.control.set(Fault { hang: true, ..fault() }).await.unwrap();
    faulty.world.snapshot("hanging", "data").await.unwrap();
    until("a call hangs", SOON, || async {
        let last = faulty.control.calls(CREATE).await?.pop();
        ensure!(last.as_ref().is_some_and(|call| call.ended_ns == 0), "{last:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert_ne!(faulty.world.status("hanging").await.unwrap()["readyToUse"], true);
    faulty.control.clear().await.unwrap();
    faulty.world.until_snapshot("hanging", true).await.unwrap();
}

async fn a_cut_that_comes_after_the_answer(faulty: &Faulty<'_>) {
    let before = faulty.world.images("snapshots").await.unwrap().len();
    // Longer than anybody waits here: what is there in the meantime is what counts.
    faulty.control.set(Fault { cut_after_answer_ms: 5000, ..fault() }).await.unwrap();
    faulty.world.snapshot("lie", "data").await.unwrap();
    faulty.world.until_snapshot("lie", true).await.unwrap();
    let answered = faulty.control.calls(CREATE).await.unwrap().pop().unwrap();
    until("the cut is made", SOON, || async {
        let images = faulty.world.images("snapshots").await?.len();
        ensure!(images == before + 1, "{images}");
        Ok(())
    })
    .await
    .unwrap();
    let modified = ["-c", "stat -c %.9Y \"$0\"/csi/pool/snapshots/*.img | sort -n | tail -n 1"];
    let root = faulty.world.0.root().display().to_string();
    let cut = faulty.world.0.on_node("sh", &[modified[0], modified[1], &root]).await.unwrap();
    let cut: f64 = cut.trim().parse().unwrap();
    let answered = Duration::from_nanos(answered.ended_ns).as_secs_f64();
    assert!(cut > answered + 4.0, "answered at {answered}, cut at {cut}");
}

/// The sidecar gives up, the driver does not: it cuts while nobody waits for it, and says so when it is asked again.
async fn a_call_that_is_given_up_succeeds_late(faulty: &Faulty<'_>) {
    let hasty = ["--timeout=1s", "--retry-interval-start=5s"];
    faulty.world.0.restart_with(Component::Snapshotter, &hasty).await.unwrap();
    let before = faulty.control.calls(CREATE).await.unwrap().len();
    faulty.control.set(Fault { hang: true, outlives_caller: true, ..fault() }).await.unwrap();
    faulty.world.snapshot("late", "data").await.unwrap();
    until("the sidecar gives up", SOON, || async {
        let first = faulty.control.calls(CREATE).await?.into_iter().nth(before);
        ensure!(first.as_ref().is_some_and(|call| call.code == CANCELLED), "{first:?}");
        Ok(())
    })
    .await
    .unwrap();
    faulty.control.clear().await.unwrap();
    let status = faulty.world.until_snapshot("late", true).await.unwrap();
    let calls = faulty.control.calls(CREATE).await.unwrap().split_off(before);
    let made: jiff::Timestamp = status["creationTime"].as_str().unwrap().parse().unwrap();
    let [given_up, again] = [calls.first().unwrap(), calls.last().unwrap()];
    assert!(calls.len() > 1 && again.code == 0, "{calls:?}");
    // Kubernetes tells whole seconds.
    let made = made.as_second();
    let second = |ns: u64| i64::try_from(ns / 1_000_000_000).unwrap();
    assert!(second(given_up.ended_ns) <= made && made < second(again.began_ns), "made at {made}: {calls:?}");
}
