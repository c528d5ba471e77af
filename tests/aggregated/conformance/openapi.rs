//! OpenAPI: one reference that leads nowhere breaks `kubectl apply` and Argo CD for the whole cluster.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use cluster::until;
use futures::{FutureExt, future::BoxFuture};
use serde_json::{Map, Value};

use super::{
    kubectl,
    stage::Stage,
    table::{Case, case},
};
use crate::{
    doors::{Ask, Way, Who},
    wire::Answer,
    world::SOON,
};

const OPERATIONS: [&str; 5] = ["get", "put", "post", "patch", "delete"];

pub(super) fn cases() -> Vec<Case> {
    vec![
        case(9, "OpenAPI v2")
            .does_through("our paths are in the merged document; every `$ref` leads somewhere, every operation has responses, every path parameter is declared, every name is a good one", second)
            .does_directly("the same, by a user of no groups", second),
        case(9, "OpenAPI v2, when the client has it already")
            .not_through("the document is kube-apiserver's own, merged from all")
            .does_directly("304 for its `ETag`", second_again),
        case(10, "OpenAPI v3 is listed to a client without `Accept`, with a URL that may be kept for ever")
            .does("200 and `cache-control: public, immutable`", third),
        case(10, "OpenAPI v3 by the URL of another build").does("200, and nothing that lets it be kept; no 301, which kube-apiserver would not forward but answer with 502", outdated),
        case(11, "the verbs' operations say what a client may ask of them")
            .does("`fieldValidation`, `dryRun`, `fieldManager`; no strategic merge; an operation's kind is an object, a schema's a list", extensions),
        case(12, "`kubectl explain`").does("fields with their descriptions", kubectl::explain),
        case(12, "`kubectl api-resources`").does("our resource, with its short name", kubectl::resources),
        case(14, "`kubectl version`").does("ends well", kubectl::version),
    ]
}

/// As the aggregator asks: by a user of no groups.
fn ask(way: Way, path: &str) -> Ask {
    match way {
        Way::Through => Ask::get(path).accept("application/json"),
        Way::Direct => Ask::get(path).accept("application/json").by(Who::user("system:aggregator", &[])),
    }
}

/// The document that has us in it: kube-apiserver fetches ours when it comes to it.
async fn whole(stage: &Stage, way: Way) -> Result<Answer> {
    until("our paths in OpenAPI v2", SOON, || async {
        let answer = stage.send(way, &ask(way, "/openapi/v2")).await?;
        ensure!(answer.code == 200, "{}", answer.brief());
        ensure!(ours(&answer.json()["paths"]).next().is_some(), "no path of ours");
        Ok(answer)
    })
    .await
}

fn second(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let document = whole(stage, way).await?.json();
        let definitions = document["definitions"].as_object().context("no definitions")?;
        resolvable(&document, definitions)?;
        for (path, item) in ours(&document["paths"]) {
            operations_are_whole(path, item)?;
        }
        Ok(())
    }
    .boxed()
}

fn second_again(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let first = whole(stage, way).await?;
        ensure!(first.header("vary").contains("Accept"), "{}", first.brief());
        let etag = first.header("etag").to_owned();
        let again = stage.send(way, &ask(way, "/openapi/v2").header("if-none-match", &etag)).await?;
        ensure!(again.code == 304 && again.body.is_empty(), "{}", again.brief());
        Ok(())
    }
    .boxed()
}

/// The URL of our document, as the list has it.
async fn listed(stage: &Stage, way: Way) -> Result<String> {
    let group = format!("apis/{}/{}", api::LIVE_GROUP, api::VERSION);
    until("our document in OpenAPI v3", SOON, || async {
        let list = stage.send(way, &Ask::get("/openapi/v3")).await?;
        ensure!(list.code == 200, "{}", list.brief());
        let url = list.json()["paths"][&group]["serverRelativeURL"].as_str().map(str::to_owned);
        url.with_context(|| list.brief())
    })
    .await
}

