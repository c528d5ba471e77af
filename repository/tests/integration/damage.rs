//! Whatever is damaged, and however: it is told what, and nothing is taken for whole that is not. What another location has is had
//! from there.

use std::{
    fs::{self, FileTimes},
    path::Path,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use repository::{Catalogue, Error, Fault, Location, ReadData, Repository, Unlock};
use serde_json::Value;

use crate::{
    what::{capture, noise},
    world::{PASSWORD, World, assert_restores, entries, files_below, ids, key, line, lock_left_at, put_below, run},
};

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Harm {
    Flipped,
    Truncated,
    Emptied,
    Deleted,
}

use Harm::{Deleted, Emptied, Flipped, Truncated};

const ALL: [Harm; 4] = [Flipped, Truncated, Emptied, Deleted];

impl Harm {
    fn done_to(self, file: &Path) {
        let mut content = fs::read(file).unwrap();
        match self {
            // In the first blob, where it is a pack.
            Flipped => content[20] ^= 0x10,
            Truncated => content.truncate(content.len() / 2),
            Emptied => content.clear(),
            Deleted => return fs::remove_file(file).unwrap(),
        }
        fs::write(file, content).unwrap();
    }
}

/// A location with one snapshot, and what its objects are.
struct Kept {
    location: Vec<(String, Vec<u8>)>,
    snapshot: String,
    /// The pack with the dump in it, and the index that says so.
    data: [String; 2],
    /// The pack with the trees that lead to it, and its index.
    tree: [String; 2],
    /// The one with the tree that the library wrote, which nobody needs any more.
    flat: String,
}

fn files() -> [(&'static str, Vec<u8>); 2] {
    [("orders/shop.dump", noise(7, 3 << 20)), ("orders/roles.sql", b"CREATE ROLE app;\n".to_vec())]
}

fn kept() -> &'static Kept {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    KEPT.get_or_init(|| {
        let world = World::new();
        let snapshot = world.empty(&["main"], &[]).capture(&run("a"), capture(&files())).unwrap().id;
        let location = files_below(&world.path("main"));
        let (mut data, mut trees) = ([String::new(), String::new()], Vec::new());
        for (index, _) in location.iter().filter(|(name, _)| name.starts_with("index/")) {
            let said = world.restic("main", &["cat", "index", &index["index/".len()..]]).unwrap();
            let said: Value = serde_json::from_slice(&said).unwrap();
            for pack in said["packs"].as_array().unwrap() {
                let id = pack["id"].as_str().unwrap();
                let name = format!("data/{}/{id}", &id[..2]);
                if pack["blobs"][0]["type"] == "tree" {
                    trees.push([name, index.clone()]);
                } else if location.iter().any(|(known, content)| *known == name && content.len() > 1 << 20) {
                    data = [name, index.clone()];
                }
            }
        }
        let (flat, tree): (Vec<_>, Vec<_>) = trees.into_iter().partition(|[_, index]| *index == data[1]);
        let ([[flat, _]], [tree]) = (flat.as_slice(), tree.as_slice()) else { panic!("{flat:?} {tree:?}") };
        Kept { location, snapshot, data, tree: tree.clone(), flat: flat.clone() }
    })
}

/// A world with it, whole, at locations of these names.
fn world_of(names: &[&str]) -> World {
    let world = World::new();
    for name in names {
        put_below(&world.path(name), &kept().location);
    }
    world
}

/// Its first location is opened.
fn opened(world: &World) -> Repository {
    world.by_key(&[world.directory("main")])
}

/// What restoring everything comes to. A file that is not told to be broken is as it was.
fn restored(repository: &Repository) -> Result<(), Error> {
    let entry = &entries(repository)[0];
    let restorable = repository.restorable(entry)?;
    let mut outcome = Ok(());
    for (path, content) in files() {
        let mut back = Vec::new();
        match restorable.copy(path, &mut back) {
            Ok(_) => assert!(back == content, "{path} is another"),
            Err(error) => outcome = Err(error),
        }
    }
    assert_eq!(restorable.verify().is_ok(), outcome.is_ok());
    outcome
}

/// What a check of all of a location finds.
fn found(world: &World, repository: &Repository) -> Vec<String> {
    match repository.check(&world.directory("main"), ReadData::All) {
        Ok(findings) => findings.into_iter().filter(|it| it.is_error).map(|it| it.message).collect(),
        Err(error) => vec![line(&error)],
    }
}

/// Its one object in a folder.
fn one(folder: &str) -> String {
    let mut names = kept().location.iter().map(|(name, _)| name).filter(|name| name.starts_with(folder));
    let name = names.next().unwrap().clone();
    assert!(names.next().is_none());
    name
}

