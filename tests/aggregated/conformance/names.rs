//! What `database` means where CloudNativePG has Databases too, and that our live group never comes in between.

use std::{fs, os::unix::fs::PermissionsExt};

use anyhow::{Result, ensure};
use cluster::until;
use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};

use super::{
    stage::{Stage, paused},
    table::{Case, case},
};
use crate::{
    doors::Way,
    world::{APISERVICE, SOON, Space, World},
};

const THEIRS: &str = "databases.postgresql.cnpg.io";
const OURS: &str = "databases.stillpoint.dev";
const LIVE: &str = "databases.live.stillpoint.dev";

pub(super) fn cases() -> Vec<Case> {
    let why = "names are kubectl's to resolve, from what kube-apiserver says there is";
    let line = |what, words, doing| case(0, what).does_through(words, doing).not_directly(why);
    vec![
        line(
            "`database` in kubectl, alone",
            "the stored kind, never the live view: its group has priority 1000, that of `live.stillpoint.dev` 100",
            alone,
        ),
        line(
            "`kubectl get`, `label`, `edit`, `delete database x`, beside CloudNativePG",
            "all four mean CloudNativePG's: of groups of one priority the first by name. `databases.stillpoint.dev` and `spdb` \
             are always ours, `databases.live.stillpoint.dev` and `splive` always the live view",
            beside,
        ),
    ]
}

fn alone(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        let space = world.space("alone").await?;
        space.apply(paused("x", json!({}))).await?;
        for name in ["database", "databases", "spdb", OURS] {
            means(&space, name, api::API_VERSION).await?;
        }
        for name in ["splive", LIVE] {
            means(&space, name, api::LIVE_API_VERSION).await?;
        }
        // The control: with a high priority the live view would come first, and be noticed here.
        let patch = |priority: u32| json!({"spec": {"groupPriorityMinimum": priority}}).to_string();
        let patched = ["patch", "apiservice", APISERVICE, "--type=merge", "-p"];
        world.cluster.kubectl(&[&patched[..], &[&patch(20_000)]].concat()).await?.ok()?;
        let shadowed =
            until("the live view comes first", SOON, || means(&space, "database", api::LIVE_API_VERSION)).await;
        world.cluster.kubectl(&[&patched[..], &[&patch(100)]].concat()).await?.ok()?;
        until("it does so no longer", SOON, || means(&space, "database", api::API_VERSION)).await?;
        shadowed
    }
    .boxed()
}

fn beside(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        world.cluster.apply(&cloud_native_pg().to_string()).await?;
        let crd = format!("crd/{THEIRS}");
        world.cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=30s", &crd]).await?.ok()?;
        let done = four_verbs(&world).await;
        world.cluster.kubectl(&["delete", &crd]).await?.ok()?;
        done
    }
    .boxed()
}

async fn four_verbs(world: &World) -> Result<()> {
    let space = world.space("beside").await?;
    space.apply(paused("x", json!({}))).await?;
    space
        .apply(json!({
            "apiVersion": "postgresql.cnpg.io/v1", "kind": "Database", "metadata": {"name": "x"},
            "spec": {"name": "x", "owner": "app", "cluster": {"name": "pg"}},
        }))
        .await?;
    until("it is discovered", SOON, || means(&space, "database", "postgresql.cnpg.io/v1")).await?;
    means(&space, "databases", "postgresql.cnpg.io/v1").await?;
    for (name, version) in [(OURS, api::API_VERSION), ("spdb", api::API_VERSION), (LIVE, api::LIVE_API_VERSION)] {
        means(&space, name, version).await?;
    }
    let (theirs, ours) = (|| labels(&space, THEIRS), || labels(&space, OURS));
    space.kubectl(&["label", "database", "x", "by=label"]).await?;
    ensure!(theirs().await?["by"] == "label" && ours().await?["by"].is_null());
    space.kubectl(&["label", OURS, "x", "by=name"]).await?;
    ensure!(theirs().await?["by"] == "label" && ours().await?["by"] == "name");
    edit(&space, "database", "label", "edit").await?;
    ensure!(theirs().await?["by"] == "edit" && ours().await?["by"] == "name");
    edit(&space, OURS, "name", "edited").await?;
    ensure!(theirs().await?["by"] == "edit" && ours().await?["by"] == "edited");
    space.kubectl(&["delete", "database", "x"]).await?;
    ensure!(!is_there(&space, THEIRS).await? && is_there(&space, OURS).await?, "theirs was to go, and ours to stay");
    space.kubectl(&["delete", OURS, "x"]).await?;
    ensure!(!is_there(&space, OURS).await?);
    Ok(())
}

/// A kubectl without memory resolves the name to this group and version.
async fn means(space: &Space<'_>, name: &str, version: &str) -> Result<()> {
    let cache = tempfile::tempdir()?;
    let cache = cache.path().display().to_string();
    let found = space.kubectl(&["--cache-dir", &cache, "get", name, "x", "-o", "jsonpath={.apiVersion}"]).await?;
    ensure!(found == version, "{name} is of {found}, not of {version}");
    Ok(())
}

async fn labels(space: &Space<'_>, name: &str) -> Result<Value> {
    let object: Value = serde_json::from_str(&space.kubectl(&["get", name, "x", "-o", "json"]).await?)?;
    Ok(object["metadata"].get("labels").cloned().unwrap_or_default())
}

async fn is_there(space: &Space<'_>, name: &str) -> Result<bool> {
    Ok(!space.kubectl(&["get", name, "x", "--ignore-not-found", "-o", "name"]).await?.is_empty())
}

/// By `kubectl edit`, with an editor that replaces the label.
async fn edit(space: &Space<'_>, name: &str, from: &str, to: &str) -> Result<()> {
    let editor = space.world.cluster.editor();
    fs::write(&editor, format!("#!/bin/sh\nexec sed -i 's/by: {from}$/by: {to}/' \"$1\"\n"))?;
    fs::set_permissions(&editor, fs::Permissions::from_mode(0o755))?;
    space.kubectl(&["edit", name, "x"]).await.map(drop)
}

/// As far as names go (cloudnative-pg `config/crd/bases/postgresql.cnpg.io_databases.yaml`).
fn cloud_native_pg() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": THEIRS},
        "spec": {
            "group": "postgresql.cnpg.io", "scope": "Namespaced",
            "names": {"kind": "Database", "listKind": "DatabaseList", "plural": "databases", "singular": "database"},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {
                    "spec": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                }}},
            }],
        },
    })
}
