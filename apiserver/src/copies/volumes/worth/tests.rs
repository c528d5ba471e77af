use serde_json::json;

use super::*;

const UID: &str = "snapshot-uid";

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn spec(on_missed: Option<OnMissed>) -> SnapshotSpec {
    let spec: SnapshotSpec =
        serde_json::from_value(json!({"databases": ["orders"], "method": "VolumeSnapshot"})).unwrap();
    SnapshotSpec { on_missed, ..spec }
}

fn running(claims: &[&str]) -> SnapshotStatus {
    let volumes = claims.iter().map(|claim| SnapshotVolume {
        claim: (*claim).to_owned(),
        volume_snapshot: format!("noon-{claim}"),
        size: Some("10Gi".to_owned()),
        ..SnapshotVolume::default()
    });
    SnapshotStatus { phase: SnapshotPhase::Running, volumes: volumes.collect(), ..SnapshotStatus::default() }
}

#[expect(clippy::unnecessary_wraps, reason = "as it is found: or not")]
fn found(ready: bool, judged: Option<Judged>) -> Option<Found> {
    let (made_for, handle) = (Some(UID.to_owned()), ready.then(|| "s".to_owned()));
    Some(Found { uid: "u".to_owned(), made_for, ready, handle, judged, ..Found::default() })
}

#[expect(clippy::unnecessary_wraps, reason = "as it is found: or not")]
fn judged(verdict: Verdict, second: i64) -> Option<Judged> {
    let at = |more: i64| api::micro_time(now() + SignedDuration::from_secs(second + more));
    Some(Judged {
        consistency: Consistency { verdict, level: Some(Level::Durable), reason: "as it was".to_owned() },
        freeze: Some("f".to_owned()),
        held: verdict.was_held().then(|| CutBetween { frozen_at: at(0), thawed_at: at(1) }),
        positions: BTreeMap::new(),
    })
}

fn look(claims: &[&str], on_missed: Option<OnMissed>, found: &[Option<Found>]) -> (SnapshotStatus, Outcome) {
    looked(running(claims), &spec(on_missed), UID, found, true, now())
}

#[test]
fn what_is_not_there_is_made_and_what_is_another_s_is_left_alone() {
    assert_eq!(look(&["a", "b"], None, &[None, found(false, None)]).1, Outcome::Make(vec![0]));
    let other = found(true, None).map(|found| Found { made_for: None, ..found });
    let (_, outcome) = look(&["a"], None, &[other]);
    assert!(matches!(outcome, Outcome::Failed { reason: reasons::EXISTS, .. }), "{outcome:?}");
    let mut known = running(&["a"]);
    known.volumes[0].uid = Some("u".to_owned());
    for now_there in [None, found(true, None).map(|found| Found { uid: "another".to_owned(), ..found })] {
        let (_, outcome) = looked(known.clone(), &spec(None), UID, &[now_there], true, now());
        assert!(matches!(outcome, Outcome::Failed { reason: reasons::NOT_FOUND, .. }), "{outcome:?}");
    }
}

#[test]
fn it_is_ready_when_all_of_it_is_and_what_it_is_worth_is_known() {
    let application = || judged(Verdict::Application, 0);
    assert_eq!(look(&["a"], None, &[found(false, application())]).1, Outcome::Wait);
    let (waits, outcome) = look(&["a"], None, &[found(true, None)]);
    assert_eq!(outcome, Outcome::Wait);
    assert!(waits.message.unwrap().contains("nobody has said yet"));
    let (status, outcome) = look(&["a"], None, &[found(true, application())]);
    assert_eq!((outcome, status.phase, &status.message), (Outcome::Ready, SnapshotPhase::Ready, &None));
    assert_eq!(status.consistency.unwrap().verdict, Verdict::Application);
    assert_eq!(status.size, Some(10 << 30));
    assert!(status.cut_between.is_some() && conditions::is_true(&status.conditions, types::READY));
}

#[test]
fn nobody_is_believed_to_have_held_who_does_not_say_so() {
    // Nobody is asked in this cluster.
    let (status, outcome) = looked(running(&["a"]), &spec(None), UID, &[found(true, None)], false, now());
    assert_eq!((outcome, status.consistency.unwrap().verdict), (Outcome::Ready, Verdict::Crash));
    assert!(status.message.unwrap().contains("--gates-listen"));
    // Somebody is, and is silent.
    let mut silent = running(&["a"]);
    silent.volumes[0].ready_at = Some(Time(now() - JUDGED_WITHIN));
    let (status, outcome) = looked(silent, &spec(None), UID, &[found(true, None)], true, now());
    assert_eq!((outcome, status.consistency.unwrap().verdict), (Outcome::Ready, Verdict::Unknown));
    assert_eq!(status.cut_between, None);
}

#[test]
fn of_several_cuts_the_whole_is_no_better_than_the_least_and_never_of_one_instant() {
    for (one, other, whole) in [
        (Verdict::Application, Verdict::Application, Verdict::Partial),
        (Verdict::Application, Verdict::Crash, Verdict::Crash),
        (Verdict::Unknown, Verdict::Crash, Verdict::Unknown),
    ] {
        let both = [found(true, judged(one, 0)), found(true, judged(other, 10))];
        let (status, outcome) = look(&["a", "b"], None, &both);
        let worth = status.consistency.unwrap();
        assert_eq!((outcome, worth.verdict), (Outcome::Ready, whole), "{one} {other}");
        assert!(worth.reason.contains("one after the other"), "{}", worth.reason);
        let cut = status.cut_between.map(|cut| cut.thawed_at.0.duration_since(cut.frozen_at.0).as_secs());
        assert_eq!(cut, whole.was_held().then_some(11), "from the first to the last");
        assert_eq!(worth.level.is_some(), whole.was_held());
    }
}

#[test]
fn what_was_missed_fails_at_once_where_it_was_said_so_and_is_kept_elsewhere() {
    let crash = [found(false, judged(Verdict::Crash, 0))];
    let (status, outcome) = look(&["a"], Some(OnMissed::Fail), &crash);
    let Outcome::Failed { reason, message } = outcome else { panic!("{outcome:?}") };
    assert_eq!(reason, reasons::NOT_HELD);
    let failed = failed(status, reason, &message, now());
    assert_eq!((failed.phase, failed.volumes.len()), (SnapshotPhase::Failed, 1), "what is to be removed is known");
    for on_missed in [None, Some(OnMissed::Keep)] {
        assert_eq!(look(&["a"], on_missed, &crash).1, Outcome::Wait);
        assert_eq!(look(&["a"], on_missed, &[found(true, judged(Verdict::Crash, 0))]).1, Outcome::Ready);
    }
    // Held, and not all of it: that is not what was missed.
    let partial = [found(true, judged(Verdict::Partial, 0))];
    assert_eq!(look(&["a"], Some(OnMissed::Fail), &partial).1, Outcome::Ready);
}

#[test]
fn what_the_driver_says_is_said() {
    let error = found(false, None).map(|found| Found { error: Some("no space".to_owned()), ..found });
    let (status, outcome) = look(&["a"], None, &[error]);
    assert_eq!(outcome, Outcome::Wait);
    assert_eq!(status.message.as_deref(), Some("VolumeSnapshot noon-a: no space; it is tried again"));
}
