//! Registration, discovery, health: what kube-apiserver, its controllers and every kubectl ask first.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, future::BoxFuture};
use http::Method;
use serde_json::Value;

use super::{
    stage::Stage,
    table::{Case, Want, case},
};
use crate::{
    doors::{Ask, Way, Who},
    wire::{Protocol, Server},
    world::{NAMESPACE, SERVICE},
};

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
const PERMUTED: &str = "application/json;as=APIGroupDiscoveryList;v=v2;profile=nopeer;g=apidiscovery.k8s.io";
const OWN_HEALTH: &str = "kube-apiserver answers for its own health; it never asks for ours";

pub(super) fn cases() -> Vec<Case> {
    let resources = || Want::code(200).has("/kind", "APIResourceList").has("/groupVersion", api::LIVE_API_VERSION);
    let aggregated = || {
        Want::code(200)
            .header("content-type", AGGREGATED)
            .has("/kind", "APIGroupDiscoveryList")
            .has("/apiVersion", "apidiscovery.k8s.io/v2")
            .that("our group is there, and `Current`", |answer| {
                ensure!(of_ours(&answer.json()).context("no group of ours")?["freshness"] == "Current");
                Ok(())
            })
    };
    let group = || Want::code(200).has("/kind", "APIGroup").has("/preferredVersion/version", api::VERSION);
    vec![
        case(1, "the group's resources, as the check of availability asks for them")
            .both(Ask::get("{group}").by(aggregator(&["system:masters"])), resources().fast()),
        case(2, "the same by a user of no groups, as legacy discovery asks, to whom only `system:discovery` lets it")
            .both(Ask::get("{group}").by(aggregator(&[])), resources()),
        case(3, "aggregated discovery").both(Ask::get("/apis").accept(AGGREGATED), aggregated()),
        case(4, "aggregated discovery, with the parameters in another order and one that nobody knows")
            .both(Ask::get("/apis").accept(PERMUTED), aggregated()),
        case(5, "aggregated discovery, when the client has it already")
            .does("304 and no body for its `ETag`, 200 for another", not_modified),
        case(6, "the list of groups").through(
            Ask::get("/apis").accept("application/json"),
            Want::code(200).has("/kind", "APIGroupList").that("our group is among them", |answer| {
                let groups = answer.json()["groups"].as_array().cloned().unwrap_or_default();
                ensure!(groups.iter().any(|group| group["name"] == api::LIVE_GROUP));
                Ok(())
            }),
        ).direct(
            Ask::get("/apis").accept("application/json"),
            Want::code(200).has("/kind", "APIGroupList").has("/groups/0/name", api::LIVE_GROUP).that("and no other", |answer| {
                ensure!(answer.json()["groups"].as_array().is_some_and(|groups| groups.len() == 1));
                Ok(())
            }),
        ),
        case(6, "the group").both(Ask::get("/apis/live.stillpoint.dev"), group()),
        case(6, "a group that is not there").both(Ask::get("/apis/other.example.com"), Want::code(404)),
        case(7, "legacy and aggregated discovery tell the same; every resource has a kind and verbs, every subresource a parent")
            .does("so it is", the_same),
        case(8, "what is advertised can be done, and nothing else").does("405 for every verb that is not advertised, and for no other", verbs),
        case(13, "liveness and readiness, to anybody").not_through(OWN_HEALTH).does_directly("200 `ok` at `/healthz`, `/livez`, `/readyz`", health),
        case(13, "readiness, in detail").not_through(OWN_HEALTH).direct(
            Ask::get("/readyz?verbose").by(Who::Nobody),
            Want::code(200).that("every check on a line", |answer| {
                let text = String::from_utf8_lossy(&answer.body);
                ensure!(text.lines().any(|line| line == "[+]authentication ok"), "{text}");
                ensure!(text.ends_with("readyz check passed\n"), "{text}");
                Ok(())
            }),
        ),
        case(14, "the version, as clients read it").both(
            Ask::get("/version"),
            Want::code(200).that("`minor` is a number", |answer| {
                let minor = answer.json()["minor"].as_str().unwrap_or_default().to_owned();
                minor.parse::<u32>().with_context(|| format!("minor is {minor:?}")).map(drop)
            }),
        ),
        case(15, "the serving certificate is for every name of the Service")
            .not_through("kube-apiserver asks for `NAME.NAMESPACE.svc` alone, and every case shows that it gets it")
            .does_directly("`NAME.NAMESPACE.svc`, with and without `.cluster.local`, `NAME.NAMESPACE`, `localhost`", names),
    ]
}

/// As kube-apiserver's own controllers name themselves.
fn aggregator(groups: &[&str]) -> Who {
    Who::user("system:kube-aggregator", groups)
}

/// Our version in a document of aggregated discovery.
fn of_ours(document: &Value) -> Option<&Value> {
    let group = document["items"].as_array()?.iter().find(|item| item["metadata"]["name"] == api::LIVE_GROUP)?;
    group["versions"].as_array()?.first()
}

fn not_modified(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let ask = Ask::get("/apis").accept(AGGREGATED);
        let etag = stage.send(way, &ask).await?.header("etag").to_owned();
        let hex = etag.strip_prefix('"').and_then(|etag| etag.strip_suffix('"')).unwrap_or_default();
        ensure!(hex.len() == 128 && !hex.contains(|c: char| !c.is_ascii_hexdigit() || c.is_lowercase()), "{etag}");
        let same = stage.send(way, &ask.clone().header("if-none-match", &etag)).await?;
        ensure!(same.code == 304 && same.body.is_empty(), "{}", same.brief());
        let other = stage.send(way, &ask.header("if-none-match", "\"00\"")).await?;
        ensure!(other.code == 200, "{}", other.brief());
        Ok(())
    }
    .boxed()
}

