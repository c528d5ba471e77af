//! WriteBlocked: every user table of every database in SHARE mode, so that no transaction that writes one can commit.
//!
//! SHARE conflicts with what writers hold (ROW EXCLUSIVE), not with readers (manual, 13.3.1): the lock is granted when
//! every transaction that has written is finished. While we wait, later writers queue behind us, so one attempt is short:
//! shorter than `deadlock_timeout`, after which the server would look for a deadlock and could end a *client's*
//! transaction. Between attempts the queue drains.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use api::Check;
use futures::future::{join_all, try_join_all};
use sqlx::{Row, postgres::PgRow};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    blockers::{self, DRAIN},
    connect::{Link, Session, identifier, literal, text},
    errors,
};
use crate::{
    driver::{Member, Plan},
    engines::{deadline::left, in_the_way::InTheWay},
    error::Error,
};

/// One database of the server, with the session that locks its tables.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) session: Session,
    backend_pid: i32,
    /// As [`Hello::whose`].
    whose: (Option<String>, Option<String>),
    /// Quoted, with their schema.
    tables: BTreeSet<String>,
}

/// The databases that servers had when they were last held: only a guess, so that the next freeze of one need not wait for its
/// answer. At most [`MOST_REMEMBERED`] servers.
#[derive(Clone, Debug, Default)]
pub(super) struct Remembered(Arc<Mutex<HashMap<String, Vec<String>>>>);

const MOST_REMEMBERED: usize = 10_000;

/// A table of [`TABLES`].
struct Table {
    name: String,
    lockable: bool,
}

/// What would have to be locked.
#[derive(Debug, Default)]
pub(super) struct Survey {
    databases: usize,
    tables: usize,
    /// Tables that the account may not lock.
    forbidden: Vec<String>,
    /// `max_locks_per_transaction × (max_connections + max_prepared_transactions)` (manual, 20.12).
    room: usize,
}

/// Tables and partitioned tables of users, with our right to lock them; partitions are locked with their parent. What
/// initdb made has a lower number than any object of a user (manual, 52 "System Catalogs": `FirstNormalObjectId`). MAINTAIN
/// came with 17; older servers do not know the word.
const TABLES: &str = "SELECT relnamespace::regnamespace, relname, \
    has_schema_privilege(relnamespace, 'USAGE') AND has_table_privilege(oid, \
      CASE WHEN current_setting('server_version_num')::int < 170000 THEN 'UPDATE,DELETE,TRUNCATE' \
           ELSE 'UPDATE,DELETE,TRUNCATE,MAINTAIN' END) \
    FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition AND relpersistence <> 't' AND oid >= 16384";

/// Which server this session is in: four columns, unlike a table's row.
const WHOSE: &str =
    "SELECT pg_backend_pid(), (pg_control_system()).system_identifier, pg_postmaster_start_time(), NULL";

/// One attempt's share of `deadlock_timeout`: we give up before any client that waits for us looks for a deadlock.
const SHARE_OF_DEADLOCK_TIMEOUT: (u32, u32) = (8, 10);
/// Below this an attempt has no time for anything.
pub(super) const SHORTEST_DEADLOCK_TIMEOUT: Duration = Duration::from_millis(10);

