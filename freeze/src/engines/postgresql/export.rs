//! One still point of a server for whoever reads it by SQL: a snapshot of each database, exported, so that `pg_dump` sees what we saw
//! (manual, 9.28.5 "Snapshot Synchronization Functions"). Blocks nobody.
//!
//! Every commit that was acknowledged before `frozen_at` is in all of the snapshots, and nothing that began after `thawed_at` is in any.
//! The databases of one server have an instant each, between these two.

use std::time::Duration;

use api::{Position, PostgresqlPosition};
use tokio::time::{Instant, sleep};

use super::connect::{Link, literal, text};
use crate::{
    driver::{Member, Moment, ServerInfo},
    error::Error,
};

/// Snapshots that can be imported as long as this lives and is kept. Dropped, they are gone; who imported one keeps it.
#[derive(Debug)]
pub struct Export {
    pub server: ServerInfo,
    pub position: Position,
    /// Stamped before the first snapshot was taken.
    pub frozen_at: Moment,
    /// Stamped after the last.
    pub thawed_at: Moment,
    pub databases: Vec<Exported>,
}

/// One database's snapshot.
#[derive(Debug)]
pub struct Exported {
    pub database: String,
    /// For `pg_dump --snapshot`, or `SET TRANSACTION SNAPSHOT`.
    pub snapshot: String,
    link: Link,
}

/// The server ends a session of ours after so long a silence.
const IDLE: Duration = Duration::from_secs(60);
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Of one heartbeat.
const ANSWER: Duration = Duration::from_secs(10);

const EXPORT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
    SELECT pg_export_snapshot(), CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END";

/// Of the databases that the member names, or all that accept connections but those whose names begin with `but`.
pub async fn export(member: &Member, but: &str, deadline: Instant) -> Result<Export, Error> {
    let mut first = Link::open(member, None, None, IDLE, deadline).await?;
    first.hello.supported()?;
    let server = first.hello.server();
    let names = match member.databases.as_slice() {
        [] => {
            let sql = format!(
                "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate AND NOT starts_with(datname, {}) ORDER BY 1",
                literal(but)
            );
            let rows = first.run(deadline, "listing databases", &sql).await?;
            rows.iter().filter_map(|row| text(row, 0)).collect()
        }
        names => names.to_vec(),
    };
    first.close(deadline).await;
    // Connecting is slow, and done before; the snapshots are taken one right after the other.
    let mut links = Vec::new();
    for database in names {
        let link = Link::open(member, Some(&database), None, IDLE, deadline).await?;
        links.push((database, link));
    }
    let frozen_at = Moment::now();
    let mut databases = Vec::new();
    let mut lsn = None;
    for (database, mut link) in links {
        let doing = "exporting a snapshot";
        let rows = link.run(deadline, doing, EXPORT).await?;
        let row = rows.first();
        let snapshot = row.and_then(|row| text(row, 0));
        let snapshot = snapshot.ok_or_else(|| Error::Server { doing: doing.into(), detail: "no snapshot".into() })?;
        lsn = row.and_then(|row| text(row, 1)).or(lsn);
        databases.push(Exported { database, snapshot, link });
    }
    let thawed_at = Moment::now();
    let timeline = server.incarnation.timeline.unwrap_or_default();
    let position = PostgresqlPosition { lsn: lsn.unwrap_or_default(), timeline, ..PostgresqlPosition::default() };
    Ok(Export { server, position: Position::Postgresql(position), frozen_at, thawed_at, databases })
}

impl Exported {
    /// Keeps it until this is dropped; ends only with the error that lost it.
    pub async fn keep(&mut self) -> Error {
        loop {
            sleep(HEARTBEAT).await;
            if let Err(error) = self.link.run(Instant::now() + ANSWER, "keeping a snapshot", "SELECT 1").await {
                return error;
            }
        }
    }
}
