//! Real databases, frozen through a real kube-apiserver by an unmodified kubectl.

use fixtures::{Options, Server, ServerKind};
use serde_json::{Value, json};

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_databases_are_frozen_and_proved_through_kube_apiserver() {
    let space = World::get().await.space("freezes").await.unwrap();
    for (name, kind) in [("orders", ServerKind::POSTGRESQL_15), ("billing", ServerKind::MARIADB_10_11)] {
        let server = Server::start(kind, Options::default()).await.unwrap();
        space.register(name, &server).await.unwrap();
        let held = space.run(name, "quiesce").await.unwrap();
        assert_eq!(held["phase"], "Frozen", "{held}");
        let live = space.kubectl(&["get", "databases.live.stillpoint.dev", name]).await.unwrap();
        assert!(live.contains("Frozen") && live.contains("Durable"), "{live}");
        let ended = space.run(name, "unquiesce").await.unwrap();
        assert_eq!((&ended["phase"], &ended["proof"]["held"]), (&json!("Thawed"), &json!(true)), "{ended}");
        let freeze = held["freeze"].as_str().unwrap();
        let object = space
            .until_json("its Freeze says so", &["get", "freezes", freeze, "-o", "json"], |freeze| {
                freeze["status"]["phase"] == "Thawed"
            })
            .await
            .unwrap();
        assert_eq!(object["status"]["proved"], true, "{object}");
        let events = ["get", "events", "--field-selector", &format!("involvedObject.name={freeze}"), "-o", "json"];
        space
            .until_json("its Events", &events, |list| list["items"].as_array().is_some_and(|all| all.len() == 2))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_declared_freeze_holds_until_it_is_deleted_and_leaves_nothing() {
    let space = World::get().await.space("declared").await.unwrap();
    let server = Server::start(ServerKind::POSTGRESQL_15, Options::default()).await.unwrap();
    server.execute("postgres", "CREATE TABLE t (n int)").await.unwrap();
    space.register("orders", &server).await.unwrap();
    let freeze = json!({
        "apiVersion": api::API_VERSION, "kind": "Freeze", "metadata": {"name": "nightly"},
        "spec": {"targets": [{"database": "orders"}], "level": "WriteBlocked"},
    });
    space.apply(freeze).await.unwrap();
    space
        .kubectl(&["wait", "--for=jsonpath={.status.phase}=Frozen", "--timeout=30s", "freeze", "nightly"])
        .await
        .unwrap();
    let blocked = "SET statement_timeout = 300; INSERT INTO t VALUES (1)";
    assert!(server.execute("postgres", blocked).await.is_err(), "writes are blocked");
    space.kubectl(&["delete", "freeze", "nightly", "--timeout=30s"]).await.unwrap();
    server.execute("postgres", blocked).await.expect("nothing holds any more");
    let left: Value = serde_json::from_str(&space.kubectl(&["get", "freezes", "-o", "json"]).await.unwrap()).unwrap();
    assert_eq!(left["items"], json!([]));
}
