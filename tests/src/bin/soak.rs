//! Many cuts under load, per engine, level and durability settings; and the negative controls without which they would
//! prove nothing.
//!
//! `soak [CUTS] [CONTROLS] [ONLY]`: how many copies per scenario (default 300) and per negative control (default 10), and only
//! the scenarios with this in their server or name.

use anyhow::{Result, bail};
use fixtures::ServerKind;
use serde_json::json;
use tests::{
    Stillpoint,
    cuts::{Bench, How, Made},
};

struct Scenario {
    name: &'static str,
    kind: ServerKind,
    settings: &'static [(&'static str, &'static str)],
    session: &'static str,
    copy: Copy,
    /// A control must lose or corrupt at least 9 of 10; anything else nothing.
    control: bool,
}

#[derive(Clone, Copy)]
enum Copy {
    Atomic(How),
    Files { label: bool },
}

const LATE: &[(&str, &str)] = &[("wal_writer_delay", "10s"), ("shared_buffers", "64MB")];
const USUAL: &[(&str, &str)] = &[("shared_buffers", "64MB")];
const MARIADB_1_1: &[(&str, &str)] =
    &[("log-bin", "bin"), ("server-id", "7"), ("innodb-flush-log-at-trx-commit", "1"), ("sync-binlog", "1")];
const MARIADB_1_0: &[(&str, &str)] =
    &[("log-bin", "bin"), ("server-id", "7"), ("innodb-flush-log-at-trx-commit", "1"), ("sync-binlog", "0")];
const MARIADB_2_0: &[(&str, &str)] =
    &[("log-bin", "bin"), ("server-id", "7"), ("innodb-flush-log-at-trx-commit", "2"), ("sync-binlog", "0")];
const MARIADB_0_0: &[(&str, &str)] =
    &[("log-bin", "bin"), ("server-id", "7"), ("innodb-flush-log-at-trx-commit", "0"), ("sync-binlog", "0")];
const ASYNC: &str = "SET synchronous_commit = off";
const PG: ServerKind = ServerKind::POSTGRESQL_15;
const MY: ServerKind = ServerKind::MARIADB_10_11;

const fn atomic(
    name: &'static str,
    kind: ServerKind,
    settings: &'static [(&'static str, &'static str)],
    session: &'static str,
    level: &'static str,
) -> Scenario {
    Scenario { name, kind, settings, session, copy: Copy::Atomic(How::Held(level)), control: false }
}

const fn control(
    name: &'static str,
    kind: ServerKind,
    settings: &'static [(&'static str, &'static str)],
    session: &'static str,
) -> Scenario {
    Scenario { name, kind, settings, session, copy: Copy::Atomic(How::Without), control: true }
}

const SCENARIOS: &[Scenario] = &[
    control("control: async commits, late WAL, no barrier", PG, LATE, ASYNC),
    Scenario {
        name: "control: file copy, label removed",
        kind: PG,
        settings: USUAL,
        session: "",
        copy: Copy::Files { label: false },
        control: true,
    },
    control("control: trx_commit=2, FTWRL alone", MY, MARIADB_2_0, ""),
    control("control: trx_commit=0, FTWRL alone", MY, MARIADB_0_0, ""),
    Scenario {
        name: "file copy with label and WAL",
        kind: PG,
        settings: USUAL,
        session: "",
        copy: Copy::Files { label: true },
        control: false,
    },
    atomic("Durable, synchronous_commit=on", PG, USUAL, "", "Durable"),
    atomic("Durable, synchronous_commit=off, late WAL", PG, LATE, ASYNC, "Durable"),
    atomic("WriteBlocked, synchronous_commit=on", PG, USUAL, "", "WriteBlocked"),
    atomic("WriteBlocked, synchronous_commit=off, late WAL", PG, LATE, ASYNC, "WriteBlocked"),
    atomic("Durable, 1/1", MY, MARIADB_1_1, "", "Durable"),
    atomic("Durable, 1/0", MY, MARIADB_1_0, "", "Durable"),
    atomic("Durable, 2/0", MY, MARIADB_2_0, "", "Durable"),
    atomic("Durable, 0/0", MY, MARIADB_0_0, "", "Durable"),
    atomic("WriteBlocked, 1/0", MY, MARIADB_1_0, "", "WriteBlocked"),
    atomic("WriteBlocked, 2/0", MY, MARIADB_2_0, "", "WriteBlocked"),
    atomic("WriteBlocked, 0/0", MY, MARIADB_0_0, "", "WriteBlocked"),
];

/// What a scenario came to.
#[derive(Default)]
struct Sum {
    copies: u32,
    unsound: u32,
    unproved: u32,
    missing: u64,
    at_risk: u64,
    while_blocked: u64,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let copies: u32 = arguments.next().map_or(Ok(300), |text| text.parse())?;
    let controls: u32 = arguments.next().map_or(Ok(10), |text| text.parse())?;
    let only = arguments.next().unwrap_or_default();
    println!(
        "{:<16} {:<50} {:>6} {:>8} {:>8} {:>9} {:>8} {:>9}",
        "server", "scenario", "copies", "unsound", "missing", "at risk", "blocked", "unproved"
    );
    let mut failed = Vec::new();
    for scenario in SCENARIOS.iter().filter(|scenario| format!("{} {}", scenario.kind, scenario.name).contains(&only)) {
        let count = if scenario.control { controls } else { copies };
        let sum = run(scenario, count).await?;
        println!(
            "{:<16} {:<50} {:>6} {:>8} {:>8} {:>9} {:>8} {:>9}",
            scenario.kind.to_string(),
            scenario.name,
            sum.copies,
            sum.unsound,
            sum.missing,
            sum.at_risk,
            sum.while_blocked,
            sum.unproved
        );
        let good = if scenario.control {
            sum.unsound * 10 >= sum.copies * 9
        } else {
            sum.unsound == 0 && sum.missing == 0 && sum.while_blocked == 0 && sum.unproved == 0
        };
        if !good {
            failed.push(scenario.name);
        }
    }
    if !failed.is_empty() {
        bail!("not as promised: {}", failed.join("; "));
    }
    println!("as promised");
    Ok(())
}

async fn run(scenario: &Scenario, count: u32) -> Result<Sum> {
    let stillpoint = Stillpoint::start().await?;
    let mut bench = Bench::start(scenario.kind, scenario.settings, scenario.session).await?;
    stillpoint.register("bank", &bench.server, json!({"acquireTimeoutSeconds": 5})).await?;
    let mut sum = Sum::default();
    for _ in 0..count {
        let made: Made = match scenario.copy {
            Copy::Atomic(how) => bench.atomic(&stillpoint, "bank", how).await?,
            Copy::Files { label } => bench.files(&stillpoint, "bank", label).await?,
        };
        sum.copies += 1;
        sum.unsound += u32::from(!made.verdict.is_sound());
        sum.unproved += u32::from(!scenario.control && !made.proved);
        sum.missing += made.verdict.missing;
        sum.at_risk += made.at_risk;
        sum.while_blocked += made.while_blocked;
        if std::env::var_os("SOAK_VERBOSE").is_some()
            || (!scenario.control && (!made.verdict.is_sound() || !made.proved))
        {
            eprintln!("{}: {made:?}", scenario.name);
        }
    }
    bench.writers.stop().await;
    Ok(sum)
}
