//! What a Pod that asks for an agent loses by that when it is made: by turns with one that does not ask.

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::PostParams};
use serde_json::json;

use super::numbers::{Promise, milliseconds, percentile};
use crate::{agents::injects, gates::world::World};

const PODS: usize = 200;
/// What half of them lose at most.
const LOSS: Duration = Duration::from_millis(3);
/// No kubelet begins one that has such a gate (Kubernetes: "Pod Scheduling Readiness").
const GATE: &str = "stillpoint.dev/never";

/// How long kube-apiserver took to answer.
#[derive(Debug, Default)]
pub(super) struct Injected {
    with: Vec<Duration>,
    without: Vec<Duration>,
}

pub(super) async fn injected(world: &World<'_>) -> Result<Injected> {
    injects(world).await?;
    let pods = Api::<Pod>::namespaced(world.cluster.client().await?, world.namespace);
    let mut took = Injected::default();
    for number in 0..PODS {
        for asks in [number % 2 == 0, number % 2 == 1] {
            let pod = json!({
                "metadata": {"name": format!("asks-{asks}-{number}"), "labels": {api::inject::LABEL: asks.to_string()}},
                "spec": {
                    "schedulingGates": [{"name": GATE}], "containers": [{"name": "db", "image": "postgres:16"}],
                },
            });
            let pod = serde_json::from_value(pod)?;
            let began = Instant::now();
            let made = pods.create(&PostParams::default(), &pod).await?;
            let took = if asks { &mut took.with } else { &mut took.without };
            took.push(began.elapsed());
            let containers = made.spec.map(|spec| spec.init_containers.unwrap_or_default().len());
            ensure!(containers == Some(usize::from(asks)), "{asks}: {containers:?}");
        }
    }
    world.kubectl(&["delete", "pods", "-l", api::inject::LABEL, "--wait=false"]).await?;
    Ok(took)
}

impl Injected {
    pub(super) fn promises(&self) -> Vec<Promise> {
        let [with, without] = [&self.with, &self.without].map(|all| percentile(&mut all.clone(), 50));
        vec![Promise {
            what: format!("a Pod that gets an agent is made {} p50 later at most", milliseconds(LOSS)),
            was: format!("{} and {} without", milliseconds(with), milliseconds(without)),
            kept: with.saturating_sub(without) <= LOSS,
        }]
    }
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{PODS} Pods that get an agent, by turns with as many that ask for none:")?;
        for (name, all) in [("with an agent", &self.with), ("without", &self.without)] {
            let [half, most] = [50, 99].map(|percent| milliseconds(percentile(&mut all.clone(), percent)));
            writeln!(f, "{name:<32} p50 {half}, p99 {most}")?;
        }
        Ok(())
    }
}
