//! Into MariaDB. Databases of it cannot be renamed: what was not there before is removed again when a restore fails; what is replaced is
//! gone when its successor begins, and a restore that fails then says so.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use api::{DumpFormat, ExistingPolicy, conditions::reasons, runner::Restored};

use super::{Work, exists};
use crate::{
    child::Fed,
    failure::Failure,
    options,
    programs::{self, Program},
};

struct Server<'w> {
    work: &'w Work,
    client: Program,
}

const MOST_OUTPUT: u64 = 16 << 20;

pub(super) fn restore(work: &Work) -> Result<Restored, Failure> {
    let (server, file, wanted) = ready(work).map_err(Failure::untouched)?;
    let (replaced, made) =
        server.may_be(&wanted).and_then(|found| work.go_on().map(|()| found)).map_err(Failure::untouched)?;
    let mut restored = Restored::default();
    let in_part =
        || format!("{} were to be replaced, and are gone or restored in part: restore them again", replaced.join(", "));
    for name in &replaced {
        server.ask(&format!("DROP DATABASE {};", quoted(name))).map_err(|failure| failure.leaves(in_part()))?;
    }
    work.told.step("restoring");
    match server.fill(file, &wanted) {
        Ok(bytes) => restored.bytes = bytes,
        Err(failure) => {
            let left: Vec<&String> = made
                .iter()
                .filter(|name| server.ask(&format!("DROP DATABASE IF EXISTS {};", quoted(name))).is_err())
                .collect();
            let target = match (replaced.is_empty(), left.is_empty()) {
                (true, true) => "as it was".to_owned(),
                (true, false) => format!("half restored: {left:?} could not be removed again"),
                (false, _) => in_part(),
            };
            return Err(failure.leaves(target));
        }
    }
    // Last: what is granted on a table that is not there is refused.
    if work.globals {
        restored.warnings = server.users().map_err(|failure| failure.leaves("restored, but for users and grants"))?;
    }
    restored.databases = wanted.into_iter().collect();
    Ok(restored)
}

/// The target's programs, the dump, and what of it is wanted.
fn ready(work: &Work) -> Result<(Server<'_>, &str, BTreeSet<String>), Failure> {
    let major = work.copy.version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    let server = Server { work, client: programs::find(&["mariadb", "mysql"], major)? };
    let file = work.copy.files.iter().find(|file| file.format == DumpFormat::MariaDBSql);
    let file = file.ok_or_else(|| Failure::new(reasons::NOT_FOUND, "the copy has no databases"))?;
    work.told.step("looking at the target");
    let wanted = server.wanted(&file.path)?;
    Ok((server, &file.path, wanted))
}

