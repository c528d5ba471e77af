//! A runner that is killed, whatever it had written by then. No Snapshot is Ready that cannot be restored, none that could be is lost, and
//! what was left over is gone when the next run is through.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use fixtures::{FaultyS3, Options, Requests, S3, Server, ServerKind, StoreFault};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::world::{LIMIT, REPOSITORY_PASSWORD, World, condition};

/// Objects that a run writes: its lock, the library's two packs and index, ours, and the snapshot.
const PUTS: usize = 8;

/// When it is killed: as it waits for the answer to one of its writes.
struct Case {
    name: String,
    requests: Requests,
    fault: StoreFault,
    /// Whether all that makes it a copy is there by then.
    is_stored: bool,
}

fn cases() -> Vec<Case> {
    let before = (0..PUTS).map(|puts| Case {
        name: format!("after-{puts}"),
        requests: Requests::PutsAfter(puts),
        fault: StoreFault::Hang,
        is_stored: false,
    });
    let unsaid = Case {
        name: "unsaid".to_owned(),
        requests: Requests::PutsOf("/snapshots/".to_owned()),
        fault: StoreFault::Delay(LIMIT),
        is_stored: true,
    };
    before.chain([unsaid]).collect()
}

/// The runner of a Snapshot: a child of the server, told by its environment.
fn runner(server: u32, snapshot: &str) -> Option<Pid> {
    let of_snapshot = format!("\"name\":\"{snapshot}\"");
    let is_it = |process: &Path| {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{server}"))
            && String::from_utf8_lossy(&environment).contains(&of_snapshot)
    };
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let found =
        processes.filter(|process| is_it(process)).find_map(|process| process.file_name()?.to_str()?.parse().ok());
    found.map(Pid::from_raw)
}

fn restic(repository: &Path, arguments: &[&str]) -> Vec<u8> {
    let mut command = Command::new("restic");
    command.args(["--no-cache", "-r"]).arg(repository).args(arguments).env("RESTIC_PASSWORD", REPOSITORY_PASSWORD);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "restic {arguments:?}: {text}");
    output.stdout
}

async fn killed(world: &World, store: &S3, case: &Case) {
    let Case { name, requests, fault, is_stored } = case;
    let proxy = FaultyS3::before(store).await.unwrap();
    let bucket = json!({"name": "bucket", "s3": {
        "bucket": store.bucket, "prefix": name, "endpoint": proxy.endpoint(), "region": S3::REGION,
        "credentials": {"secretRef": {"name": "bucket-account"}},
    }});
    let encryption = json!({"passwordSecretRef": {"name": "repository-key"}});
    world.make("repositories", name, json!({"locations": [bucket], "encryption": encryption})).await;
    world.until("repositories", name, |status| condition(status, "Ready") == "True").await;
    proxy.say_to(requests.clone(), fault.clone());
    world.make("snapshots", name, json!({"databases": ["orders"], "repository": name})).await;
    timeout(LIMIT, proxy.until_met(1)).await.unwrap_or_else(|_| panic!("{name}: it never came so far"));
    let directory = store.directory().join(name);
    let end = Instant::now() + LIMIT;
    while *is_stored && fs::read_dir(directory.join("snapshots")).map_or(0, Iterator::count) == 0 {
        assert!(Instant::now() < end, "{name}: the store did not take it");
        sleep(Duration::from_millis(10)).await;
    }
    let pid = runner(world.stillpoint.pid, name).unwrap_or_else(|| panic!("{name}: no runner"));
    kill(pid, Signal::SIGKILL).unwrap();
    proxy.well();

    let status = world.until("snapshots", name, |status| status["phase"] == "Ready").await;
    assert_eq!(status["attempts"], json!(if *is_stored { 1 } else { 2 }), "{name}: {status:#}");
    let checked = String::from_utf8(restic(&directory, &["check", "--read-data"])).unwrap();
    assert!(!checked.contains("additional files") && !checked.contains("not referenced"), "{name}: {checked}");
    let snapshots: Value = serde_json::from_slice(&restic(&directory, &["snapshots", "--json"])).unwrap();
    let [only] = snapshots.as_array().unwrap().as_slice() else { panic!("{name}: {snapshots:#}") };
    assert_eq!(only["id"], status["id"], "{name}");
    assert!(restic(&directory, &["list", "locks", "-q"]).is_empty(), "{name}: a lock is left");
    for file in status["contents"].as_array().unwrap().iter().flat_map(|copy| copy["files"].as_array().unwrap()) {
        let bytes = restic(&directory, &["dump", "-q", "latest", &format!("/{}", file["path"].as_str().unwrap())]);
        assert_eq!(json!(bytes.len()), file["size"], "{name}: {file}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_each_of_its_writes_and_the_next_run_is_whole_and_tidy() {
    let kind = ServerKind::POSTGRESQL_15;
    let store = S3::plain().await.unwrap();
    let world = World::with_programs_of(&[kind]).await;
    let server = Server::start(kind, Options::default()).await.unwrap();
    server
        .execute(
            "postgres",
            "CREATE TABLE ledger AS SELECT g AS id, md5(g::text) AS what FROM generate_series(1, 20000) g",
        )
        .await
        .unwrap();
    world.register("orders", &server).await;
    let account = json!({"access-key-id": store.access_key, "secret-access-key": store.secret_key});
    for (name, values) in [("bucket-account", account), ("repository-key", json!({"password": REPOSITORY_PASSWORD}))] {
        let secret = json!({"metadata": {"name": name}, "stringData": values});
        world.stillpoint.post("/api/v1/namespaces/default/secrets", &secret).await.unwrap();
    }
    let cases = cases();
    let (world, store) = (&world, &store);
    futures::future::join_all(cases.iter().map(|case| killed(world, store, case))).await;
}
