//! What an archive of `pg_dump` says of its database: how it is made, and what is set for it.

use api::DumpFile;

use super::server::{MAINTENANCE, MOST_OUTPUT, Server, broken, failed};
use crate::{child::Fed, failure::Failure};

impl Server<'_> {
    /// How the database of an archive is made, and what else is said of it.
    pub(super) fn described(&self, file: &DumpFile) -> Result<Described, Failure> {
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
pub(super) struct Described {
    /// All that follows its name in `CREATE DATABASE`.
    pub(super) create: Option<String>,
    /// Its owner, its grants, its settings.
    pub(super) more: String,
}

/// A younger program says so, which does not know yet that it speaks to a server older than 17.
const TOO_NEW: &str = "SET transaction_timeout = 0;";

/// `CREATE DATABASE shop WITH TEMPLATE = …;` apart from the rest; who connects is our affair.
fn describe(sql: &str) -> Described {
    let (mut create, mut more) = (None, String::new());
    for line in sql.lines() {
        match line.strip_prefix("CREATE DATABASE ").and_then(|rest| rest.split_once(" WITH ")) {
            Some((_, rest)) => create = Some(format!("WITH {rest}")),
            None if line.starts_with('\\') || line.starts_with("CREATE DATABASE ") || line == TOO_NEW => {}
            None => more.extend([line, "\n"]),
        }
    }
    Described { create, more }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_database_is_made_is_told_from_what_is_said_of_it() {
        let sql = "SET x = 1;\nCREATE DATABASE \"a b\" WITH TEMPLATE = template0 ENCODING = 'UTF8' LOCALE = 'C';\n\
            ALTER DATABASE \"a b\" OWNER TO admin;\n\\connect \"a b\"\nALTER DATABASE \"a b\" SET work_mem TO '8MB';\n";
        let described = describe(sql);
        assert_eq!(described.create.as_deref(), Some("WITH TEMPLATE = template0 ENCODING = 'UTF8' LOCALE = 'C';"));
        assert!(!described.more.contains("connect") && described.more.contains("work_mem"));
    }
}
