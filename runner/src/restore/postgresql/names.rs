//! How databases take their names: all at one instant, in one transaction, so that whoever dies leaves all of them or none. What gives way
//! keeps a name of ours, until it is known that it may go. Where that depends on what is in it, there are two: the first takes it out of
//! everybody's reach, and by the second the names can be used.

use std::time::Duration;

use api::ExistingPolicy;

use super::{
    ALWAYS_THERE, BUT_FOR_ROLES, Coming,
    server::{MAINTENANCE, Server, literal, quoted, says},
};
use crate::{failure::Failure, postgresql::OURS, restore::exists};

/// Sessions that come again and again are ended so often before a database is renamed.
const RENAMES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(250);
const DUPLICATE: &str = "42P04";
/// `object_in_use`, `duplicate_database`, and `undefined_database`: what is there has changed since we looked.
const CHANGED: [&str; 3] = ["55006", DUPLICATE, "3D000"];

/// A database that gives way, and what takes its name.
struct GivingWay<'c> {
    to: &'c Coming<'c>,
    /// What it is called from then on. Its end is the number of its successor: by that the next restore knows what it was.
    kept_as: String,
}

/// One transaction, and by what it is known that it was done: these have their names, and are open for connections or are not.
struct Step<'c> {
    sql: String,
    named: Vec<&'c Coming<'c>>,
    is_open: bool,
}

struct NotDone {
    failure: Failure,
    /// Else the server could not say whether it was not.
    is_known: bool,
}

impl Server<'_> {
    /// Each takes its name, if it still may. The databases that gave way, as they are called now: they may go.
    pub(super) fn take_names(&self, coming: &[Coming<'_>]) -> Result<Vec<String>, Failure> {
        self.work.go_on()?;
        self.work.told.step("taking their names");
        for one in coming {
            self.work.alone.leave(&one.name);
        }
        let giving_way = self.give_way(coming)?;
        if self.is_looked_at(&giving_way) {
            // Nobody knows their names any more, and nobody is in them: what they hold now they hold for good.
            if let Err(failure) = self.are_empty(&giving_way) {
                return Err(self.give_back(failure, &giving_way));
            }
            match self.apply(&open(coming, &giving_way)) {
                Ok(()) => {}
                Err(NotDone { failure, is_known: true }) if says(&failure, DUPLICATE) => {
                    let others = coming.iter().filter(|one| !is_of(&giving_way, one)).map(|one| one.name.clone());
                    let failure = exists(&others.collect::<Vec<_>>(), "was made while it was restored");
                    return Err(self.give_back(failure, &giving_way));
                }
                Err(NotDone { failure, is_known: true }) => return Err(self.give_back(failure, &giving_way)),
                Err(NotDone { failure, .. }) => return Err(not_known(failure)),
            }
        }
        Ok(giving_way.into_iter().map(|one| one.kept_as).collect())
    }

    /// Sessions in the way are ended: again, for they may come again.
    fn give_way<'c>(&self, coming: &'c [Coming<'c>]) -> Result<Vec<GivingWay<'c>>, Failure> {
        let mut tries = 0;
        loop {
            let giving_way = self.giving_way(coming)?;
            let step = if self.is_looked_at(&giving_way) { close(&giving_way) } else { exchange(coming, &giving_way) };
            match self.apply(&step) {
                Ok(()) => return Ok(giving_way),
                Err(NotDone { failure, is_known: true })
                    if tries < RENAMES && CHANGED.iter().any(|sqlstate| says(&failure, sqlstate)) =>
                {
                    tries += 1;
                    std::thread::park_timeout(PAUSE);
                }
                Err(NotDone { failure, is_known: true }) => return Err(failure),
                Err(NotDone { failure, .. }) => return Err(not_known(failure)),
            }
        }
    }

    /// What was empty when the restore began is looked at once more, when nobody can write to it any more.
    fn is_looked_at(&self, giving_way: &[GivingWay<'_>]) -> bool {
        self.work.existing != ExistingPolicy::Replace && !giving_way.is_empty()
    }

    fn apply(&self, step: &Step<'_>) -> Result<(), NotDone> {
        let Err(failure) = self.run(MAINTENANCE, &step.sql) else { return Ok(()) };
        // A session that broke off may have done it all the same.
        match self.is_done(step) {
            Ok(true) => Ok(()),
            Ok(false) => Err(NotDone { failure, is_known: true }),
            Err(_) => Err(NotDone { failure, is_known: false }),
        }
    }

    fn is_done(&self, step: &Step<'_>) -> Result<bool, Failure> {
        let sql = "SELECT concat(oid, ' ', datallowconn, ' ', datname) FROM pg_database;";
        let there = self.rows(MAINTENANCE, sql)?;
        let open = if step.is_open { "t" } else { "f" };
        Ok(step.named.iter().all(|one| there.contains(&format!("{} {open} {}", one.oid, one.name))))
    }

    /// What is called so now, whatever was when the restore began.
    fn giving_way<'c>(&self, coming: &'c [Coming<'c>]) -> Result<Vec<GivingWay<'c>>, Failure> {
        let there = self.databases()?;
        let found: Vec<&Coming<'_>> = coming.iter().filter(|one| there.contains(&one.name)).collect();
        let is_refused = |one: &&&Coming<'_>| one.name != ALWAYS_THERE && self.work.existing == ExistingPolicy::Never;
        let refused: Vec<String> = found.iter().filter(is_refused).map(|one| one.name.clone()).collect();
        if !refused.is_empty() {
            return Err(exists(&refused, "was made while it was restored").leaves(BUT_FOR_ROLES));
        }
        let kept_as = |one: &Coming<'_>| {
            let run = one.until_then.split("-new-").next().unwrap_or(OURS);
            format!("{run}-old-{}", one.oid)
        };
        Ok(found.into_iter().map(|one| GivingWay { to: one, kept_as: kept_as(one) }).collect())
    }

    fn are_empty(&self, giving_way: &[GivingWay<'_>]) -> Result<(), Failure> {
        let mut full = Vec::new();
        for one in giving_way {
            if !self.may_go(&one.to.name, &one.kept_as)? {
                full.push(one.to.name.clone());
            }
        }
        if full.is_empty() { Ok(()) } else { Err(exists(&full, "was written to while it was restored")) }
    }

    /// They have their names again.
    fn give_back(&self, failure: Failure, giving_way: &[GivingWay<'_>]) -> Failure {
        let each = |one: &GivingWay<'_>| rename(&one.to.name, &one.to.until_then) + &rename(&one.kept_as, &one.to.name);
        let sql = transaction(&giving_way.iter().map(each).collect::<String>());
        match self.run(MAINTENANCE, &sql) {
            Ok(()) => failure.leaves(BUT_FOR_ROLES),
            Err(error) => {
                let kept = giving_way.iter().map(|one| format!("{} is called {}", one.to.name, one.kept_as));
                let kept = kept.collect::<Vec<_>>().join(", ");
                failure.leaves(format!(
                    "what was there is whole, but {kept}; the copy has its name, and is not open for connections: {}",
                    error.message
                ))
            }
        }
    }

    /// Removes what was to come with restores that were killed, and names what gave way to them: nobody looked whether it may go.
    pub(super) fn tidy_up(&self) -> Result<Vec<String>, Failure> {
        let ours = |what: &str| format!("d.datname LIKE '{OURS}%-{what}-%'");
        // Ours are all over; a program of one that died may still be at it.
        let new = format!(
            "SELECT d.datname FROM pg_database d WHERE {} \
             AND NOT EXISTS (SELECT FROM pg_stat_activity a WHERE a.datname = d.datname);",
            ours("new")
        );
        for left in self.rows(MAINTENANCE, &new)? {
            self.drop(&left)?;
        }
        let successors = format!(
            "FROM pg_database d LEFT JOIN pg_database s ON s.oid::text = substring(d.datname FROM '-old-(\\d+)$') WHERE {}",
            ours("old")
        );
        for closed in self.rows(MAINTENANCE, &format!("SELECT s.datname {successors} AND NOT s.datallowconn;"))? {
            self.run(MAINTENANCE, &allow_connections(&closed, true))?;
        }
        let left = format!(
            "SELECT format('%s is left of a restore that died: it is what %s was before; rename it, or drop it', d.datname, \
             coalesce(s.datname, 'a database that is gone')) {successors};"
        );
        self.rows(MAINTENANCE, &left)
    }
}

/// All at once.
fn exchange<'c>(coming: &'c [Coming<'c>], giving_way: &[GivingWay<'c>]) -> Step<'c> {
    let away = giving_way.iter().map(|one| rename(&one.to.name, &one.kept_as));
    let takes = coming.iter().map(|one| rename(&one.until_then, &one.name));
    let sql = away.chain(takes).chain(coming.iter().map(|one| one.more.clone())).collect();
    Step { sql: alone_in(coming.iter(), sql), named: coming.iter().collect(), is_open: true }
}

/// Only what gives way, and what takes its place. That is closed until the old one was looked at: nothing can be lost that is written
/// there.
fn close<'c>(giving_way: &[GivingWay<'c>]) -> Step<'c> {
    let named: Vec<&Coming<'_>> = giving_way.iter().map(|one| one.to).collect();
    let each = |one: &GivingWay<'_>| {
        let takes = rename(&one.to.until_then, &one.to.name);
        rename(&one.to.name, &one.kept_as) + &takes + &allow_connections(&one.to.name, false)
    };
    let sql = giving_way.iter().map(each).collect();
    Step { sql: alone_in(named.iter().copied(), sql), named, is_open: false }
}

