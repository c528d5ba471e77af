//! Where the time around a cut goes, stage by stage: by the Freeze, by kube-apiserver's audit log and by the driver's own clock, which
//! are all one machine's.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context, Result};
use csi::Call;
use jiff::Timestamp;
use serde_json::Value;

use super::numbers::{milliseconds, percentile};
use crate::gates::world::World;

/// Who marks contents and writes what the driver said of them.
pub(super) const SNAPSHOTTER: &str = "system:serviceaccount:default:csi-snapshotter";

/// A cut that was held for.
#[derive(Clone, Debug)]
pub(super) struct Traced {
    /// What the copies are called.
    pub(super) row: String,
    pub(super) content: String,
    pub(super) frozen_at: Timestamp,
    pub(super) thawed_at: Timestamp,
    pub(super) call: Call,
}

/// How long each stage took, of each row.
#[derive(Debug, Default)]
pub(super) struct Stages(BTreeMap<(String, usize), Vec<Duration>>);

/// In their order. At Durable `frozenAt` is when the barrier begins.
const NAMES: [&str; 7] = [
    "asked to mark → frozenAt",
    "frozenAt → marked",
    "marked → the driver is called",
    "the driver cuts",
    "cut → its handle is written",
    "its writing",
    "handle written → thawed",
];

impl Stages {
    pub(super) fn read(world: &World<'_>, traced: &[Traced]) -> Result<Self> {
        let events = world.cluster.audit_events()?;
        let mut all = Self::default();
        for one in traced {
            let [began, ended] = [one.call.began_ns, one.call.ended_ns].map(|ns| Timestamp::from_nanosecond(ns.into()));
            let (began, ended) = (began?, ended?);
            let of_it =
                events.iter().filter(|event| event["objectRef"]["name"] == one.content.as_str() && is_done(event));
            let of_it: Vec<&Value> = of_it.collect();
            let mark = of_it.iter().find(|event| event["objectRef"]["subresource"].is_null()).context("no mark")?;
            let mut handles = of_it.iter().filter(|event| event["objectRef"]["subresource"] == "status");
            let handle = handles.find(|event| time(&event["stageTimestamp"]).is_ok_and(|at| at > ended));
            let handle = handle.with_context(|| format!("no handle of {}", one.content))?;
            let [asked, marked] = ["requestReceivedTimestamp", "stageTimestamp"].map(|field| time(&mark[field]));
            let [writing, written] = ["requestReceivedTimestamp", "stageTimestamp"].map(|field| time(&handle[field]));
            let instants = [asked?, one.frozen_at, marked?, began, ended, writing?, written?, one.thawed_at];
            for (stage, pair) in instants.windows(2).enumerate() {
                // We may hear of a handle before kube-apiserver has answered who wrote it.
                let took = Duration::try_from(pair[1].duration_since(pair[0])).unwrap_or_default();
                all.0.entry((one.row.clone(), stage)).or_default().push(took);
            }
        }
        Ok(all)
    }
}

fn is_done(event: &Value) -> bool {
    let code = event["responseStatus"]["code"].as_u64();
    event["user"]["username"] == SNAPSHOTTER
        && (event["verb"] == "patch" || event["verb"] == "update")
        && code.is_some_and(|code| code < 300)
}

pub(super) fn time(value: &Value) -> Result<Timestamp> {
    Ok(value.as_str().with_context(|| format!("no time: {value}"))?.parse()?)
}

impl fmt::Display for Stages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<32} {:<32} {:>10} {:>10}", "how, server", "stage", "p50", "p99")?;
        for ((row, stage), all) in &self.0 {
            let [half, most] = [50, 99].map(|percent| milliseconds(percentile(&mut all.clone(), percent)));
            writeln!(f, "{row:<32} {:<32} {half:>10} {most:>10}", NAMES[*stage])?;
        }
        Ok(())
    }
}
