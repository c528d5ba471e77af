//! Which program of which version: a server is dumped by the program that came with it, or by a younger one, never by an older.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use api::conditions::reasons;

use crate::{child::Stream, failure::Failure};

/// A program that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    /// As it names itself.
    pub(crate) says: String,
    pub(crate) major: u32,
}

/// Directories to look into before `PATH`, separated by colons.
pub(crate) const TOOLS: &str = "STILLPOINT_TOOLS";

/// The `names` are the same program's, the better one first. Of those that are not older than `server` the oldest is taken.
pub(crate) fn find(names: &[&str], server: u32) -> Result<Program, Failure> {
    let listed = |variable: &str| std::env::var_os(variable).unwrap_or_default();
    let (tools, path) = (listed(TOOLS), listed("PATH"));
    let packaged = ["/usr/lib/postgresql", "/usr/pgsql"]
        .iter()
        .flat_map(|base| [format!("{base}/{server}/bin"), format!("{base}-{server}/bin")].map(PathBuf::from));
    let directories: Vec<PathBuf> =
        std::env::split_paths(&tools).chain(packaged).chain(std::env::split_paths(&path)).collect();
    let mut found: Vec<Program> =
        directories.iter().flat_map(|directory| names.iter().filter_map(|name| look(&directory.join(name)))).collect();
    found.sort_by_key(|program| program.major);
    if let Some(at) = found.iter().position(|program| program.major >= server) {
        return Ok(found.swap_remove(at));
    }
    let why = match found.last() {
        Some(program) => {
            format!("{} is {}, older than the server, which is {server}", program.path.display(), program.says)
        }
        None => format!("{} is not there", names[0]),
    };
    Err(Failure::new(
        reasons::TOOL_MISSING,
        format!("{why}: install {} {server} or later, or name its directory in {TOOLS}", names[0]),
    ))
}

fn look(path: &Path) -> Option<Program> {
    if !path.is_file() {
        return None;
    }
    let mut command = Command::new(path);
    command.arg("--version");
    let says = String::from_utf8(Stream::all(command, 4096).ok()?).ok()?.lines().next()?.trim().to_owned();
    // MariaDB's name themselves by where they are.
    let says = says.strip_prefix(&format!("{}/", path.parent()?.display())).unwrap_or(&says).to_owned();
    Some(Program { path: path.to_owned(), major: major(&says)?, says })
}

/// `pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` → 15; `mariadb-dump  Ver 10.19 Distrib 10.11.14-MariaDB` → 10;
/// `mariadb-dump from 11.4.5-MariaDB, client 10.19` → 11.
fn major(says: &str) -> Option<u32> {
    let after = |word: &str| says.split_once(word).map(|(_, rest)| rest);
    let number = after("Distrib ").or(after(" from ")).or(after("(PostgreSQL) "))?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_programs_say_them() {
        for (says, wanted) in [
            ("pg_dump (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)", Some(15)),
            ("pg_dump (PostgreSQL) 18beta1", Some(18)),
            ("mariadb-dump  Ver 10.19 Distrib 10.11.14-MariaDB, for debian-linux-gnu (x86_64)", Some(10)),
            ("mariadb-dump from 11.4.5-MariaDB, client 10.19 for linux-systemd (x86_64)", Some(11)),
            ("nonsense", None),
        ] {
            assert_eq!(major(says), wanted, "{says}");
        }
    }
}
