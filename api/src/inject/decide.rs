//! What becomes of a Pod, by one table of questions: the first that has an answer decides.

use serde_json::Value;

use super::{
    Asked, Installation, LABEL,
    database::{self, Database, NoDatabase},
    engine,
    plan::Plan,
    pod::{Container, MIRROR, Pod},
    settings::{self, Reading},
    sidecar::{self, Built},
    status, velero,
};
use crate::install::webhooks::left_alone;

/// What is to become of a Pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Decided {
    pub verdict: Verdict,
    /// Why it has no agent, or what was guessed; empty if all was said.
    pub message: String,
    /// For whoever makes the Pod.
    pub warnings: Vec<String>,
    /// The Pod as it is to be; none if it stays as it is.
    pub pod: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    LeftAlone,
    Skipped,
    Injected,
}

/// Why a Pod gets no agent.
#[derive(Debug, PartialEq)]
enum Refusal {
    /// Nobody asks, or it is not ours to touch.
    Alone(String),
    /// It asks, and this is in the way; each is told.
    Skip(Vec<String>),
}

/// What the questions are asked of.
#[derive(Clone, Copy)]
struct Facts<'a> {
    pod: Pod<'a>,
    namespace: &'a str,
    asked: Asked,
    installation: Installation<'a>,
}

