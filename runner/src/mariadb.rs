//! MariaDB: `mariadb-dump --single-transaction`, one stream for all databases, for they are of one transaction then; and users, roles
//! and grants by `--system=users`.
//!
//! When its transaction has begun is heard from the program, which tells what it does: after that it reads the first table.

use std::{
    io::{self, Cursor, Read},
    sync::{Arc, Mutex, PoisonError},
};

use api::{DatabaseCopy, DumpFile, DumpFormat, Engine, Level, MariadbPosition, Position, Role, Verdict};
use freeze::{
    Member,
    engines::mariadb::{Survey, survey},
};
use jiff::Timestamp;
use repository::{Source, StoredFile};
use tokio::time::Instant;

use crate::{
    child::Stream,
    dump::{Described, LOOK, Ready},
    failure::Failure,
    options::{self, Files},
    programs::{self, Program},
    report::{Reports, listed},
};

/// What is learnt while it is dumped.
#[derive(Clone, Debug, Default)]
struct Seen {
    begun: Option<Timestamp>,
    in_transaction: Option<Timestamp>,
    /// The first bytes, and then the last.
    ends: Vec<u8>,
    /// Why some users may be missing.
    users: Option<String>,
}

type Watched = Arc<Mutex<Seen>>;

/// The position in the binary log is among the first lines, that of its GTID among the last.
const END: usize = 64 << 10;
const MOST_USERS: u64 = 64 << 20;

pub(crate) async fn ready(
    database: &str,
    member: Member,
    files: &Arc<Files>,
    reports: &Reports,
) -> Result<Ready, Failure> {
    let survey = survey(&member, Instant::now() + LOOK).await.map_err(|error| Failure::about(database, &error))?;
    let Survey { server, log_bin, databases, not_transactional, .. } = survey;
    let major = server.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    let program = programs::find(&["mariadb-dump", "mysqldump"], major)?;
    reports.log(format!("{database}: {} of MariaDB {}, {} databases", program.says, server.version, databases.len()));
    let looked = Timestamp::now();
    let watched = Watched::default();
    let mut sources = vec![users(database, &program, &member, files, &watched)];
    if !databases.is_empty() {
        sources.push(all(database, &program, &member, files, &databases, log_bin, &watched));
    }
    let name = database.to_owned();
    let describe = move |stored: &[StoredFile]| {
        let seen = lock(&watched).clone();
        let now = Timestamp::now();
        let files = stored.iter().filter_map(|file| describe_file(&name, file)).collect();
        let replica = server.role == Role::Replica;
        let mut warnings = Vec::new();
        if let Some(why) = seen.users {
            warnings.push(format!("some users or grants may be missing: {why}"));
        }
        if !not_transactional.is_empty() {
            warnings.push(format!(
                "not held still, for their engines know no transactions: {}",
                listed(&not_transactional)
            ));
        }
        Described {
            copy: DatabaseCopy {
                database: name,
                engine: Engine::MariaDB,
                version: server.version,
                tool: program.says,
                dump_tool: None,
                position: position(&seen.ends),
                files,
            },
            // Of a server without databases only its users are read, some time between these.
            frozen_at: seen.begun.unwrap_or(looked),
            thawed_at: seen.in_transaction.unwrap_or(now),
            verdict: if not_transactional.is_empty() { Verdict::Application } else { Verdict::Partial },
            level: Some(if replica { Level::Recoverable } else { Level::Durable }),
            reason: if replica {
                "one transaction of a replica: what it had applied".to_owned()
            } else {
                "one transaction".to_owned()
            },
            warnings,
        }
    };
    Ok(Ready { sources, describe: Box::new(describe) })
}

fn describe_file(database: &str, file: &StoredFile) -> Option<DumpFile> {
    let format = match file.path.strip_prefix(database)? {
        "/databases.sql" => DumpFormat::MariaDBSql,
        "/users.sql" => DumpFormat::MariaDBUsers,
        _ => return None,
    };
    Some(DumpFile { path: file.path.clone(), format, database: None, size: file.size, sha256: file.sha256.clone() })
}

