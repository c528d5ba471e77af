//! What a dump into a Repository costs, beside `pg_dump -Fc -Z0 | restic backup --stdin` in the same run: wall time, memory, and what a
//! second run stores after a part of the data has changed.
//!
//! And what 10,000 copies cost whoever lists them.
//!
//! `bench-copies [GIGABYTES [PAIRS]]`: 5 and 5, unless it is told otherwise; with 0, only the lists.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use fixtures::{Options, PASSWORD, Server, ServerKind, Session, USER, clients};
use serde_json::{Value, json};
use tests::{Stillpoint, binary};

/// One run: how long it took, and what it needed of memory once its key was derived.
#[derive(Clone, Copy, Debug)]
struct Cost {
    wall: Duration,
    /// KiB.
    peak: u64,
    /// KiB, the derivation of the key included.
    whole: u64,
    stored: u64,
}

const DATABASE: &str = "mixed";
const REPOSITORY_PASSWORD: &str = "benchmark";
/// Of one gigabyte of the dump, about: rows of text that compresses, of noise, and of numbers.
const ROWS: [(&str, u64); 3] = [("words", 820_000), ("noise", 260_000), ("numbers", 3_700_000)];
const SAMPLE: Duration = Duration::from_millis(20);
/// After so much of a run the key is derived, surely.
const DERIVED: f64 = 0.25;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let argument = |at: usize, otherwise: u64| std::env::args().nth(at).map_or(Ok(otherwise), |text| text.parse());
    let (gigabytes, pairs) = (argument(1, 5)?, argument(2, 5)?);
    let home = tempfile::Builder::new()
        .prefix("stillpoint-bench-")
        .tempdir_in(std::env::var("TMPDIR").unwrap_or("/var/tmp".into()))?;
    let server =
        Server::start(ServerKind::POSTGRESQL_15, Options::default().set("fsync", "off").set("max_wal_size", "8GB"))
            .await?;
    let missed = lists(&server, home.path()).await?;
    if gigabytes == 0 {
        return Ok(());
    }
    println!("filling {gigabytes} GB");
    fill(&server, gigabytes).await?;
    let stillpoint = Stillpoint::start().await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        let at = |name: &str| home.path().join(format!("{name}-{pair}"));
        let first = by_us(&stillpoint, &server, &at("ours")).await?;
        let other = by_restic(&server, &at("restic"))?;
        println!("pair {}: ours {}   restic {}", pair + 1, shown(&first), shown(&other));
        ours.push(first);
        theirs.push(other);
        for name in ["ours", "restic"] {
            if pair + 1 < pairs {
                fs::remove_dir_all(at(name))?;
            }
        }
    }
    let missed = missed + u32::from(!compare(&mut ours, &mut theirs));
    let last = |name: &str| home.path().join(format!("{name}-{}", pairs - 1));
    let missed = missed + changed(&stillpoint, &server, &last("ours"), &last("restic")).await?;
    println!("{}", if missed == 0 { "all bounds kept".to_owned() } else { format!("{missed} bounds missed") });
    Ok(())
}

fn compare(ours: &mut [Cost], theirs: &mut [Cost]) -> bool {
    let median = |costs: &mut [Cost], of: fn(&Cost) -> u64| {
        costs.sort_by_key(of);
        of(&costs[costs.len() / 2])
    };
    let milliseconds = |cost: &Cost| u64::try_from(cost.wall.as_millis()).unwrap_or(u64::MAX);
    let (wall, their_wall) = (median(ours, milliseconds), median(theirs, milliseconds));
    let (peak, their_peak) = (median(ours, |cost| cost.peak), median(theirs, |cost| cost.peak));
    let (stored, their_stored) = (median(ours, |cost| cost.stored), median(theirs, |cost| cost.stored));
    let kept = |is: bool| if is { "kept" } else { "MISSED" };
    println!("wall    {wall} ms, restic {their_wall} ms   {} (at most as long)", kept(wall <= their_wall));
    println!(
        "memory  {} MiB, restic {} MiB   {} (at most half)",
        peak >> 10,
        their_peak >> 10,
        kept(peak * 2 <= their_peak)
    );
    println!("stored  {} MiB, restic {} MiB", stored >> 20, their_stored >> 20);
    wall <= their_wall && peak * 2 <= their_peak
}

