//! What the tests share: a repository in temporary directories, and restic.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, OnceLock},
};

use anyhow::{Context, Result, bail};
use repository::{Catalogue, Entry, Error, Key, Location, Patience, Place, Repository, Run, Unlock};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::what::{Eventful, capture_of, source};

pub(crate) const PASSWORD: &str = "correct horse";

/// Directories for locations, and a runtime for their requests.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) home: TempDir,
}

/// The files of a repository that is empty, and its key. To make one takes its time.
struct Empty {
    files: Vec<(String, Vec<u8>)>,
    key: Key,
}

impl World {
    pub(crate) fn new() -> Self {
        certs::use_ring();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { runtime, home: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn directory(&self, name: &str) -> Location {
        Location::new(name, &Place::Directory { path: self.path(name) }, Patience::default()).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Makes it if it is not there, the slow way.
    pub(crate) fn open(&self, locations: &[Location]) -> Repository {
        let opened =
            Repository::open_or_create(locations, &Unlock::Password(PASSWORD.to_owned()), self.runtime.handle());
        let opened = opened.unwrap();
        assert!(opened.unusable.is_empty(), "{:?}", opened.unusable);
        opened.repository
    }

    /// An empty repository in directories of these names, and in other places.
    pub(crate) fn empty(&self, names: &[&str], others: &[Location]) -> Repository {
        put_below(&self.path(names[0]), &empty().files);
        let directories = names.iter().map(|name| self.directory(name));
        self.by_key(&directories.chain(others.iter().cloned()).collect::<Vec<_>>())
    }

    /// Opens one that was made of an empty one.
    pub(crate) fn by_key(&self, locations: &[Location]) -> Repository {
        let opened = Repository::open(locations, &key(), self.runtime.handle()).unwrap();
        assert!(opened.unusable.is_empty(), "{:?}", opened.unusable);
        opened.repository
    }

    /// restic, the program, on a directory.
    pub(crate) fn restic(&self, location: &str, arguments: &[&str]) -> Result<Vec<u8>> {
        restic(&self.path(location), arguments)
    }
}

pub(crate) fn key() -> Unlock {
    Unlock::Key(empty().key.clone())
}

fn empty() -> &'static Empty {
    static EMPTY: OnceLock<Empty> = OnceLock::new();
    EMPTY.get_or_init(|| {
        let world = World::new();
        let key = world.open(&[world.directory("main")]).key();
        Empty { files: files_below(&world.path("main")), key }
    })
}

/// Every file, by its path from there.
pub(crate) fn files_below(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let (mut files, mut left) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                left.push(path);
            } else if let Ok(content) = fs::read(&path) {
                files.push((path.strip_prefix(directory).unwrap().display().to_string(), content));
            }
        }
    }
    files.sort();
    files
}

/// Writes such files to a directory.
pub(crate) fn put_below(directory: &Path, files: &[(String, Vec<u8>)]) {
    for (name, content) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

pub(crate) fn restic(repository: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new("restic")
        .args(["--no-cache", "-q", "-r"])
        .arg(repository)
        .args(arguments)
        .env("RESTIC_PASSWORD", PASSWORD)
        .output()
        .context("restic is missing: run `make setup`")?;
    if !output.status.success() {
        bail!("restic {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(output.stdout)
}

/// What is in a repository, of which nothing is damaged.
pub(crate) fn entries(repository: &Repository) -> Vec<Entry> {
    let (entries, errors) = Catalogue::default().read(repository).unwrap();
    assert!(errors.is_empty(), "{errors:?}");
    entries.iter().map(|entry| Entry::clone(entry)).collect()
}

pub(crate) fn ids(repository: &Repository) -> Vec<String> {
    entries(repository).into_iter().map(|entry| entry.id).collect()
}

/// A snapshot is there, and has these files and no others.
pub(crate) fn assert_restores(repository: &Repository, id: &str, files: &[(&str, Vec<u8>)]) {
    let entries = entries(repository);
    let entry = entries.iter().find(|entry| entry.id == id).unwrap_or_else(|| panic!("no {id} in {entries:?}"));
    let restorable = repository.restorable(entry).unwrap();
    for (path, content) in files {
        let mut back = Vec::new();
        restorable.copy(path, &mut back).unwrap();
        assert!(back == *content, "{path}");
    }
    assert_eq!(restorable.verify().unwrap(), files.iter().map(|(_, content)| content.len() as u64).sum::<u64>());
}

/// The lock of a run `a`, which has stored a snapshot and is over, is at `main` again.
pub(crate) fn lock_left_at(world: &World, repository: &Repository) -> PathBuf {
    let locks = world.path("main/locks");
    let (seen, saved) = (locks.clone(), Arc::new(Mutex::new(Vec::new())));
    let save = Arc::clone(&saved);
    let stream = Eventful::new(Vec::new()).at(0, move || {
        *save.lock().unwrap() = files_below(&seen);
        Ok(())
    });
    repository.capture(&run("a"), capture_of(vec![source("a", stream)])).unwrap();
    let saved = saved.lock().unwrap();
    put_below(&locks, &saved);
    locks.join(&saved[0].0)
}

/// What a person reads of an error: one line, that ends.
pub(crate) fn line(error: &Error) -> String {
    let text = error.to_string();
    assert!(!text.contains('\n') && text.len() < 900, "{text}");
    text
}

pub(crate) fn run(name: &str) -> Run {
    Run { name: name.to_owned(), over: Vec::new() }
}

pub(crate) fn run_after(name: &str, dead: &str) -> Run {
    Run { name: name.to_owned(), over: vec![dead.to_owned()] }
}