/// `RESOURCE[/SUBRESOURCE] KIND VERBS`, of each.
type Told = BTreeSet<String>;

fn legacy(document: &Value) -> Result<Told> {
    let resources = document["resources"].as_array().context("no resources")?;
    resources.iter().map(|resource| told(resource["name"].as_str(), &resource["kind"], &resource["verbs"])).collect()
}

fn aggregated(version: &Value) -> Result<Told> {
    let mut all = Told::new();
    for resource in version["resources"].as_array().context("no resources")? {
        let name = resource["resource"].as_str().context("a resource without name")?;
        // One that is there for its subresources alone is named, and no more.
        if resource["verbs"].as_array().is_none_or(|verbs| !verbs.is_empty()) {
            all.insert(told(Some(name), &resource["responseKind"]["kind"], &resource["verbs"])?);
        }
        for sub in resource["subresources"].as_array().into_iter().flatten() {
            let name = format!("{name}/{}", sub["subresource"].as_str().context("a subresource without name")?);
            all.insert(told(Some(&name), &sub["responseKind"]["kind"], &sub["verbs"])?);
        }
    }
    Ok(all)
}

fn told(name: Option<&str>, kind: &Value, verbs: &Value) -> Result<String> {
    let name = name.context("a resource without name")?;
    let kind = kind.as_str().filter(|kind| !kind.is_empty()).with_context(|| format!("{name} has no kind"))?;
    let verbs = verbs.as_array().filter(|verbs| !verbs.is_empty()).with_context(|| format!("{name} has no verbs"))?;
    let mut verbs: Vec<_> = verbs.iter().filter_map(Value::as_str).collect();
    verbs.sort_unstable();
    Ok(format!("{name} {kind} {verbs:?}"))
}

fn the_same(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let old = legacy(&stage.send(way, &Ask::get("{group}")).await?.json())?;
        let new = stage.send(way, &Ask::get("/apis").accept(AGGREGATED)).await?.json();
        let ours = of_ours(&new).context("no group of ours")?;
        let new = aggregated(ours)?;
        ensure!(old == new, "{old:?} and {new:?}");
        let named: BTreeSet<_> =
            ours["resources"].as_array().into_iter().flatten().filter_map(|one| one["resource"].as_str()).collect();
        let names = old.iter().filter_map(|told| told.split(' ').next());
        for parent in names.filter_map(|name| name.split_once('/')).map(|(parent, _)| parent) {
            ensure!(named.contains(parent), "{parent} is not there");
        }
        Ok(())
    }
    .boxed()
}

/// As somebody who may everything: what cannot be done is not what is forbidden.
fn verbs(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let document = stage.send(way, &Ask::get("{group}")).await?.json();
        for resource in document["resources"].as_array().into_iter().flatten() {
            let name = resource["name"].as_str().unwrap_or_default();
            let advertised =
                |verb: &str| resource["verbs"].as_array().is_some_and(|verbs| verbs.iter().any(|v| v == verb));
            let (parent, sub) = name.split_once('/').map_or((name, None), |(parent, sub)| (parent, Some(sub)));
            let here = format!("/apis/{}/{}/namespaces/{}/{parent}", api::LIVE_GROUP, api::VERSION, stage.namespace());
            let of_one = sub.map_or(format!("{here}/paused"), |sub| format!("{here}/paused/{sub}"));
            let (of_all, watch) =
                (sub.is_none().then_some(here.as_str()), format!("{here}?watch=true&timeoutSeconds=1"));
            let one =
                [("get", Method::GET), ("update", Method::PUT), ("patch", Method::PATCH), ("delete", Method::DELETE)];
            let all = [("list", Method::GET), ("create", Method::POST), ("deletecollection", Method::DELETE)];
            let mut asked: Vec<_> = one.into_iter().map(|(verb, method)| (verb, method, of_one.as_str())).collect();
            match of_all {
                Some(path) => {
                    asked.extend(all.into_iter().map(|(verb, method)| (verb, method, path)));
                    asked.push(("watch", Method::GET, &watch));
                }
                None => asked.push(("create", Method::POST, of_one.as_str())),
            }
            for (verb, method, path) in asked {
                let ask = Ask::new(method, path).by(Who::user("root", &["system:masters"]));
                let answer = stage.send(way, &ask).await?;
                ensure!((answer.code == 405) != advertised(verb), "{verb} {name}: {}", answer.brief());
                ensure!(answer.code != 405 || answer.json()["reason"] == "MethodNotAllowed", "{}", answer.brief());
            }
        }
        Ok(())
    }
    .boxed()
}

fn health(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        for path in ["/healthz", "/livez", "/readyz"] {
            let answer = stage.send(way, &Ask::get(path).by(Who::Nobody)).await?;
            ensure!(answer.code == 200 && answer.body == "ok", "{path}: {}", answer.brief());
            ensure!(answer.header("content-type").starts_with("text/plain"), "{path}: {}", answer.brief());
        }
        Ok(())
    }
    .boxed()
}

/// A handshake with a name that it is not for fails.
fn names(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let server = stage.world().server(way)?;
        let service = format!("{SERVICE}.{NAMESPACE}");
        for name in [format!("{service}.svc"), format!("{service}.svc.cluster.local"), service, "localhost".to_owned()]
        {
            let asked = Server { name: name.clone(), ..server.clone() };
            asked.dial(None, Protocol::Http2).await.with_context(|| name)?;
        }
        let other = Server { name: "other.stillpoint.svc".to_owned(), ..server };
        ensure!(other.dial(None, Protocol::Http2).await.is_err(), "it is for any name");
        Ok(())
    }
    .boxed()
}
