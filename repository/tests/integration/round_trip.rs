//! What is written can be read, by us and by restic 0.14; what restic writes can be read by us.

use repository::{Catalogue, Writer};

use crate::{
    what::{capture, noise},
    world::{World, run},
};

#[test]
fn streams_come_back_byte_by_byte_by_us_and_by_restic() {
    let world = World::new();
    let (main, other) = (world.directory("main"), world.directory("other"));
    let repository = world.open(&[main, other]);
    let files = [
        ("orders/shop.dump", noise(1, 9 << 20)),
        ("orders/empty.dump", Vec::new()),
        ("orders/roles.sql", b"CREATE ROLE app;\n".to_vec()),
    ];
    let captured = repository.capture(&run("a"), capture(&files)).unwrap();
    assert_eq!(captured.whole, ["main", "other"]);
    assert!(captured.failed.is_empty());

    let (entries, errors) = Catalogue::default().read(&repository).unwrap();
    assert!(errors.is_empty(), "{errors:?}");
    let [entry] = entries.as_slice() else { panic!("{entries:?}") };
    assert_eq!((entry.id.as_str(), entry.at.len()), (captured.id.as_str(), 2));
    assert_eq!(entry.manifest(), Some(&captured.manifest));
    let restorable = repository.restorable(entry).unwrap();
    let size: u64 = files.iter().map(|(_, content)| content.len() as u64).sum();
    assert_eq!(restorable.verify().unwrap(), size);
    for (path, content) in &files {
        let mut back = Vec::new();
        restorable.copy(path, &mut back).unwrap();
        assert!(back == *content, "{path}");
    }
    assert_eq!(restorable.range("orders/shop.dump", 5 << 20, 1000).unwrap(), files[0].1[5 << 20..][..1000]);
    assert!(restorable.copy("orders/none", &mut Vec::new()).is_err());

    for location in ["main", "other"] {
        world.restic(location, &["check", "--read-data"]).unwrap();
        let target = world.path("restored").join(location);
        world.restic(location, &["restore", "latest", "--target", &target.display().to_string()]).unwrap();
        for (path, content) in &files {
            assert!(std::fs::read(target.join(path)).unwrap() == *content, "{location} {path}");
            assert!(world.restic(location, &["dump", "latest", &format!("/{path}")]).unwrap() == *content);
        }
        let manifest = world.restic(location, &["dump", "latest", "/manifest.json"]).unwrap();
        assert!(String::from_utf8(manifest).unwrap().contains("\"database\": \"orders\""));
    }
}

#[test]
fn what_restic_wrote_is_shown_as_foreign_and_both_write_into_one_repository() {
    let world = World::new();
    world.restic("main", &["init"]).unwrap();
    std::fs::write(world.path("letter"), "by restic").unwrap();
    world.restic("main", &["backup", &world.path("letter").display().to_string()]).unwrap();
    let repository = world.open(&[world.directory("main")]);
    repository.capture(&run("a"), capture(&[("orders/shop.dump", noise(2, 3 << 20))])).unwrap();
    let (entries, _) = Catalogue::default().read(&repository).unwrap();
    let foreign: Vec<bool> = entries.iter().map(|entry| entry.writer == Writer::Foreign).collect();
    assert_eq!(foreign, [true, false]);
    world.restic("main", &["check", "--read-data"]).unwrap();
    world.restic("main", &["prune"]).unwrap();
    world.restic("main", &["forget", "--prune", "--keep-last", "1", "--group-by", ""]).unwrap();
    let (entries, _) = Catalogue::default().read(&repository).unwrap();
    assert_eq!(entries.len(), 1);
    repository.restorable(&entries[0]).unwrap().verify().unwrap();
}

#[test]
fn the_same_again_writes_almost_nothing_and_a_part_that_changed_little_more() {
    let world = World::new();
    let repository = world.open(&[world.directory("main")]);
    let mut content = noise(3, 32 << 20);
    let first = repository.capture(&run("a"), capture(&[("orders/shop.dump", content.clone())])).unwrap();
    let again = repository.capture(&run("b"), capture(&[("orders/shop.dump", content.clone())])).unwrap();
    assert!(first.stored > 32 << 20);
    assert!(again.stored < 20_000, "{}", again.stored);
    content.splice(8 << 20..8 << 20, noise(4, 100_000));
    let third = repository.capture(&run("c"), capture(&[("orders/shop.dump", content)])).unwrap();
    assert!(third.stored < 8 << 20, "{}", third.stored);
}
