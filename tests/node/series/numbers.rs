//! The series in numbers.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use super::Copy;
use crate::{gates::world::World, installed::NAMESPACE};

/// Copies by how they were made.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<String, Vec<Copy>>);

impl Table {
    pub(super) fn add(&mut self, how: String, copy: Copy) {
        self.0.entry(how).or_default().push(copy);
    }

    /// What Stillpoint was there for has everything, and is whole.
    pub(super) fn is_as_promised(&self) -> Result<()> {
        for (how, copies) in self.0.iter().filter(|(how, _)| how.starts_with("Stillpoint")) {
            let bad: Vec<_> = copies.iter().filter(|copy| copy.missing > 0 || !copy.sound).collect();
            ensure!(bad.is_empty(), "{how}: {bad:?}");
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<32} {:>6} {:>7} {:>8} {:>10} {:>10} {:>10}",
            "how, server", "copies", "unsound", "missing", "stall p50", "p99", "max"
        )?;
        for (how, copies) in &self.0 {
            let mut stalls: Vec<Duration> = copies.iter().map(|copy| copy.stall).collect();
            let unsound = copies.iter().filter(|copy| !copy.sound).count();
            let missing: u64 = copies.iter().map(|copy| copy.missing).sum();
            let [half, most, max] = [50, 99, 100].map(|percent| percentile(&mut stalls, percent));
            writeln!(
                f,
                "{how:<32} {:>6} {unsound:>7} {missing:>8} {:>10} {:>10} {:>10}",
                copies.len(),
                milliseconds(half),
                milliseconds(most),
                milliseconds(max)
            )?;
        }
        Ok(())
    }
}

/// The smallest that so many of a hundred are not above.
pub(super) fn percentile(all: &mut [Duration], percent: usize) -> Duration {
    all.sort();
    let rank = (all.len() * percent).div_ceil(100).max(1);
    all.get(rank - 1).copied().unwrap_or_default()
}

pub(super) fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1000.0)
}

/// What of the time around a cut is ours: histograms of all replicas together.
#[derive(Debug)]
pub(super) struct Share(Vec<(&'static str, Histogram)>);

/// How many were at most so long; the last bound is none.
type Histogram = BTreeMap<String, u64>;

const OURS: [&str; 3] =
    ["stillpoint_gate_seconds", "stillpoint_answer_after_frozen_seconds", "stillpoint_thaw_after_cut_seconds"];

impl Share {
    pub(super) async fn read(world: &World<'_>) -> Result<Self> {
        let kubectl = |arguments: &'static [&'static str]| async move { world.cluster.kubectl(arguments).await?.ok() };
        kubectl(&["create", "clusterrole", "scrape", "--verb=get", "--non-resource-url=/metrics"]).await?;
        kubectl(&[
            "create",
            "clusterrolebinding",
            "scrape",
            "--clusterrole=scrape",
            "--serviceaccount=default:default",
        ])
        .await?;
        let token = kubectl(&["create", "token", "default"]).await?;
        let selector = "app.kubernetes.io/component=apiserver";
        let addresses = ["get", "pods", "-n", NAMESPACE, "-l", selector, "-o", "jsonpath={.items[*].status.podIP}"];
        let addresses = world.cluster.kubectl(&addresses).await?.ok()?;
        let mut metrics = String::new();
        for address in addresses.split_whitespace() {
            let curl = Command::new("curl")
                .args([
                    "--silent",
                    "--fail",
                    "--insecure",
                    "--header",
                    &format!("authorization: Bearer {}", token.trim()),
                ])
                .arg(format!("https://{address}:6443/metrics"))
                .output()
                .await?;
            ensure!(curl.status.success(), "the metrics of {address}: {curl:?}");
            metrics += &String::from_utf8(curl.stdout)?;
        }
        Ok(Self(OURS.into_iter().map(|name| Ok((name, histogram(&metrics, name)?))).collect::<Result<_>>()?))
    }
}

fn histogram(metrics: &str, name: &str) -> Result<Histogram> {
    let mut all = Histogram::new();
    for line in metrics.lines().filter(|line| line.starts_with(&format!("{name}_bucket"))) {
        // Cuts that nothing was held for are none of it.
        if line.contains("outcome=") && !line.contains("outcome=\"held\"") {
            continue;
        }
        let bound = line.split("le=\"").nth(1).and_then(|rest| rest.split('"').next()).context(line.to_owned())?;
        let count: f64 = line.rsplit(' ').next().unwrap_or_default().parse()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        let count = count as u64;
        *all.entry(bound.to_owned()).or_default() += count;
    }
    Ok(all)
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "of this ours, as bounds of histograms:")?;
        for (name, histogram) in &self.0 {
            let mut bounds: Vec<(f64, u64)> =
                histogram.iter().map(|(bound, count)| (bound.parse().unwrap_or(f64::INFINITY), *count)).collect();
            bounds.sort_by(|one, other| one.0.total_cmp(&other.0));
            let total = bounds.last().map_or(0, |(_, count)| *count);
            let within = |percent: u64| {
                let enough = bounds.iter().find(|(_, count)| *count * 100 >= total * percent);
                enough.map_or(f64::NAN, |(bound, _)| bound * 1000.0)
            };
            writeln!(f, "{name:<42} {total:>5} times, p50 ≤ {} ms, p99 ≤ {} ms", within(50), within(99))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_of_replicas_are_added_and_percentiles_are_of_what_there_is() {
        let metrics = "x_bucket{le=\"0.005\",outcome=\"held\"} 3\nx_bucket{le=\"0.005\",outcome=\"nothing\"} 9\n\
                       x_bucket{le=\"0.005\",outcome=\"held\"} 4\n";
        assert_eq!(histogram(metrics, "x").unwrap(), Histogram::from([("0.005".to_owned(), 7)]));
        let mut all: Vec<Duration> = (1..=10).rev().map(Duration::from_millis).collect();
        assert_eq!([50, 99, 100].map(|percent| percentile(&mut all, percent).as_millis()), [5, 10, 10]);
        assert_eq!(percentile(&mut [], 50), Duration::ZERO);
    }
}
