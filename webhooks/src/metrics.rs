//! What is counted, by closed labels only.

use std::time::Duration;

use api::{gate::Gate, inject::Asked};
use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::decide::Door;

/// Everything that this process counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reviews: Family<ReviewLabels, Counter>,
    seconds: Family<DoorLabels, Histogram, fn() -> Histogram>,
    last: Family<DoorLabels, Gauge>,
    expires: Gauge,
}

/// What became of a review.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// Nothing to do with us.
    Passed,
    /// By us, or by the apiserver.
    Allowed,
    /// A Pod got its agent.
    Injected,
    /// A Pod asked for one, and could not have it.
    Skipped,
    Denied,
    /// Nobody could be asked: allowed, and crash-consistent.
    FailedOpen,
    /// Nobody could be asked: denied, to be tried again.
    FailedClosed,
    /// Not a review, too much at once, or a fault of ours.
    Unanswered,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReviewLabels {
    gate: &'static str,
    required: bool,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DoorLabels {
    gate: &'static str,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let (reviews, last, expires) = (Family::default(), Family::default(), Gauge::default());
        let seconds = Family::new_with_constructor(buckets as fn() -> Histogram);
        registry.register(
            "stillpoint_webhook_reviews",
            "Admission reviews, and what became of them",
            Family::clone(&reviews),
        );
        registry.register("stillpoint_webhook_review_seconds", "How long their answers took", Family::clone(&seconds));
        registry.register(
            "stillpoint_webhook_last_review_timestamp_seconds",
            "When the last one came: older than the last snapshot, and nobody can reach us",
            Family::clone(&last),
        );
        registry.register(
            "stillpoint_webhook_certificate_expiry_timestamp_seconds",
            "Until when the serving certificate is valid",
            expires.clone(),
        );
        Self { registry, reviews, seconds, last, expires }
    }

    /// One review, that came at `now` and was answered after `took`.
    pub fn review(&self, door: Door, outcome: Outcome, took: Duration, now: Timestamp) {
        let (gate, required) = name(door);
        self.reviews.get_or_create(&ReviewLabels { gate, required, outcome }).inc();
        self.seconds.get_or_create(&DoorLabels { gate }).observe(took.as_secs_f64());
        self.last.get_or_create(&DoorLabels { gate }).set(now.as_second());
    }

    /// Prometheus' text.
    pub fn text(&self, expires: Option<Timestamp>) -> Result<String, std::fmt::Error> {
        self.expires.set(expires.map_or(0, Timestamp::as_second));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// What a door is called, and whether it is the one of those who want nothing less.
pub(crate) fn name(door: Door) -> (&'static str, bool) {
    match door {
        Door::Gate { gate: Gate::Preflight, required } => ("preflight", required),
        Door::Gate { gate: Gate::Cut, required } => ("cut", required),
        Door::Gate { gate: Gate::Content, required } => ("content", required),
        Door::OwnKinds => ("own kinds", false),
        Door::Pods(Asked::Label) => ("pods", false),
        Door::Pods(Asked::Namespace) => ("pods of namespaces", false),
    }
}

/// Decisions take microseconds; freezes what their databases need.
fn buckets() -> Histogram {
    Histogram::new([0.000_1, 0.001, 0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 28.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
