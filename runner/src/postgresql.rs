//! PostgreSQL: snapshots exported by sessions of ours, read by its own `pg_dump`, one archive for each database; and what is of the
//! whole server by `pg_dumpall --globals-only`.

use std::{
    io::{self, Cursor, Read},
    process::Command,
    sync::Arc,
};

use api::{DatabaseCopy, DumpFile, DumpFormat, Engine, Level, Role, Verdict};
use freeze::{
    Member,
    engines::postgresql::{Exported, export},
};
use repository::{Source, StoredFile};
use tokio::{
    sync::oneshot,
    time::{Duration, Instant},
};

use crate::{
    child::Stream,
    dump::{Described, LOOK, Ready},
    failure::Failure,
    options::{self, Files},
    programs::{self, Program},
    report::Reports,
};

/// Databases of restores, that are not whole yet or not needed any more, are called so; they are not dumped.
pub(crate) const OURS: &str = "stillpoint-restore-";
/// How long `pg_dump` waits for a lock that some `ALTER TABLE` holds, before it gives up and the run is tried again.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// Of all roles and tablespaces.
const MOST_GLOBALS: u64 = 64 << 20;

pub(crate) async fn ready(
    database: &str,
    member: Member,
    files: &Arc<Files>,
    reports: &Reports,
) -> Result<Ready, Failure> {
    let exported =
        export(&member, OURS, Instant::now() + LOOK).await.map_err(|error| Failure::about(database, &error))?;
    let server = exported.server;
    let major =
        server.version.split(|c: char| !c.is_ascii_digit()).next().and_then(|major| major.parse().ok()).unwrap_or(0);
    let dump = programs::find(&["pg_dump"], major)?;
    let dumpall = programs::find(&["pg_dumpall"], major)?;
    reports.log(format!(
        "{database}: {} of PostgreSQL {}, {} databases at {}",
        dump.says,
        server.version,
        exported.databases.len(),
        exported.frozen_at.at
    ));
    let mut sources = vec![globals(database, &dumpall, &member, files)];
    let mut inside = Vec::new();
    for one in exported.databases {
        let path = format!("{database}/{}.dump", file_name(&one.database));
        inside.push((path.clone(), one.database.clone()));
        sources.push(archive(path, &dump, &member, files, one));
    }
    let (position, frozen_at, thawed_at) = (exported.position, exported.frozen_at.at, exported.thawed_at.at);
    let many = inside.len() > 1;
    let name = database.to_owned();
    let describe = move |stored: &[StoredFile]| {
        let files = stored.iter().filter_map(|file| describe_file(&name, &inside, file)).collect();
        let replica = server.role == Role::Replica;
        let said =
            if replica { "one exported snapshot of a replica: what it had replayed" } else { "one exported snapshot" };
        let apart = (thawed_at.duration_since(frozen_at)).as_millis();
        Described {
            copy: DatabaseCopy {
                database: name,
                engine: Engine::PostgreSQL,
                version: server.version,
                tool: dump.says,
                dump_tool: None,
                position: Some(position),
                files,
            },
            frozen_at,
            thawed_at,
            verdict: Verdict::Application,
            level: Some(if replica { Level::Recoverable } else { Level::Durable }),
            reason: if many { format!("{said} for each database, all within {apart} ms") } else { said.to_owned() },
            warnings: Vec::new(),
        }
    };
    Ok(Ready { sources, describe: Box::new(describe) })
}

fn describe_file(database: &str, inside: &[(String, String)], file: &StoredFile) -> Option<DumpFile> {
    let (format, of) = match inside.iter().find(|(path, _)| *path == file.path) {
        Some((_, of)) => (DumpFormat::PostgreSQLCustom, Some(of.clone())),
        None if file.path == globals_path(database) => (DumpFormat::PostgreSQLGlobals, None),
        None => return None,
    };
    Some(DumpFile { path: file.path.clone(), format, database: of, size: file.size, sha256: file.sha256.clone() })
}

fn globals_path(database: &str) -> String {
    format!("{database}/globals.sql")
}

/// Passwords of roles are for superusers to read; without them is better than not at all, and it is said in the file.
fn globals(database: &str, program: &Program, member: &Member, files: &Arc<Files>) -> Source {
    let (program, member, files) = (program.clone(), member.clone(), Arc::clone(files));
    let open = move || {
        let run = |more: &[&str]| {
            let mut command = options::postgresql(&program.path, &member, &files)?;
            command.args(["--globals-only", "--no-password"]).args(more);
            command.args(["--lock-wait-timeout", &LOCK_WAIT.as_millis().to_string()]);
            if let Some(first) = member.databases.first() {
                command.args(["--database", first]);
            }
            Stream::all(command, MOST_GLOBALS)
        };
        let sql = run(&[]).or_else(|first| run(&["--no-role-passwords"]).map_err(|_| first))?;
        Ok(Box::new(Cursor::new(sql)) as Box<dyn Read + Send>)
    };
    Source { path: globals_path(database), open: Box::new(open) }
}

/// The snapshot is kept until its program has read from it.
fn archive(path: String, program: &Program, member: &Member, files: &Arc<Files>, mut exported: Exported) -> Source {
    let (imported, until) = oneshot::channel::<()>();
    let (snapshot, name) = (exported.snapshot.clone(), exported.database.clone());
    tokio::spawn(async move {
        tokio::select! {
            // What is lost is told by the program that wants it.
            error = exported.keep() => tracing::warn!(%error, "an exported snapshot is lost"),
            _ = until => {}
        }
    });
    let (program, member, files) = (program.clone(), member.clone(), Arc::clone(files));
    let open = move || {
        let mut command = options::postgresql(&program.path, &member, &files)?;
        dump_of(&mut command, &name, &snapshot);
        let stream = Stream::spawn(command, Box::new(|_| {}))?;
        Ok(Box::new(Imported { stream, imported: Some(imported) }) as Box<dyn Read + Send>)
    };
    Source { path, open: Box::new(open) }
}

/// The database is named by the environment: as an argument it would be read as a connection string.
fn dump_of(command: &mut Command, database: &str, snapshot: &str) {
    command.env("PGDATABASE", database);
    command.args(["--format=custom", "--compress=0", "--no-password", "--snapshot", snapshot]);
    command.args(["--lock-wait-timeout", &LOCK_WAIT.as_millis().to_string()]);
}

/// The output of `pg_dump`: its first byte comes when it has read what is in the database, long after it has imported the snapshot.
struct Imported {
    stream: Stream,
    imported: Option<oneshot::Sender<()>>,
}

impl Read for Imported {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer)?;
        self.imported.take().map(|imported| imported.send(()));
        Ok(length)
    }
}

/// A file's name for a database of any name.
pub(crate) fn file_name(database: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let escaped = database.chars().map(|c| if plain(c) { c.to_string() } else { format!("%{:x}", u32::from(c)) });
    let name: String = escaped.collect();
    name.strip_prefix('.').map(|rest| format!("%2e{rest}")).unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_database_has_a_file_of_its_own() {
        let names = ["shop", "a/b", "..", ".hidden", "a b", "ä", "a%2fb", "-x", "Shop"];
        let mut files: Vec<String> = names.iter().map(|name| file_name(name)).collect();
        assert!(files.iter().all(|file| !file.contains('/') && !file.starts_with('.')), "{files:?}");
        files.sort();
        files.dedup();
        assert_eq!(files.len(), names.len());
    }
}
