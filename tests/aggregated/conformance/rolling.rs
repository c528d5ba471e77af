//! Replicas that come and go under load, through kube-apiserver: on the world of one test at a time.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{FutureExt, future::BoxFuture};
use http::Request;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::stage::Stage;
use crate::{
    doors::{Way, Who, fill},
    wire::{Protocol, whole},
    world::{APISERVICE, World},
};

const PACE: Duration = Duration::from_millis(20);
/// How long it goes on before and after.
const AROUND: Duration = Duration::from_secs(3);
/// How much later than the replica kube-apiserver hears that it goes.
const NEWS: Duration = Duration::from_secs(1);
const RECOVERED: Duration = Duration::from_secs(10);

/// When each request was sent, and what was wrong with its answer, if anything.
type Answers = Vec<(Instant, Option<String>)>;

/// A replica comes, and the one before it goes, as in a rolling update.
pub(super) fn replaced(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        let old = world.first(|replica| replica.name.clone())?;
        let before = available(&world).await?;
        let answers = under_load(
            &world,
            async {
                world.add_replica(&format!("{old}-next")).await?;
                sleep(AROUND).await;
                world.end(&old, NEWS).await
            }
            .boxed(),
        )
        .await?;
        let failed: Vec<&String> = answers.iter().filter_map(|(_, wrong)| wrong.as_ref()).collect();
        println!("replaced: {} of {} requests failed", failed.len(), answers.len());
        ensure!(answers.len() > 300, "only {} requests were made", answers.len());
        ensure!(available(&world).await? == before, "it was not available throughout");
        ensure!(failed.is_empty(), "{} of {} failed: {}", failed.len(), answers.len(), failed[0]);
        Ok(())
    }
    .boxed()
}

/// Killed, and the Service hears of it late: the control of the above, too, for now requests do fail.
pub(super) fn killed(_: &Stage, _: Way) -> BoxFuture<'_, Result<()>> {
    async {
        let world = World::alone().await;
        let old = world.first(|replica| replica.name.clone())?;
        world.add_replica(&format!("{old}-other")).await?;
        let began = Instant::now();
        let answers = under_load(
            &world,
            async {
                world.first(crate::replica::Replica::kill)?;
                sleep(NEWS).await;
                world.kill(&old).await
            }
            .boxed(),
        )
        .await?;
        let failed: Vec<_> = answers.iter().filter(|(_, wrong)| wrong.is_some()).collect();
        let last = failed.last().context("a dead replica was not noticed: this test would notice nothing")?.0;
        println!("killed: {} of {} failed, the last after {:?}", failed.len(), answers.len(), last - began);
        ensure!(last - began < RECOVERED + AROUND, "the last failed after {:?}", last - began);
        Ok(())
    }
    .boxed()
}

/// Fifty requests a second, before, while and after something is done.
async fn under_load(world: &World, doing: BoxFuture<'_, Result<()>>) -> Result<Answers> {
    let (over, watching) = watch::channel(false);
    let loading = load(world, watching).boxed();
    let doing = async {
        sleep(AROUND).await;
        let done = doing.await;
        sleep(AROUND).await;
        over.send_replace(true);
        done
    };
    let (answers, done) = tokio::join!(loading, doing);
    done?;
    answers
}

/// The APIService's condition, with the time when it last changed.
async fn available(world: &World) -> Result<String> {
    let path = "jsonpath={.status.conditions[?(@.type=='Available')]}";
    let condition = world.cluster.kubectl(&["get", "apiservice", APISERVICE, "-o", path]).await?.ok()?;
    ensure!(condition.contains("\"status\":\"True\""), "{condition}");
    Ok(condition)
}

async fn load(world: &World, over: watch::Receiver<bool>) -> Result<Answers> {
    let server = world.server(Way::Through)?;
    let (shown, headers) = world.credentials(Way::Through, &Who::user("root", &["system:masters"]))?;
    let connection = server.connect(shown.as_ref(), Protocol::Http2).await?;
    let uri = format!("https://{}{}", server.address, fill("{here}", "default"));
    let mut tick = interval(PACE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut sent = JoinSet::new();
    while !*over.borrow() {
        tick.tick().await;
        let mut connection = connection.again()?;
        let mut request = Request::get(&uri);
        for (name, value) in &headers {
            request = request.header(name, value);
        }
        let request = request.body(whole(""))?;
        sent.spawn(async move {
            let at = Instant::now();
            let wrong = match connection.send(request).await {
                Ok(answer) if answer.code == 200 => None,
                Ok(answer) => Some(answer.brief()),
                Err(error) => Some(format!("{error:#}")),
            };
            (at, wrong)
        });
    }
    let mut answers = sent.join_all().await;
    answers.sort_by_key(|(at, _)| *at);
    Ok(answers)
}