/// Opens one session per database and lists its tables, beside `main`. Blocks nobody.
///
/// Which databases there are is only known when `main` has asked; those that it found the last time are opened meanwhile. The
/// database that the main session is in needs none of its own while it has no tables, as the maintenance database hardly ever
/// has; one that is made there later shows as an escaped commit in the proof.
pub(super) async fn prepare(
    member: &Member,
    plan: &Plan,
    remembered: &Remembered,
    main: impl Future<Output = Result<Link, Error>>,
    deadline: Instant,
) -> Result<(Link, Vec<Database>), Error> {
    let guessed = remembered.databases(member);
    let open = |name: String| Database::open(member, plan, name, deadline);
    let listed = async {
        let mut main = main.await?;
        let sql = format!("{TABLES}; {}", databases_sql(member));
        let rows = main.run(deadline, "listing databases and tables", &sql).await?;
        Ok::<_, Error>((main, rows))
    };
    // A main session that does not come about waits for no guess.
    let guesses = async { Ok(join_all(guessed.into_iter().map(open)).await) };
    let ((main, rows), mut opened) = tokio::try_join!(listed, guesses)?;
    let mut names = databases(&rows);
    if lockable(&rows)?.is_empty() {
        names.retain(|name| *name != main.session.database);
    }
    remembered.remember(member, &names);
    // A guess that was wrong, or did not come about, counts for nothing.
    opened.retain(|opened| opened.as_ref().is_ok_and(|database| names.contains(&database.session.database)));
    let known = |name: &&String| !opened.iter().flatten().any(|database| database.session.database == **name);
    let missing = names.iter().filter(known).cloned().map(open);
    let more = try_join_all(missing).await?;
    let all: Vec<Database> = opened.into_iter().flatten().chain(more).collect();
    if all.iter().any(|database| database.whose != main.hello.whose()) {
        return Err(Error::Incarnation {
            detail: format!("two connections to {} reached two servers", member.address),
        });
    }
    Ok((main, all))
}

/// Locks everything by `deadline`; answers the sessions that were ended for it.
pub(super) async fn acquire(
    databases: &mut [Database],
    main: &mut Link,
    plan: &Plan,
    deadline: Instant,
) -> Result<Vec<String>, Error> {
    let (share, of) = SHARE_OF_DEADLOCK_TIMEOUT;
    let longest_attempt = main.hello.deadlock_timeout * share / of;
    let mut in_the_way = InTheWay::default();
    let began = Instant::now();
    loop {
        let budget = left(deadline).min(longest_attempt);
        let pids: Vec<i32> = databases.iter().map(|database| database.backend_pid).collect();
        let answered = CancellationToken::new();
        let attempt = async {
            let results = join_all(databases.iter_mut().map(|database| database.lock(budget, deadline + DRAIN))).await;
            answered.cancel();
            results
        };
        let watching = blockers::watch(main, &pids, plan, deadline, &answered, &mut in_the_way);
        let (results, ()) = tokio::join!(attempt, watching);
        let mut granted = true;
        for result in results {
            match result {
                Ok(()) => {}
                Err(Attempt::NotGranted) => granted = false,
                Err(Attempt::Failed(error)) => return Err(error),
            }
        }
        if granted && !in_the_way.gave_up {
            return Ok(in_the_way.ended());
        }
        // Whatever was granted is let go at once: nobody waits for us while we wait for somebody else.
        let undone = try_join_all(
            databases.iter_mut().map(|database| database.session.run(deadline + DRAIN, "letting go", "ROLLBACK")),
        )
        .await;
        // Our own cancel may hit the ROLLBACK: the session's end undoes it then, and what is of interest is who was in the way.
        if !in_the_way.gave_up {
            undone?;
        }
        if in_the_way.gave_up || left(deadline) <= DRAIN {
            let limit = if in_the_way.gave_up { began.elapsed() } else { plan.acquire_timeout };
            return Err(Error::Blocked { limit, blockers: in_the_way.seen, hint: in_the_way.hint.map(Into::into) });
        }
        sleep(DRAIN).await;
    }
}

/// Counts the sessions that wait for us: for a table of ours, since whatever cannot be had there at once conflicts with SHARE,
/// or stands behind somebody whose wish does (manual, 13.3.1, the table of conflicts). One look at the locks, however many wait,
/// where `pg_blocking_pids` would stop the lock manager for each; and everybody may see it.
pub(super) fn stalled(databases: &[Database]) -> String {
    let ours = databases.iter().map(|database| database.backend_pid.to_string()).collect::<Vec<_>>().join(", ");
    format!(
        "WITH relations AS MATERIALIZED (SELECT pid, database, relation, granted FROM pg_locks WHERE locktype = 'relation'), \
         ours AS (SELECT DISTINCT database, relation FROM relations WHERE granted AND pid = ANY (ARRAY[{ours}]::int[])) \
         SELECT count(DISTINCT pid) FROM relations JOIN ours USING (database, relation) WHERE NOT granted"
    )
}