type Question = fn(&Facts<'_>) -> Option<Refusal>;

/// Whether it is to be touched at all.
const BEFORE: [Question; 7] = [unlike_a_pod, out_of_bounds, of_a_kubelet, begun, unasked, there_already, an_operators];

/// Decides on a Pod that is to be made in `namespace`, or on the template of one.
pub fn decide(pod: &Value, namespace: &str, asked: Asked, installation: Installation<'_>) -> Decided {
    let facts = Facts::of(pod, namespace, asked, installation);
    let refused = BEFORE.iter().find_map(|question| question(&facts));
    match refused.map_or_else(|| injected(&facts), Err) {
        Ok(decided) => decided,
        Err(refusal) => refusal.decided(pod),
    }
}

/// From one Pod to the other, as RFC 6902 has it: what is added, and nothing of what was there.
pub fn patch(before: &Value, after: &Value) -> Value {
    serde_json::to_value(json_patch::diff(before, after)).unwrap_or_default()
}

/// The hash that a Pod would have now: of one that was injected, it differs from what [`super::HASH`] says when it would be decided
/// otherwise. None: it would have no agent.
pub fn hash(pod: &Value, namespace: &str, asked: Asked, installation: Installation<'_>) -> Option<String> {
    let facts = Facts::of(pod, namespace, asked, installation);
    if [unlike_a_pod, unasked, out_of_bounds].iter().any(|question| question(&facts).is_some()) {
        return None;
    }
    let Reading { settings, wrong, .. } = settings::read(facts.pod);
    let database = database::find(facts.pod, &settings, facts.asked).ok()?;
    let plan = Plan::of(facts.pod, &database, &settings, &facts.installation).ok()?;
    wrong.is_empty().then(|| plan.hash())
}

fn injected(facts: &Facts<'_>) -> Result<Decided, Refusal> {
    let pod = facts.pod;
    let Reading { settings, wrong, unknown } = settings::read(pod);
    if !wrong.is_empty() {
        return Err(Refusal::Skip(wrong));
    }
    let database = database::find(pod, &settings, facts.asked).map_err(|why| match why {
        NoDatabase::Unlike if !settings::any(pod) => Refusal::Alone("it does not look like a database".to_owned()),
        NoDatabase::Unlike => {
            Refusal::Skip(vec!["no image says which engine it is; annotate stillpoint.dev/engine".to_owned()])
        }
        NoDatabase::Unclear(why) => Refusal::Skip(vec![why]),
    })?;
    let one = |why: String| Refusal::Skip(vec![why]);
    of_another_system(pod).map_or(Ok(()), |why| Err(one(why)))?;
    let plan = Plan::of(pod, &database, &settings, &facts.installation).map_err(one)?;
    let Built { pod: mut built, notes } = sidecar::build(pod, &plan).map_err(one)?;
    let warnings = [unknown, notes, hooks(pod, &plan, settings.k8up_command, &mut built)].concat();
    let told = guess(&database, &plan).into_iter().chain(warnings.iter().cloned());
    let message = told.collect::<Vec<_>>().join("; ");
    status::write(&mut built, status::injected(&plan.hash(), &message));
    Ok(Decided { verdict: Verdict::Injected, message, warnings, pod: Some(built) })
}

/// What other tools are told of the agent; and what they are not.
fn hooks(pod: Pod<'_>, plan: &Plan<'_>, k8up: bool, built: &mut Value) -> Vec<String> {
    let mut untold = Vec::new();
    if k8up {
        let why = "the agent makes no dumps yet; nothing was added for K8up";
        untold.push(format!("stillpoint.dev/k8up-command: {why}"));
    }
    if plan.velero_hooks {
        match velero::hooks(pod, plan) {
            Ok(hooks) => status::write(built, hooks.into_iter().map(|(key, value)| (key, Some(value)))),
            Err(why) => untold.push(format!("stillpoint.dev/velero-hooks: {why}")),
        }
    }
    untold
}

/// What nobody has said, in words.
fn guess(database: &Database<'_>, plan: &Plan<'_>) -> Option<String> {
    let by = plan.guessed_by?;
    let (name, address) = (database.container.name(), &plan.address);
    Some(format!("{} in container {name}, by its {by}; at {address}", plan.engine))
}

impl<'a> Facts<'a> {
    fn of(pod: &'a Value, namespace: &'a str, asked: Asked, installation: Installation<'a>) -> Self {
        let pod = Pod(pod);
        // Whatever entry it came by: who has the label asks for himself.
        let asked = if pod.label(LABEL).is_some() { Asked::Label } else { asked };
        Self { pod, namespace, asked, installation }
    }
}

impl Refusal {
    fn decided(self, pod: &Value) -> Decided {
        match self {
            Self::Alone(message) => Decided { verdict: Verdict::LeftAlone, message, warnings: Vec::new(), pod: None },
            Self::Skip(why) => {
                let message = why.join("; ");
                let mut said = pod.clone();
                status::write(&mut said, status::skipped(&message));
                let warnings = why.iter().map(|why| format!("not injected: {why}")).collect();
                let pod = (said != *pod).then_some(said);
                Decided { verdict: Verdict::Skipped, message, warnings, pod }
            }
        }
    }
}

fn alone(why: &str) -> Refusal {
    Refusal::Alone(why.to_owned())
}

fn unlike_a_pod(facts: &Facts<'_>) -> Option<Refusal> {
    (!facts.pod.is_well_formed()).then(|| alone("it is not built like a Pod"))
}

fn unasked(facts: &Facts<'_>) -> Option<Refusal> {
    match (facts.pod.label(LABEL), facts.asked) {
        (Some("true"), _) | (None, Asked::Namespace) => None,
        (Some("false"), _) => Some(alone("its label says that it is not to be injected")),
        (None, Asked::Label) => Some(alone("it does not ask to be injected")),
        (Some(other), _) => {
            Some(Refusal::Skip(vec![format!("{LABEL} is {:?}; must be true or false", settings::cut(other, 63))]))
        }
    }
}

fn out_of_bounds(facts: &Facts<'_>) -> Option<Refusal> {
    let is_left_alone = left_alone(facts.installation.namespace).contains(&facts.namespace);
    is_left_alone.then(|| alone("nothing in its namespace is injected"))
}

fn of_a_kubelet(facts: &Facts<'_>) -> Option<Refusal> {
    facts.pod.annotation(MIRROR).map(|_| alone("it is the mirror of a static Pod, which runs already"))
}

fn begun(facts: &Facts<'_>) -> Option<Refusal> {
    let phase = facts.pod.text("/status/phase").filter(|phase| !phase.is_empty() && *phase != "Pending");
    phase.map(|_| alone("it has begun, and takes no containers any more"))
}

/// As often as it is asked: kube-apiserver asks again after others have changed a Pod, and what they have changed of the agent is theirs.
fn there_already(facts: &Facts<'_>) -> Option<Refusal> {
    facts.pod.running().any(Container::is_agent).then(|| alone("it has its agent"))
}

fn an_operators(facts: &Facts<'_>) -> Option<Refusal> {
    let is_asked_for = facts.asked == Asked::Label || settings::any(facts.pod);
    let operator = engine::operator(facts.pod).filter(|_| !is_asked_for);
    operator.map(|prefix| {
        alone(&format!(
            "an operator ({prefix}) holds it for its own snapshots; its own label has it injected all the same"
        ))
    })
}

fn of_another_system(pod: Pod<'_>) -> Option<String> {
    let selector = pod.0.pointer("/spec/nodeSelector").and_then(|selector| selector.get("kubernetes.io/os"));
    let system = pod.text("/spec/os/name").or_else(|| selector?.as_str());
    let is_linux = system.is_none_or(|system| system == "linux");
    (!is_linux).then(|| "there is no agent for Windows; only Pods of Linux are injected".to_owned())
}
