//! Dumps: what is made for them, of whom, and who may have them made. What a Job then does `tests/node` looks at.

use anyhow::{Context, Result, ensure};
use cluster::{Identity, until};
use fixtures::S3;
use serde_json::{Value, json};

use super::hand::{DATA, REGISTRY, RUNNER_IMAGE, database, in_world};
use crate::world::{NAMESPACE, SERVICE, SOON, Space};

pub(super) fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": api::API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec})
}

pub(super) fn spec(store: &S3) -> Value {
    let bucket = json!({"name": "bucket", "s3": {
        "bucket": store.bucket, "endpoint": store.endpoint(), "region": S3::REGION,
        "credentials": {"secretRef": {"name": "bucket-account"}},
    }});
    json!({"locations": [bucket], "encryption": {"passwordSecretRef": {"name": "nightly-key"}}})
}

pub(super) async fn secrets(space: &Space<'_>, store: &S3) -> Result<()> {
    let account = json!({"access-key-id": store.access_key, "secret-access-key": store.secret_key});
    for (name, values) in [("bucket-account", account), ("nightly-key", json!({"password": "correct horse"}))] {
        space
            .apply(json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": values}))
            .await?;
    }
    Ok(())
}

pub(super) async fn listed(space: &Space<'_>, kind: &str) -> Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&space.kubectl(&["get", kind, "-o", "json"]).await?)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

/// The one Job.
async fn made(space: &Space<'_>) -> Result<Value> {
    until("a Job is made", SOON, || async { listed(space, "jobs").await?.pop().context("none yet") }).await
}

async fn status(space: &Space<'_>, kind: &str, name: &str) -> Result<Value> {
    let object: Value = serde_json::from_str(&space.kubectl(&["get", kind, name, "-o", "json"]).await?)?;
    Ok(object["status"].clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dump_is_a_job_beside_its_database_with_its_secrets_by_reference_and_goes_with_its_snapshot() {
    let space = in_world().await.space("dumped").await.unwrap();
    let store = S3::plain().await.unwrap();
    database(&space, "orders", &[DATA]).await.unwrap();
    secrets(&space, &store).await.unwrap();
    space.apply(object("Repository", "nightly", spec(&store))).await.unwrap();
    space
        .kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "repositories.stillpoint.dev/nightly"])
        .await
        .unwrap();
    let snapshot = json!({"databases": ["orders"], "repository": "nightly", "runner": {"labels": {"team": "db"}}});
    space.apply(object("Snapshot", "first", snapshot)).await.unwrap();
    let job = made(&space).await.unwrap();
    assert_eq!(job["metadata"]["ownerReferences"][0]["name"], "first", "{job:#}");
    let pod = &job["spec"]["template"];
    assert_eq!(
        (&pod["metadata"]["labels"]["team"], &pod["spec"]["automountServiceAccountToken"]),
        (&json!("db"), &json!(false))
    );
    // The Database's own Pod says `none`.
    assert_eq!(pod["spec"]["containers"][0]["image"], "none");
    assert_eq!(pod["spec"]["imagePullSecrets"], json!([{"name": REGISTRY}]), "as its Pod pulls it");
    assert_eq!(pod["metadata"]["labels"][api::inject::LABEL], "false");
    assert_eq!(pod["spec"]["initContainers"][0]["image"], RUNNER_IMAGE);
    for secret in ["correct horse", &store.secret_key] {
        assert!(!job.to_string().contains(secret), "a value of a Secret is in the Job");
    }
    assert!(job.to_string().contains("nightly-key/password"), "{job:#}");
    until("what it waits for is told", SOON, || async {
        let status = status(&space, "snapshots.stillpoint.dev", "first").await?;
        ensure!(status["progress"]["step"].to_string().contains("waiting for its Pod"), "{status:#}");
        Ok(())
    })
    .await
    .unwrap();
    space.kubectl(&["delete", "snapshots.stillpoint.dev", "first", "--timeout=60s"]).await.unwrap();
    until("its Job is gone", SOON, || async {
        ensure!(listed(&space, "jobs").await?.is_empty(), "it is there");
        Ok(())
    })
    .await
    .unwrap();
    // An image that is said is pulled as is said.
    let snapshot = json!({"databases": ["orders"], "repository": "nightly", "runner": {"image": "mine"}});
    space.apply(object("Snapshot", "second", snapshot)).await.unwrap();
    let job = made(&space).await.unwrap();
    assert_eq!(job["spec"]["template"]["spec"]["imagePullSecrets"], Value::Null, "{job:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_directory_can_be_and_no_account_is_named_that_is_said() {
    let space = in_world().await.space("unkept").await.unwrap();
    let store = S3::plain().await.unwrap();
    secrets(&space, &store).await.unwrap();
    let of = |location: Value| json!({"locations": [location], "encryption": {"passwordSecretRef": {"name": "nightly-key"}}});
    let [mut ambient, mut elsewhere] = [(); 2].map(|()| spec(&store)["locations"][0].take());
    ambient["s3"].as_object_mut().unwrap().remove("credentials");
    elsewhere["s3"]["prefix"] = "../others".into();
    for (name, location, says) in [
        ("disk", json!({"name": "disk", "directory": {"path": "/copies"}}), "name a bucket"),
        ("ambient", ambient, "the server's own is lent to nobody: name a Secret in its s3.credentials"),
        // No webhook has looked at it.
        ("elsewhere", elsewhere, "s3.prefix must be folders without . and .."),
    ] {
        space.apply(object("Repository", name, of(location))).await.unwrap();
        until(says, SOON, || async {
            let status = status(&space, "repositories.stillpoint.dev", name).await?;
            ensure!(status["conditions"][0]["message"].to_string().contains(says), "{status:#}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_no_job_may_be_made_that_is_said_until_it_may() {
    let space = in_world().await.space("undumped").await.unwrap();
    let store = S3::plain().await.unwrap();
    database(&space, "orders", &[DATA]).await.unwrap();
    secrets(&space, &store).await.unwrap();
    let us = format!("--serviceaccount={NAMESPACE}:{SERVICE}");
    // Secrets may be read, so that there is a Repository; and nothing may be made.
    space.kubectl(&["delete", "rolebinding", "credentials"]).await.unwrap();
    space.kubectl(&["create", "role", "secrets", "--verb=get", "--resource=secrets"]).await.unwrap();
    space.kubectl(&["create", "rolebinding", "secrets", "--role=secrets", &us]).await.unwrap();
    until("the right is gone", SOON, || async {
        let account = Identity::service_account(NAMESPACE, SERVICE);
        let may = space.kubectl_as(&account, &["auth", "can-i", "create", "jobs.batch"]).await?;
        ensure!(may.ok().is_err(), "it is there");
        Ok(())
    })
    .await
    .unwrap();
    space.apply(object("Repository", "nightly", spec(&store))).await.unwrap();
    let ready = ["wait", "--for=condition=Ready", "--timeout=60s", "repositories.stillpoint.dev/nightly"];
    space.kubectl(&ready).await.unwrap();
    let snapshot = json!({"databases": ["orders"], "repository": "nightly", "runner": {"image": "mine"}});
    space.apply(object("Snapshot", "first", snapshot)).await.unwrap();
    let advice = format!("`kubectl still enable {}` lets us", space.name);
    until("it is said", SOON, || async {
        let status = status(&space, "snapshots.stillpoint.dev", "first").await?;
        let told = status.to_string();
        ensure!(told.contains("no Job may be made in namespace") && told.contains(&advice), "{status:#}");
        ensure!(status["phase"] != "Failed", "{status:#}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(listed(&space, "jobs").await.unwrap().is_empty());
    space
        .kubectl(&["create", "rolebinding", "credentials", "--clusterrole=stillpoint:credentials", &us])
        .await
        .unwrap();
    until("a Job is made", 2 * SOON, || async { listed(&space, "jobs").await?.pop().context("none yet") })
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repository_is_made_by_who_may_read_secrets_and_pods_are_said_by_who_may_make_them() {
    let space = in_world().await.space("repositories").await.unwrap();
    let store = S3::plain().await.unwrap();
    let maker = Identity::user("maker", &[]);
    let allow = async |name: &str, verbs: &str, resource: &str| {
        space
            .kubectl(&["create", "role", name, &format!("--verb={verbs}"), &format!("--resource={resource}")])
            .await
            .unwrap();
        space.kubectl(&["create", "rolebinding", name, &format!("--role={name}"), "--user=maker"]).await.unwrap();
    };
    allow("repositories", "create,get", "repositories.stillpoint.dev").await;
    let tried = async |name: &str, spec: &Value| {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), object("Repository", name, spec.clone()).to_string()).unwrap();
        space.kubectl_as(&maker, &["create", "-f", &file.path().display().to_string()]).await.unwrap()
    };
    let plain = spec(&store);
    let mut with_runner = plain.clone();
    with_runner["runner"] = json!({"serviceAccountName": "mighty"});
    let refused = tried("one", &plain).await.ok().unwrap_err().to_string();
    assert!(refused.contains("have get on secrets granted"), "{refused}");
    allow("secrets", "get", "secrets").await;
    until("the right is there", SOON, || async { tried("two", &plain).await.ok().map(drop) }).await.unwrap();
    let refused = tried("three", &with_runner).await.ok().unwrap_err().to_string();
    assert!(refused.contains("make no Jobs here"), "{refused}");
    allow("jobs", "create", "jobs.batch").await;
    until("the right is there", SOON, || async { tried("four", &with_runner).await.ok().map(drop) }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_runs_in_its_own_image_with_room_for_its_files_and_is_for_nobody_in_a_namespace_to_write() {
    let space = in_world().await.space("tooled").await.unwrap();
    let store = S3::plain().await.unwrap();
    database(&space, "orders", &[DATA]).await.unwrap();
    secrets(&space, &store).await.unwrap();
    space.apply(object("Repository", "nightly", spec(&store))).await.unwrap();
    let tool = object(
        "DumpTool",
        "tooled",
        json!({
            "image": "mydumper:1", "settings": [{"name": "threads", "default": "4"}],
            "dump": {"command": ["mydumper", "--outputdir=$(SCRATCH)", "--threads=$(settings.threads)"], "output": "Directory"},
        }),
    );
    let admin = Identity::user("tooler", &[]);
    space.kubectl(&["create", "rolebinding", "tooler", "--clusterrole=admin", "--user=tooler"]).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tool.to_string()).unwrap();
    let refused = space.kubectl_as(&admin, &["create", "-f", &file.path().display().to_string()]).await.unwrap();
    let refused = refused.ok().unwrap_err().to_string();
    assert!(refused.contains("cannot create resource \"dumptools\""), "{refused}");
    space.apply(tool).await.unwrap();

    let tool = json!({"name": "tooled", "settings": {"threads": "8"}});
    let snapshot = json!({"databases": ["orders"], "repository": "nightly", "tool": tool});
    space.apply(object("Snapshot", "crowded", snapshot.clone())).await.unwrap();
    until("that it has no room is told", SOON, || async {
        let status = status(&space, "snapshots.stillpoint.dev", "crowded").await?;
        ensure!(status["phase"] == "Failed" && status["message"].to_string().contains("runner.scratch"), "{status:#}");
        Ok(())
    })
    .await
    .unwrap();
    let mut with_room = snapshot;
    with_room["runner"] = json!({"scratch": {"size": "1Gi"}});
    space.apply(object("Snapshot", "roomy", with_room)).await.unwrap();
    let job = until("a Job is made", SOON, || async { listed(&space, "jobs").await?.pop().context("none yet") })
        .await
        .unwrap();
    let container = &job["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(container["image"], "mydumper:1", "{job:#}");
    let environment = container["env"].as_array().unwrap();
    let value = |name: &str| environment.iter().find(|one| one["name"] == name).unwrap()["value"].as_str().unwrap();
    assert_eq!(value(api::runner::SCRATCH), "/scratch");
    let task: Value = serde_json::from_str(&value(api::runner::TASK).replace("$$(", "$(")).unwrap();
    assert_eq!(task["dump"]["tool"]["settings"], json!({"threads": "8"}), "{task:#}");
    space.kubectl(&["delete", "snapshots.stillpoint.dev", "roomy", "crowded", "--timeout=60s"]).await.unwrap();
    space.kubectl(&["delete", "dumptools.stillpoint.dev", "tooled"]).await.unwrap();
}
