//! Into PostgreSQL: each database is made under a name of our own, filled by `pg_restore`, and takes its name when all are whole.
//! A restore that fails, or is killed, leaves what was there, and at most databases of ours, which the next restore removes.

use std::{collections::HashSet, io, process::Command, time::Duration};

use api::{DumpFile, DumpFormat, ExistingPolicy, conditions::reasons, runner::Restored};

use super::{Work, exists, undisturbed};
use crate::{
    child::Fed,
    failure::Failure,
    options,
    programs::{self, Program},
};

/// Programs of the copy's version or later, and a way to ask the server.
struct Server<'w> {
    work: &'w Work,
    psql: Program,
    restore: Program,
}

/// One database that is being restored.
struct Coming<'w> {
    name: String,
    file: &'w DumpFile,
    /// What it is called until it is whole.
    until_then: String,
    /// What is called so now gives way, under this name.
    old: Option<String>,
    /// Its owner, grants and settings, when it is whole.
    more: String,
}

/// Databases of ours that are not whole, or not needed any more.
const OURS: &str = "stillpoint-restore-";
/// To talk to: whoever restores `postgres` must not be in it.
const MAINTENANCE: &str = "template1";
const MOST_OUTPUT: u64 = 16 << 20;
/// Sessions that come again and again are ended so often before a database is renamed.
const RENAMES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(250);
/// Nothing waits longer for somebody else's lock.
const LOCK_WAIT: &str = "-c lock_timeout=60s";
/// What a restore leaves that failed before databases took their names.
const BUT_FOR_ROLES: &str = "as it was, but for roles that were not there before";
/// What a database is empty of: everything but what the server put there. Objects of extensions are the extension's.
const IS_EMPTY: &str = "SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_') \
    + (SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
    WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_') + (SELECT count(*) FROM pg_largeobject_metadata);";

pub(super) fn restore(work: &Work) -> Result<Restored, Failure> {
    let server = Server::of(work).map_err(Failure::untouched)?;
    let mut coming = server.coming().map_err(Failure::untouched)?;
    let mut restored = Restored::default();
    if work.globals {
        restored.warnings = server.globals().map_err(|failure| failure.leaves(BUT_FOR_ROLES))?;
    }
    let filled = server.fill(&mut coming, &mut restored).and_then(|()| undisturbed());
    let done = filled.and_then(|()| server.swap(&coming));
    if let Err(failure) = done {
        for one in &coming {
            server.drop(&one.until_then).ok();
        }
        let target = failure.target.clone().unwrap_or_else(|| BUT_FOR_ROLES.to_owned());
        return Err(failure.leaves(target));
    }
    for old in coming.iter().filter_map(|one| one.old.as_ref()) {
        if let Err(failure) = server.drop(old) {
            restored
                .warnings
                .push(format!("the database that was replaced is still there as {old}: {}", failure.message));
        }
    }
    restored.databases = coming.into_iter().map(|one| one.name).collect();
    Ok(restored)
}

impl<'w> Server<'w> {
    /// The target, if it is not older than the copy.
    fn of(work: &'w Work) -> Result<Self, Failure> {
        let major =
            |text: &str| text.split(|c: char| !c.is_ascii_digit()).find_map(|part| part.parse().ok()).unwrap_or(0);
        let needed = major(&work.copy.version);
        let (psql, restore) = (programs::find(&["psql"], needed)?, programs::find(&["pg_restore"], needed)?);
        let server = Self { work, psql, restore };
        work.told.step("looking at the target");
        let here = major(&server.one(MAINTENANCE, "SHOW server_version;")?);
        if here < needed {
            let message = format!(
                "the copy is of PostgreSQL {needed}, and the target is {here}: restore it into {needed} or later"
            );
            return Err(Failure::new(reasons::UNSUPPORTED_VERSION, message));
        }
        server.tidy_up()?;
        Ok(server)
    }

