//! Sessions in the way of a write block on PostgreSQL, and what each policy does with them.
//!
//! SHARE, the lock of a write block, conflicts with ROW EXCLUSIVE and stronger (manual, 13.3.1). So whoever only reads is
//! not in the way, nor is `SELECT … FOR UPDATE` (ROW SHARE); whoever asked to write and has not is, and has nothing to lose.

use std::time::{Duration, Instant};

use fixtures::{Engine, Load, Options, Server, ServerKind, Session, Walsender};
use serde_json::{Value, json};
use tests::{Refused, Stillpoint};

/// What becomes of a freeze at WriteBlocked, and of the session that was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It holds, and the session lives on.
    Held,
    /// It holds, and the session was ended for it.
    Ended,
    /// It was refused by the session's name, and the session lives on.
    Blocked,
}
use Outcome::{Blocked, Ended, Held};

/// What the session does.
#[derive(Clone, Copy, Debug)]
enum Doing {
    /// These statements, and then nothing, its transaction open.
    Idle(&'static str),
    /// This statement, for a minute.
    Running(&'static str),
    Walsender(&'static str),
    BaseBackup,
}
use Doing::{BaseBackup, Idle, Running};

const POLICIES: [&str; 4] = ["Wait", "Fail", "KillReads", "KillAll"];

/// A session, and what comes of it by each of the policies.
const SESSIONS: [(&str, Doing, [Outcome; 4]); 9] = [
    ("a long SELECT", Running("SELECT pg_sleep(60) FROM a"), [Held, Held, Held, Held]),
    ("a transaction that has read", Idle("BEGIN; SELECT FROM a"), [Held, Held, Held, Held]),
    ("SELECT FOR UPDATE", Idle("BEGIN; SELECT FROM a WHERE id = 1 FOR UPDATE"), [Held, Held, Held, Held]),
    (
        "an UPDATE that met no row",
        Idle("BEGIN; UPDATE a SET balance = 0 WHERE id < 0"),
        [Blocked, Blocked, Ended, Ended],
    ),
    (
        "a lock, and nothing written",
        Idle("BEGIN; LOCK TABLE a IN ROW EXCLUSIVE MODE"),
        [Blocked, Blocked, Ended, Ended],
    ),
    (
        "a transaction that has written",
        Idle("BEGIN; UPDATE a SET balance = balance WHERE id = 1"),
        [Blocked, Blocked, Blocked, Ended],
    ),
    (
        "an UPDATE that has yet to write",
        Running("UPDATE a SET pad = pg_sleep(60)::text WHERE id < 3"),
        [Blocked, Blocked, Ended, Ended],
    ),
    ("a base backup", BaseBackup, [Held, Held, Held, Held]),
    (
        "a walsender with a lock",
        Doing::Walsender("BEGIN; LOCK TABLE a IN ROW EXCLUSIVE MODE; SELECT pg_sleep(60)"),
        [Blocked, Blocked, Blocked, Blocked],
    ),
];

/// How the session is known in the server.
const NAME: &str = "in-the-way";
const PATIENCE: Duration = Duration::from_secs(10);

/// Keeps the session until it is dropped.
enum Kept {
    Session(#[expect(dead_code, reason = "kept, not used")] Session),
    Task(tokio::task::JoinHandle<()>),
    Walsender(#[expect(dead_code, reason = "kept, not used")] Walsender),
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Self::Task(task) = self {
            task.abort();
        }
    }
}

async fn begin(server: &Server, doing: Doing) -> Kept {
    let mut session = Session::open(Engine::PostgreSQL, server.port, "bank").await.unwrap();
    session.run(&format!("SET application_name = '{NAME}'")).await.unwrap();
    let kept = match doing {
        Idle(sql) => {
            session.run(sql).await.unwrap();
            Kept::Session(session)
        }
        Running(sql) => Kept::Task(tokio::spawn(async move { session.run(sql).await.unwrap_or_default() })),
        Doing::Walsender(sql) => {
            drop(session);
            Kept::Walsender(Walsender::statement(server, NAME, "bank", sql).unwrap())
        }
        BaseBackup => {
            drop(session);
            Kept::Walsender(Walsender::base_backup(server, NAME).unwrap())
        }
    };
    let under_way = match doing {
        Idle(_) => "state = 'idle in transaction'",
        Running(_) => "wait_event = 'PgSleep'",
        Doing::Walsender(_) => "wait_event = 'PgSleep' AND backend_type = 'walsender'",
        BaseBackup => "pid IN (SELECT pid FROM pg_stat_progress_basebackup WHERE backup_streamed > 0)",
    };
    until(server, under_way, true).await;
    kept
}

async fn there(server: &Server, condition: &str) -> bool {
    let sql = format!("SELECT count(*)::text FROM pg_stat_activity WHERE application_name = '{NAME}' AND {condition}");
    server.scalar("bank", &sql).await.unwrap() != "0"
}

async fn until(server: &Server, condition: &str, wanted: bool) {
    let end = Instant::now() + PATIENCE;
    while there(server, condition).await != wanted {
        assert!(Instant::now() < end, "not {wanted}: {condition}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// What a freeze came to, by what was answered and by whether the session is there.
async fn outcome(server: &Server, answer: &Result<Value, Refused>) -> Outcome {
    match answer {
        Ok(status) => {
            let ended = status["targets"][0]["endedSessions"].as_array().map_or(0, Vec::len);
            if ended == 0 {
                assert!(there(server, "true").await, "gone, and nobody says that it was ended: {status}");
                return Held;
            }
            assert!(status["targets"][0]["endedSessions"][0].as_str().unwrap().contains(NAME), "{status}");
            until(server, "true", false).await;
            Ended
        }
        Err(refused) => {
            assert!(refused.code == 409 && refused.message.contains(NAME), "{refused}");
            assert!(there(server, "true").await, "{refused}");
            Blocked
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_ends_who_is_in_the_way_as_far_as_it_may_and_nobody_else() {
    let stillpoint = Stillpoint::start().await.unwrap();
    // An autovacuum of the catalogue may look like a commit that escaped (README, "What it cannot do").
    let options = Options::default().set("autovacuum", "off");
    let server = Server::start(ServerKind::POSTGRESQL_15, options).await.unwrap();
    Load::prepare(&server).await.unwrap();
    let name = |policy: &str| policy.to_lowercase();
    for policy in POLICIES {
        let freeze = json!({"blockers": {"policy": policy, "olderThanSeconds": 0}, "acquireTimeoutSeconds": 2});
        stillpoint.register(&name(policy), &server, freeze).await.unwrap();
    }
    let mut wrong = Vec::new();
    for (what, doing, expected) in SESSIONS {
        for (policy, expected) in POLICIES.into_iter().zip(expected) {
            let kept = begin(&server, doing).await;
            let answer = stillpoint.quiesce(&name(policy), json!({"level": "WriteBlocked"})).await;
            let found = outcome(&server, &answer).await;
            println!("{policy:<10} {what:<32} {found:?}");
            if found != expected {
                wrong.push(format!("{policy}, {what}: {found:?} and not {expected:?}"));
            }
            if answer.is_ok() {
                let ended = stillpoint.unquiesce(&name(policy), json!({})).await.unwrap();
                assert_eq!(ended["proof"]["held"], true, "{policy}, {what}: {ended}");
            }
            drop(kept);
            // A server does not notice in its sleep that a client is gone.
            let sql =
                format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{NAME}'");
            server.execute("bank", &sql).await.unwrap();
            until(&server, "true", false).await;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
