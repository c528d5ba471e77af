//! By DumpTools: real programs that are none of ours, their failures, and their ends.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use fixtures::{Login, Options, Server, ServerKind, Session};
use serde_json::{Value, json};
use tests::binary;
use tokio::time::sleep;

use super::world::{LIMIT, REPOSITORY, REPOSITORY_PASSWORD, World};

const KIND: ServerKind = ServerKind::POSTGRESQL_15;
const FILL: &str = "CREATE TABLE ledger AS SELECT i, md5(i::text) AS text FROM generate_series(1, 200000) i; \
    CREATE ROLE auditor; GRANT SELECT ON ledger TO auditor";
const SUM: &str = "SELECT concat(count(*), ' ', sum(i), ' ', max(text), ' ', has_table_privilege('auditor', 'ledger', 'SELECT')) FROM ledger";

struct Tools {
    world: World,
    repository: std::path::PathBuf,
}

impl Tools {
    async fn new() -> Self {
        let world = World::with_programs_of(&[KIND]).await;
        let repository = world.repository(&["disk"]).await.remove(0);
        Self { world, repository }
    }

    /// With a ledger in it, as Database `orders`.
    async fn orders(&self) -> Server {
        let server = Server::start(KIND, Options::default()).await.unwrap();
        server.execute("postgres", "CREATE DATABASE bank").await.unwrap();
        server.execute("bank", FILL).await.unwrap();
        self.world.register("orders", &server).await;
        server
    }

    async fn tool(&self, name: &str, spec: Value) {
        let path = "/apis/stillpoint.dev/v1alpha1/dumptools";
        self.world.stillpoint.post(path, &json!({"metadata": {"name": name}, "spec": spec})).await.unwrap();
    }

    /// Asked for, for some seconds at most: what fails is tried again.
    async fn ask(&self, name: &str, tool: Value) {
        let spec = json!({"databases": ["orders"], "repository": REPOSITORY, "tool": tool, "deadlineSeconds": 20});
        self.world.make("snapshots", name, spec).await;
    }

    async fn fails(&self, plural: &str, name: &str) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            let status = self.world.status(plural, name).await;
            if status["phase"] == "Failed" {
                return status;
            }
            assert!(Instant::now() < end && status["phase"] != "Ready", "{plural}/{name}: {status:#}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    fn stored(&self) -> usize {
        std::fs::read_dir(self.repository.join("snapshots")).map_or(0, Iterator::count)
    }

    fn still(&self, arguments: &[&str]) -> String {
        let output = Command::new(binary("kubectl-still").unwrap())
            .args(arguments)
            .env("KUBECONFIG", &self.world.stillpoint.kubeconfig)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {text}\n{}", self.world.stillpoint.log().unwrap());
        text
    }
}

async fn sum(login: &Login) -> String {
    Session::at(login, "bank").await.unwrap().scalar(SUM).await.unwrap()
}

