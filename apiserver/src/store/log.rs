//! The log on disk: SQLite in WAL mode, append only. Each batch is one transaction, synced before it is answered.
//!
//! Superseded rows are removed a slice at a time, behind the answers, so that no write waits for the removal of all of them.

use std::{
    collections::{HashMap, VecDeque},
    fs,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use rusqlite::{Connection, OpenFlags, params};
use thiserror::Error;
use tracing::warn;

use super::{Change, Event};

/// Never "0" or empty: clients read both as "any".
const FIRST_REVISION: u64 = 1000;
/// So many superseded rows are removed together: one sync for all, and short enough to wait for.
const SLICE: usize = 256;
/// SQLite begins the WAL anew once it has 1,000 pages; a batch may come on top.
const WAL_BYTES: u64 = 1100 * (4096 + 24);

#[derive(Debug, Error)]
pub enum LogError {
    #[error("{path}: {source}")]
    File { path: String, source: io::Error },
    #[error("{path}: {source}")]
    Sqlite { path: String, source: rusqlite::Error },
}

/// What a log had when it was opened: the newest row of each object, and the newest revision of all.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) rows: Vec<Row>,
    pub(super) revision: u64,
}

/// One object, as it lies on disk.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) revision: u64,
    pub(super) resource: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) object: Vec<u8>,
}

/// The log, or none.
#[derive(Debug)]
pub(super) struct Log {
    connection: Option<Connection>,
    superseded: Superseded,
}

/// Rows that nobody needs any more, each object's older ones before its newer ones: after whatever part of them is gone,
/// the newest row of an object still tells the truth.
#[derive(Debug)]
struct Superseded {
    rows: VecDeque<u64>,
    /// The row that stays in any case, so that revisions never go back.
    newest: u64,
}

impl Log {
    #[cfg(test)]
    pub(super) fn none() -> (Self, Found) {
        let superseded = Superseded { rows: VecDeque::new(), newest: FIRST_REVISION };
        (Self { connection: None, superseded }, Found { rows: Vec::new(), revision: FIRST_REVISION })
    }

    /// Opens or begins the log, and reads what is there.
    pub(super) fn open(path: &Path) -> Result<(Self, Found), LogError> {
        let shown = || path.display().to_string();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let sqlite = |source| LogError::Sqlite { path: shown(), source };
        let connection = Connection::open_with_flags(path, flags).map_err(sqlite)?;
        // Before anything is in it: SQLite gives the WAL the same permissions.
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
            .map_err(|source| LogError::File { path: shown(), source })?;
        let (superseded, found) = begin(&connection).and_then(|()| read(&connection)).map_err(sqlite)?;
        if let Err(error) = grow_wal(path) {
            warn!(%error, "the log of objects could not be grown beforehand; writes take longer at first");
        }
        let mut log = Self { connection: Some(connection), superseded };
        // Nobody waits yet, so all of it.
        while log.remove_slice() {}
        Ok((log, found))
    }