/// One per cent of all rows, contiguous and then scattered: what the next run stores of it.
async fn changed(stillpoint: &Stillpoint, server: &Server, ours: &Path, theirs: &Path) -> Result<u32> {
    let mut session = Session::open(server.kind.engine, server.port, DATABASE).await?;
    let mut missed = 0;
    for (name, which) in [("contiguous", "id BETWEEN top / 2 AND top / 2 + top / 100"), ("scattered", "id % 100 = 7")] {
        for (table, _) in ROWS {
            let set = match table {
                "words" => "text = reverse(text)",
                "noise" => "bytes = substr(bytes, 2) || substr(bytes, 1, 1)",
                _ => "n = n + 1",
            };
            session
                .run(&format!("UPDATE {table} SET {set} FROM (SELECT max(id) AS top FROM {table}) t WHERE {which}"))
                .await?;
        }
        let (next, other) = (by_us(stillpoint, server, ours).await?, by_restic(server, theirs)?);
        #[expect(clippy::cast_precision_loss, reason = "a share in per cent")]
        let share = |cost: &Cost, all: u64| cost.stored as f64 * 100.0 / all as f64;
        let all = size(ours)?;
        let percent = share(&next, all);
        let bound = if name == "contiguous" { if percent <= 5.0 { "kept" } else { "MISSED" } } else { "no bound" };
        missed += u32::from(bound == "MISSED");
        println!(
            "1 % changed, {name}: {percent:.1} % of the repository is new, restic {:.1} %   {bound}",
            share(&other, size(theirs)?)
        );
    }
    Ok(missed)
}