fn pg_dumpall() -> Value {
    let to = ["--host=$(HOST)", "--port=$(PORT)", "--username=$(USERNAME)", "--no-password"];
    let dump = [&["pg_dumpall", "--lock-wait-timeout=$(settings.lock-wait)"], &to[..]].concat();
    let restore = [&["psql", "--no-psqlrc", "--dbname=postgres"], &to[..]].concat();
    json!({
        "engines": ["PostgreSQL"],
        "dump": {"command": dump, "file": "all.sql"},
        "restore": {"command": restore},
        "settings": [{"name": "lock-wait", "default": "60s", "pattern": "[0-9]+(ms|s)"}],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_server_by_pg_dumpall_and_back() {
    let tools = Tools::new().await;
    tools.tool("pg-dumpall", pg_dumpall()).await;
    let server = tools.orders().await;
    let before = sum(&Login::of(&server)).await;
    let target = Server::start(KIND, Options::default()).await.unwrap();
    tools.world.register("fresh", &target).await;

    let create = ["snapshot", "create", "orders", "--name", "first", "--tool", "pg-dumpall", "--set", "lock-wait=7s"];
    let said = tools.still(&create);
    assert!(said.contains("unknown") && said.contains("DumpTool pg-dumpall"), "{said}");
    let status = tools.world.status("snapshots", "first").await;
    assert_eq!(status["consistency"]["verdict"], "unknown", "{status:#}");
    assert!(status["consistency"]["level"].is_null(), "{status:#}");
    let made = &status["contents"][0];
    assert_eq!(made["dumpTool"], json!({"name": "pg-dumpall", "settings": {"lock-wait": "7s"}}));
    assert_eq!((&made["files"][0]["path"], &made["files"][0]["format"]), (&json!("orders/all.sql"), &json!("Tool")));
    assert!(made["version"].as_str().unwrap().starts_with("15."), "{made:#}");
    assert!(status["cutBetween"]["frozenAt"].as_str() < status["cutBetween"]["thawedAt"].as_str(), "{status:#}");
    let restic = Command::new("restic")
        .args(["--no-cache", "-r", &tools.repository.display().to_string(), "dump", "latest", "/manifest.json"])
        .env("RESTIC_PASSWORD", REPOSITORY_PASSWORD)
        .output()
        .unwrap();
    let manifest: Value = serde_json::from_slice(&restic.stdout).unwrap();
    assert_eq!(manifest["contents"][0]["dumpTool"], made["dumpTool"], "the copy says by itself how it was made");

    // Whoever does not say that it may be replaced changes nothing.
    drop(server);
    let source = json!({"snapshot": "first", "database": "orders"});
    tools.world.make("restores", "shy", json!({"database": "fresh", "source": source})).await;
    let shy = tools.fails("restores", "shy").await;
    assert!(shy["message"].as_str().unwrap().contains("spec.existing: Replace"), "{shy:#}");
    assert!(shy["target"].as_str().unwrap().starts_with("as it was"), "{shy:#}");
    assert!(Session::at(&Login::of(&target), "bank").await.is_err(), "the control: nothing is there yet");

    tools.world.make("restores", "back", json!({"database": "fresh", "source": source, "existing": "Replace"})).await;
    tools.world.until("restores", "back", |status| status["phase"] == "Complete").await;
    assert_eq!(sum(&Login::of(&target)).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_files_by_pg_dump_and_back() {
    let tools = Tools::new().await;
    let spec = json!({
        "dump": {
            "command": ["pg_dump", "--format=directory", "--jobs=$(settings.jobs)", "--dbname=$(DATABASES)", "--file=$(SCRATCH)/dump"],
            "output": "Directory",
        },
        "restore": {"command": ["pg_restore", "--create", "--jobs=$(settings.jobs)", "--dbname=postgres", "$(SCRATCH)/dump"]},
        "settings": [{"name": "jobs", "default": "2", "pattern": "[1-9]"}],
    });
    tools.tool("parallel", spec).await;
    let server = tools.orders().await;
    let before = sum(&Login::of(&server)).await;
    let bank = |port: u16| {
        json!({
            "engine": "PostgreSQL", "endpoint": {"host": "127.0.0.1", "port": port}, "databases": ["bank"],
            "credentials": {"secretRef": {"name": "orders-account"}},
        })
    };
    tools.world.make("databases", "bank", bank(server.port)).await;
    let spec = json!({"databases": ["bank"], "repository": REPOSITORY, "tool": {"name": "parallel"}});
    tools.world.make("snapshots", "first", spec).await;
    let status = tools.world.until("snapshots", "first", |status| status["phase"] == "Ready").await;
    let files = status["contents"][0]["files"].as_array().unwrap();
    assert!(files.len() >= 2 && files.iter().any(|file| file["path"] == "bank/dump/toc.dat"), "{status:#}");

    let target = Server::start(KIND, Options::default()).await.unwrap();
    target.execute("postgres", "CREATE ROLE auditor").await.unwrap();
    tools.world.make("databases", "fresh", bank(target.port)).await;
    let source = json!({"snapshot": "first"});
    tools.world.make("restores", "back", json!({"database": "fresh", "source": source, "existing": "Replace"})).await;
    tools.world.until("restores", "back", |status| status["phase"] == "Complete").await;
    assert_eq!(sum(&Login::of(&target)).await, before);
    // A second time it finds what the first has left: what it says is told, and nothing is claimed of what became of the target.
    tools.world.make("restores", "again", json!({"database": "fresh", "source": source, "existing": "Replace"})).await;
    let again = tools.fails("restores", "again").await;
    assert!(again["message"].as_str().unwrap().contains("already exists"), "{again:#}");
    assert!(again["target"].as_str().unwrap().starts_with("unknown"), "{again:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_did_not_end_well_is_no_copy() {
    let tools = Tools::new().await;
    let _server = tools.orders().await;
    let script = |script: &str| json!({"dump": {"command": ["sh", "-c", script]}});
    for (name, spec, why) in [
        ("breaks", script("seq 1 100000; echo it broke >&2; exit 1"), "it broke"),
        ("dies", script("seq 1 100000; kill -9 $$"), "signal: 9"),
        ("silent", script("true"), "wrote nothing"),
        ("absent", json!({"dump": {"command": ["no-such-program"]}}), "no-such-program is not there"),
        ("no-files", json!({"dump": {"command": ["true", "$(SCRATCH)"], "output": "Directory"}}), "left no file"),
        ("elsewhere", json!({"engines": ["MariaDB"], "dump": {"command": ["true"]}}), "not made for PostgreSQL"),
    ] {
        tools.tool(name, spec).await;
        tools.ask(name, json!({"name": name})).await;
        let status = tools.fails("snapshots", name).await;
        assert!(status["message"].as_str().unwrap().contains(why), "{name}: {status:#}");
        assert_eq!(tools.stored(), 0, "{name}");
    }
    tools.ask("unset", json!({"name": "breaks", "settings": {"threads": "4"}})).await;
    let status = tools.fails("snapshots", "unset").await;
    assert!(status["message"].as_str().unwrap().contains("no setting threads"), "{status:#}");
    tools.ask("nameless", json!({"name": "nobody"})).await;
    let status = tools.fails("snapshots", "nameless").await;
    assert!(status["message"].as_str().unwrap().contains("there is no DumpTool nobody"), "{status:#}");
    // The control: the same output, and a good end.
    tools.tool("ends", script("seq 1 100000; echo it is done >&2")).await;
    tools.ask("good", json!({"name": "ends"})).await;
    tools.world.until("snapshots", "good", |status| status["phase"] == "Ready").await;
    assert_eq!(tools.stored(), 1);
    assert!(tools.still(&["snapshot", "log", "good"]).contains("it is done"));
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_while_it_runs_ends_it_and_what_it_has_started() {
    let tools = Tools::new().await;
    let _server = tools.orders().await;
    let home = tempfile::tempdir().unwrap();
    let pids = home.path().join("pids");
    let script = "seq 1 100000; sleep 600 & echo $$ $! > \"$STILLPOINT_SETTING_PIDS\"; wait";
    let spec = json!({"dump": {"command": ["sh", "-c", script]}, "settings": [{"name": "pids"}]});
    tools.tool("waits", spec).await;
    let tool = json!({"name": "waits", "settings": {"pids": pids.display().to_string()}});
    let spec = json!({"databases": ["orders"], "repository": REPOSITORY, "tool": tool});
    tools.world.make("snapshots", "first", spec).await;
    let end = Instant::now() + LIMIT;
    let running = loop {
        let found = std::fs::read_to_string(&pids).unwrap_or_default();
        if found.ends_with('\n') {
            break found.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        }
        assert!(Instant::now() < end, "{}", tools.world.stillpoint.log().unwrap());
        sleep(Duration::from_millis(20)).await;
    };
    let is_there = |pid: &String| Path::new("/proc").join(pid).join("cmdline").exists();
    assert!(running.len() == 2 && running.iter().all(is_there), "{running:?}");
    let path = "/apis/stillpoint.dev/v1alpha1/namespaces/default/snapshots/first";
    tools.world.stillpoint.delete(path).await.unwrap();
    while running.iter().any(is_there) || tools.world.stillpoint.get(path).await.is_ok() {
        assert!(Instant::now() < end, "{running:?}: {}", tools.world.stillpoint.log().unwrap());
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(tools.stored(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_one_is_told_when_it_is_declared() {
    let tools = Tools::new().await;
    let path = "/apis/stillpoint.dev/v1alpha1/dumptools";
    let wrong = json!({"metadata": {"name": "wrong"}, "spec": {"dump": {"command": ["t", "$(PASSWORD)"]}}});
    let refused = tools.world.stillpoint.post(path, &wrong).await.unwrap_err();
    assert!(format!("{refused:?}").contains("$(PASSWORD_FILE)"), "{refused:?}");
    tools.tool("pg-dumpall", pg_dumpall()).await;
    let listed = tools.world.stillpoint.get(path).await.unwrap();
    assert_eq!(listed["items"][0]["spec"]["dump"]["output"], "Stdout", "{listed:#}");
}
