//! Metrics, by closed labels only: upstream's request metrics under upstream's names, and the freezes' own.

use api::{FreezeStatus, Phase};
use freeze::remote::Outcome;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

/// Everything that this process counts.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<VerbLabels, Histogram, fn() -> Histogram>,
    freezes: Family<FreezeLabels, Counter>,
    frozen_seconds: Family<LevelLabels, Histogram, fn() -> Histogram>,
    frozen: Gauge,
    last_success: Gauge,
    gates: Family<GateLabels, Histogram, fn() -> Histogram>,
    answered_after_frozen: Histogram,
    thawed_after_cut: Histogram,
    judged: Family<ConsistencyLabels, Counter>,
    agents: Gauge,
    ordered: Family<OrderLabels, Histogram, fn() -> Histogram>,
}

/// What came of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gated {
    Held,
    /// Nothing of ours is on these volumes.
    Nothing,
    LeftAlone,
    Missed,
    Unreal,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GateLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConsistencyLabels {
    consistency: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OrderLabels {
    order: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    subresource: &'static str,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VerbLabels {
    verb: &'static str,
    resource: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FreezeLabels {
    engine: String,
    level: String,
    phase: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LevelLabels {
    engine: String,
    level: String,
}

/// What a request was for, in the closed words of the resource table.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub verb: &'static str,
    pub group: &'static str,
    pub resource: &'static str,
    pub subresource: &'static str,
}

impl Metrics {
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        let request_seconds = Family::new_with_constructor(request_buckets as fn() -> Histogram);
        let freezes = Family::default();
        let frozen_seconds = Family::new_with_constructor(freeze_buckets as fn() -> Histogram);
        let (frozen, last_success) = (Gauge::default(), Gauge::default());
        registry.register("apiserver_request", "Requests by verb, resource and code", Family::clone(&requests));
        registry.register(
            "apiserver_request_duration_seconds",
            "How long requests took",
            Family::clone(&request_seconds),
        );
        registry.register("stillpoint_freezes", "Finished freezes", Family::clone(&freezes));
        registry.register("stillpoint_freeze_seconds", "How long freezes held", Family::clone(&frozen_seconds));
        registry.register("stillpoint_frozen", "Freezes that hold now", frozen.clone());
        registry.register(
            "stillpoint_last_success_timestamp_seconds",
            "When a proved freeze ended last",
            last_success.clone(),
        );
        let gates = Family::new_with_constructor(freeze_buckets as fn() -> Histogram);
        let (answered_after_frozen, thawed_after_cut) = (share_buckets(), share_buckets());
        let judged = Family::default();
        registry.register("stillpoint_gate_seconds", "How long cuts waited for us", Family::clone(&gates));
        registry.register(
            "stillpoint_answer_after_frozen_seconds",
            "From when all databases were held for a cut until its gate was answered",
            answered_after_frozen.clone(),
        );
        registry.register(
            "stillpoint_thaw_after_cut_seconds",
            "From when a cut was seen until its databases went on",
            thawed_after_cut.clone(),
        );
        registry.register("stillpoint_snapshots", "Snapshots by what they are worth", Family::clone(&judged));
        let (agents, ordered) = (Gauge::default(), Family::new_with_constructor(share_buckets as fn() -> Histogram));
        registry.register("stillpoint_agents", "Agents that are connected to this replica", agents.clone());
        registry.register(
            "stillpoint_agent_order_seconds",
            "From when an order was sent to an agent until its answer came, its time was over, or the agent was gone",
            Family::clone(&ordered),
        );
        Self {
            registry,
            requests,
            request_seconds,
            freezes,
            frozen_seconds,
            frozen,
            last_success,
            gates,
            answered_after_frozen,
            thawed_after_cut,
            judged,
            agents,
            ordered,
        }
    }

    /// A gate was answered, after so many seconds.
    pub fn gated(&self, gated: Gated, seconds: f64) {
        let outcome = match gated {
            Gated::Held => "held",
            Gated::Nothing => "nothing",
            Gated::LeftAlone => "left-alone",
            Gated::Missed => "missed",
            Gated::Unreal => "unreal",
        };
        self.gates.get_or_create(&GateLabels { outcome }).observe(seconds);
    }

    pub fn answered_after_frozen(&self, seconds: f64) {
        self.answered_after_frozen.observe(seconds);
    }

    pub fn thawed_after_cut(&self, seconds: f64) {
        self.thawed_after_cut.observe(seconds);
    }

    /// It is written on a snapshot.
    pub fn judged(&self, consistency: &'static str) {
        self.judged.get_or_create(&ConsistencyLabels { consistency }).inc();
    }

    /// An agent has come.
    pub fn agent_came(&self) {
        self.agents.inc();
    }

    /// It is gone.
    pub fn agent_went(&self) {
        self.agents.dec();
    }

    /// What came of an order to an agent, after so many seconds.
    pub fn ordered(&self, order: &'static str, outcome: Outcome, seconds: f64) {
        let outcome = match outcome {
            Outcome::Done => "done",
            Outcome::Failed => "failed",
            Outcome::Late => "late",
            Outcome::Gone => "gone",
        };
        self.ordered.get_or_create(&OrderLabels { order, outcome }).observe(seconds);
    }

    pub fn request(&self, request: Request, code: u16, seconds: f64) {
        let Request { verb, group, resource, subresource } = request;
        self.requests.get_or_create(&RequestLabels { verb, group, resource, subresource, code }).inc();
        self.request_seconds.get_or_create(&VerbLabels { verb, resource }).observe(seconds);
    }

    /// A freeze entered a phase that is told: it holds, or it is finished.
    pub fn phase(&self, status: &FreezeStatus) {
        if status.phase == Phase::Frozen {
            return;
        }
        let level = status.level.unwrap_or_default().to_string();
        for target in &status.targets {
            let engine = target.engine.to_string();
            let labels = FreezeLabels { engine: engine.clone(), level: level.clone(), phase: status.phase.to_string() };
            self.freezes.get_or_create(&labels).inc();
            if let Some(milliseconds) = status.frozen_milliseconds.and_then(|ms| u32::try_from(ms).ok()) {
                let labels = LevelLabels { engine, level: level.clone() };
                self.frozen_seconds.get_or_create(&labels).observe(f64::from(milliseconds) / 1000.0);
            }
        }
        let proved = status.targets.iter().all(|target| target.proof.as_ref().is_some_and(|proof| proof.held));
        if status.phase == Phase::Thawed
            && proved
            && let Some(thawed) = &status.thawed_at
        {
            self.last_success.set(thawed.0.as_second());
        }
    }

    /// A freeze that another process finished, perhaps long ago: what was proved last is no news of this process alone.
    pub fn remembered(&self, status: &FreezeStatus) {
        let thawed = status.thawed_at.as_ref().map(|at| at.0.as_second());
        if let Some(thawed) = thawed.filter(|_| status.phase == Phase::Thawed && status.proved == Some(true))
            && thawed > self.last_success.get()
        {
            self.last_success.set(thawed);
        }
    }

    /// Prometheus' text. `frozen`: how many hold now.
    pub fn text(&self, frozen: usize) -> Result<String, std::fmt::Error> {
        self.frozen.set(i64::try_from(frozen).unwrap_or(i64::MAX));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn request_buckets() -> Histogram {
    Histogram::new([0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0])
}

fn freeze_buckets() -> Histogram {
    Histogram::new([0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 600.0])
}

/// Our share of the time that a database stands still.
fn share_buckets() -> Histogram {
    Histogram::new([0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.5, 2.5])
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
