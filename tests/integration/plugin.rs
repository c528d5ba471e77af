//! `kubectl still` on a real database: exit codes, and that nothing is left frozen or running.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use fixtures::{Options, PASSWORD, Server, ServerKind, USER};
use serde_json::Value;
use tests::{Stillpoint, binary};

struct Still<'a>(&'a Stillpoint);

impl Still<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("kubectl-still").unwrap());
        command.args(arguments).env("KUBECONFIG", &self.0.kubeconfig).env("STILLPOINT_PASSWORD", PASSWORD);
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.command(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), text)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_out_of_a_run_thaws_and_tells() {
    let stillpoint = Stillpoint::start().await.unwrap();
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    let still = Still(&stillpoint);
    let port = server.port.to_string();
    let create = [
        "database",
        "create",
        "orders",
        "--engine",
        "postgresql",
        "--host",
        "127.0.0.1",
        "--port",
        &port,
        "--user",
        USER,
    ];
    let (code, text) = still.run(&create);
    assert_eq!(code, 0, "{text}");
    assert_eq!(still.run(&["preflight", "orders", "--level", "writeblocked"]).0, 0);
    assert!(still.run(&["grants", "orders"]).1.contains("GRANT"));
    let (code, text) = still.run(&["doctor"]);
    assert!(code == 0 && text.contains("a server without a cluster") && text.contains("default/orders"), "{text}");

    let result = stillpoint.data_dir().join("result.json");
    let path = result.to_str().unwrap();
    let script = "test -n \"$STILLPOINT_FREEZE\" && test -n \"$STILLPOINT_POSITION\"";
    let (code, text) = still.run(&["quiesce", "orders", "--result-file", path, "--", "sh", "-c", script]);
    assert!(code == 0 && text.contains("held (SessionHeld)") && text.contains("To restore orders"), "{code} {text}");
    let written: Value = serde_json::from_slice(&std::fs::read(&result).unwrap()).unwrap();
    assert_eq!((&written["outcome"], &written["exitCode"]), (&Value::from("Proved"), &Value::from(0)));

    assert_eq!(still.run(&["quiesce", "orders", "--", "sh", "-c", "exit 7"]).0, 7);
    assert_eq!(still.run(&["quiesce", "orders", "--", "no-such-command-here"]).0, 127);
    assert_eq!(still.run(&["quiesce", "nothing", "--", "true"]).0, 125);
    let (code, text) = still.run(&["quiesce", "orders", "--ttl", "1", "--no-renew", "--", "sleep", "30"]);
    assert!(code == 124 && text.contains("Throw the copy away"), "{code} {text}");
    let (code, text) = still.run(&["quiesce", "orders", "--ttl", "2", "--", "sleep", "4"]);
    assert_eq!(code, 0, "renewed: {text}");
    let then = "test -s \"$STILLPOINT_BACKUP_LABEL_FILE\" && test -n \"$STILLPOINT_WAL_LAST\"";
    assert_eq!(still.run(&["quiesce", "orders", "--copy", "files", "--then", then, "--", "true"]).0, 0);
    assert!(still.run(&["status"]).1.contains("Idle"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_never_outlives_its_freeze_nor_us() {
    let stillpoint = Stillpoint::start().await.unwrap();
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    stillpoint.register("orders", &server, serde_json::json!({})).await.unwrap();
    let still = Still(&stillpoint);
    for (ending, exit) in [("lost", Some(124)), ("interrupted", Some(130)), ("killed", None)] {
        let marker = stillpoint.data_dir().join(ending);
        let script = format!("touch {}; exec sleep 1234.{}", marker.display(), server.port);
        let mut child =
            still.command(&["quiesce", "orders", "--", "sh", "-c", &script]).stderr(Stdio::null()).spawn().unwrap();
        wait_for(|| marker.exists(), "the command starts");
        match ending {
            "lost" => {
                let sql =
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'stillpoint/%'";
                server.execute("postgres", sql).await.unwrap();
            }
            "interrupted" => drop(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap()),
            _ => child.kill().unwrap(),
        }
        let code = child.wait().unwrap().code();
        assert!(exit.is_none() || code == exit, "{ending}: {code:?}");
        let pattern = format!("sleep 1234.{}", server.port);
        wait_for(
            || !Command::new("pgrep").args(["-f", &pattern]).stdout(Stdio::null()).status().unwrap().success(),
            ending,
        );
        still.run(&["thaw", "--all"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn break_glass_thaws_every_database_and_tells_of_each() {
    let stillpoint = Stillpoint::start().await.unwrap();
    let still = Still(&stillpoint);
    let mut servers = Vec::new();
    for (name, kind) in [("orders", ServerKind::POSTGRESQL_15), ("billing", ServerKind::MARIADB_10_11)] {
        let server = Server::start(kind, Options::default()).await.unwrap();
        stillpoint.register(name, &server, serde_json::json!({})).await.unwrap();
        stillpoint.quiesce(name, serde_json::json!({"level": "WriteBlocked"})).await.unwrap();
        servers.push(server);
    }
    let (code, text) = still.run(&["thaw", "--all"]);
    assert!(code == 0 && text.contains("orders: thawed by") && text.contains("billing: thawed by"), "{code} {text}");
    assert!(still.run(&["thaw", "--all"]).1.contains("nothing is held"));
    stillpoint.quiesce("billing", serde_json::json!({"level": "WriteBlocked"})).await.unwrap();
    let port = servers[1].port.to_string();
    let direct = ["--direct", "--engine", "mariadb", "--host", "127.0.0.1", "--port", &port, "--user", USER];
    let (code, text) = still.run(&[&["thaw", "--all"][..], &direct[..]].concat());
    assert!(code == 0 && text.contains("ended: session") && text.contains("sync_binlog"), "{code} {text}");
}

fn wait_for(mut done: impl FnMut() -> bool, what: &str) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        Command::new("sleep").arg("0.05").status().unwrap();
    }
}
