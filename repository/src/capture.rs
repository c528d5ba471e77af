//! Streams of unknown length into a snapshot. All or nothing: the snapshot file is written last, to each location that has all the
//! rest, and without it nothing of what was written is a copy of anything.
//!
//! Blocking. Ends soon after [`Capture::cancel`] is set, and then leaves no snapshot.

use std::{
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use jiff::{Timestamp, tz::TimeZone};
use rustic_core::{
    BackupOptions, Id, ReadSource, ReadSourceEntry, RusticResult,
    repofile::{BlobType, Metadata, Node, NodeType, SnapshotFile, Tree},
};
use sha2::{Digest, Sha256};

use crate::{
    copies::{Copies, lock, name_of},
    error::{Error, Result, StoreError},
    format::{Pack, Seal, hex, id_of, index_of},
    locks::Lock,
    manifest::{FILE, Manifest},
};

/// One file to be, in the order in which they are read.
pub struct Source {
    /// Below the snapshot's root, without a slash at its begin: `orders/shop.dump`.
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

/// The library asks for 4 KiB at a time.
const BUFFER: usize = 256 * 1024;

/// What became of a source.
#[derive(Debug, Default)]
enum Fate {
    #[default]
    Unread,
    Whole(StoredFile),
    Broken(io::Error),
}

type Fates = Arc<Vec<(String, Mutex<Fate>)>>;

/// Reads, hashes and writes; the repository is open for it already.
pub(crate) fn capture<S: rustic_core::IndexedIds>(
    repository: &rustic_core::Repository<S>,
    copies: &Copies,
    seal: &Seal,
    capture: Capture,
    lock_held: &Lock,
    runtime: &tokio::runtime::Handle,
) -> Result<Captured> {
    let Capture { sources, host, tags, manifest, read, cancel } = capture;
    let now = Timestamp::now();
    let fates: Fates = Arc::new(sources.iter().map(|source| (source.path.clone(), Mutex::default())).collect());
    let count = sources.len() as u64;
    let streams = Streams { sources: Mutex::new(sources), fates: Arc::clone(&fates), read, cancel, now };
    let mut options = BackupOptions::default();
    // A parent would be taken for what a stream is now, for it has no size and time of its own.
    options.parent_opts.force = true;
    options.no_scan = true;
    let archived = repository.archive(&options, &streams, SnapshotFile::default(), &[PathBuf::from("/")]);
    let broken = streams.cancel.load(Ordering::Relaxed).then_some(Error::Cancelled).or_else(|| broken(&fates));
    if let Some(error) = broken {
        return Err(error);
    }
    if copies.whole().is_empty() {
        return Err(Error::NoLocation(copies.failures()));
    }
    let archived = archived.map_err(|error| crate::told(&error))?;
    let files = read_files(&fates)?;
    let bytes: u64 = files.iter().map(|file| file.size).sum();
    let summary = archived.summary.clone().unwrap_or_default();
    if (summary.total_files_processed, summary.total_bytes_processed) != (count, bytes) {
        let (got, stored) = (summary.total_files_processed, summary.total_bytes_processed);
        return Err(Error::Format(format!(
            "{count} files of {bytes} bytes were read, and {got} of {stored} were stored"
        )));
    }
    let nodes = nodes_of(repository, copies, archived.tree)?;
    let manifest = manifest(&files);
    let tree = Trees { seal, now }.write(nodes, &files, &manifest).map_err(Error::Format)?;
    let paths = tree.top.iter().map(|name| format!("/{name}")).collect::<Vec<_>>();
    for (name, bytes) in tree.objects {
        runtime.block_on(copies.write(&name, &[Bytes::from(bytes)]))?;
    }
    let taken = manifest.cut_between.as_ref().map_or(now, |cut| cut.frozen_at.0);
    let mut snapshot = SnapshotFile {
        time: taken.to_zoned(TimeZone::UTC),
        program_version: concat!("stillpoint ", env!("CARGO_PKG_VERSION")).to_owned(),
        tree: tree.root.into(),
        label: manifest.snapshot.name.clone(),
        hostname: host,
        summary: Some(summary),
        description: Some(serde_json::to_string(&manifest).map_err(|error| Error::Format(error.to_string()))?),
        ..SnapshotFile::default()
    };
    for path in paths {
        snapshot.paths.add(path);
    }
    for tag in tags {
        snapshot.tags.add(tag);
    }
    let bytes = seal.file(&snapshot).map_err(Error::Format)?;
    let id = id_of(&bytes);
    for location in copies.whole() {
        if !lock_held.is_held_at(&location)? {
            return Err(Error::GivenUp { location: location.name().to_owned() });
        }
    }
    runtime.block_on(copies.write(&name_of(rustic_core::FileType::Snapshot, &id), &[Bytes::from(bytes)]))?;
    Ok(Captured {
        id: id.to_hex().as_str().to_owned(),
        manifest,
        stored: copies.written(),
        whole: copies.whole().iter().map(|location| location.name().to_owned()).collect(),
        failed: copies.failures(),
    })
}

fn broken(fates: &Fates) -> Option<Error> {
    fates.iter().find_map(|(file, fate)| {
        let mut fate = lock(fate);
        if !matches!(*fate, Fate::Broken(_)) {
            return None;
        }
        match std::mem::take(&mut *fate) {
            Fate::Broken(source) => Some(Error::Source { file: file.clone(), source }),
            Fate::Unread | Fate::Whole(_) => None,
        }
    })
}

fn read_files(fates: &Fates) -> Result<Vec<StoredFile>> {
    fates
        .iter()
        .map(|(file, fate)| match &*lock(fate) {
            Fate::Whole(stored) => Ok(stored.clone()),
            _ => Err(Error::Source { file: file.clone(), source: io::Error::other("it was not read to its end") }),
        })
        .collect()
}

/// What the library made of the streams: a flat tree, in which files are named by their number.
fn nodes_of<S: rustic_core::Open>(
    repository: &rustic_core::Repository<S>,
    copies: &Copies,
    tree: rustic_core::TreeId,
) -> Result<Vec<Node>> {
    let key = rustic_core::Credentials::Masterkey(repository.key());
    let own = crate::unopened(&copies.with_its_own_index())?.open(&key).map_err(|error| crate::told(&error))?;
    let own = own.to_indexed_ids().map_err(|error| crate::told(&error))?;
    Ok(own.get_tree(&tree).map_err(|error| crate::told(&error))?.nodes)
}

/// The trees that a snapshot has in the end, and the packs that they are in.
struct Trees<'s> {
    seal: &'s Seal,
    now: Timestamp,
}

struct Written {
    root: Id,
    /// The names in the root.
    top: Vec<String>,
    objects: Vec<(String, Vec<u8>)>,
}

impl Trees<'_> {
    fn write(&self, nodes: Vec<Node>, files: &[StoredFile], manifest: &Manifest) -> Result<Written, String> {
        let text = serde_json::to_vec_pretty(manifest).map_err(|error| error.to_string())?;
        let mut data = Pack::new(self.seal, BlobType::Data);
        let blob = data.add(&text)?;
        let mut placed: Vec<(&Path, Node)> = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let wanted = numbered(number);
            let node = nodes.iter().find(|node| node.name == wanted).ok_or("a file is missing in the tree")?;
            let path = Path::new(&file.path);
            placed.push((path, self.file(path, file.size, node.content.clone().unwrap_or_default())));
        }
        let path = Path::new(FILE);
        placed.push((path, self.file(path, text.len() as u64, vec![blob.into()])));
        let mut trees = Pack::new(self.seal, BlobType::Tree);
        let root = self.tree(Path::new(""), &placed, &mut trees)?;
        let mut top: Vec<String> = placed.iter().filter_map(|(path, _)| first(path)).collect();
        top.dedup();
        let (data, trees) = (data.finish()?, trees.finish()?);
        let index = self.seal.file(&index_of(vec![data.index, trees.index]))?;
        let objects = vec![
            (name_of(rustic_core::FileType::Pack, &data.id), data.bytes),
            (name_of(rustic_core::FileType::Pack, &trees.id), trees.bytes),
            (name_of(rustic_core::FileType::Index, &id_of(&index)), index),
        ];
        Ok(Written { root, top, objects })
    }

    /// A directory and all below it; in restic's trees names are sorted.
    fn tree(&self, directory: &Path, placed: &[(&Path, Node)], pack: &mut Pack<'_>) -> Result<Id, String> {
        let mut tree = Tree::default();
        let below = |path: &Path| path.strip_prefix(directory).ok().map(Path::to_owned);
        let mut names: Vec<String> = placed.iter().filter_map(|(path, _)| first(&below(path)?)).collect();
        names.sort();
        names.dedup();
        for name in names {
            let path = directory.join(&name);
            let node = match placed.iter().find(|(at, _)| *at == path) {
                Some((_, file)) => file.clone(),
                None => {
                    let mut node = Node::new_node(name.as_ref(), NodeType::Dir, self.metadata(0o755, 0));
                    node.subtree = Some(self.tree(&path, placed, pack)?.into());
                    node
                }
            };
            tree.nodes.push(node);
        }
        let (bytes, _) = tree.serialize().map_err(|error| error.to_string())?;
        pack.add(&bytes)
    }

    fn file(&self, path: &Path, size: u64, content: Vec<rustic_core::DataId>) -> Node {
        let name = path.file_name().unwrap_or_default();
        let mut node = Node::new_node(name, NodeType::File, self.metadata(0o600, size));
        node.content = Some(content);
        node
    }

    fn metadata(&self, mode: u32, size: u64) -> Metadata {
        const DIRECTORY: u32 = 1 << 31; // Go's os.ModeDir, as which restic keeps it.
        let mode = if mode == 0o755 { mode | DIRECTORY } else { mode };
        let time = Some(self.now);
        Metadata { mode: Some(mode), mtime: time, atime: time, ctime: time, size, links: 1, ..Metadata::default() }
    }
}

