//! The series in numbers.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use fixtures::Engine;

use super::{Copy, How};
use crate::{gates::world::World, installed::metrics};

/// What is promised, each with what came of it.
#[derive(Clone, Debug)]
pub(super) struct Promises(pub(super) Vec<Promise>);

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Promise {
    pub(super) what: String,
    pub(super) was: String,
    pub(super) kept: bool,
}

impl Promises {
    pub(super) fn are_kept(&self) -> Result<()> {
        let missed: Vec<&str> = self.0.iter().filter(|one| !one.kept).map(|one| one.what.as_str()).collect();
        ensure!(missed.is_empty(), "{} of {} are missed: {}", missed.len(), self.0.len(), missed.join("; "));
        Ok(())
    }
}

impl fmt::Display for Promises {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Promise { what, was, kept } in &self.0 {
            writeln!(f, "{:<6} {what}: {was}", if *kept { "kept" } else { "MISSED" })?;
        }
        Ok(())
    }
}

/// Nobody is to notice a single database that is held at Durable.
const BEYOND_NONE: Duration = Duration::from_millis(5);
/// Groups are held at WriteBlocked, while the driver cuts.
const BEYOND_GROUP_CUT: Duration = Duration::from_millis(300);

/// Copies by how they were made.
#[derive(Debug, Default)]
pub(super) struct Table(BTreeMap<String, Vec<Copy>>);

impl Table {
    pub(super) fn add(&mut self, how: String, copy: Copy) {
        self.0.entry(how).or_default().push(copy);
    }

    /// What is in the copies, and how long writers wait for them.
    pub(super) fn promises(&self) -> Vec<Promise> {
        [self.wholeness(), self.stalls()].concat()
    }

    fn of(&self, row: &str) -> &[Copy] {
        self.0.get(row).map(Vec::as_slice).unwrap_or_default()
    }

    /// What Stillpoint was there for has everything, and is whole; what nobody was there for is not, or a driver that loses nothing would
    /// do as well.
    pub(super) fn wholeness(&self) -> Vec<Promise> {
        let engines = [Engine::PostgreSQL, Engine::MariaDB].into_iter();
        let rows = engines.flat_map(|engine| [row(How::Stillpoint, engine), group_row(engine)]);
        let mut promises: Vec<Promise> = rows.map(|row| has_everything(&row, self.of(&row))).collect();
        // Only its commits are acknowledged before they are on disk.
        let control = self.of(&row(How::Nothing, Engine::PostgreSQL));
        let missing: u64 = control.iter().map(|copy| copy.missing).sum();
        promises.push(Promise {
            what: format!("control: {} loses commits", row(How::Nothing, Engine::PostgreSQL)),
            was: format!("{missing} are missing, in {} copies", control.len()),
            kept: missing > 0,
        });
        promises
    }

    fn stalls(&self) -> Vec<Promise> {
        let mut promises = Vec::new();
        for engine in [Engine::PostgreSQL, Engine::MariaDB] {
            let (single, group) = (row(How::Stillpoint, engine), group_row(engine));
            let [ours, nothing, hooks] =
                [How::Stillpoint, How::Nothing, How::Hooks].map(|how| stall(self.of(&row(how, engine)), 50));
            promises.push(Promise {
                what: format!("{single}: stall p50 ≤ {} beyond none", milliseconds(BEYOND_NONE)),
                was: format!("{} and {}", shown(ours), shown(nothing)),
                kept: ours.zip(nothing).is_some_and(|(ours, nothing)| ours <= nothing + BEYOND_NONE),
            });
            promises.push(Promise {
                what: format!("{single}: stall p50 ≤ a tenth of exec hooks'"),
                was: format!("{} and {}", shown(ours), shown(hooks)),
                kept: ours.zip(hooks).is_some_and(|(ours, hooks)| ours * 10 <= hooks),
            });
            let beyond = longest(self.of(&group), 99, |copy| copy.stall.saturating_sub(copy.cut));
            promises.push(Promise {
                what: format!("{group}: stall p99 ≤ cut + {}", milliseconds(BEYOND_GROUP_CUT)),
                was: format!("cut + {}", shown(beyond)),
                kept: beyond.is_some_and(|beyond| beyond <= BEYOND_GROUP_CUT),
            });
        }
        promises
    }
}

/// What a row is called.
pub(super) fn row(how: How, engine: Engine) -> String {
    format!("{how:?}, {engine:?}")
}

pub(super) fn group_row(engine: Engine) -> String {
    format!("{:?}, group, {engine:?}", How::Stillpoint)
}

fn has_everything(how: &str, copies: &[Copy]) -> Promise {
    let bad: Vec<_> = copies.iter().filter(|copy| copy.missing > 0 || !copy.sound).collect();
    let was = if bad.is_empty() { format!("{} copies", copies.len()) } else { format!("{bad:?}") };
    Promise {
        what: format!("{how}: nothing is missing, nothing torn"),
        was,
        kept: bad.is_empty() && !copies.is_empty(),
    }
}

fn stall(copies: &[Copy], percent: usize) -> Option<Duration> {
    longest(copies, percent, |copy| copy.stall)
}