/// The others as well, and all are open.
fn open<'c>(coming: &'c [Coming<'c>], closed: &[GivingWay<'c>]) -> Step<'c> {
    let others = coming.iter().filter(|one| !is_of(closed, one)).map(|one| rename(&one.until_then, &one.name));
    let opened = closed.iter().map(|one| allow_connections(&one.to.name, true));
    let sql: String = others.chain(opened).chain(coming.iter().map(|one| one.more.clone())).collect();
    Step { sql: transaction(&sql), named: coming.iter().collect(), is_open: true }
}

fn is_of(closed: &[GivingWay<'_>], one: &Coming<'_>) -> bool {
    closed.iter().any(|closed| closed.to.oid == one.oid)
}

/// Without the sessions that are in databases of these names.
fn alone_in<'c>(coming: impl Iterator<Item = &'c Coming<'c>>, sql: String) -> String {
    let names: Vec<String> = coming.flat_map(|one| [literal(&one.name), literal(&one.until_then)]).collect();
    format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN ({}) AND pid <> pg_backend_pid();\n{}",
        names.join(", "),
        transaction(&sql)
    )
}

fn transaction(sql: &str) -> String {
    format!("BEGIN;\n{sql}COMMIT;\n")
}

fn not_known(failure: Failure) -> Failure {
    failure.leaves(format!(
        "not known: the server broke off as databases took their names, all of them or none; what they replaced is called {OURS}…"
    ))
}

fn rename(from: &str, to: &str) -> String {
    format!("ALTER DATABASE {} RENAME TO {};\n", quoted(from), quoted(to))
}

fn allow_connections(database: &str, is_open: bool) -> String {
    format!("ALTER DATABASE {} ALLOW_CONNECTIONS {is_open};\n", quoted(database))
}
