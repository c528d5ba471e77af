//! A store that fails in every way that it can, alone and beside a directory. Whatever happens: a run that says where its snapshot is, is
//! right; one that fails leaves none; and a store that is well again is brought up.

use std::time::Duration;

use fixtures::{FaultyS3, Requests, StoreFault};
use repository::{Error, Fault};

use crate::{
    store::{Store, files},
    world::{assert_restores, ids, line},
};

/// What a store can have, and what it is told as; `None` where it is none for somebody patient.
const FAULTS: &[(StoreFault, Option<Fault>)] = &[
    (StoreFault::SlowDown, Some(Fault::Unavailable)),
    (StoreFault::ExpiredToken { status: 400 }, Some(Fault::Denied)),
    (StoreFault::ExpiredToken { status: 403 }, Some(Fault::Denied)),
    (StoreFault::Full, Some(Fault::Full)),
    (StoreFault::Cut, Some(Fault::Unavailable)),
    (StoreFault::AnswerLost, Some(Fault::Unavailable)),
    (StoreFault::Hang, Some(Fault::Unavailable)),
    (StoreFault::Delay(Duration::from_millis(20)), None),
];

/// Objects that a run writes: its lock, the library's two packs and index, ours, and the snapshot.
const PUTS: usize = 8;

/// Some at a time: most of it is waiting.
fn each<T: Sync>(cases: &[T], test: impl Fn(&T) + Sync) {
    for some in cases.chunks(16) {
        std::thread::scope(|scope| {
            let running: Vec<_> = some.iter().map(|case| scope.spawn(|| test(case))).collect();
            for case in running {
                case.join().unwrap();
            }
        });
    }
}

#[test]
fn alone_a_store_that_fails_fails_the_run_and_nothing_is_in_the_catalogue() {
    each(FAULTS, |(fault, told)| {
        let store = Store::alone();
        let (outcome, met) = store.meets(|proxy| proxy.say(fault.clone()));
        assert!(met > 0);
        match (outcome, told) {
            (Ok(captured), None) => assert_eq!(captured.whole, ["s3"]),
            (Err(error @ Error::NoLocation(_)), Some(told)) => {
                let Error::NoLocation(errors) = &error else { unreachable!() };
                assert_eq!(errors[0].fault, *told, "{fault:?}");
                assert!(line(&error).contains("s3"), "{error}");
            }
            (outcome, _) => panic!("{fault:?}: {outcome:?}"),
        }
        store.works();
    });
}

#[test]
fn beside_a_directory_a_store_that_fails_is_left_out_and_brought_up() {
    each(FAULTS, |(fault, told)| {
        let store = Store::beside_a_directory();
        let (outcome, met) = store.meets(|proxy| proxy.say(fault.clone()));
        let captured = outcome.unwrap();
        assert!(met > 0);
        let failed: Vec<_> = captured.failed.iter().map(|error| (error.location.as_str(), error.fault)).collect();
        assert_eq!(failed, told.iter().map(|told| ("s3", *told)).collect::<Vec<_>>(), "{fault:?}");
        store.is_brought_up(&captured);
        if *fault == StoreFault::AnswerLost {
            store.is_clean();
        }
    });
}

#[test]
fn a_run_writes_so_many_objects() {
    let store = Store::alone();
    store.meets(|_| {}).0.unwrap();
    assert_eq!(store.proxy.count("PUT"), PUTS);
}

/// Whatever was written before, alone and beside a directory.
fn after_each(objects: impl IntoIterator<Item = usize>, fault: StoreFault, requests: fn(usize) -> Requests) {
    let cases: Vec<(usize, bool)> = objects.into_iter().flat_map(|after| [(after, true), (after, false)]).collect();
    each(&cases, |(after, is_alone)| {
        let store = if *is_alone { Store::alone() } else { Store::beside_a_directory() };
        let (outcome, met) = store.meets(|proxy| proxy.say_to(requests(*after), fault.clone()));
        assert!(met > 0);
        if *is_alone {
            assert!(outcome.is_err(), "{after}: {outcome:?}");
            return;
        }
        let captured = outcome.unwrap();
        assert_eq!((captured.whole.as_slice(), captured.failed.len()), (&["disk".to_owned()][..], 1), "{after}");
        store.is_brought_up(&captured);
        if *after == PUTS / 2 {
            store.is_clean();
        }
    });
}

#[test]
fn after_any_object_a_store_slows_down() {
    after_each(0..PUTS, StoreFault::SlowDown, Requests::PutsAfter);
}

#[test]
fn after_some_objects_a_store_is_full() {
    after_each([1, 4, PUTS - 1], StoreFault::Full, Requests::PutsAfter);
}

#[test]
fn after_some_objects_a_store_says_nothing_more() {
    after_each([0, 1, 4, PUTS - 1], StoreFault::Hang, Requests::EveryAfterPuts);
}

#[test]
fn after_any_object_no_answer_arrives_any_more() {
    after_each(0..PUTS, StoreFault::AnswerLost, Requests::EveryAfterPuts);
}

#[test]
fn a_snapshot_whose_answer_is_lost_is_found() {
    let store = Store::alone();
    let (outcome, met) =
        store.meets(|proxy| proxy.say_to(Requests::PutsOf("/snapshots/".into()), StoreFault::AnswerLost));
    assert!(met > 0);
    assert_eq!(outcome.unwrap().whole, ["s3"]);
}

#[test]
fn a_snapshot_that_may_have_arrived_where_nobody_answers_any_more_is_taken_back() {
    let store = Store::alone();
    let (outcome, _) = from_the_snapshot_on(&store, StoreFault::AnswerLost, Store::meets);
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::Unsettled(_)) && line(&error).contains("catalogue"), "{error:?}");
    store.works();
}

#[test]
fn one_that_cannot_be_taken_back_is_whole() {
    let store = Store::alone();
    let outcome = from_the_snapshot_on(&store, StoreFault::Hang, Store::outcome);
    assert!(matches!(outcome, Err(Error::Unsettled(_))), "{outcome:?}");
    let repository = store.all();
    assert_restores(&repository, &ids(&repository)[0], &files());
}

/// The store takes the snapshot, and from then on it has this.
fn from_the_snapshot_on<T: Send>(
    store: &Store,
    fault: StoreFault,
    outcome: impl FnOnce(&Store, fn(&FaultyS3)) -> T + Send,
) -> T {
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            outcome(store, |proxy| proxy.say_to(Requests::PutsOf("/snapshots/".into()), StoreFault::AnswerLost))
        });
        store.world.runtime.block_on(store.proxy.until_met(1));
        store.proxy.say(fault);
        running.join().unwrap()
    })
}
