//! Velero's hooks, run by its own code: what it is told by the annotations that an agent comes with freezes and thaws, and whatever
//! becomes of a hook, the database goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cluster::{tool, until, workload};
use fixtures::{Engine, Login, Session};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    agents::{account, injects, labelled},
    gates::world::{World, is_held, probed, until_writable},
    installed::{SOON, start},
};

const NAME: &str = "shop";
/// What its agent gives a hook that names no time, at `WriteBlocked`.
const LEASE: Duration = Duration::from_secs(15);

/// What one hook of the Pod came to, and what Velero says of it.
async fn velero(world: &World<'_>, phase: &str) -> Result<(bool, String)> {
    let output = Command::new(tool("velero-hooks", &[]).await?)
        .args([phase, world.namespace, NAME])
        .env("KUBECONFIG", world.cluster.kubeconfig())
        .output()
        .await?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

/// Freezes that are not over.
async fn living(world: &World<'_>) -> Result<Vec<Value>> {
    let mut freezes = world.freezes().await?;
    freezes.retain(|freeze| freeze["status"]["thawedAt"].is_null() && freeze["status"]["phase"] == "Frozen");
    Ok(freezes)
}

/// In the way of whoever wants to block writes, until it is dropped.
async fn in_the_way(login: &Login) -> Result<Session> {
    let mut session = Session::at(login, "postgres").await?;
    session.run("BEGIN; INSERT INTO probe VALUES (now())").await?;
    Ok(session)
}

#[tokio::test]
async fn whatever_becomes_of_veleros_hooks_the_database_goes_on() {
    // It may have to be built.
    tool("velero-hooks", &[]).await.unwrap();
    let cluster = start().await.unwrap();
    let world = World::prepare(&cluster).await.unwrap();
    injects(&world).await.unwrap();
    world.apply(&account("account", Engine::PostgreSQL)).await.unwrap();
    world.apply(&workload::claim(NAME, None)).await.unwrap();
    let [mut pod, service] = labelled(workload::postgresql(NAME), "account");
    pod["metadata"]["annotations"]["stillpoint.dev/velero-hooks"] = "true".into();
    pod["metadata"]["annotations"]["stillpoint.dev/level"] = "WriteBlocked".into();
    world.run(NAME, [pod, service]).await.unwrap();
    world
        .apply(&json!({
            "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": NAME},
            "spec": {
                "engine": "PostgreSQL", "agent": "Required", "podSelector": {"matchLabels": {"app": NAME}},
                // Longer than Velero waits below.
                "freeze": {"acquireTimeoutSeconds": 5},
            },
        }))
        .await
        .unwrap();
    let login = world.login(Engine::PostgreSQL, NAME).await.unwrap();
    probed(&login).await.unwrap();

    until("its agent has come", SOON, || async {
        let (good, said) = velero(&world, "pre").await?;
        ensure!(good, "{said}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(is_held(&login).await.unwrap());
    let (good, said) = velero(&world, "post").await.unwrap();
    assert!(good && said.contains("it was held all the time"), "{said}");
    assert!(!is_held(&login).await.unwrap(), "{said}");

    // The hook after the backup never comes.
    let (good, said) = velero(&world, "pre").await.unwrap();
    let began = Instant::now();
    assert!(good && is_held(&login).await.unwrap(), "{said}");
    until_writable(&login).await.unwrap();
    println!("no post hook: writable after {:.1?}", began.elapsed());
    // And one that comes too late says that the copy is worth nothing.
    let (good, said) = velero(&world, "post").await.unwrap();
    assert!(!good && said.contains("NOT proved"), "{said}");

    // The hook before it fails, and so does Velero's backup of the Pod; nothing is held.
    let blocker = in_the_way(&login).await.unwrap();
    let (good, said) = velero(&world, "pre").await.unwrap();
    assert!(!good && said.contains("refused"), "{said}");
    assert_eq!(living(&world).await.unwrap(), Vec::<Value>::new());
    assert!(!is_held(&login).await.unwrap());

    // It takes longer than Velero waits, which leaves it running: what it takes hold of then, ends by itself.
    let sooner = ["annotate", "pod", NAME, "pre.hook.backup.velero.io/timeout=1s", "--overwrite"];
    world.kubectl(&sooner).await.unwrap();
    let before = world.freezes().await.unwrap().len();
    let (good, said) = velero(&world, "pre").await.unwrap();
    assert!(!good && said.contains("timed out after 1s"), "{said}");
    drop(blocker);
    let freeze = until("it holds, and then does not", SOON + LEASE, || async {
        let mut freezes = world.freezes().await?;
        ensure!(freezes.len() > before, "there is none yet");
        freezes.sort_by_key(|freeze| freeze["status"]["requestedAt"].to_string());
        let freeze = freezes.pop().context("no Freeze")?;
        ensure!(!freeze["status"]["thawedAt"].is_null(), "{freeze}");
        Ok(freeze)
    })
    .await
    .unwrap();
    assert_eq!(freeze["status"]["phase"], "Expired", "{freeze}");
    let held = Duration::from_millis(freeze["status"]["frozenMilliseconds"].as_u64().unwrap());
    assert!(held <= LEASE + Duration::from_secs(1), "{freeze}");
    assert!(!is_held(&login).await.unwrap());
}
