//! Who asks, and what they may. What our server asks kube-apiserver about them is read from the audit log.

use anyhow::{Context, Result, ensure};
use cluster::until;
use futures::{FutureExt, future::BoxFuture};
use http::Method;
use serde_json::{Value, json};

use super::{
    outages,
    stage::Stage,
    table::{Case, Want, case},
};
use crate::{
    doors::{Ask, Way, Who},
    keys,
    world::SOON,
};

const DENIED: &str = "databases.live.stillpoint.dev \"orders\" is forbidden: User \"bob\" cannot get resource \
    \"databases\" in API group \"live.stillpoint.dev\" in the namespace \"{ns}\"";
const KNOWN: &str = "system:authenticated";

pub(super) fn cases() -> Vec<Case> {
    let orders = || Ask::get("{here}/orders");
    let anonymous = || Want::refusal(403, "Forbidden").mentions("User \"system:anonymous\" cannot get");
    let unauthorized = || Want::refusal(401, "Unauthorized").says("Unauthorized");
    vec![
        case(16, "user, every group and every extra reach the authorizer, and `system:authenticated` with them")
            .does("so it was asked", all_of_a_user),
        case(17, "headers of a front proxy, and nothing shown").both(
            orders().by(Who::Nobody).header("x-remote-user", "alice").header("x-remote-group", "system:masters"),
            anonymous(),
        ),
        case(18, "a person's certificate, and headers that name another").both(
            orders().by(Who::Person("paul".to_owned())).header("x-remote-user", "alice"),
            Want::refusal(403, "Forbidden").mentions("User \"paul\" cannot get"),
        ),
        case(18, "a person's certificate").both(orders().by(Who::Person("peter".to_owned())), Want::code(200)),
        case(19, "a front proxy's certificate with a name that is not allowed").does("401", name_not_allowed),
        case(20, "another authority for front proxies")
            .not_through("kube-apiserver reads its own flags, not the ConfigMap")
            .does_directly("its certificates hold within seconds, without a restart", outages::another_authority),
        case(21, "a certificate of an authority that nobody knows, and a token")
            .does("the handshake succeeds; 200 with the token, 401 without", unknown_authority),
        case(22, "a token").both(orders().by(Who::Token("backup".to_owned())), Want::code(200)),
        case(22, "a token that nobody gave").both(orders().by(Who::Token("e30.e30.e30".to_owned())), unauthorized()),
        case(22, "a token, twenty times; a wrong one, twenty times")
            .not_through("kube-apiserver keeps what it learned of a token itself")
            .does_directly("one TokenReview of each", outages::one_review),
        case(22, "a token while kube-apiserver is gone")
            .not_through("nothing goes through what is gone")
            .does_directly("401, never anonymous", outages::nobody_reviews),
        case(23, "no right")
            .both(orders().by(Who::user("bob", &[KNOWN])), Want::refusal(403, "Forbidden").says(DENIED)),
        case(23, "a right, while nobody can be asked about it")
            .not_through("nothing goes through what is gone")
            .does_directly("500 `InternalError`", outages::nobody_authorizes),
        case(24, "one request, a hundred times")
            .does_through("one SubjectAccessReview of each replica at most", asked_once)
            .does_directly("one SubjectAccessReview", asked_once),
        case(25, "a list of the one object that one may see")
            .does("200 with the field selector, 403 without; the name is asked for", one_by_name),
        case(26, "a verb").does("`create` of `databases/quiesce` is asked for, by name", a_verb),
        case(27, "impersonation, without the right to it")
            .through(
                orders().by(Who::Token("backup".to_owned())).header("impersonate-user", "alice"),
                Want::refusal(403, "Forbidden").mentions("impersonate"),
            )
            .direct(
                orders().by(Who::Token("backup".to_owned())).header("impersonate-user", "alice"),
                Want::refusal(403, "Forbidden").mentions("cannot impersonate here"),
            ),
        case(28, "an id for the audit log").both(
            orders().header("audit-id", "0b1a9c2e-5c53-4d38-9a1f-5f0a8f1d2c3b"),
            Want::code(200).header("audit-id", "0b1a9c2e-5c53-4d38-9a1f-5f0a8f1d2c3b"),
        ),
        case(100, "the metrics, to whoever may see them").not_through("kube-apiserver serves its own").direct(
            Ask::get("/metrics").by(Who::Token("scraper".to_owned())),
            Want::code(200).that("upstream's names", |answer| {
                ensure!(String::from_utf8_lossy(&answer.body).contains("apiserver_request_total"));
                Ok(())
            }),
        ),
        case(100, "the metrics, to others").not_through("kube-apiserver serves its own").direct(
            Ask::get("/metrics").by(Who::Token("backup".to_owned())),
            Want::refusal(403, "Forbidden").mentions("cannot get path \"/metrics\""),
        ),
    ]
}