fn third(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let document = stage.send(way, &Ask::get(&listed(stage, way).await?)).await?;
        ensure!(document.code == 200 && document.has("cache-control", "public, immutable"), "{}", document.brief());
        let document = document.json();
        let schemas = document["components"]["schemas"].as_object().context("no schemas")?;
        resolvable(&document, schemas)
    }
    .boxed()
}

fn outdated(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let right = listed(stage, way).await?;
        let (path, _) = right.split_once('?').context("a URL without hash")?;
        let answer = stage.send(way, &Ask::get(&format!("{path}?hash=OTHER"))).await?;
        ensure!(answer.code == 200 && answer.header("expires").is_empty(), "{}", answer.brief());
        ensure!(!answer.has("cache-control", "public, immutable"), "{}", answer.brief());
        ensure!(answer.json()["openapi"].is_string(), "{}", answer.brief());
        Ok(())
    }
    .boxed()
}

fn extensions(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let document = stage.send(way, &Ask::get(&listed(stage, way).await?)).await?;
        let text = String::from_utf8_lossy(&document.body).into_owned();
        ensure!(!text.contains("strategic-merge-patch"), "a patch that is refused is offered");
        let document = document.json();
        let quiesce = ours(&document["paths"]).find(|(path, _)| path.ends_with("/{name}/quiesce"));
        let operation = &quiesce.context("no path of quiesce")?.1["post"];
        ensure!(operation["x-kubernetes-group-version-kind"]["kind"] == "Quiesce", "{operation}");
        let parameters = operation["parameters"].as_array().context("no parameters")?;
        for name in ["fieldValidation", "dryRun", "fieldManager"] {
            ensure!(parameters.iter().any(|parameter| parameter["name"] == name), "no {name}: {operation}");
        }
        let kinds = document["components"]["schemas"].as_object().into_iter().flatten();
        let kinds: Vec<_> =
            kinds.filter_map(|(_, schema)| schema["x-kubernetes-group-version-kind"].as_array()).collect();
        for kind in ["LiveDatabase", "LiveDatabaseList", "Quiesce", "Unquiesce", "Renew"] {
            ensure!(kinds.iter().any(|list| list.iter().any(|one| one["kind"] == kind)), "no schema of {kind}");
        }
        Ok(())
    }
    .boxed()
}

fn ours(paths: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let prefix = format!("/apis/{}/{}/", api::LIVE_GROUP, api::VERSION);
    paths.as_object().into_iter().flatten().filter(move |(path, _)| path.starts_with(&prefix))
}

/// Of the whole document, not of our part of it: a merge may break what came whole.
fn resolvable(document: &Value, definitions: &Map<String, Value>) -> Result<()> {
    let mut references = BTreeSet::new();
    collect(document, &mut references);
    for reference in references {
        let pointer = reference.strip_prefix('#').with_context(|| format!("{reference} leads out of the document"))?;
        ensure!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let bad = definitions.keys().find(|name| name.contains(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c)));
    ensure!(bad.is_none(), "{bad:?} is no name of a definition");
    Ok(())
}

fn collect(value: &Value, references: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            references.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| collect(value, references));
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
        _ => {}
    }
}

fn operations_are_whole(path: &str, item: &Value) -> Result<()> {
    let declared = |of: &Value, name: &str| {
        of["parameters"].as_array().is_some_and(|all| all.iter().any(|one| one["in"] == "path" && one["name"] == name))
    };
    let named: Vec<&str> = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')).collect();
    let mut count = 0;
    for method in OPERATIONS {
        let operation = &item[method];
        if operation.is_null() {
            continue;
        }
        count += 1;
        ensure!(operation["responses"].as_object().is_some_and(|responses| !responses.is_empty()), "{method} {path}");
        for name in &named {
            ensure!(declared(operation, name) || declared(item, name), "{method} {path} does not declare {name}");
        }
    }
    ensure!(count > 0, "{path} has no operation");
    Ok(())
}
