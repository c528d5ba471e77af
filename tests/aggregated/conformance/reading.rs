//! Objects and lists. Live views are computed when they are asked for, and are read like anything else.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use flate2::read::GzDecoder;
use futures::{FutureExt, future::BoxFuture};
use serde_json::{Value, json};

use super::{
    kubectl,
    stage::{Stage, paused},
    table::{Case, Want, case},
};
use crate::{
    doors::{Ask, Way, Who},
    wire::Answer,
};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
/// As the garbage collector asks.
const METADATA: &str = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,\
    application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";

pub(super) fn cases() -> Vec<Case> {
    let object = || Want::code(200).has("/kind", "LiveDatabase").has("/apiVersion", api::LIVE_API_VERSION);
    let list = || Want::code(200).has("/kind", "LiveDatabaseList");
    vec![
        case(42, "an object").both(Ask::get("{here}/orders"), object().has("/status/state", "Idle")),
        case(42, "an object that is not there").both(
            Ask::get("{here}/missing"),
            Want::refusal(404, "NotFound")
                .says("databases.live.stillpoint.dev \"missing\" not found")
                .has("/details/kind", "databases")
                .has("/details/group", api::LIVE_GROUP)
                .has("/details/name", "missing"),
        ),
        case(43, "a form that nobody has")
            .both(Ask::get("{here}/orders").accept("application/xml"), Want::refusal(406, "NotAcceptable")),
        case(43, "protobuf, or else JSON").both(
            Ask::get("{here}/orders").accept("application/vnd.kubernetes.protobuf,application/json"),
            object().header("content-type", "application/json"),
        ),
        case(67, "an empty list").both(
            Ask::get("{here}?labelSelector=colour%3Dgreen"),
            list().has("/items", json!([])).that("its `resourceVersion` is a number, not 0", |answer| version(answer).map(drop)),
        ),
        case(68, "a list by pages of one").both(
            Ask::get("{here}?limit=1"),
            list().that("all of it, without `continue`: what is in memory needs no pages", |answer| {
                let list = answer.json();
                ensure!(list["metadata"].get("continue").is_none() && names(&list).len() >= 3);
                Ok(())
            }),
        ),
        case(69, "a list to be continued from nowhere").both(Ask::get("{here}?continue=garbage"), Want::refusal(400, "BadRequest")),
        case(70, "a list of a certain resource version").does(
            "422 for what contradicts itself, 504 `ResourceVersionTooLarge` for the future, 400 for what is no number, 410 for the past exactly, 200 for what is not older",
            versions,
        ),
        case(71, "selectors").does("the grammar selects as documented; 400 for what is none, and for a field that is not known", selectors),
        case(83, "a Table").both(
            Ask::get("{here}").accept(TABLE),
            Want::code(200)
                .has("/kind", "Table")
                .has("/columnDefinitions/0/name", "Name")
                .has("/rows/0/object/kind", "PartialObjectMetadata"),
        ),
        case(83, "a Table with whole objects").both(
            Ask::get("{here}?includeObject=Object").accept(TABLE),
            Want::code(200).has("/rows/0/object/kind", "LiveDatabase"),
        ),
        case(83, "a Table without objects").both(
            Ask::get("{here}?includeObject=None").accept(TABLE),
            Want::code(200).has("/rows/0/object", Value::Null),
        ),
        case(83, "a Table with something else")
            .both(Ask::get("{here}?includeObject=Some").accept(TABLE), Want::refusal(400, "BadRequest")),
        case(83, "`kubectl get`").does("our columns; those of low priority with `-o wide` only", kubectl::get),
        case(84, "metadata alone, of a list").both(
            Ask::get("{here}").accept(METADATA),
            Want::code(200)
                .has("/kind", "PartialObjectMetadataList")
                .has("/apiVersion", "meta.k8s.io/v1")
                .has("/items/0/kind", "PartialObjectMetadata")
                .has("/items/0/spec", Value::Null)
                .has("/items/0/status", Value::Null),
        ),
        case(84, "metadata alone, of an object").both(
            Ask::get("{here}/orders").accept("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
            Want::code(200).has("/kind", "PartialObjectMetadata").has("/metadata/name", "orders").has("/status", Value::Null),
        ),
        case(85, "compression").does("gzip for a list of 200 KiB, none for a small one", compression),
    ]
}

fn version(answer: &Answer) -> Result<u64> {
    let list = answer.json();
    let text = list["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?;
    ensure!(!text.starts_with('0'), "resourceVersion is {text:?}");
    Ok(text.parse()?)
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().into_iter().flatten();
    items.filter_map(|item| item["metadata"]["name"].as_str()).collect()
}

fn versions(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let now = version(&stage.send(way, &Ask::get("{here}")).await?)?;
        let cases = [
            ("resourceVersionMatch=Exact".to_owned(), 422),
            ("resourceVersion=0&resourceVersionMatch=Exact".to_owned(), 422),
            ("resourceVersion=5&resourceVersionMatch=Foo".to_owned(), 422),
            ("resourceVersion=5&resourceVersionMatch=NotOlderThan&continue=e30".to_owned(), 422),
            ("sendInitialEvents=true".to_owned(), 422),
            ("resourceVersion=abc".to_owned(), 400),
            (format!("resourceVersion={}", now + 1_000_000), 504),
            ("resourceVersion=5&resourceVersionMatch=Exact".to_owned(), 410),
            ("resourceVersion=0".to_owned(), 200),
            (format!("resourceVersion={now}&resourceVersionMatch=NotOlderThan"), 200),
        ];
        for (query, code) in cases {
            let answer = stage.send(way, &Ask::get(&format!("{{here}}?{query}"))).await?;
            ensure!(answer.code == code, "{query}: {code} is wanted: {}", answer.brief());
            let cause = answer.json().pointer("/details/causes/0/reason").cloned().unwrap_or_default();
            ensure!(code != 504 || cause == "ResourceVersionTooLarge", "{}", answer.brief());
        }
        Ok(())
    }
    .boxed()
}

fn selectors(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let found: [(&str, &[&str]); 6] = [
            ("labelSelector=colour in (red,green),!size", &["paused"]),
            ("labelSelector=colour", &["paused", "resting"]),
            ("labelSelector=colour!=red,colour", &["resting"]),
            ("labelSelector=colour notin (red, blue)", &["orders"]),
            ("fieldSelector=metadata.name=resting", &["resting"]),
            ("fieldSelector=metadata.namespace!={ns}", &[]),
        ];
        for (query, wanted) in found {
            let answer = stage.send(way, &asked(query)).await?;
            let list = answer.json();
            ensure!(answer.code == 200 && names(&list) == wanted, "{query}: {}", answer.brief());
        }
        for query in ["labelSelector=a=(", "labelSelector=a in b", "fieldSelector=status.level=x", "fieldSelector=name"]
        {
            let answer = stage.send(way, &asked(query)).await?;
            ensure!(answer.code == 400 && answer.json()["reason"] == "BadRequest", "{query}: {}", answer.brief());
        }
        Ok(())
    }
    .boxed()
}