    /// At most a batch. On disk when it returns; on error it is refused, and may be found there after a crash all the same.
    pub(super) fn append<'a>(&mut self, events: impl ExactSizeIterator<Item = &'a Event>) -> rusqlite::Result<()> {
        let mut superseded = Vec::with_capacity(events.len());
        let mut newest = self.superseded.newest;
        let transaction = self.connection.as_mut().map(Connection::transaction).transpose()?;
        for event in events {
            let Event { change, key, object, previous } = event;
            let kept = (*change != Change::Deleted).then_some(&object.bytes[..]);
            if let Some(transaction) = &transaction {
                transaction.prepare_cached(INSERT)?.execute(params![
                    object.revision.cast_signed(),
                    key.resource,
                    key.namespace,
                    key.name,
                    kept
                ])?;
            }
            superseded.extend(previous.as_ref().map(|previous| previous.revision));
            superseded.extend(kept.is_none().then_some(object.revision));
            newest = object.revision;
        }
        if let Some(transaction) = transaction {
            transaction.commit()?;
        }
        self.superseded.rows.extend(superseded);
        self.superseded.newest = newest;
        Ok(())
    }

    /// Removes what has gathered, if it is enough to be worth a sync. Two slices at most, so a backlog does shrink.
    pub(super) fn tidy(&mut self) {
        if self.superseded.rows.len() >= SLICE && self.remove_slice() && self.superseded.rows.len() >= SLICE {
            self.remove_slice();
        }
    }

    /// Whether something was removed. That the log could not be made smaller is no failure of anybody's write.
    fn remove_slice(&mut self) -> bool {
        let slice = self.superseded.slice();
        if slice.is_empty() {
            return false;
        }
        let removed = self.connection.as_mut().map_or(Ok(()), |connection| remove(connection, &slice));
        match &removed {
            Ok(()) => drop(self.superseded.rows.drain(..slice.len())),
            Err(error) => warn!(%error, "superseded rows could not be removed from the log of objects"),
        }
        removed.is_ok()
    }
}

impl Superseded {
    fn slice(&self) -> Vec<u64> {
        self.rows.iter().copied().take(SLICE).take_while(|revision| *revision != self.newest).collect()
    }
}

const INSERT: &str = "INSERT INTO revisions (id, resource, namespace, name, object) VALUES (?, ?, ?, ?, ?)";

fn begin(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Logs of before have an index that nobody reads any more, and every write would pay for.
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS revisions (id INTEGER PRIMARY KEY, resource TEXT NOT NULL, namespace TEXT NOT NULL, \
         name TEXT NOT NULL, object BLOB); \
         DROP INDEX IF EXISTS by_key",
    )
}

/// Zeros after what is in the WAL: SQLite ignores them, and to write over them is to sync data only, not also the new length
/// of the file. That halves a sync (ext4).
fn grow_wal(path: &Path) -> io::Result<()> {
    let mut wal = path.as_os_str().to_owned();
    wal.push("-wal");
    let mut wal = fs::OpenOptions::new().append(true).open(wal)?;
    let missing = WAL_BYTES.saturating_sub(wal.metadata()?.len());
    io::copy(&mut io::repeat(0).take(missing), &mut wal)?;
    wal.sync_all()
}

/// The whole log in its order: what a later row supersedes is not kept longer than until then.
fn read(connection: &Connection) -> rusqlite::Result<(Superseded, Found)> {
    let mut objects: HashMap<(String, String, String), (u64, Vec<u8>)> = HashMap::new();
    let mut superseded = Superseded { rows: VecDeque::new(), newest: FIRST_REVISION };
    let mut all = connection.prepare("SELECT id, resource, namespace, name, object FROM revisions ORDER BY id")?;
    let mut rows = all.query([])?;
    while let Some(row) = rows.next()? {
        let revision = row.get::<_, i64>(0)?.cast_unsigned();
        let key = (row.get(1)?, row.get(2)?, row.get(3)?);
        let object: Option<Vec<u8>> = row.get(4)?;
        let deleted = object.is_none();
        let previous = match object {
            Some(object) => objects.insert(key, (revision, object)),
            None => objects.remove(&key),
        };
        superseded.rows.extend(previous.map(|(previous, _)| previous));
        superseded.rows.extend(deleted.then_some(revision));
        superseded.newest = revision;
    }
    let newest = superseded.newest;
    let rows = objects.into_iter().map(|((resource, namespace, name), (revision, object))| Row {
        revision,
        resource,
        namespace,
        name,
        object,
    });
    Ok((superseded, Found { rows: rows.collect(), revision: newest }))
}

fn remove(connection: &mut Connection, slice: &[u64]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for revision in slice {
        transaction.prepare_cached("DELETE FROM revisions WHERE id = ?")?.execute([revision.cast_signed()])?;
    }
    transaction.commit()
}
