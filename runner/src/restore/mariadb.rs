//! Into MariaDB. Databases of it cannot be renamed: what was not there before is removed again when a restore fails; what is replaced is
//! gone when its successor begins, and a restore that fails then says so. What was there and empty is nobody's to remove: others may have
//! put something into it by then.

mod filling;
mod sections;
mod users;

use std::collections::BTreeSet;

use api::{
    DumpFormat, ExistingPolicy,
    conditions::reasons,
    runner::{Restored, UNTOUCHED},
};

use super::{Work, exists};
use crate::{
    child::Fed,
    failure::Failure,
    options,
    programs::{self, Program},
};
use filling::{Begun, Filling};
use sections::Names;

struct Server<'w> {
    work: &'w Work,
    client: Program,
}

/// What is there of a database that is to be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Nothing,
    /// And nobody wants it replaced.
    Empty,
    /// It gives way, whatever is in it.
    Replaced,
}

const MOST_OUTPUT: u64 = 16 << 20;

pub(super) fn restore(work: &Work) -> Result<Restored, Failure> {
    let (server, file, wanted) = ready(work).map_err(Failure::untouched)?;
    server.may_be(&wanted).and_then(|()| work.go_on()).map_err(Failure::untouched)?;
    let mut restored = Restored::default();
    work.told.step("restoring");
    let mut filling = Filling::new(&server, &wanted);
    restored.bytes = match filling.fill(file) {
        Ok(bytes) => bytes,
        Err(failure) => {
            let target = server.left(&filling.begun);
            return Err(failure.leaves(target));
        }
    };
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
        let mut names = Names::default();
        self.work.copy(path, &mut names)?;
        let found = names.found;
        if self.work.databases.is_empty() {
            return Ok(found);
        }
        match self.work.databases.iter().find(|name| !found.contains(*name)) {
            Some(name) => {
                let message = format!("the copy has no database {name}");
                Err(Failure::new(reasons::NOT_FOUND, message).leaves(UNTOUCHED))
            }
            None => Ok(self.work.databases.iter().cloned().collect()),
        }
    }

    /// Whether all may be restored now: it is asked again of each when it begins.
    fn may_be(&self, wanted: &BTreeSet<String>) -> Result<(), Failure> {
        let mut in_the_way = Vec::new();
        for name in wanted {
            if self.there(name)?.is_none() {
                in_the_way.push(name.clone());
            }
        }
        if in_the_way.is_empty() { Ok(()) } else { Err(exists(&in_the_way, "is there already")) }
    }

    /// None: it is in the way.
    fn there(&self, name: &str) -> Result<Option<There>, Failure> {
        let literal = literal(name);
        let sql = format!("SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = {literal};");
        if self.ask(&sql)?.trim() == "0" {
            return Ok(Some(There::Nothing));
        }
        Ok(match self.work.existing {
            ExistingPolicy::Replace => Some(There::Replaced),
            ExistingPolicy::IfEmpty if self.is_empty(name)? => Some(There::Empty),
            ExistingPolicy::IfEmpty | ExistingPolicy::Never => None,
        })
    }

    fn is_empty(&self, name: &str) -> Result<bool, Failure> {
        let count = |from: &str, column: &str| {
            format!("(SELECT COUNT(*) FROM information_schema.{from} WHERE {column} = {})", literal(name))
        };
        let sql = format!(
            "SELECT {} + {} + {};",
            count("tables", "table_schema"),
            count("routines", "routine_schema"),
            count("events", "event_schema")
        );
        Ok(self.ask(&sql)?.trim() == "0")
    }

    /// Removes what a restore that failed has made, and says in what state the rest is.
    fn left(&self, begun: &[Begun]) -> String {
        let of = |there: There| begun.iter().filter(move |one| one.there == there).map(|one| one.name.as_str());
        let still = of(There::Nothing)
            .filter(|name| self.ask(&format!("DROP DATABASE IF EXISTS {};", quoted(name))).is_err())
            .collect::<Vec<_>>();
        let replaced = of(There::Replaced).collect::<Vec<_>>();
        let touched = of(There::Empty).filter(|name| !self.is_empty(name).unwrap_or(false)).collect::<Vec<_>>();
        let said = [
            (replaced, "was to be replaced, and is gone or restored in part: restore it again"),
            (
                touched,
                "was there, and empty: it has what was restored until then, and all that others have put into it",
            ),
            (still, "is restored in part, and could not be removed again"),
        ];
        let said: Vec<String> = said
            .into_iter()
            .filter(|(names, _)| !names.is_empty())
            .map(|(names, what)| format!("{} {what}", names.join(", ")))
            .collect();
        if said.is_empty() { "as it was".to_owned() } else { said.join("; ") }
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
            // A statement is rows.
            "--loose-skip-print-query-on-error",
            // Nothing waits longer for somebody else's lock.
            "--init-command=SET SESSION lock_wait_timeout=60, SESSION innodb_lock_wait_timeout=60",
        ]);
        Ok(command)
    }

    fn ask(&self, sql: &str) -> Result<String, Failure> {
        Fed::told(self.command()?, sql, MOST_OUTPUT).map_err(|error| Failure::new(reasons::TOOL_FAILED, error))
    }
}

/// Whether that is what the client has said.
fn says(failure: &Failure, code: u16) -> bool {
    failure.message.contains(&format!("ERROR {code} "))
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// Hexadecimal, whatever `sql_mode` says of backslashes; as text, to be compared with names.
fn literal(text: &str) -> String {
    let hex = text.bytes().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    format!("CONVERT(X'{hex}' USING utf8mb4)")
}
