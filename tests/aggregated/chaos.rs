//! Many clients at once, on Databases that overlap, while replicas are killed: never two freezers of one member, and in the end
//! nothing is frozen and every Freeze is finished.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, ensure};
use fixtures::{Options, PASSWORD, Server, ServerKind, USER};
use futures::future::join_all;
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use sqlx::Row;
use tokio::time::{Instant, sleep};

use crate::world::{SOON, Setup, Space, World};

const CLIENTS: usize = 16;
/// At least so many, and until each has happened to replicas often enough, but no longer than it may take.
const CALLS: usize = 500;
const EACH: usize = 2;
const AT_MOST: Duration = Duration::from_secs(150);
const DATABASES: [&str; 3] = ["a", "b", "c"];
/// Something happens to a replica so often.
const LIFE: Duration = Duration::from_secs(6);
/// And is cut off so long: until the others believe it dead, and longer.
const CUT: Duration = Duration::from_secs(18);
/// Finished Freezes that are kept of each Database (`KEEP_YOUNG_FREEZES` of the server's housekeeping, which sweeps each minute).
const KEPT: usize = 200;
/// The longest that a client asks for.
const TTL: u32 = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_freezer_of_a_member_at_a_time_whoever_asks_and_whoever_dies() {
    let world = World::of(Setup { can_be_cut: true, ..Setup::default() }).await.unwrap();
    let space = world.space("chaos").await.unwrap();
    let options = Options::default().set("max_connections", "400").set("autovacuum", "off");
    let server = Server::start(ServerKind::POSTGRESQL_15, options).await.unwrap();
    for name in DATABASES {
        server.execute("postgres", &format!("CREATE DATABASE {name}")).await.unwrap();
        server.execute(name, "CREATE TABLE t (n int)").await.unwrap();
        space.register_databases(name, &server, &[name]).await.unwrap();
    }
    let over = Arc::new(AtomicBool::new(false));
    let began = Instant::now();
    let (calls, held) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let (kills, cuts) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let enough = |call| {
        let seen = |count: &AtomicUsize| count.load(Ordering::Relaxed) >= EACH;
        call >= CALLS && seen(&kills) && seen(&cuts) || began.elapsed() > AT_MOST
    };
    let clients = (0..CLIENTS).map(|number| client(&space, number, &calls, &held, &enough));
    let watching = join_all(DATABASES.map(|name| never_two(&server, name, &over)));
    let killing = async {
        let mut names: VecDeque<String> = ["one", "two"].map(str::to_owned).into();
        for number in 0.. {
            sleep(LIFE).await;
            if over.load(Ordering::Relaxed) {
                return;
            }
            let Some(old) = names.pop_front() else { return };
            if number % 2 == 0 {
                // Those that it serves go on being sent to it.
                world.cut(&old, true);
                sleep(CUT).await;
                world.cut(&old, false);
                cuts.fetch_add(1, Ordering::Relaxed);
                names.push_back(old);
            } else {
                let new = format!("r{number}");
                world.add_replica(&new).await.unwrap();
                world.kill(&old).await.unwrap();
                kills.fetch_add(1, Ordering::Relaxed);
                names.push_back(new);
            }
        }
    };
    let all = async {
        join_all(clients).await;
        over.store(true, Ordering::Relaxed);
    };
    let ((), watched, ()) = tokio::join!(all, watching, killing);
    for looks in watched {
        assert!(looks > 50, "it was hardly looked at: {looks}");
    }
    let (killed, cut) = (kills.load(Ordering::Relaxed), cuts.load(Ordering::Relaxed));
    println!(
        "{} of {} calls found it frozen; {killed} replicas were killed and {cut} cut off in {:?}",
        held.load(Ordering::Relaxed),
        calls.load(Ordering::Relaxed),
        began.elapsed()
    );
    assert!(killed >= EACH && cut >= EACH, "only {killed} replicas were killed and {cut} cut off");
    assert!(held.load(Ordering::Relaxed) > CALLS / 20, "hardly anything was frozen");
    let insert = format!("SET lock_timeout = '{}s'; INSERT INTO t VALUES (1)", TTL + 1);
    for name in DATABASES {
        server.execute(name, &insert).await.unwrap();
    }
    let finished = |list: &Value| {
        let freezes = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        let phase = |freeze: &Value| freeze["status"]["phase"].as_str().unwrap_or_default().to_owned();
        freezes.iter().all(|freeze| ["Thawed", "Failed", "Expired", "Lost"].contains(&phase(freeze).as_str()))
    };
    // Of one whose replica died before it said that it began, the others wait a while for that.
    cluster::until("every Freeze is finished", SOON * 2, || async {
        let list: Value = serde_json::from_str(&space.kubectl(&["get", "freezes", "-o", "json"]).await?)?;
        ensure!(finished(&list), "{list}");
        let count = list["items"].as_array().map_or(0, Vec::len);
        ensure!(count <= KEPT * DATABASES.len(), "{count} Freezes are kept");
        Ok(())
    })
    .await
    .unwrap();
}

