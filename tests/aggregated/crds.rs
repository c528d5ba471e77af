//! The CRDs in a real kube-apiserver: they refuse what our own validation refuses, and a rule that was forgotten is noticed.

use api::cases::{Verdict, all};
use serde_json::{Value, json};

use crate::world::{Space, World};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_crds_say_of_every_case_what_validation_says() {
    let space = World::get().await.space("crds").await.unwrap();
    // Its names are its own: nothing of it is to be frozen.
    for (at, case) in all().into_iter().enumerate() {
        let name = format!("case-{at}");
        if let Some(old) = &case.old {
            write(&space, case.kind, &name, old).await.unwrap();
        }
        let written = write(&space, case.kind, &name, &case.spec).await;
        let expected = case.verdict != Verdict::Wrong;
        assert_eq!(written.is_ok(), expected, "{} {}: {written:?}", case.kind, case.name);
    }
}

/// What another version wrote is not lost when this one does not know it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undo_item_of_another_version_is_kept_as_it_is() {
    let space = World::get().await.space("undo").await.unwrap();
    write(&space, "Freeze", "old", &json!({"targets": [{"database": "orders"}], "desired": "Thawed"})).await.unwrap();
    let undo = json!({"version": 9, "kind": "ofTomorrow", "data": {"deep": [1, {"er": true}]}, "more": "kept"});
    let status = json!({"status": {"phase": "Lost", "targets": [
        {"database": "orders", "engine": "PostgreSQL", "member": "m", "undo": [undo]},
    ]}});
    space
        .kubectl(&["patch", "freeze", "old", "--subresource=status", "--type=merge", "-p", &status.to_string()])
        .await
        .unwrap();
    let object: Value =
        serde_json::from_str(&space.kubectl(&["get", "freeze", "old", "-o", "json"]).await.unwrap()).unwrap();
    assert_eq!(object["status"]["targets"][0]["undo"][0], undo);
}

async fn write(space: &Space<'_>, kind: &str, name: &str, spec: &Value) -> anyhow::Result<String> {
    // A paused Database and one that does not exist are not frozen.
    space.apply(json!({"apiVersion": api::API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec})).await
}
