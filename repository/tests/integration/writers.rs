//! Several that write into one repository: those that live, those that died, and those that were taken for dead and were not.

use std::{
    collections::BTreeSet,
    fs::{self, FileTimes},
    sync::Arc,
    time::{Duration, SystemTime},
};

use repository::Error;

use crate::{
    what::{Eventful, capture, capture_of, noise, source},
    world::{World, assert_restores, files_below, ids, lock_left_at, put_below, run, run_after},
};

const MIB: usize = 1 << 20;

#[test]
fn a_run_that_was_given_up_and_goes_on_writes_no_index_of_what_was_swept() {
    let world = Arc::new(World::new());
    let repository = world.empty(&["main", "other"], &[]);
    let (second, files) = (repository.clone(), [("orders/shop.dump", noise(2, 3 * MIB))]);
    let after = files.clone();
    // By then packs of it are there, of 2 MiB each; its index comes at the end.
    let stream = Eventful::new(noise(1, 40 * MIB)).at(38 * MIB, move || {
        second.capture(&run_after("b", "a"), capture(&after)).unwrap();
        Ok(())
    });
    let outcome = repository.capture(&run("a"), capture_of(vec![source("orders/shop.dump", stream)]));
    assert!(matches!(outcome, Err(Error::GivenUp { .. })), "{outcome:?}");
    let [id] = &ids(&repository)[..] else { panic!("one snapshot is there, and it is the second's") };
    assert_restores(&repository, id, &files);
    for location in ["main", "other"] {
        world.restic(location, &["check", "--read-data"]).unwrap();
    }
}

#[test]
fn a_run_does_not_store_what_refers_to_an_index_that_was_taken_back() {
    let world = Arc::new(World::new());
    let files = [("orders/shop.dump", noise(5, 3 * MIB))];
    let repository = world.empty(&["main"], &[]);
    repository.capture(&run("a"), capture(&files)).unwrap();
    let indexes = world.path("main/index");
    // As one that was given up does with its own.
    let stream = Eventful::new(files[0].1.clone()).at(2 * MIB, move || {
        let before: Vec<_> = fs::read_dir(&indexes)?.flatten().map(|entry| entry.path()).collect();
        before.iter().try_for_each(fs::remove_file)
    });
    let outcome = repository.capture(&run("b"), capture_of(vec![source("orders/shop.dump", stream)]));
    assert!(matches!(outcome, Err(Error::Shifted { .. })), "{outcome:?}");
    assert_eq!(ids(&repository).len(), 1, "nothing new is there");
    // The next one stores all that it needs.
    let again = repository.capture(&run("c"), capture(&files)).unwrap();
    assert_restores(&repository, &again.id, &files);
}

/// A location where a run `a` died before it could write its indexes; what it had.
fn died_before_its_index(world: &World, name: &str, whole: &[(String, Vec<u8>)]) -> BTreeSet<String> {
    let told = |name: &str| !name.starts_with("index/") && !name.starts_with("snapshots/");
    let left: Vec<_> = whole.iter().filter(|(name, _)| told(name)).cloned().collect();
    fs::remove_dir_all(world.path(name)).ok();
    put_below(&world.path(name), &left);
    left.into_iter().map(|(name, _)| name).filter(|name| name.starts_with("data/")).collect()
}

fn packs(world: &World, name: &str) -> BTreeSet<String> {
    files_below(&world.path(name)).into_iter().map(|(name, _)| name).filter(|name| name.starts_with("data/")).collect()
}

/// A world whose locations all have a snapshot of a run `a`, and what each has.
fn stored(names: &[&str]) -> (World, Vec<(String, Vec<u8>)>) {
    let world = World::new();
    world.empty(names, &[]).capture(&run("a"), capture(&[("orders/shop.dump", noise(3, 2 * MIB))])).unwrap();
    let files = files_below(&world.path(names[0]));
    (world, files)
}

#[test]
fn what_a_dead_run_left_is_removed_whatever_the_clocks_say() {
    for hours in [0, 1] {
        let (world, whole) = stored(&["main"]);
        let left = died_before_its_index(&world, "main", &whole);
        let later = SystemTime::now() + Duration::from_secs(hours * 3600);
        for pack in &left {
            let file = fs::File::open(world.path("main").join(pack)).unwrap();
            file.set_times(FileTimes::new().set_modified(later)).unwrap();
        }
        let half = world.path("main").join(left.first().unwrap()).with_extension("x#1");
        fs::write(&half, "half").unwrap();
        let repository = world.by_key(&[world.directory("main")]);
        let other = [("billing/shop.dump", noise(4, MIB))];
        // The control: nobody told that the run is over.
        let first = repository.capture(&run("b"), capture(&other)).unwrap();
        assert!(left.is_subset(&packs(&world, "main")) && half.exists());
        repository.capture(&run_after("c", "a"), capture(&other)).unwrap();
        assert!(left.is_disjoint(&packs(&world, "main")) && !half.exists(), "{hours}");
        assert_restores(&repository, &first.id, &other);
    }
}

#[test]
fn nothing_is_removed_while_somebody_else_may_be_writing() {
    let (world, whole) = stored(&["main"]);
    let repository = world.by_key(&[world.directory("main")]);
    let lock = lock_left_at(&world, &repository);
    let lock = (format!("locks/{}", lock.file_name().unwrap().to_string_lossy()), fs::read(lock).unwrap());
    let left = died_before_its_index(&world, "main", &whole);
    put_below(&world.path("main"), &[lock]);
    let other = [("billing/shop.dump", noise(4, MIB))];
    // That lock is of `a`: for who knows nothing of it, it is somebody's.
    repository.capture(&run_after("b", "z"), capture(&other)).unwrap();
    assert!(left.is_subset(&packs(&world, "main")));
    repository.capture(&run_after("c", "a"), capture(&other)).unwrap();
    assert!(left.is_disjoint(&packs(&world, "main")));
}

#[test]
fn what_another_location_needs_for_a_snapshot_is_no_waste() {
    let (world, whole) = stored(&["main", "other"]);
    let left = died_before_its_index(&world, "main", &whole);
    let repository = world.by_key(&[world.directory("main"), world.directory("other")]);
    let files = [("billing/shop.dump", noise(4, MIB))];
    repository.capture(&run_after("b", "a"), capture(&files)).unwrap();
    assert!(left.is_subset(&packs(&world, "main")), "the other has an index of them");
    // The control: nobody has.
    died_before_its_index(&world, "other", &whole);
    died_before_its_index(&world, "main", &whole);
    repository.capture(&run_after("c", "a"), capture(&files)).unwrap();
    assert!(left.is_disjoint(&packs(&world, "main")) && left.is_disjoint(&packs(&world, "other")));
}