/// Random verbs, until there were enough. Any refusal will do; what must not happen is seen in the database.
async fn client(
    space: &Space<'_>,
    number: usize,
    calls: &AtomicUsize,
    held: &AtomicUsize,
    enough: impl Fn(usize) -> bool,
) {
    let client = space.world.cluster.client().await.unwrap();
    let mut random = StdRng::seed_from_u64(number as u64);
    // What it claimed last, and where.
    let (mut uid, mut claimed) = (String::new(), DATABASES[0]);
    loop {
        let call = calls.fetch_add(1, Ordering::Relaxed);
        if enough(call) {
            return;
        }
        let (verb, spec) = match random.random_range(0..10) {
            0..5 => {
                let other = DATABASES[random.random_range(0..DATABASES.len())];
                (uid, claimed) = (format!("call-{call}"), DATABASES[random.random_range(0..DATABASES.len())]);
                let with = if random.random_bool(0.3) && other != claimed { vec![other] } else { Vec::new() };
                let level = if random.random_bool(0.5) { "WriteBlocked" } else { "Durable" };
                (
                    "quiesce",
                    json!({"uid": uid, "level": level, "with": with, "ttlSeconds": random.random_range(1..=TTL)}),
                )
            }
            5..9 => ("unquiesce", json!({"uid": uid})),
            _ => ("renew", json!({"uid": uid})),
        };
        let request = http::Request::post(space.verb(claimed, verb))
            .header("content-type", "application/json")
            .body(json!({"spec": spec}).to_string().into_bytes())
            .unwrap();
        let answered = client.request::<Value>(request).await;
        if verb == "quiesce" && answered.is_ok_and(|answer| answer["status"]["phase"] == "Frozen") {
            held.fetch_add(1, Ordering::Relaxed);
        }
        sleep(Duration::from_millis(random.random_range(0..200))).await;
    }
}

/// Looks who has locked the table, as often as it can. Two freezes would both have: their locks do not conflict.
///
/// This sees those at WriteBlocked. One at Durable keeps nobody from anything, and its session and advisory lock are there before
/// it holds (while it prepares) and after (until it is tidied up), with the same statements at each time: when it holds cannot be
/// seen in the database, and two such sessions would prove nothing.
async fn never_two(server: &Server, database: &str, over: &AtomicBool) -> usize {
    let mut session = server.postgres(database, USER, PASSWORD).await.unwrap();
    let sql = "SELECT count(DISTINCT a.application_name), string_agg(concat_ws(' ', a.application_name, a.pid, a.state, \
               clock_timestamp() - a.state_change, a.wait_event, a.query), '; ') \
               FROM pg_locks l JOIN pg_stat_activity a USING (pid) \
               WHERE l.relation = 't'::regclass AND l.mode = 'ShareLock' AND l.granted";
    let mut looks = 0;
    while !over.load(Ordering::Relaxed) {
        let row = sqlx::query(sql).fetch_one(&mut session).await.unwrap();
        let (freezers, who): (i64, Option<String>) = (row.get(0), row.get(1));
        assert!(freezers <= 1, "{database}: {freezers} freezes at once: {}", who.unwrap_or_default());
        looks += 1;
        sleep(Duration::from_millis(10)).await;
    }
    looks
}

/// The control: what the look would see if there were two.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_freezers_would_be_seen() -> Result<()> {
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await?;
    server.execute("postgres", "CREATE TABLE t (n int)").await?;
    let mut sessions = Vec::new();
    for name in ["stillpoint/one", "stillpoint/two"] {
        let mut session = server.postgres("postgres", USER, PASSWORD).await?;
        let lock = format!("SET application_name = '{name}'; BEGIN; LOCK TABLE t IN SHARE MODE");
        sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut session).await?;
        sessions.push(session);
    }
    let looking = tokio::spawn(async move { never_two(&server, "postgres", &AtomicBool::new(false)).await });
    ensure!(looking.await.is_err_and(|error| error.is_panic()));
    Ok(())
}