#[test]
fn what_is_whole_is_restored_and_nothing_is_found_in_it() {
    let world = world_of(&["main"]);
    let repository = opened(&world);
    restored(&repository).unwrap();
    assert_eq!(found(&world, &repository), [""; 0]);
}

#[test]
fn a_config_that_is_damaged_is_told_as_that_and_not_as_a_wrong_password() {
    for harm in ALL {
        let world = world_of(&["main"]);
        harm.done_to(&world.path("main/config"));
        let by = |unlock: &Unlock| {
            let opened = Repository::open(&[world.directory("main")], unlock, world.runtime.handle());
            line(&opened.map(drop).unwrap_err())
        };
        let mut said = vec![by(&key())];
        if harm == Flipped {
            said.push(by(&Unlock::Password(PASSWORD.to_owned())));
        }
        for said in said {
            assert!(said.contains("main") && said.contains("config"), "{harm:?}: {said}");
            assert!(!said.contains("password"), "{said}");
        }
    }
}

#[test]
fn a_key_that_is_damaged_is_told_as_that_and_whoever_has_the_master_key_needs_it_not() {
    for harm in ALL {
        let world = world_of(&["main"]);
        harm.done_to(&world.path("main").join(one("keys/")));
        let password = Unlock::Password(PASSWORD.to_owned());
        let refused = Repository::open(&[world.directory("main")], &password, world.runtime.handle());
        let said = line(&refused.map(drop).unwrap_err());
        assert!(said.contains("main") && said.contains("key") && !said.contains("password"), "{harm:?}: {said}");
        assert!(harm == Deleted || said.contains(&one("keys/")), "{said}");
        restored(&opened(&world)).unwrap();
    }
}

#[test]
fn a_snapshot_that_is_damaged_is_not_listed_and_told() {
    for harm in ALL {
        let world = world_of(&["main"]);
        let before = entries(&opened(&world)).remove(0);
        harm.done_to(&world.path("main").join(one("snapshots/")));
        let repository = opened(&world);
        let (listed, errors) = Catalogue::default().read(&repository).unwrap();
        assert!(listed.is_empty());
        let told: Vec<_> = errors.iter().map(|error| (error.fault, error.object.clone())).collect();
        // One that is gone cannot be missed.
        let expected = if harm == Deleted { vec![] } else { vec![(Fault::Damaged, one("snapshots/"))] };
        assert_eq!(told, expected, "{harm:?}");
        assert!(harm == Deleted || !found(&world, &repository).is_empty(), "{harm:?}");
        repository.restorable(&before).unwrap().verify().unwrap();
    }
}

#[test]
fn without_an_index_or_a_pack_that_it_needs_nothing_is_restored_and_the_object_is_told() {
    for object in kept().data.iter().chain(&kept().tree) {
        for harm in ALL {
            let world = world_of(&["main"]);
            harm.done_to(&world.path("main").join(object));
            let repository = opened(&world);
            let said = match restored(&repository) {
                Err(error @ Error::Damaged { .. }) => line(&error),
                other => panic!("{harm:?} {object}: {other:?}"),
            };
            // Nobody knows any more that there was an index which is gone.
            let is_unknown = harm == Deleted && object.starts_with("index/");
            assert!(is_unknown || (said.contains(object) && said.contains("main")), "{harm:?} {object}: {said}");
            assert!(!found(&world, &repository).is_empty(), "{harm:?} {object}");
        }
    }
}

#[test]
fn a_pack_that_is_not_needed_is_no_obstacle() {
    for harm in ALL {
        let world = world_of(&["main"]);
        harm.done_to(&world.path("main").join(&kept().flat));
        restored(&opened(&world)).unwrap();
    }
}

#[test]
fn a_damaged_header_of_a_pack_is_no_obstacle_and_found() {
    let world = world_of(&["main"]);
    let pack = world.path("main").join(&kept().data[0]);
    let mut content = fs::read(&pack).unwrap();
    let at = content.len() - 30;
    content[at] ^= 1;
    fs::write(&pack, content).unwrap();
    let repository = opened(&world);
    restored(&repository).unwrap();
    assert!(!found(&world, &repository).is_empty());
}

#[test]
fn a_damaged_lock_hinders_nobody_who_reads_and_who_writes_for_half_an_hour() {
    for harm in [Flipped, Truncated, Emptied] {
        let world = world_of(&["main"]);
        let repository = opened(&world);
        let lock = lock_left_at(&world, &repository);
        repository.capture(&run("b"), capture(&files())).unwrap();
        harm.done_to(&lock);
        restored(&repository).unwrap();
        let refused = repository.capture(&run("c"), capture(&files()));
        let said = line(&refused.map(drop).unwrap_err());
        assert!(said.contains("main") && said.contains("locks/") && said.contains("restic unlock"), "{said}");
        let old = SystemTime::now() - Duration::from_secs(31 * 60);
        fs::File::open(&lock).unwrap().set_times(FileTimes::new().set_modified(old)).unwrap();
        repository.capture(&run("d"), capture(&files())).unwrap();
    }
}

