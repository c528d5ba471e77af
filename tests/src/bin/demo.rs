//! What is lost without Stillpoint, and with it: real databases under load, real cuts, a short report. Exits with 1 if
//! anything that it promises is missing. Leaves nothing running, and nothing outside the cache and `target/`.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use fixtures::{Chain, Options, ServerKind, Volume};
use serde_json::json;
use tests::{
    Stillpoint,
    cuts::{Bench, How, Opened},
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
        // What cannot be shown need not be fetched.
        let kinds: &[ServerKind] = if Volume::unavailable().is_none() { &[PG, MY] } else { &[PG] };
        for kind in kinds.iter().copied() {
            drop(fixtures::Server::start(kind, Options::default()).await?);
        }
        return Ok(());
    }
    let began = Instant::now();
    println!("Stillpoint: hold a database still, prove that it was.\n");
    if let Some(why) = Volume::unavailable() {
        println!("Atomic cuts cannot be shown here: {why}. As root `make demo` shows them, MariaDB and a group too.\n");
        return files_alone(began).await;
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
    header();
    without(&stillpoint, &mut postgresql, &mut mariadb).await?;
    with(&stillpoint, &mut postgresql, &mut mariadb).await?;
    group(&stillpoint, &mut postgresql, &mut mariadb).await?;
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

/// What can be shown on a directory: PostgreSQL copied file by file, and that nothing stays frozen.
async fn files_alone(began: Instant) -> Result<()> {
    let stillpoint = Stillpoint::start().await?;
    let mut postgresql = Bench::start(PG, &[("shared_buffers", "64MB")], "").await?;
    stillpoint.register("orders", &postgresql.server, json!({})).await?;
    header();
    files(&stillpoint, &mut postgresql, false, "without: PostgreSQL, files copied, no label").await?;
    files(&stillpoint, &mut postgresql, true, "Stillpoint: PostgreSQL, files, label and WAL").await?;
    kill(&postgresql).await?;
    println!("\nAs promised, as far as it can be shown here, in {:.0} s.", began.elapsed().as_secs_f64());
    Ok(())
}

/// Both databases at once. A chain of effects runs through them: step n is written to billing only after orders has
/// acknowledged it, so a copy of billing must never know a step that the copy of orders does not.
async fn group(stillpoint: &Stillpoint, orders: &mut Bench, billing: &mut Bench) -> Result<()> {
    let _chain = Chain::start(&orders.server, &billing.server).await?;
    println!("\nSteps that the copy of billing knows and the copy of orders does not:");
    let mut ahead = Vec::new();
    for _ in 0..ROUNDS {
        Chain::grows(&billing.server).await?;
        let mut images = Vec::new();
        for (bench, database) in [(&mut *orders, "orders"), (&mut *billing, "billing")] {
            stillpoint.quiesce(database, json!({"level": "WriteBlocked"})).await.map_err(anyhow::Error::msg)?;
            images.push(bench.cut()?);
            stillpoint.unquiesce(database, json!({})).await.map_err(anyhow::Error::msg)?;
        }
        ahead.push(read_both(orders, billing, images).await?.ahead());
    }
    println!("  {:<44} {}", "frozen and cut one after the other", list(&ahead));
    ensure!(ahead.iter().any(|steps| *steps > 0), "nothing was torn without a group: this machine shows nothing");

    let (mut ahead, mut held, mut last) = (Vec::new(), Vec::new(), None);
    for _ in 0..ROUNDS {
        Chain::grows(&billing.server).await?;
        let status = stillpoint.quiesce("orders", json!({"with": ["billing"]})).await.map_err(anyhow::Error::msg)?;
        ensure!(status["level"] == "WriteBlocked", "{status}");
        let first = orders.cut()?;
        // Storage cuts one volume after the other, and takes its time.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let images = vec![first, billing.cut()?];
        let ended = stillpoint.unquiesce("orders", json!({})).await.map_err(anyhow::Error::msg)?;
        let proofs = ended["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
        ensure!(proofs.len() == 2 && proofs.iter().all(|target| target["proof"]["held"] == true), "{ended}");
        held.push(ended["frozenMilliseconds"].as_u64().unwrap_or_default());
        let both = read_both(orders, billing, images).await?;
        ahead.push(both.ahead());
        last = Some(both);
    }
    println!("  {:<44} {}   (held for {} ms)", "one group at WriteBlocked", list(&ahead), list(&held));
    ensure!(ahead.iter().all(|steps| *steps == 0), "the group was torn: {ahead:?}");
    let last = last.context("no copy was made")?;
    println!(
        "\nThe last copy of orders, opened by plain means: postgres -D {}",
        last.orders.path.join("data").display()
    );
    let accounts =
        last.orders.server.scalar("bank", "SELECT concat(count(*), ' accounts, ', sum(balance)) FROM a").await?;
    println!("  {accounts} on them; the chain stands at step {}.", last.steps.0);
    Ok(())
}

/// Both copies, opened, and the last step that each knows.
struct Both {
    orders: Opened,
    steps: (u64, u64),
}

impl Both {
    fn ahead(&self) -> u64 {
        self.steps.1.saturating_sub(self.steps.0)
    }
}

async fn read_both(orders: &Bench, billing: &Bench, images: Vec<PathBuf>) -> Result<Both> {
    let Ok([of_orders, of_billing]) = <[PathBuf; 2]>::try_from(images) else { bail!("two copies are compared") };
    let (orders, billing) = (orders.open(of_orders).await?, billing.open(of_billing).await?);
    let steps = (Chain::last(&orders.server).await?, Chain::last(&billing.server).await?);
    Ok(Both { orders, steps })
}

fn list(numbers: &[u64]) -> String {
    numbers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn header() {
    println!("{:<46} {:>7} {:>12} {:>8} {:>7}", "", "copies", "acknowledged", "missing", "torn");
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
