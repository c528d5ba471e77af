//! The long series: many snapshots of databases under write load, each opened afterwards, beside the same with exec hooks and with
//! nothing at all; what of the time is ours; and what Pods with an agent and snapshots of other volumes lose by us. `make soak` runs it.
//!
//! `SERIES=N`: so many snapshots of each kind, and a fifth as many groups. Default: 50.

mod agents;
mod hooks;
mod injected;
mod numbers;
mod stages;
mod unprotected;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster::{until, workload};
use csi::Call;
use fixtures::{Engine, Load, Login, Session, Writers, compare};
use jiff::Timestamp;
use serde_json::{Value, json};
use tests::cuts::instant;

use self::{
    hooks::Hooked,
    numbers::{Promises, Share, Table, group_row, row},
    stages::{Stages, Traced},
};
use crate::{
    gates::world::{World, unheld},
    installed::{SOON, start},
};

/// A database, and who writes to it.
struct Written {
    name: &'static str,
    claim: String,
    login: Login,
    writers: Writers,
}

/// How a copy is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Stillpoint,
    /// As Velero does it: a lock that a session holds, started by exec; a look every 5 s; the lock's end by exec.
    Hooks,
    Nothing,
}

/// What one copy came to.
#[derive(Clone, Copy, Debug)]
struct Copy {
    /// The longest that a writer waited meanwhile.
    stall: Duration,
    /// How long the driver was called for.
    cut: Duration,
    /// Acknowledged before the instant that is promised, or before the cut, and not in it.
    missing: u64,
    /// Nothing is torn.
    sound: bool,
}

/// Of a copy that is not opened yet.
#[derive(Clone, Copy)]
struct Times {
    /// What is acknowledged before this should be in it.
    before: Instant,
    stall: Duration,
    cut: Duration,
}

/// How often somebody who watches nothing looks.
const POLL: Duration = Duration::from_secs(5);

/// Snapshots of each kind.
fn count() -> usize {
    std::env::var("SERIES").map_or(50, |text| text.parse().unwrap())
}

#[tokio::test]
#[ignore = "long: make soak"]
async fn series() {
    let count = count();
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    let databases = [
        written(&world, "shop", Engine::PostgreSQL).await.unwrap(),
        written(&world, "stock", Engine::MariaDB).await.unwrap(),
    ];
    let (mut table, mut traced) = (Table::default(), Vec::new());
    for how in [How::Stillpoint, How::Nothing, How::Hooks] {
        for number in 0..count {
            let of = &databases[number % 2];
            let copy = single(&world, of, how, number, &mut traced).await.unwrap();
            table.add(row(how, of.login.engine), copy);
        }
        println!("{how:?}: {count} copies are made");
    }
    for number in 0..count.div_ceil(5) {
        for (of, copy) in databases.iter().zip(group(&world, &databases, number, &mut traced).await.unwrap()) {
            table.add(group_row(of.login.engine), copy);
        }
    }
    let share = Share::read(&world).await.unwrap();
    for database in databases {
        database.writers.stop().await;
    }
    println!("{table}{share}");
    println!("{}", Stages::read(&world, &traced).unwrap());
    let injected = injected::injected(&world).await.unwrap();
    println!("{injected}");
    let unprotected = unprotected::slowed(&world).await.unwrap();
    println!("{unprotected}");
    // All of them are seen before one that is missed fails the run.
    let promises = Promises([table.promises(), share.promises(), injected.promises(), unprotected.promises()].concat());
    println!("{promises}");
    promises.are_kept().unwrap();
}

/// Under load from here on, until it is dropped. PostgreSQL's commits are acknowledged before they are on disk, as many have it: what
/// a snapshot loses without anybody's help is then seen.
async fn written(world: &World<'_>, name: &'static str, engine: Engine) -> Result<Written> {
    let login = world.database(engine, name, json!({})).await?;
    written_to(world, name, name.to_owned(), login).await
}

async fn written_to(world: &World<'_>, name: &'static str, claim: String, login: Login) -> Result<Written> {
    let engine = login.engine;
    // The volume is small.
    let (database, small, session) = match engine {
        Engine::PostgreSQL => ("postgres", "ALTER SYSTEM SET max_wal_size = '96MB'", "SET synchronous_commit = off"),
        Engine::MariaDB => {
            ("mysql", "SET GLOBAL max_binlog_size = 16777216, GLOBAL max_binlog_total_size = 67108864", "")
        }
    };
    let mut administrator = Session::at(&login, database).await?;
    administrator.run(small).await?;
    if engine == Engine::PostgreSQL {
        administrator.run("SELECT pg_reload_conf()").await?;
    }
    Load::prepare_at(&login).await?;
    world.kubectl(&["label", "persistentvolumeclaim", &claim, "group=all"]).await?;
    let writers = Load::new(4).session(session).pause(Duration::from_millis(5)).start_at(&login);
    until("it is written to", SOON, || async {
        ensure!(writers.acknowledged().len() > 100, "{}", writers.acknowledged().len());
        Ok(())
    })
    .await?;
    Ok(Written { name, claim, login, writers })
}