/// Users that are there already keep what they have.
fn users(database: &str, program: &Program, member: &Member, files: &Arc<Files>, watched: &Watched) -> Source {
    let (program, member, files, watched) = (program.clone(), member.clone(), Arc::clone(files), Arc::clone(watched));
    let open = move || {
        let run = |more: &[&str]| {
            let mut command = options::mariadb(&program.path, &member, &files)?;
            command.args(["--system=users", "--insert-ignore"]).args(more);
            Stream::all(command, MOST_USERS)
        };
        // It stops at an account that the server itself cannot show (one with a host's name, under `skip-name-resolve`).
        let sql = run(&[]).or_else(|error| {
            lock(&watched).users = Some(error.to_string());
            let mut command = options::mariadb(&program.path, &member, &files)?;
            command.args(["--system=users", "--insert-ignore", "--force"]);
            Stream::whatever(command, MOST_USERS)
        })?;
        Ok(Box::new(Cursor::new(sql)) as Box<dyn Read + Send>)
    };
    Source { path: format!("{database}/users.sql"), open: Box::new(open) }
}

fn all(
    database: &str,
    program: &Program,
    member: &Member,
    files: &Arc<Files>,
    databases: &[String],
    log_bin: bool,
    watched: &Watched,
) -> Source {
    let (program, member, files) = (program.clone(), member.clone(), Arc::clone(files));
    let (databases, watched) = (databases.to_vec(), Arc::clone(watched));
    let open = move || {
        let mut command = options::mariadb(&program.path, &member, &files)?;
        command.args(["--single-transaction", "--routines", "--events", "--triggers", "--hex-blob", "--verbose"]);
        command.args(["--default-character-set=utf8mb4", "--max-allowed-packet=1G"]);
        if log_bin {
            // Of the transaction itself: nothing is locked for it (MariaDB documentation, "Enhancements for START TRANSACTION
            // WITH CONSISTENT SNAPSHOT").
            command.args(["--master-data=2", "--gtid"]);
        }
        command.args(["--databases", "--"]).args(&databases);
        let heard = Arc::clone(&watched);
        lock(&watched).begun = Some(Timestamp::now());
        let on_line = move |line: &str| {
            if line.starts_with("-- Retrieving") || line.starts_with("-- Disconnecting") {
                lock(&heard).in_transaction.get_or_insert_with(Timestamp::now);
            }
        };
        let stream = Stream::spawn(command, Box::new(on_line))?;
        Ok(Box::new(Remembered { stream, watched, last: Vec::new() }) as Box<dyn Read + Send>)
    };
    Source { path: format!("{database}/databases.sql"), open: Box::new(open) }
}

/// The output of `mariadb-dump`, of which both ends are remembered.
struct Remembered {
    stream: Stream,
    watched: Watched,
    last: Vec<u8>,
}

impl Read for Remembered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        let mut seen = lock(&self.watched);
        let first = END.saturating_sub(seen.ends.len()).min(length);
        seen.ends.extend(&buffer[..first]);
        self.last.extend(&buffer[first..length]);
        if length == 0 {
            seen.ends.append(&mut self.last);
        } else if self.last.len() > END * 2 {
            self.last.drain(..self.last.len() - END);
        }
        Ok(length)
    }
}

/// As `--master-data=2` writes it: `-- CHANGE MASTER TO MASTER_LOG_FILE='b.000001', MASTER_LOG_POS=330;`, and with `--gtid`
/// `-- SET GLOBAL gtid_slave_pos='0-1-5';`.
fn position(ends: &[u8]) -> Option<Position> {
    let head = String::from_utf8_lossy(ends);
    let after = |word: &str| {
        head.lines().filter(|line| line.starts_with("-- ")).find_map(|line| Some(line.split_once(word)?.1))
    };
    let quoted = |word: &str| after(word).and_then(|rest| rest.split('\'').next()).map(str::to_owned);
    let position = MariadbPosition {
        binlog_file: quoted("MASTER_LOG_FILE='"),
        binlog_position: after("MASTER_LOG_POS=")
            .and_then(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()),
        gtid_binlog_pos: quoted("gtid_slave_pos='"),
        ..MariadbPosition::default()
    };
    (position != MariadbPosition::default()).then_some(Position::Mariadb(position))
}

fn lock(watched: &Watched) -> std::sync::MutexGuard<'_, Seen> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_position_is_read_from_the_comments_alone() {
        let head = b"-- MariaDB dump\n-- CHANGE MASTER TO MASTER_LOG_FILE='b.000012', MASTER_LOG_POS=330;\n\
            -- SET GLOBAL gtid_slave_pos='0-1-5';\nINSERT INTO t VALUES ('MASTER_LOG_POS=7');\n";
        let Some(Position::Mariadb(position)) = position(head) else { panic!() };
        assert_eq!((position.binlog_file.as_deref(), position.binlog_position), (Some("b.000012"), Some(330)));
        assert_eq!(position.gtid_binlog_pos.as_deref(), Some("0-1-5"));
        assert!(super::position(b"INSERT INTO t VALUES ('MASTER_LOG_POS=7');\n").is_none());
    }
}
