//! What `kubectl still generate` prints is what is made: held against that, as an API server stores both.

use anyhow::{Context, Result, ensure};
use cluster::{Identity, until};
use fixtures::S3;
use serde_json::{Value, json};

use super::{
    dumps::{listed, object, secrets, spec},
    hand::{DATA, Hand, WAL, database, in_world, snapshot},
    restores, still, still_as, until_object,
};
use crate::world::{SOON, Space};

/// The uid of what is not there yet.
const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

/// What it prints, as JSON: one object, or the items of a list.
async fn generated(space: &Space<'_>, arguments: &[&str]) -> Result<Vec<Value>> {
    let said = still(space, &[&["generate"], arguments, &["-o", "json"]].concat()).await?;
    ensure!(said.code == 0, "{}", said.stderr);
    objects(&said.stdout)
}

fn objects(text: &str) -> Result<Vec<Value>> {
    let printed: Value = serde_json::from_str(text)?;
    Ok(printed["items"].as_array().cloned().unwrap_or_else(|| vec![printed]))
}

/// Whether a key of an object was added.
type Added = fn(&str) -> bool;

/// Of what an API server has stored, all that neither it nor a controller has added.
fn own(mut stored: Value) -> Value {
    let added: [(&str, Added); 6] = [
        ("", |key| key == "status"),
        ("/metadata", |key| !["annotations", "labels", "namespace", "ownerReferences"].contains(&key)),
        ("/metadata/annotations", |key| key.starts_with("volume.") || key.starts_with("pv.")),
        ("/metadata/labels", by_its_job),
        ("/spec/template/metadata/labels", by_its_job),
        ("/spec", |key| key == "selector"),
    ];
    for (at, is_added) in added {
        if let Some(Value::Object(map)) = stored.pointer_mut(at) {
            map.retain(|key, _| !is_added(key));
        }
    }
    stored
}

/// Labels that a Job gives itself and its Pods.
fn by_its_job(key: &str) -> bool {
    key.ends_with("controller-uid") || key.ends_with("job-name")
}

/// As it would be stored, under a name that nothing has.
async fn stored(space: &Space<'_>, generated: &Value) -> Result<Value> {
    let mut other = generated.clone();
    other["metadata"]["name"] = "another-name".into();
    let file = space.file("generated", &other)?;
    let answer = space.kubectl(&["create", "--dry-run=server", "-o", "json", "-f", &file]).await?;
    Ok(own(serde_json::from_str(&answer)?))
}