fn first(path: &Path) -> Option<String> {
    path.components().next().map(|part| part.as_os_str().to_string_lossy().into_owned())
}

/// What a file is called until its tree is written.
fn numbered(number: usize) -> String {
    format!("{number:06}")
}

/// The sources, as the library asks for them.
struct Streams {
    sources: Mutex<Vec<Source>>,
    fates: Fates,
    read: Arc<AtomicU64>,
    cancel: Arc<AtomicBool>,
    now: Timestamp,
}

impl ReadSource for Streams {
    type Open = Stream;
    type Iter = std::vec::IntoIter<RusticResult<ReadSourceEntry<Stream>>>;

    fn size(&self) -> RusticResult<Option<u64>> {
        Ok(None)
    }

    fn entries(&self) -> Self::Iter {
        let sources = std::mem::take(&mut *lock(&self.sources));
        let entry = |(number, source): (usize, Source)| {
            let meta = Metadata { mtime: Some(self.now), ..Metadata::default() };
            let name = numbered(number);
            let state = State {
                number,
                fates: Arc::clone(&self.fates),
                read: Arc::clone(&self.read),
                cancel: Arc::clone(&self.cancel),
            };
            let open = Stream { open: Some(source.open), inner: None, hash: Sha256::new(), size: 0, state };
            Ok(ReadSourceEntry {
                path: PathBuf::from(&name),
                node: Node::new_node(name.as_ref(), NodeType::File, meta),
                open: Some(open),
            })
        };
        sources.into_iter().enumerate().map(entry).collect::<Vec<_>>().into_iter()
    }
}

