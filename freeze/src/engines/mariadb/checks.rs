//! What must be true before a freeze, as named checks.

use api::{BlockerPolicy, Check, Level, Role, conditions::reasons};
use tokio::time::Instant;

use super::{
    barrier::{self, Way},
    blockers::{self, Sight},
    connect::{Hello, Link, MARK, literal, text},
};
use crate::{
    driver::{Grant, Member, Plan, Preflight},
    engines::text::{reachable, unverified},
    error::Error,
    lease::LONGEST_SERVER_TTL,
};

/// Every check, nothing touched.
pub(super) async fn preflight(member: &Member, plan: &Plan, deadline: Instant) -> Preflight {
    let mut link = match Link::open(member, LONGEST_SERVER_TTL, deadline).await {
        Ok(link) => link,
        Err(error @ Error::Pooler { .. }) => {
            return Preflight::unreached(vec![reachable(member), error.check("pooler")]);
        }
        Err(error) => return Preflight::unreached(vec![error.check("reachable")]),
    };
    let hello = link.hello.clone();
    let server = hello.supported().is_ok().then(|| hello.server());
    let mut checks = vec![reachable(member), Check::pass("pooler", "the server itself answers")];
    checks.extend(unverified(member));
    checks.extend(judge(&hello, plan));
    if server.is_none() {
        return Preflight { checks, server };
    }
    checks.push(durability(&mut link, &hello, plan, deadline).await);
    if plan.level > Level::Recoverable {
        checks.extend(privileges(&mut link, plan, deadline).await);
    }
    checks.push(binlog_monitor(&mut link, &hello, deadline).await);
    checks.push(foreign(&mut link, deadline).await);
    checks.push(not_innodb(&mut link, deadline).await);
    if plan.level == Level::WriteBlocked {
        checks.push(blockers_now(&mut link, plan, deadline).await);
    }
    link.close(deadline).await;
    Preflight { checks, server }
}

/// The verdicts that follow from the server's own word, for prepare too: an error refuses.
pub(super) fn refuse(hello: &Hello, plan: &Plan) -> Result<(), Error> {
    hello.supported()?;
    role(hello, plan)?;
    settings(hello)?;
    no_cluster(hello)
}

pub(super) fn grants(user: &str, level: Level) -> Vec<Grant> {
    let account = user.split_once('@').map_or_else(
        || format!("'{}'@'%'", user.replace('\'', "''")),
        |(name, host)| format!("'{}'@'{}'", name.replace('\'', "''"), host.replace('\'', "''")),
    );
    let grant = |privilege: &str, reason: &str| Grant {
        statement: format!("GRANT {privilege} ON *.* TO {account};"),
        reason: reason.to_owned(),
    };
    let mut grants = vec![grant("BINLOG MONITOR", "read the binary log's position (before 10.5: REPLICATION CLIENT)")];
    if level > Level::Recoverable {
        grants.push(grant("RELOAD", "FLUSH ENGINE LOGS and BACKUP STAGE"));
        grants.push(grant(
            "SUPER",
            "only where innodb_flush_log_at_trx_commit or sync_binlog is not 1: raised for the moment of the barrier. \
             Without it, InnoDB's own flush is waited for (up to 1 s), and the binary log in the copy may be behind",
        ));
    }
    if level == Level::WriteBlocked {
        grants.push(grant("PROCESS", "see the sessions that stand in the way, and those that wait"));
        grants.push(grant("CONNECTION ADMIN", "only for spec.freeze.blockers.policy KillReads or KillAll"));
    }
    grants
}

