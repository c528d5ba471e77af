//! Objects that their schema lets pass and no type holds, with no webhook asked: nobody else's are hidden by them.

use anyhow::{Context, Result, ensure};
use cluster::until;
use fixtures::S3;
use serde_json::{Value, json};

use super::{
    dumps::{object, secrets, spec},
    hand::{DATA, Hand, database, snapshot, world},
};
use crate::world::{SOON, Space};

/// The kind's resource, and what is wrong.
const BAD: [(&str, &str, &str); 3] = [
    ("snapshots", "number", "spec.runner.env[0].value: invalid type: integer `8080`, expected a string"),
    ("restores", "time", "spec.source.asOf: asOf: "),
    ("repositories", "user", "spec.runner.securityContext.runAsUser: invalid type: string"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_that_cannot_be_read_says_so_and_stops_no_other() {
    let world = world(vec!["one"]).await.unwrap();
    let space = world.space("unreadable").await.unwrap();
    let hand = Hand::of(&space);
    let store = S3::plain().await.unwrap();
    database(&space, "orders", &[DATA]).await.unwrap();
    secrets(&space, &store).await.unwrap();
    let number = json!({"runner": {"env": [{"name": "P", "value": 8080}]}});
    space.apply(snapshot("number", number)).await.unwrap();
    let time = json!({"repository": "nightly", "asOf": "2026-11-29T03:00:00.0123456789Z"});
    space.apply(object("Restore", "time", json!({"source": time, "database": "orders"}))).await.unwrap();
    let mut user = spec(&store);
    user["runner"] = json!({"securityContext": {"runAsUser": "999"}});
    space.apply(object("Repository", "user", user)).await.unwrap();
    for bad in BAD {
        is_told(&space, bad).await.unwrap();
    }
    // By who watched when they came, and by who lists them.
    goes_on(&space, &hand, &store, "one").await.unwrap();
    world.kill("one").await.unwrap();
    world.add_replica("two").await.unwrap();
    goes_on(&space, &hand, &store, "two").await.unwrap();
    let live = space.kubectl(&["get", "snapshots.live.stillpoint.dev"]).await.unwrap();
    assert!(live.contains("cut-two") && !live.contains("number"), "{live}");
    for (resource, name, _) in BAD {
        space.kubectl(&["delete", &format!("{resource}.{}", api::GROUP), name, "--timeout=30s"]).await.unwrap();
    }
}

/// On the object itself, once for each.
async fn is_told(space: &Space<'_>, (_, name, says): (&str, &str, &str)) -> Result<()> {
    let events =
        ["get", "events", "--field-selector", &format!("reason=Unreadable,involvedObject.name={name}"), "-o", "json"];
    until(&format!("{name} is told of"), SOON, || async {
        let list: Value = serde_json::from_str(&space.kubectl(&events).await?)?;
        let [one] = list["items"].as_array().context("no list")?.as_slice() else { anyhow::bail!("{list}") };
        ensure!(one["message"].to_string().contains(says), "{one}");
        Ok(())
    })
    .await
}

/// One of each kind is seen, and done with what is to be done.
async fn goes_on(space: &Space<'_>, hand: &Hand<'_>, store: &S3, by: &str) -> Result<()> {
    let (cut, repository, restore) = (format!("cut-{by}"), format!("kept-{by}"), format!("back-{by}"));
    space.apply(snapshot(&cut, json!({}))).await?;
    hand.cut(&cut, "application").await?;
    hand.phase(&cut, "Ready").await?;
    space.apply(object("Repository", &repository, spec(store))).await?;
    let ready = format!("repositories.stillpoint.dev/{repository}");
    space.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &ready]).await?;
    let gone = json!({"source": {"snapshot": "gone"}, "database": "orders"});
    space.apply(object("Restore", &restore, gone)).await?;
    let failed = ["get", "restores.stillpoint.dev", &restore, "-o", "json"];
    space.until_json(&restore, &failed, |now| now["status"]["phase"] == "Failed").await.map(drop)
}
