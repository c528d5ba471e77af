//! The numbers, each beside its yardstick in one run: what a freeze costs over the API against the same statements by
//! hand, and what the server itself can do.
//!
//! `bench [freeze|server]`: only the one half.

use std::time::{Duration, Instant};

use anyhow::Result;
use fixtures::{Engine, Load, Options, PASSWORD, Server, ServerKind, USER};
use futures::future::join_all;
use serde_json::json;
use sqlx::{Connection, raw_sql};
use tests::Stillpoint;

const ROUNDS: usize = 200;
/// A server is busy for a moment after a session has ended.
const SETTLE: Duration = Duration::from_millis(40);

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let only = std::env::args().nth(1);
    let mut missed = 0;
    if only.as_deref() != Some("server") {
        missed += freezes().await?;
    }
    if only.as_deref() != Some("freeze") {
        missed += standalone().await?;
    }
    println!("{}", if missed == 0 { "all bounds kept".to_owned() } else { format!("{missed} bounds missed") });
    Ok(())
}

/// What a freeze costs, at each engine and level.
async fn freezes() -> Result<u32> {
    let mut missed = 0;
    println!("quiesce + unquiesce over one kept-alive connection, against connect + same SQL + close, under writes");
    println!(
        "{:<16} {:<14} {:>9} {:>9} {:>9} {:>9}   bound",
        "server", "level", "API p50", "SQL p50", "API p99", "SQL p99"
    );
    for kind in [ServerKind::POSTGRESQL_15, ServerKind::MARIADB_10_11] {
        let stillpoint = Stillpoint::start().await?;
        let server = Server::start(kind, Options::default()).await?;
        Load::prepare(&server).await?;
        stillpoint.register("bank", &server, json!({})).await?;
        let writers = Load::new(2).pause(Duration::from_millis(5)).start(&server);
        for level in ["Recoverable", "Durable", "WriteBlocked"] {
            let (mut api, mut sql) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                // Each is measured when the other's sessions are gone.
                tokio::time::sleep(SETTLE).await;
                let began = Instant::now();
                by_hand(&server, level).await?;
                sql.push(began.elapsed());
                tokio::time::sleep(SETTLE).await;
                let began = Instant::now();
                stillpoint.quiesce("bank", json!({"level": level})).await.map_err(anyhow::Error::msg)?;
                stillpoint.unquiesce("bank", json!({})).await.map_err(anyhow::Error::msg)?;
                api.push(began.elapsed());
            }
            let (api50, sql50) = (percentile(&mut api, 50), percentile(&mut sql, 50));
            let (api99, sql99) = (percentile(&mut api, 99), percentile(&mut sql, 99));
            let bound50 = (sql50 * 12 / 10).max(sql50 + Duration::from_millis(5));
            let kept = api50 <= bound50 && api99 <= sql99 + Duration::from_millis(15);
            missed += u32::from(!kept);
            println!(
                "{:<16} {level:<14} {:>9} {:>9} {:>9} {:>9}   {}",
                kind.to_string(),
                shown(api50),
                shown(sql50),
                shown(api99),
                shown(sql99),
                if kept { "kept" } else { "MISSED" }
            );
        }
        writers.stop().await;
    }
    Ok(missed)
}

/// What the API promises, by hand: the same statements, no lease, no proof, no record.
async fn by_hand(server: &Server, level: &str) -> Result<()> {
    match server.kind.engine {
        Engine::PostgreSQL => {
            let mut one = server.postgres("postgres", USER, PASSWORD).await?;
            if level == "WriteBlocked" {
                let mut bank = server.postgres("bank", USER, PASSWORD).await?;
                raw_sql("BEGIN; SET LOCAL lock_timeout = 3000; LOCK TABLE a, b, ledger IN SHARE MODE")
                    .execute(&mut bank)
                    .await?;
                marker(&mut one).await?;
                raw_sql("ROLLBACK").execute(&mut bank).await?;
                bank.close().await?;
            } else if level == "Durable" {
                marker(&mut one).await?;
            }
            one.close().await?;
        }
        Engine::MariaDB => {
            let mut one = server.mariadb(USER, PASSWORD).await?;
            match level {
                "WriteBlocked" => {
                    raw_sql(
                        "SET SESSION lock_wait_timeout = 3; BACKUP STAGE START; BACKUP STAGE BLOCK_COMMIT; \
                         FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS; SELECT @@gtid_binlog_pos; BACKUP STAGE END",
                    )
                    .execute(&mut one)
                    .await?;
                }
                "Durable" => {
                    raw_sql("FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS").execute(&mut one).await?;
                }
                _ => {}
            }
            one.close().await?;
        }
    }
    Ok(())
}

async fn marker(connection: &mut sqlx::PgConnection) -> Result<()> {
    let sql = "BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_logical_emit_message(true, 'bench', 'x')::text; COMMIT; \
               SELECT pg_current_wal_flush_lsn()::text";
    raw_sql(sql).fetch_all(connection).await?;
    Ok(())
}