/// Of no copies: none.
fn longest(copies: &[Copy], percent: usize, of: impl Fn(&Copy) -> Duration) -> Option<Duration> {
    let mut all: Vec<Duration> = copies.iter().map(of).collect();
    (!all.is_empty()).then(|| percentile(&mut all, percent))
}

fn shown(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "nothing".to_owned(), milliseconds)
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

/// Each with what all but one in a hundred take at most, where that is promised: a gate waits for its database, which is not ours.
const OURS: [(&str, Option<u32>); 3] = [
    ("stillpoint_gate_seconds", None),
    ("stillpoint_answer_after_frozen_seconds", Some(5)),
    ("stillpoint_thaw_after_cut_seconds", Some(15)),
];

impl Share {
    pub(super) async fn read(world: &World<'_>) -> Result<Self> {
        let metrics = metrics(world.cluster, "apiserver", 6443).await?;
        Ok(Self(OURS.into_iter().map(|(name, _)| Ok((name, histogram(&metrics, name)?))).collect::<Result<_>>()?))
    }

    pub(super) fn promises(&self) -> Vec<Promise> {
        let bound = |name| OURS.into_iter().find(|(known, _)| *known == name)?.1;
        let bounded = self.0.iter().filter_map(|(name, histogram)| Some((name, histogram, f64::from(bound(*name)?))));
        let promise = |(name, histogram, most): (&&str, &Histogram, f64)| {
            let was = within(histogram, 99);
            Promise {
                what: format!("{name} p99 ≤ {most} ms"),
                was: was.map_or_else(|| "it was never counted".to_owned(), |was| format!("≤ {was} ms")),
                kept: was.is_some_and(|was| was <= most),
            }
        };
        bounded.map(promise).collect()
    }
}

/// The bound, in milliseconds, that so many of a hundred are within; of nothing: none.
fn within(histogram: &Histogram, percent: u64) -> Option<f64> {
    let mut bounds: Vec<(f64, u64)> =
        histogram.iter().map(|(bound, count)| (bound.parse().unwrap_or(f64::INFINITY), *count)).collect();
    bounds.sort_by(|one, other| one.0.total_cmp(&other.0));
    let total = bounds.last().map_or(0, |(_, count)| *count);
    let enough = bounds.iter().find(|(_, count)| total > 0 && *count * 100 >= total * percent);
    enough.map(|(bound, _)| bound * 1000.0)
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
            let total = histogram.values().max().copied().unwrap_or_default();
            let within = |percent| within(histogram, percent).unwrap_or(f64::NAN);
            writeln!(f, "{name:<42} {total:>5} times, p50 ≤ {} ms, p99 ≤ {} ms", within(50), within(99))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(stall: u64, missing: u64) -> Copy {
        Copy { stall: Duration::from_millis(stall), cut: Duration::from_millis(50), missing, sound: true }
    }

    #[test]
    fn each_promise_that_is_missed_is_named_and_what_was_never_tried_is_missed() {
        let mut table = Table::default();
        for engine in [Engine::PostgreSQL, Engine::MariaDB] {
            table.add(row(How::Stillpoint, engine), copy(40, 0));
            table.add(group_row(engine), copy(340, 0));
            table.add(row(How::Hooks, engine), copy(5000, 0));
            table.add(row(How::Nothing, engine), copy(38, 7));
        }
        let share = |bound: &str| {
            let histogram =
                |name: &&'static str| (*name, Histogram::from([(bound.to_owned(), 9), ("+Inf".to_owned(), 9)]));
            Share(OURS.iter().map(|(name, _)| histogram(name)).collect())
        };
        let missed = |table: &Table, share: &Share| {
            let promises = Promises([table.promises(), share.promises()].concat());
            assert_eq!(promises.are_kept().is_ok(), promises.0.iter().all(|one| one.kept), "{promises}");
            promises.0.into_iter().filter(|one| !one.kept).map(|one| one.what).collect::<Vec<_>>()
        };
        assert_eq!(missed(&table, &share("0.005")), [""; 0]);
        assert_eq!(missed(&table, &share("0.01")), ["stillpoint_answer_after_frozen_seconds p99 ≤ 5 ms"]);
        let never = Share(OURS.iter().map(|(name, _)| (*name, Histogram::new())).collect());
        assert_eq!(missed(&table, &never).len(), 2);
        assert_eq!(missed(&Table::default(), &share("0.005")).len(), 11);

        for (row, copies, named) in [
            (row(How::Stillpoint, Engine::MariaDB), vec![copy(40, 1), copy(40, 0)], vec!["nothing is missing"]),
            (row(How::Stillpoint, Engine::MariaDB), vec![copy(44, 0)], vec!["beyond none"]),
            (row(How::Stillpoint, Engine::MariaDB), vec![copy(600, 0)], vec!["beyond none", "a tenth"]),
            (group_row(Engine::MariaDB), vec![copy(40, 0), copy(351, 0)], vec!["≤ cut + 300"]),
            (row(How::Nothing, Engine::PostgreSQL), vec![copy(38, 0)], vec!["control"]),
        ] {
            let right = table.0.insert(row.clone(), copies).unwrap();
            let missed = missed(&table, &share("0.005"));
            let all_named =
                missed.len() == named.len() && missed.iter().zip(&named).all(|(one, name)| one.contains(name));
            assert!(all_named, "{row}: {missed:?}");
            table.0.insert(row, right);
        }
    }

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