async fn single(world: &World<'_>, of: &Written, how: How, number: usize, traced: &mut Vec<Traced>) -> Result<Copy> {
    let name = format!("{how:?}-{number}").to_lowercase();
    let began = Instant::now();
    let before = match how {
        How::Stillpoint => {
            world.snapshot(&name, &of.claim).await?;
            let said = world.worth(&name, "application").await?;
            world.until_ready("volumesnapshot", &name).await?;
            let call = last_call(world, "CreateSnapshot").await?;
            traced.push(trace(world, row(how, of.login.engine), "snapcontent", &said, call).await?);
            world.frozen_at(&said).await?
        }
        How::Nothing => {
            world.apply(&unheld(&name, &of.claim)).await?;
            world.until_ready("volumesnapshot", &name).await?;
            cut_at(world, &name).await?
        }
        How::Hooks => {
            let hooked = Hooked::before(world, of.name, of.login.engine).await?;
            let held = Instant::now();
            world.apply(&unheld(&name, &of.claim)).await?;
            while world.object("volumesnapshot", &name).await?["status"]["readyToUse"] != true {
                tokio::time::sleep(POLL).await;
            }
            hooked.after(world, of.name).await?;
            held
        }
    };
    let times = Times { before, stall: stall(of, began).await?, cut: took(&last_call(world, "CreateSnapshot").await?) };
    let copy = opened(world, of, &name, times).await?;
    world.kubectl(&["delete", "volumesnapshot", &name, "--wait=false"]).await?;
    Ok(copy)
}

/// Of all databases, at one instant.
async fn group(world: &World<'_>, databases: &[Written], number: usize, traced: &mut Vec<Traced>) -> Result<Vec<Copy>> {
    let (kind, name) = ("volumegroupsnapshot", format!("group-{number}"));
    let began = Instant::now();
    world.apply(&workload::group_snapshot(&name, "group", "all")).await?;
    let said = world.worth_of(kind, &name, "application").await?;
    world.until_ready(kind, &name).await?;
    let before = world.frozen_at(&said).await?;
    let call = last_call(world, "CreateVolumeGroupSnapshot").await?;
    let cut = took(&call);
    traced.push(trace(world, format!("{:?}, group", How::Stillpoint), "groupsnapcontent", &said, call).await?);
    let mut copies = Vec::new();
    for of in databases {
        let times = Times { before, stall: stall(of, began).await?, cut };
        let member = world.member(&name, &of.claim).await?;
        world.worth(&member, "application").await?;
        world.until_ready("volumesnapshot", &member).await?;
        copies.push(opened(world, of, &member, times).await?);
    }
    world.kubectl(&["delete", kind, &name, "--wait=false"]).await?;
    Ok(copies)
}

/// By the driver's clock, which is this machine's.
async fn cut_at(world: &World<'_>, snapshot: &str) -> Result<Instant> {
    let content = world.content(snapshot).await?;
    let at = content["status"]["creationTime"].as_i64().context("no creationTime")?;
    instant(&json!(Timestamp::from_nanosecond(i128::from(at))?.to_string()))
}

/// What the driver was asked last.
async fn last_call(world: &World<'_>, method: &str) -> Result<Call> {
    let calls = world.cluster.csi().await?.calls(method).await?;
    calls.last().cloned().with_context(|| format!("no {method}"))
}

fn took(call: &Call) -> Duration {
    Duration::from_nanos(call.ended_ns.saturating_sub(call.began_ns))
}

/// `said`: the metadata of a snapshot that was judged.
async fn trace(world: &World<'_>, row: String, prefix: &str, said: &Value, call: Call) -> Result<Traced> {
    let freeze = said["annotations"][api::gate::FREEZE].as_str().context("it names no Freeze")?;
    let freeze = world.object("freezes.stillpoint.dev", freeze).await?;
    let [frozen_at, thawed_at] = ["frozenAt", "thawedAt"].map(|field| stages::time(&freeze["status"][field]));
    let uid = said["uid"].as_str().context("no uid")?;
    Ok(Traced { row, content: format!("{prefix}-{uid}"), frozen_at: frozen_at?, thawed_at: thawed_at?, call })
}

/// Of writers, since then; whoever waited last has been answered.
async fn stall(of: &Written, began: Instant) -> Result<Duration> {
    let now = Instant::now();
    of.writers.next_acknowledgement(now, SOON).await.context("nothing is acknowledged any more")?;
    Ok(of.writers.stall(began, now))
}

/// A server on the copy, compared with what had been acknowledged.
async fn opened(world: &World<'_>, of: &Written, snapshot: &str, times: Times) -> Result<Copy> {
    let Times { before, stall, cut } = times;
    let acknowledged = of.writers.acknowledged();
    let copy = world.restored(snapshot, of.login.engine, "copy").await?;
    let verdict = compare(&copy, &acknowledged, before).await?;
    world.remove("copy").await?;
    let sound =
        verdict.did_not_start.is_none() && verdict.unreadable.is_none() && verdict.sum_is_right && verdict.holes == 0;
    Ok(Copy { stall, cut, missing: verdict.missing, sound })
}