    /// What is to be restored, if it may be.
    fn coming(&self) -> Result<Vec<Coming<'w>>, Failure> {
        let work = self.work;
        let there: HashSet<String> = self.rows(MAINTENANCE, "SELECT datname FROM pg_database;")?.into_iter().collect();
        let files = work.wanted(DumpFormat::PostgreSQLCustom);
        for wanted in &work.databases {
            if !files.iter().any(|file| file.database.as_ref() == Some(wanted)) {
                let message = format!("the copy has no database {wanted}");
                return Err(Failure::new(reasons::NOT_FOUND, message).leaves("as it was: nothing was touched"));
            }
        }
        let (mut coming, mut in_the_way) = (Vec::new(), Vec::new());
        for (number, file) in files.into_iter().enumerate() {
            let Some(name) = file.database.clone() else { continue };
            let mut old = None;
            if there.contains(&name) {
                // Every new server has one, which nobody has put anything into.
                let is_empty = self.one(&name, IS_EMPTY)? == "0";
                let may_go = match work.existing {
                    ExistingPolicy::Never => is_empty && name == "postgres",
                    ExistingPolicy::IfEmpty => is_empty,
                    ExistingPolicy::Replace => true,
                };
                if !may_go {
                    in_the_way.push(name.clone());
                }
                old = Some(self.ours("old", number));
            }
            coming.push(Coming { until_then: self.ours("new", number), name, file, old, more: String::new() });
        }
        if in_the_way.is_empty() { Ok(coming) } else { Err(exists(&in_the_way, "is there already")) }
    }

    /// No other restore's.
    fn ours(&self, what: &str, number: usize) -> String {
        let id = &self.work.source.entry().id;
        let now = jiff::Timestamp::now().as_millisecond();
        format!("{OURS}{}-{now:x}-{what}-{number}", id.get(..8).unwrap_or(id))
    }

    /// Databases of restores that were killed; not of one that goes on.
    fn tidy_up(&self) -> Result<(), Failure> {
        let sql = format!(
            "SELECT datname FROM pg_database d WHERE datname LIKE '{OURS}%-new-%' \
             AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datname = d.datname);"
        );
        for left in self.rows(MAINTENANCE, &sql)? {
            self.drop(&left)?;
        }
        Ok(())
    }

    /// Roles and tablespaces that are not there. Those that are keep their passwords and what they may.
    fn globals(&self) -> Result<Vec<String>, Failure> {
        let Some(file) = self.work.copy.files.iter().find(|file| file.format == DumpFormat::PostgreSQLGlobals) else {
            return Ok(Vec::new());
        };
        self.work.told.step("restoring roles");
        let sql = self.work.text(&file.path)?;
        let there: HashSet<String> =
            self.rows(MAINTENANCE, "SELECT quote_ident(rolname) FROM pg_roles;")?.into_iter().collect();
        let mut command = self.program(&self.psql, MAINTENANCE)?;
        // Errors are told, and no reason to stop.
        command.args(["--no-psqlrc", "--quiet", "--output=/dev/null", "--file=-"]);
        let (told, hear) = std::sync::mpsc::channel();
        let on_line = Box::new(move |line: &str| drop(told.send(line.to_owned())));
        let mut fed = Fed::spawn(command, on_line).map_err(broken)?;
        io::Write::write_all(&mut fed, missing_roles(&sql, &there).as_bytes()).ok();
        fed.finish(MOST_OUTPUT).map_err(broken)?;
        Ok(hear.iter().filter(|line| line.contains("ERROR")).take(16).collect())
    }

    /// Makes and fills them all, under names of ours.
    fn fill(&self, coming: &mut [Coming<'_>], restored: &mut Restored) -> Result<(), Failure> {
        for one in coming {
            self.work.go_on()?;
            self.work.told.step(&format!("restoring {}", one.name));
            let Described { create, more } = self.described(one.file)?;
            one.more = more;
            let create = create.ok_or_else(|| {
                Failure::new(reasons::DAMAGED, format!("{} does not say how its database is made", one.file.path))
            })?;
            self.run(MAINTENANCE, &format!("CREATE DATABASE {} {create}", quoted(&one.until_then)))?;
            let mut command = self.program(&self.restore, &one.until_then)?;
            command.args(["--exit-on-error", "--no-password", "--dbname", &one.until_then]);
            let mut fed = Fed::spawn(command, Box::new(|_| {})).map_err(broken)?;
            let copied = self.work.copy(&one.file.path, &mut fed);
            // Why it would read no more is what it says at its end.
            fed.finish(MOST_OUTPUT).map_err(|error| failed(&one.name, &error))?;
            restored.bytes += copied?;
            self.work.go_on()?;
            self.run(&one.until_then, "ANALYZE;")?;
        }
        Ok(())
    }

    /// Each takes its name. If one cannot, all have again what they had.
    fn swap(&self, coming: &[Coming<'_>]) -> Result<(), Failure> {
        self.work.told.step("taking their names");
        let mut done: Vec<(String, String)> = Vec::new();
        for one in coming {
            let steps = one
                .old
                .iter()
                .map(|old| (one.name.clone(), old.clone()))
                .chain([(one.until_then.clone(), one.name.clone())]);
            for (from, to) in steps {
                if let Err(failure) = self.rename(&from, &to) {
                    let back = done
                        .iter()
                        .rev()
                        .map(|(from, to)| self.rename(to, from).err().map(|_| format!("{from} is called {to}")));
                    let wrong: Vec<String> = back.flatten().collect();
                    return Err(if wrong.is_empty() {
                        failure
                    } else {
                        failure.leaves(format!("half renamed: {}", wrong.join(", ")))
                    });
                }
                done.push((from, to));
            }
        }
        for one in coming {
            // By its name now: who owns it, who may connect, what is set for it.
            if let Err(failure) = self.run(MAINTENANCE, &one.more) {
                return Err(
                    failure.leaves(format!("restored; {} does not have its owner, grants and settings yet", one.name))
                );
            }
        }
        Ok(())
    }

    /// Sessions in the way are ended: again, for they may come again.
    fn rename(&self, from: &str, to: &str) -> Result<(), Failure> {
        let sql = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = {} AND pid <> pg_backend_pid();\n\
             ALTER DATABASE {} RENAME TO {};",
            literal(from),
            quoted(from),
            quoted(to)
        );
        let mut tries = 0;
        loop {
            match self.run(MAINTENANCE, &sql) {
                Err(failure) if tries < RENAMES && failure.message.contains("being accessed") => {
                    tries += 1;
                    std::thread::park_timeout(PAUSE);
                }
                // A session that broke off may have done it all the same.
                Err(_) if self.is_renamed(from, to) => return Ok(()),
                other => return other,
            }
        }
    }

    fn is_renamed(&self, from: &str, to: &str) -> bool {
        let there = self.rows(MAINTENANCE, "SELECT datname FROM pg_database;").unwrap_or_default();
        there.iter().any(|name| name == to) && !there.iter().any(|name| name == from)
    }

    fn drop(&self, database: &str) -> Result<(), Failure> {
        self.run(MAINTENANCE, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE);", quoted(database)))
    }

    /// How the database of an archive is made, and what else is said of it.
    fn described(&self, file: &DumpFile) -> Result<Described, Failure> {
        let list = self.archive(file, &["--list"])?;
        let of_database = |line: &&str| DATABASE_ENTRIES.iter().any(|entry| line.contains(entry));
        let entries: Vec<&str> = list.lines().filter(|line| !line.starts_with(';')).filter(of_database).collect();
        let path = tempfile::NamedTempFile::new().map_err(broken)?;
        std::fs::write(path.path(), entries.join("\n") + "\n").map_err(broken)?;
        let sql = self.archive(file, &["--create", "--use-list", &path.path().display().to_string(), "--file=-"])?;
        Ok(describe(&sql))
    }

    /// What `pg_restore` says of an archive; it reads no more of it than it needs.
    fn archive(&self, file: &DumpFile, arguments: &[&str]) -> Result<String, Failure> {
        let mut command = self.program(&self.restore, MAINTENANCE)?;
        command.args(arguments);
        let mut fed = Fed::spawn(command, Box::new(|_| {})).map_err(broken)?;
        self.work.copy(&file.path, &mut fed).ok();
        fed.finish(MOST_OUTPUT).map_err(|error| failed(&file.path, &error))
    }

    fn program(&self, program: &Program, database: &str) -> Result<Command, Failure> {
        let mut command = options::postgresql(&program.path, &self.work.member, &self.work.files).map_err(broken)?;
        command.env("PGDATABASE", database).env("PGAPPNAME", "stillpoint/restore").env("PGOPTIONS", LOCK_WAIT);
        Ok(command)
    }

    fn run(&self, database: &str, sql: &str) -> Result<(), Failure> {
        self.ask(database, sql).map(drop)
    }

    fn one(&self, database: &str, sql: &str) -> Result<String, Failure> {
        Ok(self.rows(database, sql)?.into_iter().next().unwrap_or_default())
    }

    /// One column. No name of a database or role holds the character that separates rows.
    fn rows(&self, database: &str, sql: &str) -> Result<Vec<String>, Failure> {
        Ok(self
            .ask(database, sql)?
            .split('\u{1e}')
            .map(|row| row.trim_end_matches('\n').to_owned())
            .filter(|row| !row.is_empty())
            .collect())
    }

    fn ask(&self, database: &str, sql: &str) -> Result<String, Failure> {
        let mut command = self.program(&self.psql, database)?;
        command.args([
            "--no-psqlrc",
            "--quiet",
            "--tuples-only",
            "--no-align",
            "--record-separator=\u{1e}",
            "--set=ON_ERROR_STOP=1",
            "--file=-",
        ]);
        Fed::told(command, sql, MOST_OUTPUT).map_err(|error| failed(database, &error))
    }
}

