//! What is in a snapshot, file by file. Every byte is authenticated as it is read, and every file is compared at its end with what was
//! written down when it was captured: nobody may use what came before the end, unless it was verified first.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use bytes::Bytes;
use rustic_core::{Credentials, Id, IndexedFull, TreeId, repofile::Node};
use sha2::{Digest, Sha256};

use crate::{
    Repository,
    catalogue::{Entry, Writer},
    copies::Copies,
    error::{Error, Result, StoreError},
    format::hex,
    standing::standing,
    told, unopened,
};

/// A snapshot that is open for reading. Its index is in memory, some 100 bytes for each MiB of the repository.
pub struct Restorable {
    reading: Box<dyn Reading>,
    entry: Entry,
    copies: Copies,
    /// Packs that are named, and that nobody has: something of it may have been in them.
    gone: BTreeSet<String>,
}

trait Reading: Send + Sync {
    fn node(&self, tree: Id, path: &str) -> Result<Node>;
    fn copy(&self, node: &Node, to: &mut Sink<'_>) -> Result<()>;
    fn range(&self, node: &Node, offset: usize, length: usize) -> Result<Bytes>;
}

impl Repository {
    /// From the locations that have it: each byte from the first that has it whole.
    pub fn restorable(&self, entry: &Entry) -> Result<Restorable> {
        if let Writer::Newer(version) = entry.writer {
            return Err(Error::Newer { id: short(&entry.id), version });
        }
        let inner = &self.inner;
        let has = |location: &&crate::Location| entry.at.iter().any(|name| *name == *location.name);
        let locations: Vec<_> = inner.locations.iter().filter(has).cloned().collect();
        if locations.is_empty() {
            return Err(Error::NoSnapshot(entry.id.clone()));
        }
        // What was stored again, for it was gone, is in two packs as the index has it.
        let gone = inner.runtime.block_on(standing(&locations, &inner.seal))?.gone;
        let copies = Copies::new(&locations, Some(&inner.seal), inner.runtime.clone()).without(gone.clone());
        let open =
            unopened(&copies)?.open(&Credentials::Masterkey(inner.key.0.clone())).map_err(|error| told(&error))?;
        let indexed = open.to_indexed().map_err(|error| told(&error))?;
        Ok(Restorable { reading: Box::new(indexed), entry: entry.clone(), copies, gone })
    }
}

impl Restorable {
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// All of a file, checked: after an error nothing of it may be used. `path` as the manifest has it.
    pub fn copy(&self, path: &str, to: &mut dyn Write) -> Result<u64> {
        let node = self.node(path)?;
        let mut sink = Sink { to, hash: Sha256::new(), size: 0, failed: None };
        let copied = self.reading.copy(&node, &mut sink);
        if let Some(error) = sink.failed {
            return Err(Error::Sink(error));
        }
        copied.map_err(|error| self.broken(path, error))?;
        let (size, sha256) = (sink.size, hex(&sink.hash.finalize()));
        match self.written_down(path) {
            Some((wanted, _)) if wanted != size => {
                Err(self.damaged(path, format!("it has {size} bytes, and should have {wanted}")))
            }
            Some((_, wanted)) if wanted != sha256 => {
                Err(self.damaged(path, format!("its SHA-256 is {sha256}, and should be {wanted}")))
            }
            _ => Ok(size),
        }
    }

    /// Reads all of every file that the manifest names: its bytes.
    pub fn verify(&self) -> Result<u64> {
        let manifest = self.entry.manifest().ok_or_else(|| Error::NotOurs(short(&self.entry.id)))?;
        let files = manifest.contents.iter().flat_map(|copy| &copy.files);
        files.map(|file| self.copy(&file.path, &mut io::sink())).sum()
    }

    /// At most `length` bytes from `offset`; fewer at the end. Authenticated, and not compared with the whole.
    pub fn range(&self, path: &str, offset: u64, length: usize) -> Result<Bytes> {
        let offset = usize::try_from(offset).map_err(|_| Error::NoFile(path.to_owned()))?;
        let read = self.reading.range(&self.node(path)?, offset, length);
        read.map_err(|error| self.broken(path, error))
    }

    /// Bytes.
    pub fn size(&self, path: &str) -> Result<u64> {
        Ok(self.node(path)?.meta.size)
    }

    /// What a location did not give, or not whole, while it was read; another may have given it.
    pub fn failures(&self) -> Vec<StoreError> {
        self.copies.missed()
    }

    fn node(&self, path: &str) -> Result<Node> {
        let tree: Id = self.entry.tree.parse().map_err(|error: Box<_>| told(&error))?;
        self.reading.node(tree, path).map_err(|error| self.broken(path, error))
    }

    fn written_down(&self, path: &str) -> Option<(u64, &str)> {
        let mut files = self.entry.manifest()?.contents.iter().flat_map(|copy| &copy.files);
        files.find(|file| file.path == path).map(|file| (file.size, file.sha256.as_str()))
    }

    /// What an error of reading it means: where a location did not answer, nothing is known to be damaged.
    fn broken(&self, path: &str, error: Error) -> Error {
        match error {
            Error::Format(_) if !self.gone.is_empty() => {
                let names = self.gone.iter().cloned().collect::<Vec<_>>().join(", ");
                self.damaged(path, format!("{} lacks {}", self.entry.at.join(", "), crate::error::short(&names)))
            }
            Error::Damaged { why, .. } | Error::Format(why) => self.damaged(path, why),
            other => other,
        }
    }

    fn damaged(&self, path: &str, why: String) -> Error {
        Error::Damaged { what: format!("{path} of snapshot {}", short(&self.entry.id)), why }
    }
}

/// As restic shows it.
fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

impl<S: IndexedFull + Send + Sync> Reading for rustic_core::Repository<S> {
    fn node(&self, tree: Id, path: &str) -> Result<Node> {
        let mut tree = TreeId::from(tree);
        let mut parts = path.split('/').peekable();
        while let Some(part) = parts.next() {
            let nodes = self.get_tree(&tree).map_err(|error| told(&error))?.nodes;
            match nodes.into_iter().find(|node| *node.name() == *part) {
                Some(node) if parts.peek().is_none() && node.is_file() => return Ok(node),
                Some(Node { subtree: Some(below), .. }) => tree = below,
                _ => break,
            }
        }
        Err(Error::NoFile(path.to_owned()))
    }

    fn copy(&self, node: &Node, to: &mut Sink<'_>) -> Result<()> {
        self.dump(node, to).map_err(|error| told(&error))
    }

    fn range(&self, node: &Node, offset: usize, length: usize) -> Result<Bytes> {
        let file = self.open_file(node).map_err(|error| told(&error))?;
        self.read_file_at(&file, offset, length).map_err(|error| told(&error))
    }
}

/// Counts and hashes what passes.
struct Sink<'w> {
    to: &'w mut dyn Write,
    hash: Sha256,
    size: u64,
    failed: Option<io::Error>,
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.to.write(bytes) {
            Ok(length) => {
                self.hash.update(&bytes[..length]);
                self.size += length as u64;
                Ok(length)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let again = io::Error::new(error.kind(), error.to_string());
                self.failed = Some(error);
                Err(again)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
