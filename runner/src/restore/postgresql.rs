//! Into PostgreSQL: each database is made under a name of our own, filled by `pg_restore`, and takes its name when all are whole.
//! A restore that fails, or is killed, leaves what was there, and at most databases of ours: the next restore removes those that were
//! to come, and names those that gave way.

mod archive;
mod names;
mod roles;
mod server;

use std::collections::HashSet;

use api::{
    DumpFile, DumpFormat, ExistingPolicy,
    conditions::reasons,
    runner::{Restored, UNTOUCHED},
};

use super::{Work, exists, undisturbed};
use crate::{child::Fed, failure::Failure, postgresql::OURS};
use archive::Described;
use server::{MAINTENANCE, MOST_OUTPUT, Server, broken, failed, quoted};

/// One database that is being restored.
struct Coming<'w> {
    name: String,
    file: &'w DumpFile,
    /// What it is called until it is whole.
    until_then: String,
    /// The server's number for it, when it is made.
    oid: String,
    /// Its owner, grants and settings, when it is whole.
    more: String,
}

/// What a restore leaves that failed before databases took their names.
const BUT_FOR_ROLES: &str = "as it was, but for roles that were not there before";
/// What a database is empty of: everything but what the server put there. Objects of extensions are the extension's.
const IS_EMPTY: &str = "SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_') \
    + (SELECT count(*) FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
    WHERE n.nspname <> 'information_schema' AND n.nspname !~ '^pg_') + (SELECT count(*) FROM pg_largeobject_metadata);";
/// Every new server has one, which nobody has put anything into.
const ALWAYS_THERE: &str = "postgres";

pub(super) fn restore(work: &Work) -> Result<Restored, Failure> {
    let server = Server::of(work).map_err(Failure::untouched)?;
    let left = server.tidy_up().map_err(Failure::untouched)?;
    server.restore(left.clone()).map_err(|failure| {
        let target = failure.target.iter().cloned().chain(left).collect::<Vec<_>>().join("; ");
        failure.leaves(target)
    })
}

impl<'w> Server<'w> {
    fn restore(&self, warnings: Vec<String>) -> Result<Restored, Failure> {
        let mut coming = self.coming().map_err(Failure::untouched)?;
        let mut restored = Restored { warnings, ..Restored::default() };
        if self.work.globals {
            restored.warnings.extend(self.globals().map_err(|failure| failure.leaves(BUT_FOR_ROLES))?);
        }
        let filled = self.fill(&mut coming, &mut restored).and_then(|()| undisturbed());
        let gone = match filled.and_then(|()| self.take_names(&coming)) {
            Ok(gone) => gone,
            Err(failure) => {
                for one in &coming {
                    self.drop(&one.until_then).ok();
                }
                let target = failure.target.clone().unwrap_or_else(|| BUT_FOR_ROLES.to_owned());
                return Err(failure.leaves(target));
            }
        };
        for old in gone {
            if let Err(failure) = self.drop(&old) {
                let still = "the database that was replaced is still there as";
                restored.warnings.push(format!("{still} {old}: {}", failure.message));
            }
        }
        restored.databases = coming.into_iter().map(|one| one.name).collect();
        Ok(restored)
    }

    /// What is to be restored, if it may be now: whether it may be still is asked when it takes its name.
    fn coming(&self) -> Result<Vec<Coming<'w>>, Failure> {
        let work = self.work;
        let there = self.databases()?;
        let files = work.wanted(DumpFormat::PostgreSQLCustom);
        for wanted in &work.databases {
            if !files.iter().any(|file| file.database.as_ref() == Some(wanted)) {
                let message = format!("the copy has no database {wanted}");
                return Err(Failure::new(reasons::NOT_FOUND, message).leaves(UNTOUCHED));
            }
        }
        let (mut coming, mut in_the_way) = (Vec::new(), Vec::new());
        for (number, file) in files.into_iter().enumerate() {
            let Some(name) = file.database.clone() else { continue };
            if there.contains(&name) && !self.may_go(&name, &name)? {
                in_the_way.push(name.clone());
            }
            let until_then = self.until_then(number);
            coming.push(Coming { name, file, until_then, oid: String::new(), more: String::new() });
        }
        if in_the_way.is_empty() { Ok(coming) } else { Err(exists(&in_the_way, "is there already")) }
    }

    fn databases(&self) -> Result<HashSet<String>, Failure> {
        Ok(self.rows(MAINTENANCE, "SELECT datname FROM pg_database;")?.into_iter().collect())
    }

    /// Whether a database may give way, which is called `now`.
    fn may_go(&self, name: &str, now: &str) -> Result<bool, Failure> {
        Ok(match self.work.existing {
            ExistingPolicy::Replace => true,
            ExistingPolicy::Never if name != ALWAYS_THERE => false,
            ExistingPolicy::Never | ExistingPolicy::IfEmpty => self.one(now, IS_EMPTY)? == "0",
        })
    }

    /// No other restore's.
    fn until_then(&self, number: usize) -> String {
        let id = &self.work.source.entry().id;
        let now = jiff::Timestamp::now().as_millisecond();
        format!("{OURS}{}-{now:x}-new-{number}", id.get(..8).unwrap_or(id))
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
            one.oid = self.one(&one.until_then, "SELECT oid FROM pg_database WHERE datname = current_database();")?;
            let mut command = self.program(&self.restore, &one.until_then)?;
            command.args(["--exit-on-error", "--no-password", "--dbname", &one.until_then]);
            let mut fed = Fed::spawn(command, Box::new(|_| {})).map_err(broken)?;
            let copied = self.work.copy(&one.file.path, &mut fed);
            self.work.go_on()?;
            // Why it would read no more is what it says at its end.
            fed.finish(MOST_OUTPUT).map_err(|error| failed(&one.name, &error))?;
            restored.bytes += copied?;
            self.work.go_on()?;
            self.run(&one.until_then, "ANALYZE;")?;
        }
        Ok(())
    }
}