/// Of the list of an archive: what is said of the database itself (`pg_restore --list`).
const DATABASE_ENTRIES: [&str; 5] = [
    " DATABASE - ",
    " DATABASE PROPERTIES - ",
    " ACL - DATABASE ",
    " COMMENT - DATABASE ",
    " SECURITY LABEL - DATABASE ",
];

/// What an archive says of its database.
struct Described {
    /// All that follows its name in `CREATE DATABASE`.
    create: Option<String>,
    /// Its owner, its grants, its settings.
    more: String,
}

/// `CREATE DATABASE shop WITH TEMPLATE = …;` apart from the rest; who connects is our affair.
fn describe(sql: &str) -> Described {
    let (mut create, mut more) = (None, String::new());
    for line in sql.lines() {
        match line.strip_prefix("CREATE DATABASE ").and_then(|rest| rest.split_once(" WITH ")) {
            Some((_, rest)) => create = Some(format!("WITH {rest}")),
            None if line.starts_with('\\') || line.starts_with("CREATE DATABASE ") => {}
            None => more.extend([line, "\n"]),
        }
    }
    Described { create, more }
}

/// Without what is said of roles that are there already: they stay as they are. `pg_dumpall` begins each statement on a line of its own;
/// a value of several lines belongs to the one that it is in.
fn missing_roles(sql: &str, there: &HashSet<String>) -> String {
    let (mut kept, mut is_kept, mut is_open) = (String::new(), true, false);
    for line in sql.lines() {
        if !is_open {
            is_kept = role_of(line).is_none_or(|role| !there.contains(&role));
        }
        if is_kept {
            kept.extend([line, "\n"]);
        }
        is_open = goes_on(line, is_open);
    }
    kept
}

