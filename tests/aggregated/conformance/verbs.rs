//! `quiesce`, `unquiesce`: what is created without being stored, with a real database behind it.

use anyhow::{Result, ensure};
use cluster::until;
use futures::{FutureExt, future::BoxFuture};
use http::Method;
use serde_json::{Value, json};

use super::{
    stage::Stage,
    table::{Case, Want, case},
};
use crate::{
    doors::{Ask, Way, Who},
    world::SOON,
};

/// One byte more than kube-apiserver takes of anything.
const TOO_MUCH: usize = 3 * 1024 * 1024 + 1;

pub(super) fn cases() -> Vec<Case> {
    let quiesce = |body: Value| Ask::post("{here}/paused/quiesce", body.to_string());
    let bad = || Want::refusal(400, "BadRequest");
    vec![
        case(32, "a body of another version")
            .both(quiesce(json!({"apiVersion": "live.stillpoint.dev/v9", "kind": "Quiesce"})), bad()),
        case(32, "a body of another kind").both(quiesce(json!({"kind": "Renew"})), bad()),
        case(32, "a body for another namespace").both(quiesce(json!({"metadata": {"namespace": "elsewhere"}})), bad()),
        case(32, "a body that is no JSON").both(Ask::post("{here}/paused/quiesce", "{\"spec\": "), bad()),
        case(32, "a body of another type").both(
            Ask::post("{here}/paused/quiesce", "{}").header("content-type", "text/plain"),
            Want::refusal(415, "UnsupportedMediaType").mentions("application/json"),
        ),
        case(33, "a body of more than 3 MiB").both(
            Ask::post("{here}/paused/quiesce", vec![b' '; TOO_MUCH]).header("content-type", "application/json"),
            Want::refusal(413, "RequestEntityTooLarge").mentions("limit is 3145728"),
        ),
        case(34, "fields that are not known, or come twice").does(
            "`Strict`: 400 that names both; `Warn`: two `Warning: 299`; `Ignore`: none; anything else: 422",
            validation,
        ),
        case(35, "a dry run of some stages")
            .both(Ask::post("{here}/paused/quiesce?dryRun=Some", "{}"), Want::refusal(422, "Invalid")),
        case(86, "`quiesce` with `{}`, with an empty body, without `Content-Type`")
            .does("201 and a typed answer; again: 200 and the same freeze; `unquiesce`: 200 with the proof", round),
        case(87, "a verb of an object that is not there").both(
            Ask::post("{here}/missing/quiesce", "{}"),
            Want::refusal(404, "NotFound").has("/details/kind", "databases").has("/details/name", "missing"),
        ),
        case(87, "a verb of an object in the wrong state")
            .both(quiesce(json!({})), Want::refusal(409, "Conflict").mentions("is paused")),
        case(87, "a verb by GET").both(
            Ask::get("{here}/orders/quiesce").by(Who::user("root", &["system:masters"])),
            Want::refusal(405, "MethodNotAllowed"),
        ),
        case(87, "a verb by PUT").both(
            Ask::new(Method::PUT, "{here}/orders/quiesce").by(Who::user("root", &["system:masters"])),
            Want::refusal(405, "MethodNotAllowed"),
        ),
        case(87, "a verb that is none").both(
            Ask::post("{here}/orders/melt", "{}").by(Who::user("root", &["system:masters"])),
            Want::refusal(404, "NotFound"),
        ),
        case(88, "`quiesce` as a dry run")
            .does("200 with the checks; nothing is frozen, no Freeze is written", dry_run),
        case(89, "a verb that is not waited for")
            .does("202 at once; `kubectl wait` on the Freeze ends well, and it holds though nobody listens", unwaited),
        case(90, "a freeze that nobody ends").does("it ends by itself: phase `Expired`, and an Event", ends_by_itself),
        case(91, "a verb by somebody who may change the object, and has no right to the verb").both(
            Ask::post("{here}/orders/quiesce", "{}").by(Who::user("carol", &["system:authenticated"])),
            Want::refusal(403, "Forbidden").mentions("cannot create resource \"databases/quiesce\""),
        ),
        case(92, "a body that names another object")
            .both(quiesce(json!({"metadata": {"name": "orders"}})), bad().mentions("does not match")),
        case(92, "a body with a field that is not known, strictly").both(
            Ask::post("{here}/paused/quiesce?fieldValidation=Strict", json!({"spec": {"colour": 1}}).to_string()),
            bad().mentions("unknown field \"spec.colour\""),
        ),
        case(92, "a value that cannot be").both(
            quiesce(json!({"spec": {"ttlSeconds": 0}})),
            Want::refusal(422, "Invalid")
                .has("/details/kind", "Quiesce")
                .has("/details/causes/0/field", "spec.ttlSeconds"),
        ),
    ]
}

