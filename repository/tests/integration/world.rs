//! What the tests share: a repository in temporary directories, streams of noise, and restic.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, atomic::AtomicU64},
};

use anyhow::{Context, Result, bail};
use api::{CutBetween, DatabaseCopy, DumpFile, DumpFormat, Engine};
use repository::{Capture, Location, Manifest, Origin, Patience, Place, Repository, Run, Source, StoredFile, Unlock};
use tempfile::TempDir;
use tokio::runtime::Runtime;

pub(crate) const PASSWORD: &str = "correct horse";

/// Directories for locations, and a runtime for their requests.
pub(crate) struct World {
    pub(crate) runtime: Runtime,
    pub(crate) home: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        Self { runtime, home: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn directory(&self, name: &str) -> Location {
        Location::new(name, &Place::Directory { path: self.path(name) }, Patience::default()).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn open(&self, locations: &[Location]) -> Repository {
        let opened =
            Repository::open_or_create(locations, &Unlock::Password(PASSWORD.to_owned()), self.runtime.handle());
        let opened = opened.unwrap();
        assert!(opened.unusable.is_empty(), "{:?}", opened.unusable);
        opened.repository
    }

    /// restic, the program, on a directory.
    pub(crate) fn restic(&self, location: &str, arguments: &[&str]) -> Result<Vec<u8>> {
        restic(&self.path(location), arguments)
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

/// Files of which everything is known before.
pub(crate) fn capture(files: &[(&str, Vec<u8>)]) -> Capture {
    let source = |(path, content): &(&str, Vec<u8>)| {
        let content = io::Cursor::new(content.clone());
        Source { path: (*path).to_owned(), open: Box::new(move || Ok(Box::new(content) as Box<dyn Read + Send>)) }
    };
    capture_of(files.iter().map(source).collect())
}

pub(crate) fn capture_of(sources: Vec<Source>) -> Capture {
    Capture {
        sources,
        host: "shop".to_owned(),
        tags: vec!["stillpoint".to_owned()],
        manifest: Box::new(manifest),
        read: Arc::new(AtomicU64::new(0)),
        cancel: Arc::default(),
    }
}

pub(crate) fn manifest(files: &[StoredFile]) -> Manifest {
    let file = |file: &StoredFile| DumpFile {
        path: file.path.clone(),
        format: DumpFormat::PostgreSQLCustom,
        database: None,
        size: file.size,
        sha256: file.sha256.clone(),
    };
    let now = jiff::Timestamp::from_microsecond(jiff::Timestamp::now().as_microsecond()).unwrap();
    let now = api::micro_time(now);
    Manifest {
        version: Manifest::VERSION,
        snapshot: Origin { namespace: "shop".into(), name: "nightly".into(), uid: "u-1".into() },
        consistency: None,
        cut_between: Some(CutBetween { frozen_at: now.clone(), thawed_at: now }),
        contents: vec![DatabaseCopy {
            database: "orders".into(),
            engine: Engine::PostgreSQL,
            version: "15.14".into(),
            tool: "pg_dump (PostgreSQL) 15.14".into(),
            position: None,
            files: files.iter().map(file).collect(),
        }],
        warnings: Vec::new(),
    }
}

/// Bytes that do not compress and do not repeat, the same for the same seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

pub(crate) fn run(name: &str) -> Run {
    Run { name: name.to_owned(), over: Vec::new() }
}
