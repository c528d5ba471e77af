//! What is lost without Stillpoint, and with it: real databases under load, real cuts, a short report. Exits with 1 if
//! anything that it promises is missing. Leaves nothing running, and nothing outside the cache and `target/`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fixtures::{Options, ServerKind, Volume};
use serde_json::json;
use tests::{
    Stillpoint,
    cuts::{Bench, How},
};

const ROUNDS: u32 = 3;
const PG: ServerKind = ServerKind::POSTGRESQL_15;
const MY: ServerKind = ServerKind::MARIADB_10_11;
const LATE: &[(&str, &str)] = &[("wal_writer_delay", "10s"), ("shared_buffers", "64MB")];
const ASYNC: &str = "SET synchronous_commit = off";
const LAZY: &[(&str, &str)] =
    &[("log-bin", "bin"), ("server-id", "7"), ("innodb-flush-log-at-trx-commit", "2"), ("sync-binlog", "0")];

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    if std::env::args().any(|argument| argument == "--fetch-only") {
        for kind in [PG, MY] {
            drop(fixtures::Server::start(kind, Options::default()).await?);
        }
        return Ok(());
    }
    let began = Instant::now();
    println!("Stillpoint: hold a database still, prove that it was.\n");
    if let Some(why) = Volume::unavailable() {
        println!("Atomic cuts cannot be shown here: {why}. Run `make demo` as root to see them.");
        println!("Nothing was shown, so nothing is claimed.");
        std::process::exit(1);
    }
    let stillpoint = Stillpoint::start().await?;
    let mut postgresql = Bench::start(PG, LATE, ASYNC).await?;
    let mut mariadb = Bench::start(MY, LAZY, "").await?;
    stillpoint.register("orders", &postgresql.server, json!({})).await?;
    stillpoint.register("billing", &mariadb.server, json!({})).await?;
    println!("{PG} with synchronous_commit=off and {MY} with innodb_flush_log_at_trx_commit=2, four writers each.");
    println!(
        "Each copy is a block-level cut of a live volume; a second server is started on it and asked what it has.\n"
    );
    println!("{:<46} {:>7} {:>12} {:>8} {:>7}", "", "copies", "acknowledged", "missing", "torn");
    without(&stillpoint, &mut postgresql, &mut mariadb).await?;
    with(&stillpoint, &mut postgresql, &mut mariadb).await?;
    group(&stillpoint).await?;
    kill(&postgresql).await?;
    println!("\nAll as promised, in {:.0} s.", began.elapsed().as_secs_f64());
    Ok(())
}

async fn without(stillpoint: &Stillpoint, postgresql: &mut Bench, mariadb: &mut Bench) -> Result<()> {
    let lost = row(stillpoint, postgresql, "orders", How::Without, "without: PostgreSQL, a plain snapshot").await?;
    ensure!(lost > 0, "nothing was lost without a barrier: this machine shows nothing");
    let lost =
        row(stillpoint, mariadb, "billing", How::Without, "without: MariaDB, FLUSH TABLES WITH READ LOCK").await?;
    ensure!(lost > 0, "nothing was lost without a barrier: this machine shows nothing");
    files(stillpoint, postgresql, false, "without: PostgreSQL, files copied, no label").await
}

async fn with(stillpoint: &Stillpoint, postgresql: &mut Bench, mariadb: &mut Bench) -> Result<()> {
    for level in ["Durable", "WriteBlocked"] {
        for (bench, database) in [(&mut *postgresql, "orders"), (&mut *mariadb, "billing")] {
            let what = format!("Stillpoint: {}, {level}", bench.kind);
            let lost = row(stillpoint, bench, database, How::Held(level), &what).await?;
            ensure!(lost == 0, "{what}: {lost} missing");
        }
    }
    files(stillpoint, postgresql, true, "Stillpoint: PostgreSQL, files, label and WAL").await
}

/// A row of the report; answers what was missing, torn copies counted as missing.
async fn row(stillpoint: &Stillpoint, bench: &mut Bench, database: &str, how: How, what: &str) -> Result<u64> {
    let (mut missing, mut torn, mut acknowledged) = (0, 0, 0);
    for _ in 0..ROUNDS {
        let made = bench.atomic(stillpoint, database, how).await?;
        missing += made.verdict.missing;
        torn += u64::from(made.verdict.missing == 0 && !made.verdict.is_sound());
        acknowledged += made.verdict.acknowledged;
        if how != How::Without {
            ensure!(made.proved && made.while_blocked == 0, "{what}: not proved: {made:?}");
        }
    }
    println!("{what:<46} {ROUNDS:>7} {acknowledged:>12} {missing:>8} {torn:>7}");
    Ok(missing + torn)
}

async fn files(stillpoint: &Stillpoint, bench: &mut Bench, label: bool, what: &str) -> Result<()> {
    let (mut missing, mut torn, mut acknowledged) = (0, 0, 0);
    for _ in 0..ROUNDS {
        let made = bench.files(stillpoint, "orders", label).await?;
        missing += made.verdict.missing;
        torn += u64::from(!made.verdict.is_sound());
        acknowledged += made.verdict.acknowledged;
    }
    println!("{what:<46} {ROUNDS:>7} {acknowledged:>12} {missing:>8} {torn:>7}");
    ensure!((torn == 0) == label, "{what}: {torn} of {ROUNDS} torn");
    Ok(())
}

/// Both databases at once: none is released before both are held, so no write of one knows of a later one of the other.
async fn group(stillpoint: &Stillpoint) -> Result<()> {
    let status = stillpoint.quiesce("orders", json!({"with": ["billing"]})).await.map_err(anyhow::Error::msg)?;
    let ended = stillpoint.unquiesce("orders", json!({})).await.map_err(anyhow::Error::msg)?;
    let proofs = ended["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(proofs.len() == 2 && proofs.iter().all(|target| target["proof"]["held"] == true), "{ended}");
    println!(
        "\nBoth as one group at {}: held for {} ms, both proved ({}).",
        status["level"].as_str().unwrap_or_default(),
        ended["frozenMilliseconds"],
        proofs.iter().filter_map(|target| target["proof"]["kind"].as_str()).collect::<Vec<_>>().join(", ")
    );
    Ok(())
}

/// The server is killed while it blocks writes.
async fn kill(bench: &Bench) -> Result<()> {
    let mut stillpoint = Stillpoint::start().await?;
    stillpoint.register("orders", &bench.server, json!({})).await?;
    let status = stillpoint.quiesce("orders", json!({"level": "WriteBlocked"})).await.map_err(anyhow::Error::msg)?;
    let killed = Instant::now();
    stillpoint.kill9();
    let first = bench.writers.next_acknowledgement(killed, Duration::from_secs(10)).await;
    let Some(first) = first else { anyhow::bail!("the database stayed blocked") };
    println!(
        "kill -9 of the server while writes were blocked: writers went on after {} ms.",
        (first - killed).as_millis()
    );
    stillpoint.restart().await?;
    let freeze = status["freeze"].as_str().unwrap_or_default();
    let phase = stillpoint.finished(freeze, Duration::from_secs(10)).await?["phase"].clone();
    ensure!(phase == "Lost", "{phase}");
    println!("Its Freeze says: Lost. A copy taken meanwhile would not have been called proved.");
    Ok(())
}