/// A user of its own for each way, so that nothing is known of them yet.
fn named(stem: &str, way: Way) -> String {
    format!("{stem}-{way:?}").to_lowercase()
}

/// What was asked about a user, when it is all there.
async fn reviews(stage: &Stage, user: &str) -> Result<Vec<Value>> {
    until("a review in the audit log", SOON, || async {
        let reviews = stage.asked_about(user)?;
        ensure!(!reviews.is_empty(), "nobody asked about {user}");
        Ok(reviews)
    })
    .await
}

fn all_of_a_user(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let name = named("erin", way);
        let who = Who::User {
            name: name.clone(),
            groups: vec!["ops".to_owned(), "shop:dba".to_owned()],
            extra: vec![("acme.com%2Fproject".to_owned(), "p1".to_owned())],
        };
        let answer = stage.send(way, &Ask::get("{here}/orders").by(who)).await?;
        ensure!(answer.code == 200, "the second group may: {}", answer.brief());
        let review = reviews(stage, &name).await?.swap_remove(0);
        ensure!(review["groups"] == json!(["ops", "shop:dba", KNOWN]), "{review}");
        ensure!(review["extra"] == json!({"acme.com/project": ["p1"]}), "{review}");
        Ok(())
    }
    .boxed()
}

/// kube-apiserver is a server of the same rules: it takes front proxies of its own.
fn name_not_allowed(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let shown = stage.world().keys()?.proxy("kubelet", 0)?;
        let ask = Ask::get("{here}/orders").by(Who::Shown(shown)).header("x-remote-user", "alice");
        Want::refusal(401, "Unauthorized").of(&stage.send(way, &ask).await?, stage.namespace())
    }
    .boxed()
}

fn unknown_authority(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let ask = Ask::get("{here}/orders").by(Who::Shown(keys::stranger()?.1));
        let refused = stage.send(way, &ask).await?;
        ensure!(refused.code == 401, "{}", refused.brief());
        let answer = stage.send(way, &ask.header("authorization", &format!("Bearer {}", stage.backup))).await?;
        ensure!(answer.code == 200, "{}", answer.brief());
        Ok(())
    }
    .boxed()
}

fn asked_once(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let name = named("frank", way);
        let ask = Ask::get("{here}/orders").by(Who::user(&name, &[KNOWN, "shop:dba"]));
        let all = (0..100).map(|_| stage.send(way, &ask));
        for answer in futures::future::try_join_all(all).await? {
            ensure!(answer.code == 200, "{}", answer.brief());
        }
        let asked = reviews(stage, &name).await?.len();
        let most = if way == Way::Through { 2 } else { 1 };
        ensure!(asked <= most, "asked {asked} times");
        Ok(())
    }
    .boxed()
}

fn one_by_name(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        let dave = || Who::user("dave", &[KNOWN]);
        let all = stage.send(way, &Ask::get("{here}").by(dave())).await?;
        ensure!(all.code == 403, "{}", all.brief());
        let one = stage.send(way, &Ask::get("{here}?fieldSelector=metadata.name%3Dorders").by(dave())).await?;
        ensure!(
            one.code == 200 && one.json()["items"].as_array().is_some_and(|items| items.len() == 1),
            "{}",
            one.brief()
        );
        let by_name = |review: &Value| review["resourceAttributes"]["name"] == "orders";
        let review = until("a review by name in the audit log", SOON, || async {
            let asked = stage.asked_about("dave")?;
            asked.into_iter().find(by_name).context("nobody asked by name")
        })
        .await?;
        let asked = &review["resourceAttributes"];
        ensure!(asked["verb"] == "list", "{review}");
        let requirement = json!({"key": "metadata.name", "operator": "In", "values": ["orders"]});
        ensure!(asked["fieldSelector"]["requirements"][0] == requirement, "{review}");
        Ok(())
    }
    .boxed()
}

fn a_verb(stage: &Stage, way: Way) -> BoxFuture<'_, Result<()>> {
    async move {
        // Refused either way: through kube-apiserver before we hear of it, so a user who may is needed.
        let ask = Ask::new(Method::POST, "{here}/paused/quiesce");
        let answer = stage.send(way, &ask).await?;
        ensure!(answer.code == 409, "a paused Database is not frozen: {}", answer.brief());
        let reviews = reviews(stage, "alice").await?;
        let asked = |review: &&Value| review["resourceAttributes"]["subresource"] == "quiesce";
        let review = reviews.iter().rev().find(asked).context("nobody asked for the verb")?;
        let attributes = json!({
            "namespace": stage.namespace(), "verb": "create", "group": api::LIVE_GROUP, "version": api::VERSION,
            "resource": "databases", "subresource": "quiesce", "name": "paused",
        });
        ensure!(review["resourceAttributes"] == attributes, "{review}");
        Ok(())
    }
    .boxed()
}
