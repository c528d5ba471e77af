//! What the tests store: streams that are known before, and that stop, break or wait where they are told to.

use std::{
    io::{self, Cursor, Read},
    sync::{Arc, atomic::AtomicU64},
};

use api::{CutBetween, DatabaseCopy, DumpFile, DumpFormat, Engine};
use repository::{Capture, Manifest, Origin, Source, StoredFile};

/// Files of which everything is known before.
pub(crate) fn capture(files: &[(&str, Vec<u8>)]) -> Capture {
    capture_of(files.iter().map(|(path, content)| source(path, Cursor::new(content.clone()))).collect())
}

pub(crate) fn source(path: &str, reader: impl Read + Send + 'static) -> Source {
    Source { path: path.to_owned(), open: Box::new(move || Ok(Box::new(reader))) }
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
            dump_tool: None,
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

/// Bytes, with something that happens before the one at an offset is read: once for each, in their order.
pub(crate) struct Eventful {
    content: Cursor<Vec<u8>>,
    events: Vec<(u64, Event)>,
}

pub(crate) type Event = Box<dyn FnOnce() -> io::Result<()> + Send>;

impl Eventful {
    pub(crate) fn new(content: Vec<u8>) -> Self {
        Self { content: Cursor::new(content), events: Vec::new() }
    }

    pub(crate) fn at(mut self, offset: usize, event: impl FnOnce() -> io::Result<()> + Send + 'static) -> Self {
        self.events.push((offset as u64, Box::new(event)));
        self.events.sort_by_key(|(offset, _)| *offset);
        self
    }
}

impl Read for Eventful {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let position = self.content.position();
        while self.events.first().is_some_and(|(offset, _)| *offset <= position) {
            (self.events.remove(0).1)()?;
        }
        let until = self.events.first().map_or(u64::MAX, |(offset, _)| offset - position);
        let length = buffer.len().min(usize::try_from(until).unwrap_or(usize::MAX));
        self.content.read(&mut buffer[..length])
    }
}