/// Whether a literal goes on at the end of a line. Quotes inside of it, and of names, are doubled.
fn goes_on(line: &str, is_open: bool) -> bool {
    let inside = line.chars().fold(is_open.then_some('\''), |inside, c| match (inside, c) {
        (None, '\'' | '"') => Some(c),
        (Some(quote), _) if quote == c => None,
        (inside, _) => inside,
    });
    inside == Some('\'')
}

/// The role, as it is quoted, that a statement makes or changes.
fn role_of(statement: &str) -> Option<String> {
    let rest = ["CREATE ROLE ", "ALTER ROLE "].iter().find_map(|verb| statement.strip_prefix(verb))?;
    Some(match rest.strip_prefix('"') {
        Some(inside) => {
            let end = inside.replace("\"\"", "\0\0").find('"').unwrap_or(inside.len());
            format!("\"{}\"", &inside[..end])
        }
        None => rest.split([' ', ';']).next().unwrap_or_default().to_owned(),
    })
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::new(reasons::TOOL_FAILED, format!("{what}: {error}"))
}

fn broken(error: io::Error) -> Failure {
    Failure::bug(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_that_are_there_keep_what_they_have() {
        let sql = "CREATE ROLE admin;\nALTER ROLE admin WITH SUPERUSER PASSWORD 'x';\nCREATE ROLE \"a \"\"b\";\n\
            ALTER ROLE \"a \"\"b\" WITH LOGIN;\nCREATE ROLE app;\nALTER ROLE app WITH LOGIN;\nGRANT app TO admin;\n";
        let there = HashSet::from(["admin".to_owned(), "\"a \"\"b\"".to_owned()]);
        assert_eq!(missing_roles(sql, &there), "CREATE ROLE app;\nALTER ROLE app WITH LOGIN;\nGRANT app TO admin;\n");
        let lines = "ALTER ROLE admin SET x TO 'two\nALTER ROLE app; it''s\nlines';\nCREATE ROLE app;\n";
        assert_eq!(missing_roles(lines, &there), "CREATE ROLE app;\n");
        let odd = "CREATE ROLE \"o'brien\";\nCREATE ROLE admin;\nCREATE ROLE app;\n";
        assert_eq!(missing_roles(odd, &there), "CREATE ROLE \"o'brien\";\nCREATE ROLE app;\n");
    }

    #[test]
    fn how_a_database_is_made_is_told_from_what_is_said_of_it() {
        let sql = "SET x = 1;\nCREATE DATABASE \"a b\" WITH TEMPLATE = template0 ENCODING = 'UTF8' LOCALE = 'C';\n\
            ALTER DATABASE \"a b\" OWNER TO admin;\n\\connect \"a b\"\nALTER DATABASE \"a b\" SET work_mem TO '8MB';\n";
        let described = describe(sql);
        assert_eq!(described.create.as_deref(), Some("WITH TEMPLATE = template0 ENCODING = 'UTF8' LOCALE = 'C';"));
        assert!(!described.more.contains("connect") && described.more.contains("work_mem"));
    }
}
