//! The log on disk: SQLite in WAL mode, append only, each batch one transaction that is synced.

use std::{os::unix::fs::PermissionsExt, path::Path};

use sqlx::{
    Connection, QueryBuilder, Row as _, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};
use thiserror::Error;

use super::{Change, Event};

/// Never "0" or empty: clients read both as "any".
pub(super) const FIRST_REVISION: u64 = 1000;
/// Superseded rows are removed when the log has grown by this many.
const COMPACT_EVERY: u64 = 20_000;

#[derive(Debug, Error)]
#[error("{path}: {source}")]
pub struct LogError {
    path: String,
    source: sqlx::Error,
}

/// One write, as it lies on disk. Without an object it is a deletion.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) revision: u64,
    pub(super) resource: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) object: Option<Vec<u8>>,
}

/// The log, or none.
#[derive(Debug)]
pub(super) struct Log {
    connection: Option<SqliteConnection>,
    since_compaction: u64,
}

impl Log {
    #[cfg(test)]
    pub(super) fn none() -> Self {
        Self { connection: None, since_compaction: 0 }
    }

    /// Opens or begins the log, and reads the newest row of each object.
    pub(super) async fn open(path: &Path) -> Result<(Self, Vec<Row>), LogError> {
        let failed = |source| LogError { path: path.display().to_string(), source };
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let mut connection = SqliteConnection::connect_with(&options).await.map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
            .map_err(|error| failed(sqlx::Error::Io(error)))?;
        sqlx::raw_sql(
            "CREATE TABLE IF NOT EXISTS revisions (id INTEGER PRIMARY KEY, resource TEXT NOT NULL, namespace TEXT NOT NULL, \
             name TEXT NOT NULL, object BLOB); \
             CREATE INDEX IF NOT EXISTS by_key ON revisions (resource, namespace, name, id)",
        )
        .execute(&mut connection)
        .await
        .map_err(failed)?;
        let rows = sqlx::query(
            "SELECT id, resource, namespace, name, object FROM revisions WHERE id IN \
             (SELECT max(id) FROM revisions GROUP BY resource, namespace, name) ORDER BY id",
        )
        .fetch_all(&mut connection)
        .await
        .map_err(failed)?;
        let rows = rows.iter().map(read).collect::<Result<_, _>>().map_err(failed)?;
        Ok((Self { connection: Some(connection), since_compaction: 0 }, rows))
    }

    /// At least one row, at most a batch. On disk when it returns; on error nothing of it is.
    pub(super) async fn append(&mut self, rows: &[Row]) -> Result<(), sqlx::Error> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        // One statement is a transaction by itself, and each statement is a way to SQLite's thread and back.
        let mut insert = QueryBuilder::new("INSERT INTO revisions (id, resource, namespace, name, object) ");
        insert.push_values(rows, |mut values, row| {
            values.push_bind(row.revision.cast_signed());
            values.push_bind(&row.resource).push_bind(&row.namespace).push_bind(&row.name).push_bind(&row.object);
        });
        insert.build().execute(connection).await?;
        self.since_compaction += rows.len() as u64;
        if self.since_compaction >= COMPACT_EVERY {
            // The rows are on disk: that the log could not be made smaller is no failure of theirs.
            if let Err(error) = self.compact().await {
                tracing::warn!(%error, "the log of objects could not be compacted");
            }
        }
        Ok(())
    }

    /// Keeps the newest row of each object, and the newest of all, so that revisions never go back.
    async fn compact(&mut self) -> Result<(), sqlx::Error> {
        let Some(connection) = &mut self.connection else {
            return Ok(());
        };
        self.since_compaction = 0;
        sqlx::raw_sql(
            "DELETE FROM revisions WHERE id NOT IN (SELECT max(id) FROM revisions GROUP BY resource, namespace, name); \
             DELETE FROM revisions WHERE object IS NULL AND id <> (SELECT max(id) FROM revisions)",
        )
        .execute(connection)
        .await
        .map(drop)
    }
}

impl Row {
    pub(super) fn of(event: &Event) -> Self {
        Self {
            revision: event.object.revision,
            resource: event.key.resource.to_owned(),
            namespace: event.key.namespace.clone(),
            name: event.key.name.clone(),
            object: (event.change != Change::Deleted).then(|| event.object.bytes.to_vec()),
        }
    }
}

fn read(row: &sqlx::sqlite::SqliteRow) -> Result<Row, sqlx::Error> {
    Ok(Row {
        revision: row.try_get::<i64, _>(0)?.cast_unsigned(),
        resource: row.try_get(1)?,
        namespace: row.try_get(2)?,
        name: row.try_get(3)?,
        object: row.try_get(4)?,
    })
}