impl Server<'_> {
    /// The databases that are to be restored, if the dump has them.
    fn wanted(&self, path: &str) -> Result<BTreeSet<String>, Failure> {
        let mut names = Names { sections: Sections::default(), found: BTreeSet::new() };
        self.work.copy(path, &mut names)?;
        let found = names.found;
        if self.work.databases.is_empty() {
            return Ok(found);
        }
        match self.work.databases.iter().find(|name| !found.contains(*name)) {
            Some(name) => {
                let message = format!("the copy has no database {name}");
                Err(Failure::new(reasons::NOT_FOUND, message).leaves("as it was: nothing was touched"))
            }
            None => Ok(self.work.databases.iter().cloned().collect()),
        }
    }

    /// Which give way, and which are made anew.
    fn may_be(&self, wanted: &BTreeSet<String>) -> Result<(Vec<String>, Vec<String>), Failure> {
        let (mut replaced, mut made, mut in_the_way) = (Vec::new(), Vec::new(), Vec::new());
        for name in wanted {
            let (literal, count) = (literal(name), |from: &str, column: &str| {
                format!("(SELECT COUNT(*) FROM information_schema.{from} WHERE {column} = {})", literal(name))
            });
            let there =
                self.ask(&format!("SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = {literal};"))?;
            if there.trim() == "0" {
                made.push(name.clone());
                continue;
            }
            let sql = format!(
                "SELECT {} + {} + {};",
                count("tables", "table_schema"),
                count("routines", "routine_schema"),
                count("events", "event_schema")
            );
            let is_empty = self.ask(&sql)?.trim() == "0";
            match self.work.existing {
                ExistingPolicy::Replace if !is_empty => replaced.push(name.clone()),
                ExistingPolicy::Replace | ExistingPolicy::IfEmpty if is_empty => made.push(name.clone()),
                _ => in_the_way.push(name.clone()),
            }
        }
        if in_the_way.is_empty() { Ok((replaced, made)) } else { Err(exists(&in_the_way, "is there already")) }
    }

    /// Users and roles that are not there; what cannot be done is told.
    fn users(&self) -> Result<Vec<String>, Failure> {
        let Some(file) = self.work.copy.files.iter().find(|file| file.format == DumpFormat::MariaDBUsers) else {
            return Ok(Vec::new());
        };
        self.work.told.step("restoring users");
        let there = self.ask(ACCOUNTS)?.lines().map(str::to_owned).collect();
        let sql = missing_users(&self.work.text(&file.path)?, &there);
        let mut command = self.command()?;
        command.arg("--force");
        let (told, hear) = std::sync::mpsc::channel();
        let on_line = Box::new(move |line: &str| drop(told.send(line.to_owned())));
        let mut fed = Fed::spawn(command, on_line).map_err(Failure::bug)?;
        fed.write_all(sql.as_bytes()).ok();
        // With --force it ends badly for one error of many.
        fed.finish(MOST_OUTPUT).ok();
        Ok(hear.iter().filter(|line| line.starts_with("ERROR")).take(16).collect())
    }

    fn fill(&self, path: &str, wanted: &BTreeSet<String>) -> Result<u64, Failure> {
        let fed = Fed::spawn(self.command()?, Box::new(|_| {})).map_err(Failure::bug)?;
        let mut only = Only { sections: Sections::default(), wanted, to: fed };
        let copied = self.work.copy(path, &mut only);
        // Why it would read no more is what it says at its end.
        only.to.finish(MOST_OUTPUT).map_err(|error| Failure::new(reasons::TOOL_FAILED, error))?;
        copied
    }

    fn command(&self) -> Result<std::process::Command, Failure> {
        let mut command =
            options::mariadb(&self.client.path, &self.work.member, &self.work.files).map_err(Failure::bug)?;
        // Bytes are what they are, and no line of data is a command.
        command.args([
            "--batch",
            "--skip-column-names",
            "--binary-mode",
            "--max-allowed-packet=1G",
            "--default-character-set=utf8mb4",
            // Nothing waits longer for somebody else's lock.
            "--init-command=SET SESSION lock_wait_timeout=60, SESSION innodb_lock_wait_timeout=60",
        ]);
        Ok(command)
    }

    fn ask(&self, sql: &str) -> Result<String, Failure> {
        Fed::told(self.command()?, sql, MOST_OUTPUT).map_err(|error| Failure::new(reasons::TOOL_FAILED, error))
    }
}

/// Where in a dump of several databases we are. `mariadb-dump` writes three lines before each:
/// `--`, `` -- Current Database: `shop` ``, `--`.
#[derive(Debug, Default)]
struct Sections {
    line: Vec<u8>,
    /// The last two lines.
    before: [Vec<u8>; 2],
    current: Option<String>,
}

const CURRENT: &[u8] = b"-- Current Database: `";
/// A longer line begins no section.
const LONGEST: usize = 512;

impl Sections {
    /// `line`: with its end. Whether a section begins with it.
    fn next(&mut self, line: &[u8]) -> bool {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        let begins = bare == b"--" && self.before[0] == b"--" && self.before[1].starts_with(CURRENT);
        if begins {
            let name = self.before[1].get(CURRENT.len()..).and_then(|rest| rest.strip_suffix(b"`")).unwrap_or_default();
            self.current = Some(String::from_utf8_lossy(name).replace("``", "`"));
        }
        let bare = if bare.len() > LONGEST { Vec::new() } else { bare.to_vec() };
        self.before.swap(0, 1);
        self.before[1] = bare;
        begins
    }

    /// Whole lines of what came; the rest waits.
    fn lines(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend(part);
            if part.ends_with(b"\n") {
                lines.push(std::mem::take(&mut self.line));
            }
        }
        lines
    }
}

/// Hears which databases a dump has.
struct Names {
    sections: Sections,
    found: BTreeSet<String>,
}

