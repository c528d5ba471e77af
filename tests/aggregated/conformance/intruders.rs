//! What must not get in: names that are forged, certificates and tokens that do not hold, paths that others read otherwise,
//! bodies that are too long or too deep. What floods is in `floods.rs`.

use anyhow::{Result, ensure};
use futures::{FutureExt, future::BoxFuture};
use http::Method;
use serde_json::{Value, json};

use super::{
    stage::{self, Stage},
    table::{Case, Want, case},
};
use crate::{
    doors::{Ask, Way, Who},
    keys,
};

pub(super) fn cases() -> Vec<Case> {
    let strictly = |body: String| Ask::post("{here}/paused/quiesce?fieldValidation=Strict", body);
    let bad = || Want::refusal(400, "BadRequest");
    let proxies = "front proxies show themselves to kube-apiserver by its flags, which case 19 tests";
    vec![
        case(0, "headers of a front proxy, and a certificate of the right name that nobody trusts signed")
            .does("401", forged),
        case(0, "a front proxy's certificate that is expired; one that is not valid yet")
            .not_through(proxies)
            .does_directly("401; 200 for one that is valid now, signed by the same", out_of_time),
        case(0, "a token for another audience").does("401", audience),
        case(0, "paths with `//`, `%2f`, `..`, `%2e%2e`, whoever asks")
            .not_through("kube-apiserver reads the path before us, and sends on what it has read")
            .does_directly("404", smuggled),
        case(0, "such paths, by somebody who may read the object and has no right to the verb")
            .does("never 2xx; nothing is frozen", smuggled_verbs),
        case(0, "JSON of depth 100").both(strictly(deep(100)), bad().mentions("unknown field \"spec.deep\"")),
        case(0, "JSON of depth 10,000").both(strictly(deep(10_000)), bad().mentions("recursion limit")),
        case(0, "JSON of a million brackets that are never closed").both(strictly("[".repeat(1 << 20)), bad()),
        case(0, "JSON of 3 MiB: one long name above a million values")
            .both(strictly(long_name()), bad().mentions("strict decoding error").promptly()),
    ]
}

fn deep(depth: usize) -> String {
    format!("{{\"spec\":{{\"deep\":{}{}}}}}", "[".repeat(depth), "]".repeat(depth))
}

fn long_name() -> String {
    format!("{{\"spec\":{{\"{}\":[{}]}}}}", "k".repeat(1 << 20), vec!["1"; (1 << 20) - 100].join(","))
}

fn forged(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let shown = keys::stranger()?.1;
        let ask = Ask::get("{here}/orders").by(Who::Shown(shown));
        let ask = ask.header("x-remote-user", "alice").header("x-remote-group", "system:masters");
        Want::refusal(401, "Unauthorized").of(&stage.send(way, &ask).await?, stage.namespace())
    }
    .boxed()
}

fn out_of_time(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let keys = stage.world().keys()?;
        for (hours, code) in [(-48, 401), (48, 401), (-1, 200)] {
            let shown = keys.proxy("front-proxy-client", hours)?;
            let ask = Ask::get("{here}/orders").by(Who::Shown(shown)).header("x-remote-user", "alice");
            let answer = stage.send(way, &ask).await?;
            ensure!(answer.code == code, "valid from {hours} h on: {}", answer.brief());
        }
        Ok(())
    }
    .boxed()
}

fn audience(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        for (audience, code) in [("vault.example.com", 401), ("https://kubernetes.default.svc.cluster.local", 0)] {
            let token = stage::token(&stage.space, "backup", &["--audience", audience]).await;
            // What kube-apiserver calls itself is its own affair: its default audience is the control.
            let (token, code) = if code == 0 { (stage.backup.clone(), 200) } else { (token?, code) };
            let answer = stage.send(way, &Ask::get("{here}/orders").by(Who::Token(token))).await?;
            ensure!(answer.code == code, "for {audience}: {}", answer.brief());
        }
        Ok(())
    }
    .boxed()
}

/// As somebody who may everything: it is not for want of a right that they lead nowhere.
fn smuggled(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let paths = [
            "//metrics",
            "/./metrics",
            "/healthz/../metrics",
            "/healthz/..%2fmetrics",
            "/apis/../metrics",
            "/apis/..%2f..%2fmetrics",
            "/openapi/v3/apis/../../metrics",
            "{group}//namespaces/{ns}/databases/orders",
            "{group}/namespaces//databases/orders",
            "{group}/namespaces/{ns}%2fdatabases/orders",
            "{group}/namespaces/other/../{ns}/databases/orders",
            "{here}/../databases/orders",
            "{here}/%2e%2e/databases",
            "{here}/..%2fdatabases",
            "{here}/orders/quiesce/..",
            "{here}/orders%00",
            "{here}/orders%3Fwatch=true",
            "{here}/orders%23",
        ];
        for path in paths {
            let ask = Ask::get(path).by(Who::user("root", &["system:masters"]));
            let answer = stage.send(way, &ask).await?;
            ensure!(answer.code == 404 && answer.json()["reason"] == "NotFound", "{path}: {}", answer.brief());
        }
        let plain = stage.send(way, &Ask::get("/metrics").by(Who::user("root", &["system:masters"]))).await?;
        ensure!(plain.code == 200, "the control: {}", plain.brief());
        Ok(())
    }
    .boxed()
}

fn smuggled_verbs(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let carol = || Who::user("carol", &["system:authenticated"]);
        let paths = [
            "{here}/orders%2Fquiesce",
            "{here}/orders%2fquiesce",
            "{here}//orders/quiesce",
            "{here}/orders//quiesce",
            "{here}/x/../orders/quiesce",
            "{here}/x/%2e%2e/orders/quiesce",
            "{here}/orders/./quiesce",
            "{here}/orders/quiesce%2F",
            "{here}/orders/quiesce/",
            "//{here}/orders/quiesce",
            "{group}/namespaces/other/..%2f{ns}/databases/orders/quiesce",
        ];
        for path in paths {
            let answer = stage.send(way, &Ask::new(Method::POST, path).by(carol())).await?;
            ensure!(answer.code >= 300, "{path}: {}", answer.brief());
        }
        let live: Value = stage.send(way, &Ask::get("{here}/orders").by(carol())).await?.json();
        ensure!(live["status"]["state"] == json!("Idle"), "{live}");
        Ok(())
    }
    .boxed()
}