fn validation(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        // A dry run does not write; its answer is that of a call that succeeds.
        let ask = |mode: &str| {
            let path = format!("{{here}}/orders/quiesce?dryRun=All&fieldValidation={mode}");
            Ask::post(&path, r#"{"spec": {"colour": "red", "ttlSeconds": 9, "ttlSeconds": 8}}"#)
        };
        let strict = stage.send(way, &ask("Strict")).await?;
        let said = strict.json()["message"].to_string();
        ensure!(
            strict.code == 400 && said.contains("spec.colour") && said.contains("spec.ttlSeconds"),
            "{}",
            strict.brief()
        );
        for (mode, count) in [("Warn", 2), ("", 2), ("Ignore", 0)] {
            let answer = stage.send(way, &ask(mode)).await?;
            let warnings = answer.headers.get_all("warning").iter().filter_map(|value| value.to_str().ok());
            let ours = warnings.filter(|text| text.starts_with("299 - \"") && text.contains("field")).count();
            ensure!(answer.code == 200 && ours == count, "{mode:?}: {}", answer.brief());
        }
        let other = stage.send(way, &ask("Foo")).await?;
        ensure!(other.code == 422, "{}", other.brief());
        Ok(())
    }
    .boxed()
}

fn round(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        for body in ["{}", "", r#"{"kind": "Quiesce", "metadata": {"name": "orders"}}"#] {
            let first = stage.send(way, &Ask::post("{here}/orders/quiesce", body)).await?;
            let held = first.json();
            ensure!(
                first.code == 201 && held["kind"] == "Quiesce" && held["status"]["phase"] == "Frozen",
                "{}",
                first.brief()
            );
            ensure!(held["apiVersion"] == api::LIVE_API_VERSION && held["metadata"]["name"] == "orders", "{held}");
            let again = stage.send(way, &Ask::post("{here}/orders/quiesce", body)).await?;
            ensure!(
                again.code == 200 && again.json()["status"]["freeze"] == held["status"]["freeze"],
                "{}",
                again.brief()
            );
            let ended = stage.send(way, &Ask::post("{here}/orders/unquiesce", "")).await?;
            ensure!(ended.code == 200 && ended.json()["status"]["proof"]["held"] == true, "{}", ended.brief());
        }
        let nothing = stage.send(way, &Ask::post("{here}/orders/unquiesce", "")).await?;
        ensure!(nothing.code == 200, "nothing to end is no error: {}", nothing.brief());
        Ok(())
    }
    .boxed()
}

async fn freezes(stage: &Stage) -> Result<Value> {
    Ok(serde_json::from_str(&stage.space.kubectl(&["get", "freezes", "-o", "json"]).await?)?)
}

fn dry_run(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let before = freezes(stage).await?["items"].as_array().map_or(0, Vec::len);
        let answer = stage.send(way, &Ask::post("{here}/orders/quiesce?dryRun=All", "{}")).await?;
        let status = answer.json()["status"].take();
        ensure!(
            answer.code == 200 && status["checks"].as_array().is_some_and(|checks| !checks.is_empty()),
            "{}",
            answer.brief()
        );
        ensure!(status.get("freeze").is_none(), "{status}");
        let live = stage.send(way, &Ask::get("{here}/orders")).await?.json();
        ensure!(live["status"]["state"] == "Idle", "{live}");
        ensure!(freezes(stage).await?["items"].as_array().map_or(0, Vec::len) == before, "a Freeze was written");
        Ok(())
    }
    .boxed()
}

fn unwaited(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let begun = stage.send(way, &Ask::post("{here}/orders/quiesce", r#"{"spec": {"wait": false}}"#)).await?;
        ensure!(begun.code == 202 && begun.took.as_secs() < 5, "{}", begun.brief());
        let freeze = begun.json()["status"]["freeze"].as_str().unwrap_or_default().to_owned();
        let frozen = ["wait", "--for=jsonpath={.status.phase}=Frozen", "--timeout=30s", "freeze", &freeze];
        stage.space.kubectl(&frozen).await?;
        let ended = stage.send(way, &Ask::post("{here}/orders/unquiesce", "")).await?;
        ensure!(ended.code == 200 && ended.json()["status"]["freeze"] == freeze.as_str(), "{}", ended.brief());
        Ok(())
    }
    .boxed()
}

fn ends_by_itself(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let held = stage.send(way, &Ask::post("{here}/orders/quiesce", r#"{"spec": {"ttlSeconds": 1}}"#)).await?;
        ensure!(held.code == 201, "{}", held.brief());
        let freeze = held.json()["status"]["freeze"].as_str().unwrap_or_default().to_owned();
        let ended = |object: &Value| object["status"]["phase"] == "Expired";
        stage.space.until_json("it ends by itself", &["get", "freeze", &freeze, "-o", "json"], ended).await?;
        until("an Event tells of it", SOON, || async {
            let selector = format!("involvedObject.name={freeze}");
            let events = stage
                .space
                .kubectl(&["get", "events", "--field-selector", &selector, "-o", "jsonpath={.items[*].reason}"])
                .await?;
            ensure!(events.contains("Expired"), "{events}");
            Ok(())
        })
        .await
    }
    .boxed()
}