#[test]
fn what_one_location_has_damaged_is_had_from_the_other() {
    let objects = [&kept().data[..], &kept().tree[..], &["config".into(), one("keys/"), one("snapshots/")]].concat();
    for object in &objects {
        for harm in ALL {
            let world = world_of(&["main", "other"]);
            harm.done_to(&world.path("main").join(object));
            let both = [world.directory("main"), world.directory("other")];
            let opened = Repository::open(&both, &key(), world.runtime.handle()).unwrap();
            let unusable: Vec<_> = opened.unusable.iter().map(|error| error.location.as_str()).collect();
            assert_eq!(unusable, if object == "config" { vec!["main"] } else { vec![] }, "{harm:?} {object}");
            let (listed, told) = Catalogue::default().read(&opened.repository).unwrap();
            let [entry] = listed.as_slice() else { panic!("{listed:?}") };
            let is_elsewhere = object == "config" || object.starts_with("snapshots/");
            assert_eq!(entry.at, if is_elsewhere { vec!["other"] } else { vec!["main", "other"] }, "{harm:?} {object}");
            assert_eq!(told.len(), usize::from(object.starts_with("snapshots/") && harm != Deleted), "{told:?}");
            let restorable = opened.repository.restorable(entry).unwrap();
            for (path, content) in files() {
                let mut back = Vec::new();
                restorable.copy(path, &mut back).unwrap_or_else(|error| panic!("{harm:?} {object}: {error}"));
                assert!(back == content, "{harm:?} {object}: {path}");
                assert_eq!(restorable.range(path, 5, 7).unwrap(), content[5..12]);
            }
            restorable.verify().unwrap();
            if object.starts_with("data/") {
                let missed = restorable.failures();
                assert!(missed.iter().all(|error| error.location == "main" && error.object == *object), "{missed:?}");
                assert!(!missed.is_empty());
            }
        }
    }
}

#[test]
fn by_its_password_it_is_opened_where_another_location_has_lost_what_that_needs() {
    for object in ["config".to_owned(), one("keys/")] {
        for harm in [Flipped, Deleted] {
            let world = world_of(&["main", "other"]);
            harm.done_to(&world.path("main").join(&object));
            let both = [world.directory("main"), world.directory("other")];
            let password = Unlock::Password(PASSWORD.to_owned());
            let opened = Repository::open(&both, &password, world.runtime.handle()).unwrap();
            let usable: Vec<_> = opened.repository.locations().iter().map(Location::name).collect();
            assert_eq!(usable, if object == "config" { vec!["other"] } else { vec!["main", "other"] });
            restored(&opened.repository).unwrap();
        }
    }
}

#[test]
fn what_an_index_names_and_is_gone_is_stored_again() {
    for harm in [Truncated, Emptied, Deleted] {
        let world = world_of(&["main"]);
        let pack = world.path("main").join(&kept().data[0]);
        let lost = pack.metadata().unwrap().len();
        harm.done_to(&pack);
        let repository = opened(&world);
        let again = repository.capture(&run("b"), capture(&files())).unwrap();
        assert!(lost > 1 << 20 && again.stored > lost / 2, "{} of {lost}", again.stored);
        assert_restores(&repository, &again.id, &files());
        // The control: what is there is not.
        let third = repository.capture(&run("c"), capture(&files())).unwrap();
        assert!(third.stored < 20_000, "{}", third.stored);
    }
}

#[test]
fn a_location_that_lost_something_takes_part_again_when_it_has_it_back() {
    for object in [&kept().data[0], &kept().data[1], &kept().tree[0]] {
        for harm in [Truncated, Emptied, Deleted] {
            let world = world_of(&["main", "other"]);
            harm.done_to(&world.path("main").join(object));
            let both = world.by_key(&[world.directory("main"), world.directory("other")]);
            let captured = both.capture(&run("b"), capture(&files())).unwrap();
            assert_eq!(captured.whole, ["other"], "{harm:?} {object}");
            assert_eq!((captured.failed[0].location.as_str(), &captured.failed[0].object), ("main", object));
            assert_eq!(ids(&opened(&world)), [kept().snapshot.clone()]);
            both.replicate(&run("c"), &captured.id, "main").unwrap();
            let alone = opened(&world);
            assert_restores(&alone, &captured.id, &files());
            restored(&alone).unwrap();
            assert_eq!(found(&world, &alone), [""; 0]);
            assert_eq!(both.capture(&run("d"), capture(&files())).unwrap().whole, ["main", "other"]);
        }
    }
}
