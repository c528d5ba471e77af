//! The sources of a capture, as the library asks for them, and what became of each: that is known even where the library forgets an
//! error. Once one broke off, or nothing can be written any more, the others are not read for nothing.

use std::{
    io::{self, BufReader, Read},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use rustic_core::{
    ReadSource, ReadSourceEntry, RusticResult,
    repofile::{Metadata, Node, NodeType},
};
use sha2::{Digest, Sha256};

use crate::{
    capture::{Open, Source, StoredFile},
    copies::{Copies, lock},
    error::{Error, Result},
    format::hex,
};

/// The library asks for 4 KiB at a time.
const BUFFER: usize = 256 * 1024;
/// So much is expected of each, so that chunks are given room at once; what it really has is known only in the end.
const EXPECTED: u64 = 1 << 50;

/// What a file is called until its tree is written.
pub(crate) fn numbered(number: usize) -> String {
    format!("{number:06}")
}

pub(crate) struct Streams {
    sources: Mutex<Vec<Source>>,
    state: Arc<State>,
    now: Timestamp,
}

/// What all sources of a capture have in common.
struct State {
    fates: Vec<(String, Mutex<Fate>)>,
    copies: Copies,
    read: Arc<AtomicU64>,
    cancel: Arc<AtomicBool>,
    broken: AtomicBool,
}

/// What became of a source.
#[derive(Debug, Default)]
enum Fate {
    #[default]
    Unread,
    Whole(StoredFile),
    Broken(io::Error),
}

impl Streams {
    pub(crate) fn new(
        sources: Vec<Source>,
        copies: &Copies,
        read: Arc<AtomicU64>,
        cancel: Arc<AtomicBool>,
        now: Timestamp,
    ) -> Self {
        let fates = sources.iter().map(|source| (source.path.clone(), Mutex::default())).collect();
        let state = State { fates, copies: copies.clone(), read, cancel, broken: AtomicBool::default() };
        Self { sources: Mutex::new(sources), state: state.into(), now }
    }

    /// What was read, if all of it was.
    pub(crate) fn files(&self) -> Result<Vec<StoredFile>> {
        let mut files = Vec::new();
        let mut unread = None;
        for (file, fate) in &self.state.fates {
            match std::mem::take(&mut *lock(fate)) {
                Fate::Whole(stored) => files.push(stored),
                Fate::Broken(source) => return Err(Error::Source { file: file.clone(), source }),
                Fate::Unread => {
                    unread.get_or_insert(file);
                }
            }
        }
        match unread {
            None => Ok(files),
            Some(file) => {
                let source = io::Error::other("it was not read to its end");
                Err(Error::Source { file: file.clone(), source })
            }
        }
    }
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
            let meta = Metadata { mtime: Some(self.now), size: EXPECTED, ..Metadata::default() };
            let name = numbered(number);
            let (hash, state) = (Sha256::new(), Arc::clone(&self.state));
            let open = Stream { number, open: Some(source.open), inner: None, hash, size: 0, state };
            Ok(ReadSourceEntry {
                path: PathBuf::from(&name),
                node: Node::new_node(name.as_ref(), NodeType::File, meta),
                open: Some(open),
            })
        };
        sources.into_iter().enumerate().map(entry).collect::<Vec<_>>().into_iter()
    }
}

/// One source while it is read.
pub(crate) struct Stream {
    number: usize,
    open: Option<Open>,
    inner: Option<Box<dyn Read + Send>>,
    hash: Sha256,
    size: u64,
    state: Arc<State>,
}

impl State {
    /// Whether no snapshot can come of it any more.
    fn is_over(&self) -> bool {
        self.cancel.load(Ordering::Relaxed) || self.broken.load(Ordering::Relaxed) || self.copies.is_over()
    }
}

impl Stream {
    /// All of the buffer, but at the end: after a read that was shorter the library never again asks for more than that
    /// (`chunker/rabin.rs` truncates its buffer), which comes to single bytes with a pipe.
    fn next(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(open) = self.open.take() {
            self.inner = Some(Box::new(BufReader::with_capacity(BUFFER, open()?)));
        }
        let Some(inner) = &mut self.inner else { return Ok(0) };
        let mut filled = 0;
        while filled < buffer.len() {
            match inner.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn end(&mut self, fate: Fate) {
        self.inner = None;
        if let Some((_, slot)) = self.state.fates.get(self.number) {
            *lock(slot) = fate;
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.state.is_over() {
            (self.open, self.inner) = (None, None);
            return Err(io::Error::other("nothing can come of it any more"));
        }
        match self.next(buffer) {
            Ok(0) if !buffer.is_empty() && self.inner.is_some() => {
                let sha256 = hex(&self.hash.clone().finalize());
                let path = self.state.fates.get(self.number).map(|(path, _)| path.clone()).unwrap_or_default();
                self.end(Fate::Whole(StoredFile { path, size: self.size, sha256 }));
                Ok(0)
            }
            Ok(length) => {
                self.hash.update(&buffer[..length]);
                self.size += length as u64;
                self.state.read.fetch_add(length as u64, Ordering::Relaxed);
                Ok(length)
            }
            Err(error) => {
                let again = io::Error::new(error.kind(), error.to_string());
                self.state.broken.store(true, Ordering::Relaxed);
                self.end(Fate::Broken(error));
                Err(again)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a pipe does it: a little at first, and then some more.
    struct Dribble(u64);

    impl Read for Dribble {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(17).min(usize::try_from(self.0).unwrap());
            buffer[..length].fill(7);
            self.0 -= length as u64;
            Ok(length)
        }
    }

    #[test]
    fn whoever_reads_gets_all_that_it_asks_for_but_at_the_end() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let copies = Copies::new(&[], None, runtime.handle().clone());
        let source = Source { path: "a".into(), open: Box::new(|| Ok(Box::new(Dribble(10_000)))) };
        let streams = Streams::new(vec![source], &copies, Arc::default(), Arc::default(), Timestamp::now());
        let mut stream = streams.entries().next().unwrap().unwrap().open.unwrap();
        let mut buffer = [0; 4096];
        let lengths: Vec<usize> = std::iter::from_fn(|| Some(stream.read(&mut buffer).unwrap())).take(5).collect();
        assert_eq!(lengths, [4096, 4096, 1808, 0, 0]);
        assert_eq!(streams.files().unwrap()[0].size, 10_000);
    }
}
