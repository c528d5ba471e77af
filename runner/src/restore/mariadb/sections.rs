//! Where in a dump of several databases we are. `mariadb-dump` writes three lines before each: `--`, `` -- Current Database: `shop` ``,
//! `--`; and once more before its views, which come last.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

#[derive(Debug, Default)]
pub(super) struct Sections {
    line: Vec<u8>,
    /// The last three lines.
    before: [Vec<u8>; 3],
    current: Option<String>,
    /// Lines of it that came.
    lines: usize,
}

/// What a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// With it a section begins.
    Begins,
    /// It makes the database of the section.
    MakesDatabase,
    /// It removes what the next one makes, if it is there.
    MakesRoom,
    Other,
}

const CURRENT: &[u8] = b"-- Current Database: `";
/// A longer line begins no section.
const LONGEST: usize = 512;
/// An empty one, and then the database is made.
const HEAD: usize = 2;
const ROOM: [&[u8]; 2] = [b"DROP TABLE IF EXISTS `", b"DROP SEQUENCE IF EXISTS `"];
const STRUCTURES: [&[u8]; 3] =
    [b"-- Table structure for ", b"-- Temporary table structure for ", b"-- Sequence structure for "];

impl Sections {
    /// The database that it is of; none before the first.
    pub(super) fn current(&self) -> Option<&String> {
        self.current.as_ref()
    }

    /// `line`: with its end.
    pub(super) fn next(&mut self, line: &[u8]) -> Line {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        let [first, second, third] = &self.before;
        let starts = |all: &[&[u8]], line: &[u8]| all.iter().any(|one| line.starts_with(one));
        self.lines += 1;
        let is = if bare == b"--" && second == b"--" && third.starts_with(CURRENT) {
            Line::Begins
        } else if self.lines <= HEAD && bare.starts_with(b"CREATE DATABASE ") {
            Line::MakesDatabase
        } else if starts(&ROOM, bare) && starts(&STRUCTURES, first) && second == b"--" && third.is_empty() {
            Line::MakesRoom
        } else {
            Line::Other
        };
        if is == Line::Begins {
            let name = third.get(CURRENT.len()..).and_then(|rest| rest.strip_suffix(b"`")).unwrap_or_default();
            self.current = Some(String::from_utf8_lossy(name).replace("``", "`"));
            self.lines = 0;
        }
        // What is long is not empty, either.
        let bare = if bare.len() > LONGEST { b"..".to_vec() } else { bare.to_vec() };
        self.before.rotate_left(1);
        self.before[2] = bare;
        is
    }

    /// Whole lines of what came; the rest waits.
    pub(super) fn lines(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
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
#[derive(Debug, Default)]
pub(super) struct Names {
    sections: Sections,
    pub(super) found: BTreeSet<String>,
}

impl Write for Names {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in self.sections.lines(bytes) {
            if self.sections.next(&line) == Line::Begins {
                self.found.extend(self.sections.current.clone());
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "SET NAMES utf8mb4;\n--\n-- Current Database: `shop`\n--\n\nUSE `shop`;\nINSERT INTO t VALUES ('-- Current Database: `no`');\n\
        -- Current Database: `neither`\nx\n--\n-- Current Database: `a``b`\n--\n\nCREATE DATABASE /*!32312 IF NOT EXISTS*/ `a``b`;\n\nUSE `a``b`;\n\
        \n--\n-- Table structure for table `t`\n--\n\nDROP TABLE IF EXISTS `t`;\nCREATE DATABASE x;\n-- Not so\n--\n\nDROP TABLE IF EXISTS `u`;\n";

    #[test]
    fn the_databases_of_a_dump_are_told_from_what_only_looks_so() {
        let mut names = Names::default();
        for byte in DUMP.bytes() {
            names.write_all(&[byte]).unwrap();
        }
        assert_eq!(names.found, BTreeSet::from(["shop".to_owned(), "a`b".to_owned()]));
    }

    #[test]
    fn what_makes_a_database_and_what_makes_room_is_told_from_what_only_looks_so() {
        let mut sections = Sections::default();
        let lines = sections.lines(DUMP.as_bytes());
        let of = |line: &[u8], sections: &mut Sections| {
            let is = sections.next(line);
            (is, sections.current().cloned(), String::from_utf8_lossy(line).trim_end().to_owned())
        };
        let seen: Vec<_> = lines.iter().map(|line| of(line, &mut sections)).collect();
        let told: Vec<_> =
            seen.iter().filter(|(is, ..)| *is != Line::Other).map(|(is, of, _)| (*is, of.as_deref())).collect();
        let inside = Some("a`b");
        assert_eq!(
            told,
            [
                (Line::Begins, Some("shop")),
                (Line::Begins, inside),
                (Line::MakesDatabase, inside),
                (Line::MakesRoom, inside)
            ]
        );
        assert_eq!(seen[0].1, None, "what comes before all is of none");
        assert!(seen.iter().any(|(is, _, line)| *is == Line::MakesRoom && line.contains("`t`")));
    }
}