/// Whether it is what was made; and, were anything else in it, that this would be seen.
async fn is_what_was_made(space: &Space<'_>, generated: &Value, made: Value, path: &str) {
    assert_eq!(generated["metadata"]["name"], made["metadata"]["name"]);
    let made = own(made);
    assert_eq!(stored(space, generated).await.unwrap(), made);
    let mut other = generated.clone();
    *other.pointer_mut(path).unwrap() = "other".into();
    assert_ne!(stored(space, &other).await.unwrap(), made, "the negative control: {path}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_job_that_is_printed_is_the_job_that_is_made_before_and_after() {
    let space = in_world().await.space("generated").await.unwrap();
    let store = S3::plain().await.unwrap();
    database(&space, "orders", &[DATA]).await.unwrap();
    let first = object("Snapshot", "first", json!({"databases": ["orders"], "repository": "nightly"}));
    let file = space.file("first", &first).unwrap();
    let missing = still(&space, &["generate", "-f", &file]).await.unwrap();
    assert!(missing.code == 1 && missing.stderr.contains("there is no Repository nightly"), "{}", missing.stderr);
    secrets(&space, &store).await.unwrap();
    space.apply(object("Repository", "nightly", spec(&store))).await.unwrap();
    let ready = ["wait", "--for=condition=Ready", "--timeout=60s", "repositories.stillpoint.dev/nightly"];
    space.kubectl(&ready).await.unwrap();

    let before = until("it can be made", SOON, || async { generated(&space, &["-f", &file]).await }).await.unwrap();
    let there = space.kubectl(&["get", "snapshots.stillpoint.dev,jobs", "-o", "name"]).await.unwrap();
    assert_eq!(there, "", "nothing was stored, and nothing made");
    space.kubectl(&["create", "-f", &file]).await.unwrap();
    let made = until("a Job is made", SOON, || async { listed(&space, "jobs").await?.pop().context("none yet") });
    let made = made.await.unwrap();
    let after = generated(&space, &["snapshot", "first"]).await.unwrap();
    is_what_was_made(&space, &after[0], made.clone(), "/spec/template/spec/containers/0/image").await;
    let uid = made["metadata"]["ownerReferences"][0]["uid"].as_str().unwrap();
    assert_eq!(json!(before).to_string().replace(NOBODY, uid), json!(after).to_string(), "but for its uid");
    assert_eq!(after.len(), 1, "{after:?}");
    for secret in ["correct horse", &store.secret_key] {
        assert!(!after[0].to_string().contains(secret), "a value of a Secret is in it");
    }

    let yaml = still(&space, &["generate", "snapshot", "first"]).await.unwrap();
    assert!(yaml.stdout.contains("kind: Job") && yaml.stdout.contains("nightly-key/password"), "{}", yaml.stdout);
    let again = still(&space, &["generate", "-f", &file]).await.unwrap();
    assert!(again.code == 1 && again.stderr.contains("kubectl still generate snapshot first"), "{}", again.stderr);
    who_may_see_it(&space, &file).await;
}

/// Whoever may see the Snapshot may see what is made for it; what would be made, whoever may have it made.
async fn who_may_see_it(space: &Space<'_>, file: &str) {
    let (nobody, viewer, editor) =
        (format!("n@{}", space.name), format!("v@{}", space.name), format!("e@{}", space.name));
    let bind = async |role: &str, user: &str| {
        let name = format!("{}-{}", role.replace(':', "-"), &user[..1]);
        let (role, user) = (format!("--clusterrole={role}"), format!("--user={user}"));
        space.kubectl(&["create", "rolebinding", &name, &role, &user]).await.unwrap();
    };
    bind("view", &viewer).await;
    bind("edit", &editor).await;
    let there = ["generate", "snapshot", "first"];
    let refused = async |who: &str, arguments: &[&str], says: &str| {
        until(says, SOON, || async {
            let said = still_as(space, &Identity::user(who, &[]), arguments).await?;
            ensure!(said.code == 1 && said.stderr.contains(says), "{who}: {}{}", said.stdout, said.stderr);
            Ok(())
        })
        .await
        .unwrap();
    };
    let allowed = async |who: &str, arguments: &[&str]| {
        until("it is printed", SOON, || async {
            let said = still_as(space, &Identity::user(who, &[]), arguments).await?;
            ensure!(said.code == 0 && said.stdout.contains("kind: Job"), "{}", said.stderr);
            Ok(())
        })
        .await
        .unwrap();
    };
    allowed(&viewer, &there).await;
    refused(&nobody, &there, "cannot get resource \"snapshots/generate\"").await;
    refused(&viewer, &["generate", "-f", file], "cannot create resource \"snapshots/generate\"").await;

    let another = |name: &str, more: &Value| {
        let mut spec = json!({"databases": ["orders"], "repository": "nightly"});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more.clone()) {
            spec.extend(more);
        }
        space.file(name, &object("Snapshot", name, spec)).unwrap()
    };
    let plain = another("second", &json!({}));
    refused(&editor, &["generate", "-f", &plain], "databases/quiesce").await;
    bind("stillpoint:freezer", &editor).await;
    allowed(&editor, &["generate", "-f", &plain]).await;
    // An editor may make Jobs; somebody who may only have copies made may not say how.
    let copier = format!("c@{}", space.name);
    let create = ["create", "role", "copier", "--verb=create", "--resource=snapshots.live.stillpoint.dev/generate"];
    space.kubectl(&create).await.unwrap();
    let subject = format!("--user={copier}");
    space.kubectl(&["create", "rolebinding", "copier", "--role=copier", &subject]).await.unwrap();
    bind("stillpoint:freezer", &copier).await;
    allowed(&copier, &["generate", "-f", &plain]).await;
    let mighty = another("third", &json!({"runner": {"serviceAccountName": "mighty"}}));
    refused(&copier, &["generate", "-f", &mighty], "cannot create resource \"jobs\"").await;
    allowed(&editor, &["generate", "-f", &mighty]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_job_of_a_restore_is_printed_as_it_is_made() {
    let space = in_world().await.space("regenerated").await.unwrap();
    let store = S3::plain().await.unwrap();
    database(&space, "orders", &[DATA]).await.unwrap();
    secrets(&space, &store).await.unwrap();
    space.apply(object("Repository", "nightly", spec(&store))).await.unwrap();
    let back =
        object("Restore", "back", json!({"database": "orders", "source": {"snapshot": "old", "database": "gone"}}));
    let file = space.file("back", &back).unwrap();
    // One that was taken of a Database that is gone, as far as its status says.
    space.apply(object("Snapshot", "old", json!({"databases": ["gone"], "repository": "nightly"}))).await.unwrap();
    let failed = |now: &Value| now["status"]["phase"] == "Failed";
    until_object(&space, "snapshots.stillpoint.dev", "old", failed).await.unwrap();
    let why = still(&space, &["generate", "-f", &file]).await.unwrap();
    assert!(why.code == 1 && why.stderr.contains("old cannot be restored: it is Failed"), "{}", why.stderr);
    let locations = json!([{"name": "bucket", "stored": true}]);
    let status = json!({"status": {"phase": "Ready", "id": "ab12", "locations": locations}}).to_string();
    let patch = ["patch", "snapshots.stillpoint.dev", "old", "--subresource=status", "--type=merge", "-p", &status];
    space.kubectl(&patch).await.unwrap();

    let before = until("it can be made", SOON, || async { generated(&space, &["-f", &file]).await }).await.unwrap();
    space.kubectl(&["create", "-f", &file]).await.unwrap();
    let made = until("a Job is made", SOON, || async { listed(&space, "jobs").await?.pop().context("none yet") });
    let made = made.await.unwrap();
    let after = generated(&space, &["restore", "back"]).await.unwrap();
    is_what_was_made(&space, &after[0], made, "/spec/template/spec/containers/0/env/0/value").await;
    let uid = after[0]["metadata"]["name"].as_str().unwrap();
    assert_eq!(json!(before).to_string().replace(NOBODY, uid), json!(after).to_string(), "but for its uid");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_volume_snapshots_and_the_claims_that_are_printed_are_those_that_are_made() {
    let space = in_world().await.space("generating").await.unwrap();
    let hand = Hand::of(&space);
    let noon = snapshot("noon", json!({"volumeSnapshotClassName": "fast", "onMissed": "Fail", "deadlineSeconds": 900}));
    let file = space.file("noon", &noon).unwrap();
    let nowhere = still(&space, &["generate", "-f", &file]).await.unwrap();
    assert!(nowhere.code == 1 && nowhere.stderr.contains("there is no Database orders"), "{}", nowhere.stderr);
    database(&space, "orders", &[DATA, WAL]).await.unwrap();
    let before = until("both are known", SOON, || async { generated(&space, &["-f", &file]).await }).await.unwrap();
    space.kubectl(&["create", "-f", &file]).await.unwrap();
    let mut made = Vec::new();
    for claim in [DATA, WAL] {
        made.push(hand.made(&format!("noon-{claim}")).await.unwrap());
    }
    let after = generated(&space, &["snapshot", "noon"]).await.unwrap();
    let uid = made[0]["metadata"]["labels"][api::LABEL_SNAPSHOT].as_str().unwrap();
    assert_eq!(json!(before).to_string().replace(NOBODY, uid), json!(after).to_string(), "but for its uid");
    assert_eq!(after.len(), 2);
    for (generated, made) in after.iter().zip(made) {
        is_what_was_made(&space, generated, made, "/spec/volumeSnapshotClassName").await;
    }

    let volumes = json!([{"name": "copy", "claim": WAL, "size": "3Gi"}]);
    let back = object("Restore", "back", json!({"source": {"snapshot": "noon"}, "volumes": volumes}));
    let file = space.file("claims", &back).unwrap();
    let early = still(&space, &["generate", "-f", &file]).await.unwrap();
    assert!(early.code == 1 && early.stderr.contains("cannot be restored"), "{}", early.stderr);
    for claim in [DATA, WAL] {
        hand.cut(&format!("noon-{claim}"), "application").await.unwrap();
    }
    hand.phase("noon", "Ready").await.unwrap();
    let before = generated(&space, &["-f", &file]).await.unwrap();
    space.kubectl(&["create", "-f", &file]).await.unwrap();
    let made = restores::made(&space, "copy").await.unwrap();
    let after = generated(&space, &["restore", "back"]).await.unwrap();
    let uid = made["metadata"]["labels"][api::LABEL_RESTORE].as_str().unwrap();
    assert_eq!(json!(before).to_string().replace(NOBODY, uid), json!(after).to_string(), "but for its uid");
    is_what_was_made(&space, &after[0], made, "/spec/dataSource/name").await;
    // Nothing that is there is touched, and that is said before, too.
    let twice = object("Restore", "twice", json!({"source": {"snapshot": "noon"}, "volumes": volumes}));
    let file = space.file("twice", &twice).unwrap();
    let twice = still(&space, &["generate", "-f", &file]).await.unwrap();
    assert!(twice.code == 1 && twice.stderr.contains("there is a claim copy already"), "{}", twice.stderr);
}