/// One source while it is read. What becomes of it is known even where the library forgets an error.
struct Stream {
    open: Option<Open>,
    inner: Option<Box<dyn Read + Send>>,
    hash: Sha256,
    size: u64,
    state: State,
}

struct State {
    number: usize,
    fates: Fates,
    read: Arc<AtomicU64>,
    cancel: Arc<AtomicBool>,
}

impl Stream {
    fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.state.cancel.load(Ordering::Relaxed) {
            return Err(io::Error::other("cancelled"));
        }
        if let Some(open) = self.open.take() {
            self.inner = Some(Box::new(BufReader::with_capacity(BUFFER, open()?)));
        }
        match &mut self.inner {
            Some(inner) => inner.read(buffer),
            None => Ok(0),
        }
    }

    fn end(&mut self, fate: Fate) {
        self.inner = None;
        if let Some((_, slot)) = self.state.fates.get(self.state.number) {
            *lock(slot) = fate;
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.next(buffer) {
            Ok(0) if !buffer.is_empty() && self.inner.is_some() => {
                let sha256 = hex(&self.hash.clone().finalize());
                let path = self.state.fates.get(self.state.number).map(|(path, _)| path.clone()).unwrap_or_default();
                self.end(Fate::Whole(StoredFile { path, size: self.size, sha256 }));
                Ok(0)
            }
            Ok(length) => {
                self.hash.update(&buffer[..length]);
                self.size += length as u64;
                self.state.read.fetch_add(length as u64, Ordering::Relaxed);
                Ok(length)
            }
            // std retries it, as everybody does.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let again = io::Error::new(error.kind(), error.to_string());
                self.end(Fate::Broken(error));
                Err(again)
            }
        }
    }
}