/// 10,000 Snapshots, and a repository with 10,000 copies.
async fn lists(server: &Server, home: &Path) -> Result<u32> {
    const MANY: u32 = 10_000;
    let stillpoint = Stillpoint::start().await?;
    stillpoint.register("orders", server, json!({})).await?;
    let directory = home.join("many");
    let spec = json!({
        "locations": [{"name": "disk", "directory": {"path": directory}}],
        "encryption": {"passwordSecretRef": {"name": "key"}},
    });
    make(&stillpoint, &directory, &spec).await?;
    let stored = "/apis/stillpoint.dev/v1alpha1/namespaces/default";
    let name = stillpoint.get(&format!("{stored}/repositories")).await.map_err(anyhow::Error::msg)?["items"][0]["metadata"]["name"].clone();
    let snapshot = json!({"metadata": {"name": "first"}, "spec": {"databases": ["orders"], "repository": name}});
    stillpoint.post(&format!("{stored}/snapshots"), &snapshot).await.map_err(anyhow::Error::msg)?;
    let end = Instant::now() + Duration::from_secs(120);
    let id = loop {
        ensure!(Instant::now() < end, "the first Snapshot was not taken: {}", stillpoint.log()?);
        let found = stillpoint.get(&format!("{stored}/snapshots/first")).await.map_err(anyhow::Error::msg)?;
        ensure!(found["status"]["phase"] != "Failed", "{found:#}");
        if let Some(id) = found["status"]["id"].as_str() {
            break id.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking({
        let directory = directory.clone();
        move || {
            use repository::{Location, Patience, Place, Repository, Unlock};
            let location = Location::new("disk", &Place::Directory { path: directory }, Patience::default())?;
            let unlock = Unlock::Password(REPOSITORY_PASSWORD.to_owned());
            Repository::open(&[location], &unlock, &runtime)?.repository.multiply(&id, MANY)
        }
    })
    .await??;
    let waiting = json!({"databases": ["nobody"], "repository": "nowhere"});
    for number in 0..MANY {
        // Of a Repository that is not there: each fails at once, and is one more object.
        let one = json!({"metadata": {"name": format!("s-{number:05}")}, "spec": waiting});
        stillpoint.post(&format!("{stored}/snapshots"), &one).await.map_err(anyhow::Error::msg)?;
    }
    let live = "/apis/live.stillpoint.dev/v1alpha1/namespaces/default/snapshots";
    let timed = |path: String| {
        let stillpoint = &stillpoint;
        async move {
            let began = Instant::now();
            let list = stillpoint.get(&path).await.map_err(anyhow::Error::msg)?;
            Ok::<_, anyhow::Error>((began.elapsed(), list["items"].as_array().map_or(0, Vec::len)))
        }
    };
    let mut missed = 0;
    let mut say = |what: &str, (took, items): (Duration, usize), bound: u64| {
        let kept = took <= Duration::from_millis(bound);
        missed += u32::from(!kept);
        println!(
            "{what}: {items} in {} ms   {} (at most {bound})",
            took.as_millis(),
            if kept { "kept" } else { "MISSED" }
        );
    };
    say("catalogue of 10,000 copies and as many Snapshots, cold", timed(format!("{live}?limit=500")).await?, 2000);
    for what in ["the same, warm", "again"] {
        say(what, timed(format!("{live}?limit=500")).await?, 100);
    }
    for what in ["a page of 500 of 10,000 Snapshots", "again"] {
        say(what, timed(format!("{stored}/snapshots?limit=500")).await?, 100);
    }
    Ok(missed)
}

/// By the server's runner, into a Repository of one directory.
async fn by_us(stillpoint: &Stillpoint, server: &Server, directory: &Path) -> Result<Cost> {
    let before = size(directory).unwrap_or(0);
    let home = tempfile::tempdir()?;
    for (secret, key, value) in
        [("account", "username", USER), ("account", "password", PASSWORD), ("key", "password", REPOSITORY_PASSWORD)]
    {
        fs::create_dir_all(home.path().join(secret))?;
        fs::write(home.path().join(secret).join(key), value)?;
    }
    let repository = json!({
        "locations": [{"name": "disk", "directory": {"path": directory}}],
        "encryption": {"passwordSecretRef": {"name": "key"}},
    });
    if before == 0 {
        // A run finds a repository; the server makes it.
        make(stillpoint, directory, &repository).await?;
    }
    let spec = json!({
        "engine": "PostgreSQL", "endpoint": {"host": "127.0.0.1", "port": server.port},
        "credentials": {"secretRef": {"name": "account"}}, "databases": [DATABASE],
    });
    let task = json!({"dump": {
        "run": {"name": format!("bench-{}", uuid())}, "snapshot": {"namespace": "bench", "name": "bench", "uid": "bench"},
        "databases": [{"name": "bench", "spec": spec}], "repository": repository,
    }});
    let mut command = Command::new(binary("stillpoint-apiserver")?);
    command
        .arg("runner")
        .env("STILLPOINT_TASK", task.to_string())
        .env("STILLPOINT_SECRETS", home.path())
        .envs(api::runner::ALLOCATION)
        .stdout(Stdio::piped());
    let began = Instant::now();
    let mut child = command.spawn()?;
    let output = child.stdout.take().context("no output")?;
    let hearing = std::thread::spawn(move || std::io::read_to_string(output));
    let (peak, whole) = watch(&mut child)?;
    let wall = began.elapsed();
    let said = hearing.join().map_err(|_| anyhow::anyhow!("not heard"))??;
    let last: Value = serde_json::from_str(said.lines().last().context("it said nothing")?)?;
    ensure!(last["dumped"].is_object(), "{last}");
    Ok(Cost { wall, peak, whole, stored: size(directory)? - before })
}

async fn make(stillpoint: &Stillpoint, directory: &Path, repository: &Value) -> Result<()> {
    let secret = json!({"metadata": {"name": "key"}, "stringData": {"password": REPOSITORY_PASSWORD}});
    // It is there already for the second.
    stillpoint.post("/api/v1/namespaces/default/secrets", &secret).await.ok();
    let path = "/apis/stillpoint.dev/v1alpha1/namespaces/default/repositories";
    stillpoint
        .post(path, &json!({"metadata": {"generateName": "bench-"}, "spec": repository}))
        .await
        .map_err(anyhow::Error::msg)?;
    let end = Instant::now() + Duration::from_secs(60);
    while !directory.join("config").exists() {
        ensure!(Instant::now() < end, "the repository was not made: {}", stillpoint.log()?);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// By `pg_dump` and restic, as people do without us, at restic's own compression, which is ours.
fn by_restic(server: &Server, directory: &Path) -> Result<Cost> {
    let restic = |arguments: &[&str]| {
        let mut command = Command::new("restic");
        command
            .args(["--no-cache", "-q", "-r"])
            .arg(directory)
            .args(arguments)
            .env("RESTIC_PASSWORD", REPOSITORY_PASSWORD);
        command
    };
    let before = size(directory).unwrap_or(0);
    if before == 0 {
        ensure!(restic(&["init"]).status()?.success(), "restic init");
    }
    let program = clients(server.kind)?.join("pg_dump");
    let mut dump = Command::new(program);
    dump.args(["-Fc", "-Z0", "-h", "127.0.0.1", "-U", USER, "-d", DATABASE, "-p", &server.port.to_string()])
        .env("PGPASSWORD", PASSWORD);
    let began = Instant::now();
    let mut dump = dump.stdout(Stdio::piped()).spawn()?;
    let output = dump.stdout.take().context("no output")?;
    let mut child = restic(&["backup", "--stdin", "--stdin-filename", "mixed.dump"]).stdin(output).spawn()?;
    let (peak, whole) = watch(&mut child)?;
    let wall = began.elapsed();
    ensure!(dump.wait()?.success(), "pg_dump");
    Ok(Cost { wall, peak, whole, stored: size(directory)? - before })
}

/// Until it ends: the most memory it had in the later part of its life, and in all of it, KiB.
fn watch(child: &mut Child) -> Result<(u64, u64)> {
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut samples = Vec::new();
    let ended = loop {
        if let Some(ended) = child.try_wait()? {
            break ended;
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        samples.extend(line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()));
        std::thread::park_timeout(SAMPLE);
    };
    ensure!(ended.success(), "{ended}");
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a share of samples"
    )]
    let later = (samples.len() as f64 * DERIVED) as usize;
    let most = |samples: &[u64]| samples.iter().copied().max().unwrap_or(0);
    Ok((most(&samples[later..]), most(&samples)))
}

async fn fill(server: &Server, gigabytes: u64) -> Result<()> {
    Session::open(server.kind.engine, server.port, "postgres")
        .await?
        .run(&format!("CREATE DATABASE {DATABASE}"))
        .await?;
    let mut session = Session::open(server.kind.engine, server.port, DATABASE).await?;
    session
        .run(
            "CREATE EXTENSION pgcrypto; \
             CREATE UNLOGGED TABLE words (id bigint, text text); CREATE UNLOGGED TABLE noise (id bigint, bytes bytea); \
             CREATE UNLOGGED TABLE numbers (id bigint, n int, at timestamptz, price numeric, flag bool)",
        )
        .await?;
    for (table, rows) in ROWS {
        let rows = rows * gigabytes;
        let values = match table {
            "words" => "repeat(md5((g / 3)::text) || ' the order of customer ' || g || ' was shipped; ', 5)",
            "noise" => "gen_random_bytes(640)",
            _ => "g % 1000, timestamptz '2026-01-01' + g * interval '1 second', (g % 100000) / 100.0, g % 3 = 0",
        };
        session.run(&format!("INSERT INTO {table} SELECT g, {values} FROM generate_series(1, {rows}) g")).await?;
    }
    session.run("VACUUM ANALYZE").await
}

fn size(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        bytes += if entry.file_type()?.is_dir() { size(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(bytes)
}

fn uuid() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_nanos())
}

fn shown(cost: &Cost) -> String {
    let Cost { wall, peak, whole, stored } = cost;
    format!(
        "{:.1} s, {} MiB ({} with its key), {} MiB stored",
        wall.as_secs_f64(),
        peak >> 10,
        whole >> 10,
        stored >> 20
    )
}
