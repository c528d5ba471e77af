//! A dump on its way into the server: each section by a client of its own, so that whether its database may be filled is asked when it is
//! its turn, and whatever the others took.

use std::{
    collections::BTreeSet,
    io::{self, Write},
};

use api::conditions::reasons;

use super::{
    MOST_OUTPUT, Server, There, quoted, says,
    sections::{Line, Sections},
};
use crate::{child::Fed, failure::Failure, restore::exists};

/// A database that is no more what it was.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) name: String,
    /// What was there before.
    pub(super) there: There,
}

/// Passes on what is of the databases that are wanted.
pub(super) struct Filling<'w> {
    server: &'w Server<'w>,
    wanted: &'w BTreeSet<String>,
    sections: Sections,
    /// What comes before the first: settings, which each client needs.
    head: Vec<u8>,
    client: Option<Fed>,
    pub(super) begun: Vec<Begun>,
    /// Why it goes no further.
    failed: Option<Failure>,
}

/// Of settings.
const LONGEST_HEAD: usize = 1 << 20;
/// `ER_DB_CREATE_EXISTS`, `ER_TABLE_EXISTS_ERROR`.
const DATABASE_EXISTS: u16 = 1007;
const TABLE_EXISTS: u16 = 1050;
const IF_NOT_EXISTS: [&str; 2] = ["/*!32312 IF NOT EXISTS*/ ", "IF NOT EXISTS "];

impl<'w> Filling<'w> {
    pub(super) fn new(server: &'w Server<'w>, wanted: &'w BTreeSet<String>) -> Self {
        let (sections, head, begun) = (Sections::default(), Vec::new(), Vec::new());
        Self { server, wanted, sections, head, client: None, begun, failed: None }
    }

    pub(super) fn fill(&mut self, path: &str) -> Result<u64, Failure> {
        let copied = self.server.work.copy(path, self);
        let ended = self.server.work.go_on().and_then(|()| self.end_client());
        // Dropped, a client is killed.
        self.client = None;
        match self.failed.take() {
            Some(failure) => Err(failure),
            None => ended.and(copied),
        }
    }

    fn line(&mut self, line: &[u8]) -> Result<(), Failure> {
        let is = self.sections.next(line);
        let Some(name) = self.sections.current() else {
            self.head.extend(line.iter().take(LONGEST_HEAD.saturating_sub(self.head.len())));
            return Ok(());
        };
        if !self.wanted.contains(name) {
            return Ok(());
        }
        let name = name.clone();
        match is {
            Line::Begins => self.begin(&name),
            Line::MakesDatabase if self.was(&name).is_none() => self.make(&name, line),
            // Whatever is there of that name came while we restored: it is not ours to remove, and the next line says so.
            Line::MakesRoom if self.was(&name) != Some(There::Replaced) => Ok(()),
            Line::MakesDatabase | Line::MakesRoom | Line::Other => self.pass(line),
        }
    }

    /// What was there of a database that was begun.
    fn was(&self, name: &str) -> Option<There> {
        self.begun.iter().find(|one| one.name == name).map(|one| one.there)
    }

    /// The first time it is looked at once more; then it has its views.
    fn begin(&mut self, name: &str) -> Result<(), Failure> {
        self.end_client()?;
        self.server.work.go_on()?;
        if self.was(name).is_none() {
            let there = self.server.there(name)?;
            let there =
                there.ok_or_else(|| exists(&[name.to_owned()], "has come in the way while others were restored"))?;
            match there {
                // It is begun when it is made.
                There::Nothing => {}
                There::Empty => self.begun.push(Begun { name: name.to_owned(), there }),
                There::Replaced => {
                    self.begun.push(Begun { name: name.to_owned(), there });
                    self.server.ask(&format!("DROP DATABASE IF EXISTS {};", quoted(name)))?;
                }
            }
        }
        let client = Fed::spawn(self.server.command()?, Box::new(|_| {})).map_err(Failure::bug)?;
        self.client = Some(client);
        let head = std::mem::take(&mut self.head);
        let passed = self.pass(&head);
        self.head = head;
        passed
    }

    /// Only what we made ourselves is ours to remove.
    fn make(&mut self, name: &str, line: &[u8]) -> Result<(), Failure> {
        let sql = String::from_utf8_lossy(line);
        let sql = IF_NOT_EXISTS.iter().fold(sql.into_owned(), |sql, words| sql.replacen(words, "", 1));
        self.server.ask(&sql).map_err(|failure| {
            let is_there = says(&failure, DATABASE_EXISTS);
            if is_there { exists(&[name.to_owned()], "was made while others were restored") } else { failure }
        })?;
        self.begun.push(Begun { name: name.to_owned(), there: There::Nothing });
        Ok(())
    }

    /// A client that reads no more says why at its end.
    fn pass(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Some(client) = &mut self.client else { return Ok(()) };
        match client.write_all(bytes) {
            Ok(()) => Ok(()),
            Err(error) => self.end_client().and(Err(Failure::new(reasons::TOOL_FAILED, error))),
        }
    }

    fn end_client(&mut self) -> Result<(), Failure> {
        let Some(client) = self.client.take() else { return Ok(()) };
        client.finish(MOST_OUTPUT).map(drop).map_err(|error| {
            let failure = Failure::new(reasons::TOOL_FAILED, error);
            if says(&failure, TABLE_EXISTS) { Failure { reason: reasons::EXISTS, ..failure } } else { failure }
        })
    }
}

impl Write for Filling<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for line in self.sections.lines(bytes) {
            if let Err(failure) = self.line(&line) {
                self.failed = Some(failure);
                return Err(io::Error::other("the restore goes no further"));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
