//! With nothing but kubectl: make a Repository, take, wait, list, download, destroy, restore, delete.

use std::process::Command;

use fixtures::{Login, Options, Server, ServerKind, Session};
use serde_json::{Value, json};

use super::world::{REPOSITORY_PASSWORD, World};
use crate::kubectl::Kubectl;

const LIVE: &str = "/apis/live.stillpoint.dev/v1alpha1/namespaces/default/snapshots";

fn object(kind: &str, name: &str, spec: &Value) -> String {
    json!({"apiVersion": "stillpoint.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}).to_string()
}

/// A file of a copy, in parts of this size.
fn downloaded(kubectl: &Kubectl, copy: &str, file: &Value, part: u64) -> Vec<u8> {
    let (path, size) = (file["path"].as_str().unwrap(), file["size"].as_u64().unwrap());
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < size {
        let offset = bytes.len();
        let part =
            kubectl.bytes(&format!("get --raw {LIVE}/{copy}/download?file={path}&offset={offset}&length={part}"));
        assert!(!part.is_empty(), "{path} at {offset}");
        bytes.extend(part);
    }
    bytes
}

fn sha256(bytes: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let output = Command::new("sha256sum").arg(file.path()).output().unwrap();
    String::from_utf8(output.stdout).unwrap().split_whitespace().next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_taken_listed_downloaded_restored_and_deleted() {
    let kind = ServerKind::POSTGRESQL_15;
    let world = World::with_programs_of(&[kind]).await;
    let kubectl = Kubectl::of("1.35", &world.stillpoint);
    let server = Server::start(kind, Options::default()).await.unwrap();
    server.execute("postgres", "CREATE DATABASE shop").await.unwrap();
    server
        .execute("shop", "CREATE TABLE orders AS SELECT g AS id, md5(g::text) AS what FROM generate_series(1, 20000) g")
        .await
        .unwrap();
    world.register("orders", &server).await;

    kubectl.ok(
        &format!("create secret generic nightly-key --from-literal=password={}", REPOSITORY_PASSWORD.replace(' ', "-")),
        "",
    );
    let directory = tempfile::tempdir().unwrap();
    let repository = json!({
        "locations": [{"name": "disk", "directory": {"path": directory.path().join("copies")}}],
        "encryption": {"passwordSecretRef": {"name": "nightly-key"}},
    });
    kubectl.ok("apply -f -", &object("Repository", "nightly", &repository));
    kubectl.ok("wait --for=condition=Ready repository/nightly --timeout=60s", "");
    let snapshot = json!({"databases": ["orders"], "repository": "nightly"});
    kubectl.ok("create -f -", &object("Snapshot", "before-upgrade", &snapshot));
    kubectl.ok("wait --for=condition=Ready snapshots.stillpoint.dev/before-upgrade --timeout=120s", "");
    let listed = kubectl.ok("get snapshots.live.stillpoint.dev", "");
    assert!(
        ["before-upgrade", "orders", "application", "nightly", "Ready"].iter().all(|word| listed.contains(word)),
        "{listed}"
    );
    let described = kubectl.ok("describe snapshots.stillpoint.dev before-upgrade", "");
    assert!(["Stored", "Frozen At", "application"].iter().all(|word| described.contains(word)), "{described}");
    assert!(kubectl.ok(&format!("get --raw {LIVE}/before-upgrade/log"), "").contains("pg_dump"));

    let files: Value =
        serde_json::from_str(&kubectl.ok(&format!("get --raw {LIVE}/before-upgrade/download"), "")).unwrap();
    let files = files["files"].as_array().unwrap();
    assert!(files.iter().any(|file| file["path"] == "orders/shop.dump"), "{files:?}");
    for file in files {
        let bytes = downloaded(&kubectl, "before-upgrade", file, 300_000);
        assert_eq!(json!(sha256(&bytes)), file["sha256"], "{file}");
    }
    let begun = kubectl.bytes(&format!("get --raw {LIVE}/before-upgrade/download?file=/orders/shop.dump&length=5"));
    assert_eq!(begun, b"PGDMP", "as `status.paths` shows it, too");

    // By mistake, and back; what is there is not touched unless it is said.
    server.execute("shop", "DELETE FROM orders WHERE id > 10").await.unwrap();
    let back = |existing: &str| json!({"database": "orders", "source": {"snapshot": "before-upgrade"}, "databases": ["shop"], "existing": existing});
    kubectl.ok("create -f -", &object("Restore", "refused", &back("Never")));
    kubectl.ok("wait --for=jsonpath={.status.phase}=Failed restores.stillpoint.dev/refused --timeout=60s", "");
    let refused = kubectl.ok("describe restores.stillpoint.dev refused", "");
    assert!(refused.contains("spec.existing: Replace") && refused.contains("as it was"), "{refused}");
    let mut session = Session::at(&Login::of(&server), "shop").await.unwrap();
    assert_eq!(session.scalar("SELECT count(*)::text FROM orders").await.unwrap(), "10");
    drop(session);
    kubectl.ok("create -f -", &object("Restore", "back", &back("Replace")));
    kubectl.ok("wait --for=condition=Complete restores.stillpoint.dev/back --timeout=60s", "");
    assert_eq!(server.scalar("shop", "SELECT count(*)::text FROM orders").await.unwrap(), "20000");

    kubectl.ok("delete snapshots.stillpoint.dev before-upgrade --timeout=60s", "");
    assert!(!kubectl.ok("get snapshots.live.stillpoint.dev", "").contains("before-upgrade"));
    let left = std::fs::read_dir(directory.path().join("copies/snapshots")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "what it stored goes with it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_at_once() {
    let world = World::with_programs_of(&[ServerKind::POSTGRESQL_15]).await;
    let kubectl = Kubectl::of("1.33", &world.stillpoint);
    let wrong = |kind: &str, spec: Value, with: &str| kubectl.fails("create -f -", &object(kind, "wrong", &spec), with);
    wrong("Snapshot", json!({"databases": [], "repository": "nightly"}), "spec.databases");
    wrong("Snapshot", json!({"databases": ["orders"]}), "spec.repository");
    wrong("Restore", json!({"database": "orders", "source": {}}), "spec.source");
    wrong("Restore", json!({"database": "orders", "source": {"repository": "nightly", "asOf": "yesterday"}}), "asOf");
    let nowhere = json!({"locations": [{"name": "disk"}], "encryption": {"passwordSecretRef": {"name": "key"}}});
    wrong("Repository", nowhere, "exactly one of");

    // What can be known only later is said by a condition.
    kubectl
        .ok("create -f -", &object("Snapshot", "lonely", &json!({"databases": ["orders"], "repository": "nowhere"})));
    kubectl.ok("wait --for=jsonpath={.status.phase}=Failed snapshots.stillpoint.dev/lonely --timeout=60s", "");
    let said = kubectl.ok("get snapshots.stillpoint.dev lonely -o jsonpath={.status.message}", "");
    assert!(said.contains("there is no Repository nowhere"), "{said}");
    kubectl.fails(&format!("get --raw {LIVE}/lonely/download?file=orders/shop.dump"), "", "nothing is stored of it");
    kubectl.fails("get snapshots.live.stillpoint.dev nobody", "", "NotFound");
    kubectl.ok("delete snapshots.stillpoint.dev lonely --timeout=60s", "");
}