/// With the query's value as a URL has it.
fn asked(query: &str) -> Ask {
    let (name, value) = query.split_once('=').unwrap_or((query, ""));
    let escaped: String = value
        .chars()
        .map(|c| if " =!(),".contains(c) { format!("%{:02X}", u32::from(c)) } else { c.to_string() })
        .collect();
    Ask::get(&format!("{{here}}?{name}={escaped}"))
}

fn compression(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let warden = || Who::user("root", &["system:masters"]);
        let space = stage.world().space("many").await?;
        let labels: Value =
            (0..50).map(|at| (format!("label-{at}"), json!("x".repeat(60)))).collect::<serde_json::Map<_, _>>().into();
        let many: Vec<Value> = (0..60)
            .map(|at| {
                let mut database = paused(&format!("database-{at}"), labels.clone());
                database["metadata"]["namespace"] = json!(space.name);
                database
            })
            .collect();
        let many = json!({"apiVersion": "v1", "kind": "List", "items": many});
        stage.world().cluster.apply(&many.to_string()).await?;
        let path = format!("{{group}}/namespaces/{}/databases", space.name);
        let ask = Ask::get(&path).by(warden()).header("accept-encoding", "gzip");
        let whole = cluster::until("all of them are listed", crate::world::SOON, || async {
            let answer = stage.send(way, &ask).await?;
            ensure!(answer.header("content-encoding") == "gzip", "{:?} {}", answer.headers, answer.body.len());
            let mut text = String::new();
            GzDecoder::new(answer.body.as_ref()).read_to_string(&mut text)?;
            let list: Value = serde_json::from_str(&text)?;
            ensure!(names(&list).len() == 60, "{} are listed", names(&list).len());
            Ok(answer)
        })
        .await?;
        ensure!(whole.header("vary").contains("Accept-Encoding"), "{:?}", whole.headers);
        let small = stage.send(way, &Ask::get("{here}/orders").header("accept-encoding", "gzip")).await?;
        ensure!(small.header("content-encoding").is_empty(), "{}", small.brief());
        let plain = stage.send(way, &Ask::get(&path).by(warden())).await?;
        ensure!(plain.header("content-encoding").is_empty() && plain.body.len() > 200 << 10, "{:?}", plain.headers);
        Ok(())
    }
    .boxed()
}
