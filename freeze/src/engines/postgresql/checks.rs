//! What must be true before a freeze, as named checks: facts in one query, verdicts by pure functions.

use api::{BlockerPolicy, Check, Copy, Level, Role, conditions::reasons};
use sqlx::postgres::PgRow;
use tokio::time::Instant;

use super::{
    allowed_on, blockers,
    connect::{Hello, Link, MARK, literal, text},
    locks,
};
use crate::{
    driver::{Grant, Member, Plan, Preflight},
    engines::text::{reachable, unverified},
    error::Error,
    lease::LONGEST_SERVER_TTL,
};

/// Settings and our rights, as they bear on a file copy; a preflight tells them all.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    wal_level: String,
    free_slots: i64,
    replication: bool,
    execute_backup: bool,
    execute_marker: bool,
    /// Bytes of WAL that a slot may hold back; −1: without bound.
    slot_keeps: i64,
    /// Others' sessions that carry our mark.
    foreign: Option<String>,
    sees_sessions: bool,
    ends_sessions: bool,
}

/// What one check found.
enum Verdict {
    Pass(String),
    Warn(String, String),
    Fail(Error),
}

type Named = (&'static str, Verdict);

/// The marker function has a fourth parameter since PostgreSQL 17, so it is found by name.
const FACTS: &str = "SELECT current_setting('wal_level'), \
    current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots), \
    (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user), \
    (SELECT bool_and(has_function_privilege(oid, 'EXECUTE')) FROM pg_proc \
       WHERE proname IN ('pg_backup_start', 'pg_backup_stop') AND pronamespace = 'pg_catalog'::regnamespace), \
    (SELECT bool_and(has_function_privilege(oid, 'EXECUTE')) FROM pg_proc \
       WHERE proname = 'pg_logical_emit_message' AND pronamespace = 'pg_catalog'::regnamespace), \
    CASE WHEN current_setting('max_slot_wal_keep_size') = '-1' THEN -1 \
         ELSE pg_size_bytes(current_setting('max_slot_wal_keep_size')) END, \
    (SELECT string_agg('session ' || pid || ' (' || application_name || ')', ', ') FROM pg_stat_activity \
       WHERE application_name LIKE 'stillpoint/%' AND application_name <> current_setting('application_name')), \
    pg_has_role('pg_read_all_stats', 'USAGE'), pg_has_role('pg_signal_backend', 'USAGE')";

/// Below this a slot may be invalidated while files are being copied.
const LITTLE_WAL: i64 = 1 << 30;

/// Asks for all of them.
pub(super) async fn facts(link: &mut Link, deadline: Instant) -> Result<Facts, Error> {
    let rows = link.run(deadline, "reading settings and rights", FACTS).await?;
    let Some(row) = rows.first() else {
        return Err(Error::Server { doing: "reading settings and rights".into(), detail: "no row".into() });
    };
    let has = |at| text(row, at).is_some_and(|value| value == "t");
    let number = |at| text(row, at).and_then(|value| value.parse::<i64>().ok());
    Ok(Facts {
        wal_level: text(row, 0).unwrap_or_default(),
        free_slots: number(1).unwrap_or(0),
        replication: has(2),
        execute_backup: has(3),
        execute_marker: has(4),
        slot_keeps: number(5).unwrap_or(-1),
        foreign: text(row, 6),
        sees_sessions: has(7),
        ends_sessions: has(8),
    })
}

/// The checks that prepare makes too: the first failure refuses, warnings go with the answer. An atomic freeze goes by
/// what the server said at connecting, and its rights tell themselves when they are used; a file copy's are asked for
/// before the backup is begun.
pub(super) async fn refuse_or_warn(link: &mut Link, plan: &Plan, deadline: Instant) -> Result<Vec<Check>, Error> {
    let mut named = said_at_connecting(&link.hello, plan);
    if plan.copy == Copy::Files {
        named.extend(judge(&facts(link, deadline).await?, plan));
    }
    let mut warnings = Vec::new();
    for (name, verdict) in named {
        match verdict {
            Verdict::Fail(error) => return Err(error),
            Verdict::Warn(..) => warnings.push(check(name, verdict)),
            Verdict::Pass(_) => {}
        }
    }
    Ok(warnings)
}

/// Every check, nothing touched. The first of them says whether the rest could be made.
pub(super) async fn preflight(member: &Member, plan: &Plan, deadline: Instant) -> Preflight {
    let mut link = match Link::open(member, None, None, LONGEST_SERVER_TTL, deadline).await {
        Ok(link) => link,
        Err(error @ Error::Pooler { .. }) => {
            return Preflight::unreached(vec![reachable(member), error.check("pooler")]);
        }
        Err(error) => return Preflight::unreached(vec![error.check("reachable")]),
    };
    let server = link.hello.supported().is_ok().then(|| link.hello.server());
    let mut checks = vec![reachable(member)];
    match second_session_is_ours(member, &link.hello, deadline).await {
        Ok(()) => checks.push(Check::pass("pooler", "the server itself answers")),
        Err(error) => {
            checks.push(error.check("pooler"));
            return Preflight { checks, server };
        }
    }
    checks.extend(unverified(member));
    let facts = match facts(&mut link, deadline).await {
        Ok(facts) => facts,
        Err(error) => {
            checks.push(error.check("settings"));
            return Preflight { checks, server };
        }
    };
    let named = said_at_connecting(&link.hello, plan).into_iter().chain(judge(&facts, plan));
    checks.extend(named.map(|(name, verdict)| check(name, verdict)));
    if plan.level == Level::WriteBlocked && server.is_some() {
        checks.extend(write_block_checks(member, plan, &mut link, deadline).await);
    }
    link.close(deadline).await;
    Preflight { checks, server }
}

/// What the account needs, as statements. Minimal as tried on PostgreSQL 15 and 18.
pub(super) fn grants(user: &str, level: Level, copy: Copy) -> Vec<Grant> {
    let role = super::connect::identifier(user);
    let grant = |statement: String, reason: &str| Grant { statement, reason: reason.to_owned() };
    let mut grants = vec![grant(
        format!("GRANT pg_read_all_stats TO {role};"),
        "see the sessions that stand in the way, and those that wait",
    )];
    if copy == Copy::Files {
        grants.push(grant(format!("ALTER ROLE {role} REPLICATION;"), "a temporary slot keeps WAL for the copy"));
        grants.push(grant(
            format!(
                "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO {role}; \
                 -- in the database that Stillpoint connects to"
            ),
            "backup mode",
        ));
    }
    if level == Level::WriteBlocked {
        grants.push(grant(
            format!("GRANT pg_write_all_data TO {role}; -- PostgreSQL 17 and later: GRANT pg_maintain, pg_read_all_data"),
            "LOCK TABLE … IN SHARE MODE wants UPDATE, DELETE or TRUNCATE (from 17 on: or MAINTAIN), and USAGE on schemas",
        ));
        grants.push(grant(
            format!("GRANT pg_signal_backend TO {role}; -- only for spec.freeze.blockers.policy KillReads or KillAll"),
            "end sessions that stand in the way",
        ));
    }
    grants
}

/// The verdicts that need no further question.
fn said_at_connecting(hello: &Hello, plan: &Plan) -> Vec<Named> {
    vec![version(hello), role(hello, plan), settings(hello, plan)]
}

/// The verdicts that follow from facts alone, in a stable order.
fn judge(facts: &Facts, plan: &Plan) -> Vec<Named> {
    let mut named = Vec::new();
    match (plan.copy, plan.level) {
        (Copy::Atomic, Level::Recoverable) => {}
        (Copy::Atomic, _) => named.push(privilege_marker(facts)),
        (Copy::Files, _) => {
            named.extend([privilege_marker(facts), privilege_backup(facts), privilege_replication(facts), wal(facts)]);
        }
    }
    named.push(foreign(facts));
    if plan.level == Level::WriteBlocked {
        named.push(privilege_stats(facts));
        if matches!(plan.blockers, BlockerPolicy::KillReads | BlockerPolicy::KillAll) {
            named.push(privilege_signal(facts));
        }
    }
    named
}

fn version(hello: &Hello) -> Named {
    let verdict = match hello.supported() {
        Ok(()) => Verdict::Pass(format!("PostgreSQL {}", hello.version)),
        Err(error) => Verdict::Fail(error),
    };
    ("version", verdict)
}

fn role(hello: &Hello, plan: &Plan) -> Named {
    let found = hello.server().role;
    let verdict = if found != plan.role {
        Verdict::Fail(Error::Role { found, wanted: plan.role })
    } else if let Err(error) = allowed_on(found, plan.level, plan.copy) {
        Verdict::Fail(error)
    } else if found == Role::Replica {
        Verdict::Warn(
            "a standby: the copy is as old as its replay".to_owned(),
            "freeze the primary when no commit may be missing".to_owned(),
        )
    } else {
        Verdict::Pass("primary".to_owned())
    };
    ("role", verdict)
}

fn settings(hello: &Hello, plan: &Plan) -> Named {
    let off: Vec<&str> = [("fsync", hello.fsync), ("full_page_writes", hello.full_page_writes)]
        .into_iter()
        .filter_map(|(name, on)| (!on).then_some(name))
        .collect();
    let impatient = hello.deadlock_timeout < locks::SHORTEST_DEADLOCK_TIMEOUT;
    let verdict = if !off.is_empty() {
        let off = off.join(" and ");
        Verdict::Fail(Error::UnsafeSettings {
            what: format!("{off} is off: no copy of this server can be trusted"),
            fix: format!("set {off} = on and reload"),
        })
    } else if plan.level == Level::WriteBlocked && impatient {
        Verdict::Fail(Error::UnsafeSettings {
            what: format!(
                "deadlock_timeout is {} ms: no table can be locked before the server looks for deadlocks and could end a \
                 client for it",
                hello.deadlock_timeout.as_millis()
            ),
            fix: "set deadlock_timeout = 100ms or more (1s by default) and reload, or use level: Durable".to_owned(),
        })
    } else {
        Verdict::Pass("fsync and full_page_writes are on".to_owned())
    };
    ("settings", verdict)
}

fn privilege_marker(facts: &Facts) -> Named {
    needs(
        "privilege-marker",
        facts.execute_marker,
        "EXECUTE on pg_logical_emit_message",
        "GRANT EXECUTE ON ALL FUNCTIONS … : see `kubectl still grants`; by default PUBLIC may execute it",
    )
}

fn privilege_backup(facts: &Facts) -> Named {
    needs(
        "privilege-backup",
        facts.execute_backup,
        "EXECUTE on pg_backup_start and pg_backup_stop",
        "GRANT EXECUTE ON FUNCTION pg_backup_start(text, boolean), pg_backup_stop(boolean) TO the account",
    )
}

fn privilege_replication(facts: &Facts) -> Named {
    needs("privilege-replication", facts.replication, "the REPLICATION attribute", "ALTER ROLE the account REPLICATION")
}

fn privilege_stats(facts: &Facts) -> Named {
    let verdict = if facts.sees_sessions {
        Verdict::Pass("the account sees the sessions of others".to_owned())
    } else {
        Verdict::Warn(
            "the account does not see the sessions of others: who stands in the way cannot be told".to_owned(),
            "run as an administrator: GRANT pg_read_all_stats TO the account".to_owned(),
        )
    };
    ("privilege-stats", verdict)
}

/// Superusers' sessions only a superuser may end (manual, 22.5).
fn privilege_signal(facts: &Facts) -> Named {
    needs(
        "privilege-signal",
        facts.ends_sessions,
        "pg_signal_backend, which its blocker policy needs",
        "GRANT pg_signal_backend TO the account",
    )
}

fn wal(facts: &Facts) -> Named {
    let no_room = |what: String, fix: &str| Verdict::Fail(Error::NoRoomForWal { what, fix: fix.to_owned() });
    let verdict = if facts.wal_level == "minimal" {
        no_room("wal_level is minimal: WAL cannot carry a file copy".into(), "set wal_level = replica and restart")
    } else if facts.free_slots < 1 {
        no_room("all replication slots are taken".into(), "raise max_replication_slots and restart, or drop a slot")
    } else if (0..LITTLE_WAL).contains(&facts.slot_keeps) {
        Verdict::Warn(
            format!("max_slot_wal_keep_size lets the slot keep {} MiB of WAL", facts.slot_keeps >> 20),
            "raise it above the WAL that is written while the files are copied, or the copy cannot be completed".into(),
        )
    } else {
        Verdict::Warn(
            "the slot keeps all WAL that is written during the copy; the room for it cannot be seen from SQL".into(),
            "make sure that pg_wal's volume has room for it".into(),
        )
    };
    ("wal-room", verdict)
}

fn foreign(facts: &Facts) -> Named {
    let verdict = match &facts.foreign {
        None => Verdict::Pass("no other freeze".to_owned()),
        Some(sessions) => Verdict::Warn(
            format!("another freeze of Stillpoint is in this server: {sessions}"),
            "both can hold at once; make sure that it is wanted".to_owned(),
        ),
    };
    ("foreign-freeze", verdict)
}

fn needs(name: &'static str, has: bool, privilege: &str, grant: &str) -> Named {
    let verdict = if has {
        Verdict::Pass(format!("the account has {privilege}"))
    } else {
        Verdict::Fail(Error::Privilege { privilege: privilege.to_owned(), grant: grant.to_owned() })
    };
    (name, verdict)
}

/// Tables that may not be locked, room in the lock table, and writers that would keep us waiting.
async fn write_block_checks(member: &Member, plan: &Plan, link: &mut Link, deadline: Instant) -> Vec<Check> {
    match locks::survey(member, link, deadline).await {
        Err(error) => vec![error.check("privilege-lock")],
        Ok(survey) => {
            let blockers = blockers_now(link, plan, deadline).await;
            [locks::privilege(&survey), locks::room(&survey), blockers].into_iter().collect()
        }
    }
}

/// Sessions with an open transaction that has written, or holds a lock that a writer holds, for longer than allowed.
async fn blockers_now(link: &mut Link, plan: &Plan, deadline: Instant) -> Check {
    let sql = format!(
        "{} WHERE a.pid <> pg_backend_pid() AND a.application_name NOT LIKE {} AND a.xact_start < clock_timestamp() - \
         {} * interval '1 second' AND EXISTS (SELECT FROM pg_locks l WHERE l.pid = a.pid AND l.granted AND l.locktype = \
         'relation' AND l.mode IN ('RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareRowExclusiveLock', \
         'ExclusiveLock', 'AccessExclusiveLock'))",
        blockers::SESSIONS,
        literal(&format!("{MARK}%")),
        plan.blockers_older_than.as_secs(),
    );
    let rows = match link.run(deadline, "looking for sessions in the way", &sql).await {
        Ok(rows) => rows,
        Err(error) => return error.check("blockers"),
    };
    let sessions: Vec<String> = rows.iter().map(|row: &PgRow| blockers::session(row).blocker.to_string()).collect();
    if sessions.is_empty() {
        return Check::pass("blockers", "no session stands in the way");
    }
    let message = format!("in the way now: {}", sessions.join("; "));
    let fix = "wait for them, end them, or set spec.freeze.blockers.policy";
    match plan.blockers {
        BlockerPolicy::Fail => Check::fail("blockers", reasons::BLOCKED, message, fix),
        _ => Check::warn("blockers", message, fix),
    }
}

/// A pooler lends the second client a session that another had: its backend is older than our asking.
async fn second_session_is_ours(member: &Member, first: &Hello, deadline: Instant) -> Result<(), Error> {
    // The first session must be free for a pooler to lend it again, so a third is opened after the second was closed.
    let second = Link::open(member, None, None, LONGEST_SERVER_TTL, deadline).await?;
    let pid = second.hello.backend_pid;
    second.close(deadline).await;
    let third = Link::open(member, None, None, LONGEST_SERVER_TTL, deadline).await?;
    let again = third.hello.backend_pid;
    third.close(deadline).await;
    if again == pid || again == first.backend_pid {
        return Err(Error::Pooler { detail: format!("backend {again} served two connections of ours") });
    }
    Ok(())
}

fn check(name: &'static str, verdict: Verdict) -> Check {
    match verdict {
        Verdict::Pass(message) => Check::pass(name, message),
        Verdict::Warn(message, fix) => Check::warn(name, message, fix),
        Verdict::Fail(error) => error.check(name),
    }
}