/// Memory, reads and watches of the server itself.
async fn standalone() -> Result<u32> {
    let stillpoint = Stillpoint::start().await?;
    let mut missed = 0;
    let mut told = |what: &str, value: String, kept: bool| {
        println!("{what:<58} {value:>14}   {}", if kept { "kept" } else { "MISSED" });
        missed += u32::from(!kept);
    };
    let rss = resident(stillpoint.pid)?;
    told("resident memory, idle (≤ 25 MiB)", format!("{:.1} MiB", rss / 1024.0), rss <= 25.0 * 1024.0);

    // 2 KiB of spec and status each, as kube-apiserver was measured with.
    let names: Vec<String> = (0..56).map(|n| format!("database-with-a-name-of-32-{n:05}")).collect();
    let objects = 10_000_usize;
    let began = Instant::now();
    for chunk in (0..objects).collect::<Vec<_>>().chunks(64) {
        let writes = chunk.iter().map(|n| {
            let body = json!({
                "metadata": {"name": format!("db-{n}")},
                "spec": {"engine": "PostgreSQL", "endpoint": {"host": "192.0.2.1"}, "paused": true, "databases": names},
            });
            let stillpoint = &stillpoint;
            async move { stillpoint.post("/apis/stillpoint.dev/v1alpha1/namespaces/default/databases", &body).await }
        });
        for written in join_all(writes).await {
            written.map_err(anyhow::Error::msg)?;
        }
    }
    println!("{:<58} {:>12.0}/s", "creates, 64 at once, each synced to disk", per_second(objects, began));

    let path = "/apis/stillpoint.dev/v1alpha1/namespaces/default/databases/db-77";
    let (readers, each) = (32_usize, 1500_usize);
    let began = Instant::now();
    let reads = (0..readers).map(|_| async {
        for _ in 0..each {
            let request = http::Request::get(path).body(Vec::new()).map_err(anyhow::Error::from)?;
            stillpoint.client.request_text(request).await?;
        }
        anyhow::Ok(())
    });
    for read in join_all(reads).await {
        read?;
    }
    let rate = per_second(readers * each, began);
    told("GET, 32 at once, the client on the same cores (≥ 10,000/s)", format!("{rate:.0}/s"), rate >= 10_000.0);

    let kubectl =
        std::process::Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/kubectl")).arg("1.33").output()?;
    let kubectl = String::from_utf8(kubectl.stdout)?;
    let mut times = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        let output = std::process::Command::new(kubectl.trim())
            .args(["get", "databases.stillpoint.dev"])
            .env("KUBECONFIG", &stillpoint.kubeconfig)
            .output()?;
        anyhow::ensure!(String::from_utf8_lossy(&output.stdout).lines().count() == objects + 1);
        times.push(began.elapsed());
    }
    let get = percentile(&mut times, 50);
    told("kubectl get of 10,000 objects (≤ 2 s)", shown(get), get <= Duration::from_secs(2));
    for (watchers, bound) in [(50_usize, 2_u64), (1000, 20)] {
        let p99 = watch_latency(&stillpoint, watchers).await?;
        let what = format!("watch event p99 from the write on, {watchers} watchers (≤ {bound} ms)");
        told(&what, shown(p99), p99 <= Duration::from_millis(bound));
    }
    Ok(missed)
}

/// From the sending of a write to its arrival at each of many watchers: the sync to disk is in it.
async fn watch_latency(stillpoint: &Stillpoint, watchers: usize) -> Result<Duration> {
    use futures::{AsyncBufReadExt, StreamExt};
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel::<(usize, Instant)>();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..watchers {
        let path = "/api/v1/namespaces/default/events?watch=true";
        let request = http::Request::get(path).body(Vec::new())?;
        let mut lines = Box::pin(stillpoint.client.request_stream(request).await?.lines());
        let seen = seen.clone();
        tasks.spawn(async move {
            while let Some(Ok(line)) = lines.next().await {
                // Events of an earlier round are in the state that a watch begins with.
                let mine = line.split("bench-").nth(1).and_then(|rest| rest.split('"').next());
                let mine =
                    mine.and_then(|name| name.split_once('.')).filter(|(_, round)| *round == watchers.to_string());
                if let Some(n) = mine.and_then(|(n, _)| n.parse().ok()) {
                    seen.send((n, Instant::now())).ok();
                }
            }
        });
    }
    let mut latencies = Vec::new();
    for n in 0..30 {
        let body = json!({
            "metadata": {"name": format!("bench-{n}.{watchers}")}, "involvedObject": {"kind": "Pod", "name": "x"}, "reason": "Bench",
        });
        stillpoint.post("/api/v1/namespaces/default/events", &body).await.map_err(anyhow::Error::msg)?;
        let written = Instant::now();
        for _ in 0..watchers {
            let next = tokio::time::timeout(Duration::from_secs(5), arrivals.recv()).await?;
            let Some((_, arrived)) = next else { break };
            latencies.push(arrived.saturating_duration_since(written));
        }
    }
    tasks.abort_all();
    Ok(percentile(&mut latencies, 99))
}

fn percentile(values: &mut [Duration], percent: usize) -> Duration {
    values.sort_unstable();
    values.get(values.len() * percent / 100).or(values.last()).copied().unwrap_or_default()
}

fn shown(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1000.0)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark")]
fn per_second(count: usize, began: Instant) -> f64 {
    count as f64 / began.elapsed().as_secs_f64()
}

/// Kilobytes.
fn resident(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    Ok(line.split_whitespace().nth(1).unwrap_or("0").parse()?)
}
