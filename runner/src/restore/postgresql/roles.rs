//! What is of the whole server: roles, and tablespaces.

use std::{collections::HashSet, io};

use api::DumpFormat;

use super::server::{MAINTENANCE, MOST_OUTPUT, Server, broken};
use crate::{child::Fed, failure::Failure, said::errors};

impl Server<'_> {
    /// Roles and tablespaces that are not there. Those that are keep their passwords and what they may.
    pub(super) fn globals(&self) -> Result<Vec<String>, Failure> {
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
        Ok(errors(hear.iter()))
    }
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
}