/// What a freeze at WriteBlocked would lock, database by database, nothing locked.
pub(super) async fn survey(member: &Member, main: &mut Link, deadline: Instant) -> Result<Survey, Error> {
    let names = databases(&main.run(deadline, "listing databases", &databases_sql(member)).await?);
    let mut survey =
        Survey { databases: names.len(), room: room_in_the_lock_table(main, deadline).await?, ..Survey::default() };
    for name in names {
        let mut session = Session::open(member, Some(&name), None, crate::lease::LONGEST_SERVER_TTL, deadline).await?;
        let tables = tables(&session.run(deadline, "listing tables", TABLES).await?);
        session.close(deadline).await;
        survey.tables += tables.len();
        let forbidden = tables.iter().filter(|table| !table.lockable);
        survey.forbidden.extend(forbidden.map(|table| format!("{name}: {}", table.name)));
    }
    Ok(survey)
}

pub(super) fn privilege(survey: &Survey) -> Check {
    if survey.forbidden.is_empty() {
        return Check::pass(
            "privilege-lock",
            format!("all {} tables of {} databases can be locked", survey.tables, survey.databases),
        );
    }
    let shown = survey.forbidden.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    forbidden(&shown, survey.forbidden.len()).check("privilege-lock")
}

pub(super) fn room(survey: &Survey) -> Check {
    let message = format!("{} tables to lock; the lock table has room for {}", survey.tables, survey.room);
    if survey.tables * 2 < survey.room {
        return Check::pass("lock-table", message);
    }
    Check::warn("lock-table", message, "raise max_locks_per_transaction and restart")
}

enum Attempt {
    NotGranted,
    Failed(Error),
}

impl Remembered {
    fn databases(&self, member: &Member) -> Vec<String> {
        if !member.databases.is_empty() {
            return member.databases.clone();
        }
        self.table().get(&member.address.to_string()).cloned().unwrap_or_default()
    }

