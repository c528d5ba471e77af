//! Stores that go and come back while something is written or read, that are reached in other ways, and disks that are full.

use std::{fs, io, path::PathBuf, process::Command, sync::mpsc};

use fixtures::{Authority, S3, StoreFault, is_root};
use repository::{Captured, Error, Fault, Location, Place, Result, StoreError};

use crate::{
    store::{PATIENCE, Store, bucket},
    what::{Eventful, capture, capture_of, noise, source},
    world::{World, assert_restores, entries, files_below, ids, line, run, run_after},
};

const MIB: usize = 1 << 20;

/// A run beside which the store is stopped, and started again at an offset of what is stored, or after it. Packs have 2 MiB.
fn stopped(store: &Store, stop: usize, start: Option<usize>) -> Result<Captured> {
    let files = [("orders/shop.dump", noise(3, 20 * MIB))];
    // The server ends with the thread that started it: that has to be this one.
    let (asking, asked) = mpsc::channel();
    let asks = |is_up: bool| {
        let asking = asking.clone();
        move || {
            let (done, wait) = mpsc::channel();
            asking.send((is_up, done)).unwrap();
            wait.recv().map_err(io::Error::other)
        }
    };
    let mut stream = Eventful::new(files[0].1.clone()).at(stop, asks(false));
    if let Some(start) = start {
        stream = stream.at(start, asks(true));
    }
    drop(asking);
    let start = || store.world.runtime.block_on(store.server.lock().unwrap().start()).unwrap();
    let outcome = std::thread::scope(|scope| {
        let what = capture_of(vec![source(files[0].0, stream)]);
        let running = scope.spawn(move || store.all().capture(&run("a"), what));
        for (is_up, done) in asked {
            if is_up {
                start();
            } else {
                store.server.lock().unwrap().stop();
            }
            done.send(()).unwrap();
        }
        running.join().unwrap()
    });
    start();
    store.promised_of(&outcome, &files);
    outcome
}

#[test]
fn a_store_that_is_stopped_while_it_is_written_to_is_left_out() {
    let outcome = stopped(&Store::alone(), 5 * MIB, None);
    assert!(matches!(outcome, Err(Error::NoLocation(_))), "{outcome:?}");
    let store = Store::beside_a_directory();
    let captured = stopped(&store, 5 * MIB, None).unwrap();
    assert_eq!((captured.whole.as_slice(), captured.failed[0].fault), (&["disk".to_owned()][..], Fault::Unavailable));
    store.all().replicate(&run_after("up", "a"), &captured.id, "s3").unwrap();
    store.is_clean();
}

#[test]
fn a_store_that_is_back_before_it_is_missed_has_everything() {
    let captured = stopped(&Store::alone(), MIB, Some(2 * MIB)).unwrap();
    assert_eq!(captured.whole, ["s3"]);
}

#[test]
fn a_store_that_is_back_while_it_is_missed_has_everything_or_nothing() {
    stopped(&Store::beside_a_directory(), 5 * MIB, Some(18 * MIB)).unwrap();
    stopped(&Store::alone(), 5 * MIB, Some(18 * MIB)).ok();
}

#[test]
fn while_a_store_gives_nothing_everything_is_read_from_the_other_and_it_is_asked_last() {
    for fault in [StoreFault::SlowDown, StoreFault::Hang, StoreFault::Cut] {
        let store = Store::beside_a_directory();
        let files = [("orders/shop.dump", noise(4, 12 * MIB))];
        let repository = store.all();
        let captured = repository.capture(&run("a"), capture(&files)).unwrap();
        let restorable = repository.restorable(&entries(&repository)[0]).unwrap();
        store.proxy.say(fault.clone());
        let mut back = Vec::new();
        restorable.copy(files[0].0, &mut back).unwrap();
        assert!(back == files[0].1);
        // Those that are read at the same time each find out for themselves; of some 12 blobs and a tree or two.
        let failures = restorable.failures();
        assert!((1..6).contains(&failures.len()), "{failures:?}");
        assert!(failures.iter().all(|error| (error.location.as_str(), error.fault) == ("s3", Fault::Unavailable)));
        assert!(store.proxy.met() > 0);
        store.proxy.well();
        assert_restores(&repository, &captured.id, &files);
    }
}

#[test]
fn what_a_store_does_not_give_is_not_called_damaged() {
    let store = Store::alone();
    let repository = store.all();
    repository.capture(&run("a"), capture(&[("orders/shop.dump", noise(5, MIB))])).unwrap();
    let restorable = repository.restorable(&entries(&repository)[0]).unwrap();
    store.proxy.say(StoreFault::SlowDown);
    for error in [restorable.verify().unwrap_err(), restorable.copy("orders/shop.dump", &mut Vec::new()).unwrap_err()] {
        assert!(matches!(error, Error::NoLocation(_)) && line(&error).contains("does not answer"), "{error:?}");
    }
    store.proxy.well();
    restorable.verify().unwrap();
}