impl Write for Names {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in self.sections.lines(bytes) {
            if self.sections.next(&line) {
                self.found.extend(self.sections.current.clone());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Passes on what is of the databases that are wanted, and what comes before the first.
struct Only<'w, W> {
    sections: Sections,
    wanted: &'w BTreeSet<String>,
    to: W,
}

impl<W: Write> Write for Only<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in self.sections.lines(bytes) {
            self.sections.next(&line);
            if self.sections.current.as_ref().is_none_or(|current| self.wanted.contains(current)) {
                self.to.write_all(&line)?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Every account and role, as `mariadb-dump` names them: in backticks where something is granted, in quotes where roles are set.
const ACCOUNTS: &str = "SET sql_mode = 'NO_BACKSLASH_ESCAPES'; \
    SELECT CONCAT('`', REPLACE(User, '`', '``'), '`@`', REPLACE(Host, '`', '``'), '`') FROM mysql.global_priv \
    UNION SELECT CONCAT(CHAR(39), User, CHAR(39), '@', CHAR(39), Host, CHAR(39)) FROM mysql.global_priv;";

/// Without what is granted to accounts that are there already, and their default roles: with a grant comes a password
/// (`SHOW GRANTS`, "IDENTIFIED BY PASSWORD"), and theirs stays as it is. A statement has one line.
fn missing_users(sql: &str, there: &BTreeSet<String>) -> String {
    let is_kept = |line: &&str| {
        let granted = line.split_once(" TO `").map(|(_, rest)| format!("`{rest}"));
        let set =
            [" FOR '", " USER '"].iter().find_map(|word| line.split_once(word)).map(|(_, rest)| format!("'{rest}"));
        let of_there =
            |text: &String| there.iter().any(|account| text.strip_prefix(account.as_str()).is_some_and(ends));
        !granted.iter().chain(&set).any(of_there)
    };
    sql.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect()
}

/// No name goes on there.
fn ends(rest: &str) -> bool {
    rest.is_empty() || rest.starts_with([' ', ';', ','])
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Hexadecimal, whatever `sql_mode` says of backslashes; as text, to be compared with names.
fn literal(text: &str) -> String {
    let hex = text.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    format!("CONVERT(X'{hex}' USING utf8mb4)")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "SET NAMES utf8mb4;\n--\n-- Current Database: `shop`\n--\n\nUSE `shop`;\nINSERT INTO t VALUES ('-- Current Database: `no`');\n\
        -- Current Database: `neither`\nx\n--\n-- Current Database: `a``b`\n--\n\nUSE `a``b`;\n";

    #[test]
    fn the_databases_of_a_dump_are_told_from_what_only_looks_so() {
        let mut names = Names { sections: Sections::default(), found: BTreeSet::new() };
        for byte in DUMP.bytes() {
            names.write_all(&[byte]).unwrap();
        }
        assert_eq!(names.found, BTreeSet::from(["shop".to_owned(), "a`b".to_owned()]));
    }

    #[test]
    fn accounts_that_are_there_keep_what_they_have() {
        let sql = "CREATE USER IF NOT EXISTS `app`@`%` IDENTIFIED BY PASSWORD '*1';\n\
            GRANT USAGE ON *.* TO `admin`@`%` IDENTIFIED BY PASSWORD '*2' WITH GRANT OPTION;\n\
            GRANT SELECT ON `a``b`.* TO `app`@`%`;\nGRANT `r` TO `ad``min`@`localhost`;\n\
            SET DEFAULT ROLE 'r' FOR 'admin'@'%';\nSET DEFAULT ROLE 'r' FOR 'app'@'%';\nGRANT USAGE ON *.* TO `admin`@`%x`;\n";
        let there = ["`admin`@`%`", "'admin'@'%'", "`ad``min`@`localhost`"].map(str::to_owned).into();
        let passed = missing_users(sql, &there);
        assert!(!passed.contains("*2") && !passed.contains("ad``min") && !passed.contains("FOR 'admin'"), "{passed}");
        assert_eq!(passed.lines().count(), 4, "{passed}");
    }

    #[test]
    fn only_what_is_wanted_passes_and_what_comes_before_all() {
        let wanted = BTreeSet::from(["a`b".to_owned()]);
        let mut only = Only { sections: Sections::default(), wanted: &wanted, to: Vec::new() };
        only.write_all(DUMP.as_bytes()).unwrap();
        let passed = String::from_utf8(only.to).unwrap();
        assert!(
            passed.contains("SET NAMES") && passed.contains("USE `a``b`") && !passed.contains("INSERT"),
            "{passed}"
        );
    }
}