    fn remember(&self, member: &Member, names: &[String]) {
        let mut table = self.table();
        if table.len() >= MOST_REMEMBERED {
            table.clear();
        }
        table.insert(member.address.to_string(), names.to_vec());
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Vec<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Database {
    /// One round trip besides connecting: whose server answers, and what is to be locked there.
    async fn open(member: &Member, plan: &Plan, name: String, deadline: Instant) -> Result<Self, Error> {
        let uid = Some(plan.freeze_uid.as_str());
        let mut session = Session::open(member, Some(&name), uid, plan.server_ttl, deadline).await?;
        let rows = session.run(deadline, "listing tables", &format!("{WHOSE}; {TABLES}")).await?;
        let column = |at| rows.first().and_then(|row| text(row, at));
        let backend_pid = column(0).and_then(|pid| pid.parse().ok()).unwrap_or_default();
        Ok(Self { session, backend_pid, whose: (column(1), column(2)), tables: lockable(&rows)? })
    }

    /// One attempt, in one transaction that stays open when it succeeds. The server ends it after `budget`; who does not hear
    /// of that until `deadline` knows nothing of his session any more.
    async fn lock(&mut self, budget: Duration, deadline: Instant) -> Result<(), Attempt> {
        // 0 would be for ever.
        let limit = budget.as_millis().max(1);
        let begin = format!("BEGIN; SET LOCAL lock_timeout = {limit}; SET LOCAL statement_timeout = {limit}");
        let mut missing: Vec<String> = self.tables.iter().cloned().collect();
        let mut first = true;
        // Tables that were created since they were listed; their creators are stopped by the locks, so this ends.
        while first || !missing.is_empty() {
            let lock = if missing.is_empty() {
                String::new()
            } else {
                format!("; LOCK TABLE {} IN SHARE MODE", missing.join(", "))
            };
            // Once all is locked, the next statements have their own, longer limit.
            let sql = format!("{}{lock}; {TABLES}; {KEEP}", if first { &begin } else { "SELECT" });
            first = false;
            let rows = match tokio::time::timeout_at(deadline, self.session.attempt(&sql)).await {
                Ok(Ok(rows)) => rows,
                Ok(Err(error)) if errors::not_granted(&error) => return Err(Attempt::NotGranted),
                // Dropped between listing and locking (undefined_table): list again.
                Ok(Err(error))
                    if error
                        .as_database_error()
                        .and_then(sqlx::error::DatabaseError::code)
                        .is_some_and(|code| code == "42P01") =>
                {
                    self.tables.clear();
                    return Err(Attempt::NotGranted);
                }
                Ok(Err(error)) => return Err(Attempt::Failed(errors::running(error, "locking tables"))),
                Err(_) => {
                    return Err(Attempt::Failed(Error::Timeout { doing: "locking tables".into(), limit: budget }));
                }
            };
            let listed: BTreeSet<String> = tables(&rows).into_iter().map(|table| table.name).collect();
            missing = listed.difference(&self.tables).cloned().collect();
            self.tables.extend(listed);
        }
        Ok(())
    }
}

const KEEP: &str = "SET LOCAL statement_timeout = 5000";

/// The databases to cover: one column.
fn databases_sql(member: &Member) -> String {
    if member.databases.is_empty() {
        return "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1".to_owned();
    }
    format!(
        "SELECT name FROM unnest(ARRAY[{}]) name",
        member.databases.iter().map(|name| literal(name)).collect::<Vec<_>>().join(", ")
    )
}

fn databases(rows: &[PgRow]) -> Vec<String> {
    rows.iter().filter(|row| row.len() == 1).filter_map(|row| text(row, 0)).collect()
}

/// The tables to lock. One that may not be locked refuses: what is not locked is not blocked.
fn lockable(rows: &[PgRow]) -> Result<BTreeSet<String>, Error> {
    let tables = tables(rows);
    let mut not = tables.iter().filter(|table| !table.lockable);
    match not.next() {
        Some(first) => Err(forbidden(&first.name, not.count() + 1)),
        None => Ok(tables.into_iter().map(|table| table.name).collect()),
    }
}

/// The rows of [`TABLES`].
fn tables(rows: &[PgRow]) -> Vec<Table> {
    let table = |row: &PgRow| {
        // The server quotes a schema that needs it; a name comes as it is.
        let name = format!("{}.{}", text(row, 0)?, identifier(&text(row, 1)?));
        Some(Table { name, lockable: text(row, 2).as_deref() == Some("t") })
    };
    rows.iter().filter(|row| row.len() == 3).filter_map(table).collect()
}

fn forbidden(which: &str, count: usize) -> Error {
    Error::Privilege {
        privilege: format!("the right to lock {count} tables, among them {which}"),
        grant: "GRANT pg_write_all_data TO the account (PostgreSQL 17 and later: pg_maintain and pg_read_all_data)"
            .into(),
    }
}

async fn room_in_the_lock_table(main: &mut Link, deadline: Instant) -> Result<usize, Error> {
    let sql = "SELECT current_setting('max_locks_per_transaction')::bigint * (current_setting('max_connections')::bigint \
               + current_setting('max_prepared_transactions')::bigint)";
    let rows = main.run(deadline, "reading the size of the lock table", sql).await?;
    Ok(rows.first().and_then(|row| text(row, 0)).and_then(|room| room.parse().ok()).unwrap_or(0))
}