#[test]
fn over_tls_a_store_is_trusted_by_the_authority_that_is_given_and_by_no_other() {
    let world = World::new();
    let (authority, stranger) = (Authority::create().unwrap(), Authority::create().unwrap());
    let server = world.runtime.block_on(S3::encrypted(&authority)).unwrap();
    let place = |ca: Option<&str>| {
        Place::S3(repository::S3 { ca: ca.map(str::to_owned), ..bucket(&server, &server.endpoint(), "tls") })
    };
    let at = |ca: Option<&str>| Location::new("s3", &place(ca), PATIENCE).unwrap();
    let repository = world.empty(&["disk"], &[at(Some(&authority.certificate))]);
    let files = [("orders/shop.dump", noise(6, MIB))];
    let captured = repository.capture(&run("a"), capture(&files)).unwrap();
    assert_eq!(captured.whole, ["disk", "s3"]);
    assert_restores(&world.by_key(&[at(Some(&authority.certificate))]), &captured.id, &files);
    for other in [None, Some(stranger.certificate.as_str())] {
        let refused = world.runtime.block_on(at(other).read("config")).unwrap_err();
        assert!(refused.to_string().contains("caSecretRef"), "{refused}");
    }
    let broken = Location::new("s3", &place(Some("no certificate")), PATIENCE).map(drop).unwrap_err();
    assert!(line(&broken).contains("no certificate"), "{broken}");
}

#[test]
fn what_is_wrong_with_an_account_or_a_bucket_is_told() {
    let store = Store::alone();
    let server = store.server.lock().unwrap();
    let right = bucket(&server, &server.endpoint(), "");
    let of = |s3: repository::S3| -> StoreError {
        let location = Location::new("s3", &Place::S3(s3), PATIENCE).unwrap();
        store.world.runtime.block_on(location.list("")).unwrap_err()
    };
    let mut stranger = right.clone();
    stranger.credentials.as_mut().unwrap().secret_access_key = "wrong".to_owned();
    let refused = of(stranger);
    assert_eq!(refused.fault, Fault::Denied);
    assert!(refused.to_string().contains("SignatureDoesNotMatch"), "{refused}");
    let refused = of(repository::S3 { bucket: "none".to_owned(), ..right });
    assert!(refused.to_string().contains("NoSuchBucket"), "{refused}");
}

/// A small file system in memory. Unmounted when it is dropped.
struct Small(PathBuf);

impl Small {
    fn mounted_at(path: PathBuf, options: &str) -> Option<Self> {
        if !is_root() {
            println!("skipped: to mount a file system that is soon full needs root");
            return None;
        }
        fs::create_dir_all(&path).unwrap();
        let small = Self(path);
        small.mount(options);
        Some(small)
    }

    fn mount(&self, options: &str) {
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", options, "stillpoint"]).arg(&self.0).status();
        assert!(mount.unwrap().success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("--lazy").arg(&self.0).status().ok();
    }
}

#[test]
fn a_full_disk_is_told_as_that_and_leaves_nothing_half_written() {
    let world = World::new();
    let Some(small) = Small::mounted_at(world.path("small"), "size=4m") else { return };
    let files = [("orders/shop.dump", noise(8, 6 * MIB))];
    let alone = world.empty(&["small"], &[]);
    let error = alone.capture(&run("a"), capture(&files)).map(drop).unwrap_err();
    let Error::NoLocation(errors) = &error else { panic!("{error:?}") };
    assert_eq!(errors[0].fault, Fault::Full);
    assert!(line(&error).contains("small: has no room left"), "{error}");
    assert_eq!(ids(&alone), [""; 0]);

    let both = world.empty(&["small", "large"], &[]);
    let captured = both.capture(&run("b"), capture(&files)).unwrap();
    assert_eq!((captured.whole.as_slice(), captured.failed[0].fault), (&["large".to_owned()][..], Fault::Full));
    assert_eq!(ids(&alone), [""; 0]);
    assert!(files_below(&small.0).iter().all(|(name, _)| !name.contains('#')));
    assert!(both.replicate(&run("c"), &captured.id, "small").is_err());

    small.mount("remount,size=32m");
    both.replicate(&run("d"), &captured.id, "small").unwrap();
    assert_restores(&alone, &captured.id, &files);
    world.restic("small", &["check", "--read-data"]).unwrap();
}
