//! The target as its own programs see it.

use std::{io, process::Command};

use api::conditions::reasons;

use super::super::Work;
use crate::{
    child::Fed,
    failure::Failure,
    options,
    programs::{self, Program},
};

/// Programs of the copy's version or later, and a way to ask the server.
pub(super) struct Server<'w> {
    pub(super) work: &'w Work,
    pub(super) psql: Program,
    pub(super) restore: Program,
}

/// To talk to: whoever restores `postgres` must not be in it.
pub(super) const MAINTENANCE: &str = "template1";
pub(super) const MOST_OUTPUT: u64 = 16 << 20;
/// Nothing waits longer for somebody else's lock.
const LOCK_WAIT: &str = "-c lock_timeout=60s";

impl<'w> Server<'w> {
    /// The target, if it is not older than the copy.
    pub(super) fn of(work: &'w Work) -> Result<Self, Failure> {
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
        Ok(server)
    }

    pub(super) fn drop(&self, database: &str) -> Result<(), Failure> {
        self.run(MAINTENANCE, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE);", quoted(database)))
    }

    pub(super) fn program(&self, program: &Program, database: &str) -> Result<Command, Failure> {
        let mut command = options::postgresql(&program.path, &self.work.member, &self.work.files).map_err(broken)?;
        command.env("PGDATABASE", database).env("PGAPPNAME", "stillpoint/restore").env("PGOPTIONS", LOCK_WAIT);
        Ok(command)
    }

    pub(super) fn run(&self, database: &str, sql: &str) -> Result<(), Failure> {
        self.ask(database, sql).map(drop)
    }

    pub(super) fn one(&self, database: &str, sql: &str) -> Result<String, Failure> {
        Ok(self.rows(database, sql)?.into_iter().next().unwrap_or_default())
    }

    /// One column. No name of a database or role holds the character that separates rows.
    pub(super) fn rows(&self, database: &str, sql: &str) -> Result<Vec<String>, Failure> {
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
            // With the SQLSTATE, which is the same in all languages: see `says`.
            "--set=VERBOSITY=verbose",
            "--file=-",
        ]);
        Fed::told(command, sql, MOST_OUTPUT).map_err(|error| failed(database, &error))
    }
}

/// Whether that is what the server has said (manual, appendix A).
pub(super) fn says(failure: &Failure, sqlstate: &str) -> bool {
    failure.message.contains(&format!(":  {sqlstate}: "))
}

pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

pub(super) fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::new(reasons::TOOL_FAILED, format!("{what}: {error}"))
}

pub(super) fn broken(error: io::Error) -> Failure {
    Failure::bug(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_is_known_by_its_number() {
        let said = "template1: psql ended with exit status: 3: psql:<stdin>:2: ERROR:  55006: database \"shop\" is being accessed";
        let failure = Failure::new(reasons::TOOL_FAILED, said);
        assert!(says(&failure, "55006") && !says(&failure, "42P04"));
    }
}