fn judge(hello: &Hello, plan: &Plan) -> Vec<Check> {
    let named: [(&'static str, Result<(), Error>, String); 4] = [
        ("version", hello.supported(), format!("MariaDB {}", hello.version)),
        ("role", role(hello, plan), format!("{}", hello.server().role).to_lowercase()),
        ("settings", settings(hello), "innodb_doublewrite is on".to_owned()),
        ("cluster", no_cluster(hello), "not a member of a Galera cluster".to_owned()),
    ];
    named
        .into_iter()
        .map(|(name, verdict, passed)| match verdict {
            Ok(()) => Check::pass(name, passed),
            Err(error) => error.check(name),
        })
        .collect()
}

fn role(hello: &Hello, plan: &Plan) -> Result<(), Error> {
    let found = hello.server().role;
    if found != plan.role {
        return Err(Error::Role { found, wanted: plan.role });
    }
    if found == Role::Replica && plan.level > Level::Recoverable {
        return Err(Error::Unsupported {
            what: format!(
                "a replica cannot be held at {}: what its primary acknowledged may not have arrived",
                plan.level
            ),
            instead: "freeze the primary, or use level: Recoverable".to_owned(),
        });
    }
    Ok(())
}

/// Torn pages cannot be repaired without it.
fn settings(hello: &Hello) -> Result<(), Error> {
    if hello.doublewrite {
        return Ok(());
    }
    Err(Error::UnsafeSettings {
        what: "innodb_doublewrite is off: no copy of this server can be trusted".to_owned(),
        fix: "set innodb_doublewrite = ON and restart".to_owned(),
    })
}

fn no_cluster(hello: &Hello) -> Result<(), Error> {
    if hello.cluster_size == 0 {
        return Ok(());
    }
    Err(Error::Unsupported {
        what: "the server is a member of a Galera cluster: holding one member does not hold the others".to_owned(),
        instead: "take it out of the cluster for the copy, or use mariadb-backup".to_owned(),
    })
}

/// What the barrier will have to do here, as far as it can be read.
async fn durability(link: &mut Link, hello: &Hello, plan: &Plan, deadline: Instant) -> Check {
    let name = "durability";
    let settings = format!(
        "innodb_flush_log_at_trx_commit={}, sync_binlog={}{}",
        hello.flush_log_at_trx_commit,
        hello.sync_binlog,
        if hello.log_bin { "" } else { " (no binary log)" }
    );
    if plan.level == Level::Recoverable {
        return Check::pass(name, settings);
    }
    match barrier::foresee(link, deadline).await {
        Ok(Way::Flush) if hello.log_bin && hello.sync_binlog != 1 => Check::warn(
            name,
            format!("{settings}: commits are flushed, but the binary log in the copy may be behind"),
            "GRANT SUPER, so that the binary log can be synced too",
        ),
        Ok(Way::Flush) => Check::pass(name, settings),
        Ok(Way::Raise(_)) => Check::pass(name, format!("{settings}: raised to 1 for the moment of the barrier")),
        Ok(Way::Wait) => Check::warn(
            name,
            format!("{settings}: InnoDB's own flush has to be waited for, up to 1 s"),
            "GRANT SUPER, so that it can be flushed at once",
        ),
        Err(error) => error.check(name),
    }
}

/// The rights that cannot be tried without doing something: read from what the account may see of itself.
async fn privileges(link: &mut Link, plan: &Plan, deadline: Instant) -> Vec<Check> {
    let privileges = match link.privileges(deadline).await {
        Ok(privileges) => privileges,
        Err(error) => return vec![error.check("privilege-reload")],
    };
    let has = |privilege: &str| privileges.iter().any(|one| one == privilege);
    let needs = |name: &'static str, privilege: &str| {
        if has(privilege) {
            return Check::pass(name, format!("the account has {privilege}"));
        }
        let grant = format!("GRANT {privilege} ON *.* TO the account");
        Error::Privilege { privilege: privilege.to_owned(), grant }.check(name)
    };
    let mut checks = vec![needs("privilege-reload", "RELOAD")];
    if plan.level == Level::WriteBlocked {
        checks.push(if has("PROCESS") {
            Check::pass("privilege-process", "the account sees the sessions of others")
        } else {
            Check::warn(
                "privilege-process",
                "the account does not see the sessions of others: who stands in the way cannot be told",
                "GRANT PROCESS ON *.* TO the account",
            )
        });
        if matches!(plan.blockers, BlockerPolicy::KillReads | BlockerPolicy::KillAll) && !has("SUPER") {
            checks.push(needs("privilege-connection-admin", "CONNECTION ADMIN"));
        }
    }
    checks
}

