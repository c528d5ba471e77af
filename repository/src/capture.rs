//! Streams of unknown length into a snapshot. All or nothing: the snapshot file is written last, to each location that has all the
//! rest, and without it nothing of what was written is a copy of anything.
//!
//! Blocking. Ends soon after [`Capture::cancel`] is set, and then leaves no snapshot.

use std::{
    io::{self, Read},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use jiff::{Timestamp, tz::TimeZone};
use rustic_core::{
    BackupOptions, Credentials, FileType, TreeId,
    repofile::{Node, SnapshotFile, SnapshotSummary},
};
use tokio::runtime::Handle;

use crate::{
    copies::{Copies, name_of},
    error::{Error, Result, StoreError},
    format::{Seal, id_of},
    manifest::{Manifest, PROGRAM},
    streams::Streams,
    told,
    trees::Trees,
    unopened,
};

/// One file to be, in the order in which they are read.
pub struct Source {
    /// Below the snapshot's root, without a slash at its begin: `orders/shop.dump`. No other's, nor a directory of another's.
    pub path: String,
    /// Called when it is its turn. The reader's end means that all of it was read: one that broke off must give an error.
    pub open: Open,
}

/// Makes a manifest of what was stored.
pub type Describe = Box<dyn FnOnce(&[StoredFile]) -> Manifest + Send>;

pub type Open = Box<dyn FnOnce() -> io::Result<Box<dyn Read + Send>> + Send>;

/// What is to be stored, and how it goes.
pub struct Capture {
    pub sources: Vec<Source>,
    /// Grouped by it in restic's lists: a namespace.
    pub host: String,
    pub tags: Vec<String>,
    /// What a copy of it says of itself, when all is read.
    pub manifest: Describe,
    pub read: Arc<AtomicU64>,
    pub cancel: Arc<AtomicBool>,
}

/// One file, as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    pub path: String,
    pub size: u64,
    pub sha256: String,
}

/// A snapshot that can be restored.
#[derive(Clone, Debug)]
pub struct Captured {
    pub id: String,
    pub manifest: Manifest,
    /// What was written to each location that was not there, bytes.
    pub stored: u64,
    /// Where it is.
    pub whole: Vec<String>,
    /// Where it is not.
    pub failed: Vec<StoreError>,
}

/// Reads, hashes and writes; the repository is open for it already.
pub(crate) fn capture<S: rustic_core::IndexedIds>(
    repository: &rustic_core::Repository<S>,
    copies: &Copies,
    seal: &Seal,
    capture: Capture,
    runtime: &Handle,
) -> Result<Captured> {
    let Capture { sources, host, tags, manifest, read, cancel } = capture;
    let now = Timestamp::now();
    let count = sources.len() as u64;
    let streams = Streams::new(sources, copies, read, Arc::clone(&cancel), now);
    let mut options = BackupOptions::default();
    // A parent would be taken for what a stream is now, for it has no size and time of its own.
    options.parent_opts.force = true;
    options.no_scan = true;
    let archived = repository.archive(&options, &streams, SnapshotFile::default(), &[PathBuf::from("/")]);
    ended(&cancel, copies)?;
    let files = streams.files()?;
    let archived = archived.map_err(|error| told(&error))?;
    let summary = archived.summary.unwrap_or_default();
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    if (summary.total_files_processed, summary.total_bytes_processed) != (count, bytes) {
        let (got, stored) = (summary.total_files_processed, summary.total_bytes_processed);
        return Err(Error::Format(format!(
            "{count} files of {bytes} bytes were read, and {got} of {stored} were stored"
        )));
    }
    let nodes = nodes_of(repository, copies, archived.tree)?;
    let manifest = manifest(&files);
    let trees = Trees { seal, now }.write(nodes, &files, &manifest).map_err(Error::Format)?;
    for (name, bytes) in trees.objects {
        runtime.block_on(copies.write(&name, &[Bytes::from(bytes)]))?;
    }
    let snapshot = snapshot(&manifest, summary, trees.root.into(), &trees.top, (host, tags), now)?;
    let bytes = seal.file(&snapshot).map_err(Error::Format)?;
    let id = id_of(&bytes);
    runtime.block_on(copies.still_ours(None))?;
    runtime.block_on(copies.still_there())?;
    ended(&cancel, copies)?;
    runtime.block_on(copies.publish(&name_of(FileType::Snapshot, &id), &bytes.into()))?;
    Ok(Captured {
        id: id.to_hex().as_str().to_owned(),
        manifest,
        stored: copies.written(),
        whole: copies.whole().iter().map(|location| location.name().to_owned()).collect(),
        failed: copies.failures(),
    })
}

/// Whether no snapshot is to be made of it.
fn ended(cancel: &AtomicBool, copies: &Copies) -> Result<()> {
    if cancel.load(Ordering::Relaxed) {
        return Err(Error::Cancelled);
    }
    copies.outcome()
}

/// What the library made of the streams: a flat tree, in which files are named by their number.
fn nodes_of<S: rustic_core::Open>(
    repository: &rustic_core::Repository<S>,
    copies: &Copies,
    tree: TreeId,
) -> Result<Vec<Node>> {
    let key = Credentials::Masterkey(repository.key());
    let own = unopened(&copies.with_its_own_index())?.open(&key).map_err(|error| told(&error))?;
    let own = own.to_indexed_ids().map_err(|error| told(&error))?;
    Ok(own.get_tree(&tree).map_err(|error| told(&error))?.nodes)
}

fn snapshot(
    manifest: &Manifest,
    summary: SnapshotSummary,
    tree: TreeId,
    top: &[String],
    (host, tags): (String, Vec<String>),
    now: Timestamp,
) -> Result<SnapshotFile> {
    let taken = manifest.cut_between.as_ref().map_or(now, |cut| cut.frozen_at.0);
    let mut snapshot = SnapshotFile {
        time: taken.to_zoned(TimeZone::UTC),
        program_version: format!("{PROGRAM}{}", env!("CARGO_PKG_VERSION")),
        tree,
        label: manifest.snapshot.name.clone(),
        hostname: host,
        summary: Some(summary),
        description: Some(serde_json::to_string(manifest).map_err(|error| Error::Format(error.to_string()))?),
        ..SnapshotFile::default()
    };
    for name in top {
        snapshot.paths.add(format!("/{name}"));
    }
    for tag in tags {
        snapshot.tags.add(tag);
    }
    Ok(snapshot)
}
