//! No password is ever shown: every output is searched for it.

use std::process::Command;

use fixtures::{Options, PASSWORD, Server, ServerKind};
use serde_json::json;
use tests::{Stillpoint, binary};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_output_holds_a_password() {
    let stillpoint = Stillpoint::start().await.unwrap();
    let server = Server::start(ServerKind::MARIADB_10_11, Options::default()).await.unwrap();
    stillpoint.register("orders", &server, json!({})).await.unwrap();
    stillpoint.quiesce("orders", json!({})).await.unwrap();
    stillpoint.unquiesce("orders", json!({})).await.unwrap();
    // A server that refuses, and one that is not there.
    server.execute("", &format!("ALTER USER {}@'127.0.0.1' IDENTIFIED BY 'another'", fixtures::USER)).await.unwrap();
    let mut seen = stillpoint.quiesce("orders", json!({})).await.unwrap_err().to_string();
    stillpoint.register_at("nowhere", fixtures::Engine::PostgreSQL, 1, json!({})).await.unwrap();
    seen += &stillpoint.quiesce("nowhere", json!({})).await.unwrap_err().to_string();
    for path in [
        "/apis/stillpoint.dev/v1alpha1/databases",
        "/apis/stillpoint.dev/v1alpha1/freezes",
        "/apis/live.stillpoint.dev/v1alpha1/databases",
        "/api/v1/events",
    ] {
        seen += &stillpoint.get(path).await.unwrap().to_string();
    }
    for arguments in
        [&["database", "list"][..], &["preflight", "orders"], &["status"], &["quiesce", "orders", "--", "true"]]
    {
        let mut command = Command::new(binary("kubectl-still").unwrap());
        let output = command.args(arguments).env("KUBECONFIG", &stillpoint.kubeconfig).output().unwrap();
        seen += &String::from_utf8_lossy(&output.stdout);
        seen += &String::from_utf8_lossy(&output.stderr);
    }
    seen += &stillpoint.log().unwrap();
    assert!(seen.contains("orders") && seen.len() > 2000, "there was something to search: {}", seen.len());
    let token = std::fs::read_to_string(stillpoint.data_dir().join("admin.token")).unwrap();
    for secret in [PASSWORD, token.trim()] {
        assert!(!seen.contains(secret), "a secret is in the output");
    }
    // The control: the Secret itself does hold it, so the search would have found it.
    let secret = stillpoint.get("/api/v1/namespaces/default/secrets/orders-account").await.unwrap();
    let encoded = secret["data"]["password"].as_str().unwrap();
    assert!(!seen.contains(encoded) && encoded.len() > 8);
}