async fn binlog_monitor(link: &mut Link, hello: &Hello, deadline: Instant) -> Check {
    let name = "privilege-binlog-monitor";
    if !hello.log_bin {
        return Check::warn(
            name,
            "there is no binary log: that writes were blocked can only be proved by the session that held",
            "set log_bin for an exact position",
        );
    }
    match link.run(deadline, "reading the position", "SHOW MASTER STATUS").await {
        Ok(_) => Check::pass(name, "the account can read the binary log's position"),
        Err(_) => Check::warn(
            name,
            "the account cannot read the binary log's position",
            "GRANT BINLOG MONITOR ON *.* TO the account",
        ),
    }
}

async fn foreign(link: &mut Link, deadline: Instant) -> Check {
    let sql = format!("SELECT IS_USED_LOCK({})", literal(MARK));
    match link.run(deadline, "looking for other freezes", &sql).await {
        Ok(rows) => match rows.first().and_then(|row| text(row, 0)) {
            None => Check::pass("foreign-freeze", "no other freeze"),
            Some(id) => {
                Error::ForeignFreeze { holder: format!("session {id}, a freeze of Stillpoint") }.check("foreign-freeze")
            }
        },
        Err(error) => error.check("foreign-freeze"),
    }
}

/// Their writes only reach the page cache by any lock or flush.
async fn not_innodb(link: &mut Link, deadline: Instant) -> Check {
    let sql = "SELECT COUNT(*), MIN(CONCAT(TABLE_SCHEMA, '.', TABLE_NAME)) FROM information_schema.TABLES \
               WHERE ENGINE IN ('MyISAM', 'Aria', 'CSV', 'ARCHIVE') AND TABLE_TYPE = 'BASE TABLE' \
               AND TABLE_SCHEMA NOT IN ('mysql', 'information_schema', 'performance_schema', 'sys')";
    match link.run(deadline, "looking at storage engines", sql).await {
        Ok(rows) => match rows.first().and_then(|row| text(row, 0)).as_deref() {
            None | Some("0") => Check::pass("storage-engines", "all tables that the account sees are transactional"),
            Some(count) => Check::warn(
                "storage-engines",
                format!(
                    "{count} tables are not transactional, among them {}: what was written to them last may be missing",
                    rows.first().and_then(|row| text(row, 1)).unwrap_or_default()
                ),
                "ALTER TABLE … ENGINE = InnoDB",
            ),
        },
        Err(error) => error.check("storage-engines"),
    }
}

async fn blockers_now(link: &mut Link, plan: &Plan, deadline: Instant) -> Check {
    let (found, sight) = match blockers::look(link, 0, deadline).await {
        Ok(looked) => looked,
        Err(error) => return error.check("blockers"),
    };
    let old = found.iter().filter(|found| found.blocker.age >= plan.blockers_older_than);
    let sessions: Vec<String> = old.map(|found| found.blocker.to_string()).collect();
    match (sessions.is_empty(), sight) {
        (true, Sight::Locks) => Check::pass("blockers", "no session stands in the way"),
        (true, Sight::Statements) => {
            Check::pass("blockers", format!("no session is seen to stand in the way ({})", blockers::BLIND))
        }
        (false, _) => {
            let message = format!("in the way now: {}", sessions.join("; "));
            let fix = "wait for them, end them, or set spec.freeze.blockers.policy";
            match plan.blockers {
                BlockerPolicy::Fail => Check::fail("blockers", reasons::BLOCKED, message, fix),
                _ => Check::warn("blockers", message, fix),
            }
        }
    }
}
