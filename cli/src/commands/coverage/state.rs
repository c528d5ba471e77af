//! What a snapshot of a claim would be worth now. Pure.

use std::collections::{BTreeMap, BTreeSet};

use api::{Database, conditions::types, gate::UNRELATED_CLAIMS, inject::System};
use kube::ResourceExt;
use serde::Serialize;
use topology::{Found, Holds};

use crate::seen::{Running, Seen};

/// A claim that looks like a database's, or is one's.
#[expect(clippy::struct_field_names, reason = "as they are called where this is printed")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Claim {
    pub(super) namespace: String,
    pub(super) claim: String,
    pub(super) pods: BTreeSet<String>,
    /// The systems that keep data on it.
    pub(super) systems: BTreeSet<String>,
    pub(super) state: State,
    /// The Database, or why there is nothing that holds it.
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
}

/// From what is well to what is worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum State {
    /// A Database that is ready is held while it is cut.
    Protected,
    /// An operator holds it for its own snapshots, and nobody for anybody else's.
    Operator,
    /// There is no driver for what it looks like.
    NoDriver,
    /// There is a Database that could hold it, and it would not hold now.
    NotReady,
    /// Nobody would hold it.
    Unprotected,
}

/// What holds for all claims.
#[derive(Clone, Copy, Debug)]
pub(super) struct Installed<'a> {
    /// Whether snapshots are waited for at all; nobody may know.
    pub(super) gates: bool,
    /// Nothing in these is ever held.
    pub(super) left_alone: &'a [&'a str],
}

/// What keeps data on one claim.
#[derive(Default)]
struct Kept<'s> {
    pods: BTreeSet<&'s str>,
    systems: BTreeSet<System>,
    operator: Option<&'static str>,
    skipped: Option<&'s str>,
}

/// By namespace and name.
pub(super) fn claims(seen: &Seen, installed: Installed<'_>) -> Vec<Claim> {
    let mut databases: BTreeMap<String, Vec<&Database>> = BTreeMap::new();
    for database in &seen.databases {
        databases.entry(database.namespace().unwrap_or_default()).or_default().push(database);
    }
    let mut kept: BTreeMap<(&str, String), Kept<'_>> = BTreeMap::new();
    for pod in &seen.pods {
        let of = databases.get(&pod.namespace).map(Vec::as_slice).unwrap_or_default();
        for (claim, system) in data(seen, pod, of) {
            let kept = kept.entry((&pod.namespace, claim)).or_default();
            kept.pods.insert(&pod.name);
            kept.systems.insert(system);
            kept.operator = kept.operator.or(pod.operator);
            kept.skipped =
                kept.skipped.or(pod.asked.as_ref().and_then(|asked| asked.as_ref().err().map(String::as_str)));
        }
    }
    let judged = kept.into_iter().filter_map(|((namespace, claim), kept)| {
        let of = databases.get(namespace).map(Vec::as_slice).unwrap_or_default();
        let said = judged(seen, installed, namespace, &claim, &kept, of)?;
        let systems = kept.systems.iter().map(ToString::to_string).collect();
        let pods = kept.pods.iter().map(|pod| (*pod).to_owned()).collect();
        let (state, message, fix) = (said.state, said.message, said.fix);
        Some(Claim { namespace: namespace.to_owned(), claim, pods, systems, state, message, fix })
    });
    judged.collect()
}

/// The claims of a Pod that a system keeps its data on: by what it looks like, or because a Database is in it.
fn data(seen: &Seen, pod: &Running, databases: &[&Database]) -> Vec<(String, System)> {
    let written = seen.index.claims(&pod.namespace, &pod.name);
    let member = databases.iter().find(|database| seen.index.is_member(&pod.namespace, database, &pod.name));
    if let Some(database) = member {
        return written.into_iter().map(|claim| (claim, System::Served(database.spec.engine))).collect();
    }
    let looks = pod.keeps.iter().flat_map(|(system, claims)| claims.iter().map(|claim| (claim.clone(), *system)));
    looks.filter(|(claim, _)| written.contains(claim)).collect()
}

struct Said {
    state: State,
    message: String,
    fix: Option<String>,
}

fn say(state: State, message: impl Into<String>, fix: Option<String>) -> Said {
    Said { state, message: message.into(), fix }
}

/// `None`: somebody said that it holds nothing of a database.
fn judged(
    seen: &Seen,
    installed: Installed<'_>,
    namespace: &str,
    claim: &str,
    kept: &Kept<'_>,
    databases: &[&Database],
) -> Option<Said> {
    if installed.left_alone.contains(&namespace) {
        let message = format!("nothing in namespace {namespace} is ever held");
        return Some(say(State::Unprotected, message, Some("move it to a namespace of its own".to_owned())));
    }
    let Holds::Databases(found) = seen.index.holds(namespace, claim, databases.iter().copied()) else {
        return (!is_said_unrelated(claim, databases)).then(|| unheld(namespace, claim, kept));
    };
    if seen.volumes && seen.index.driver_of(namespace, claim).is_none() {
        let message = "its volume is bound to no CSI driver: there are no snapshots of it";
        return Some(say(
            State::Unprotected,
            message,
            Some("kubectl still quiesce, around whatever copies it".to_owned()),
        ));
    }
    let of = found.iter().filter_map(|found| {
        let database = databases.iter().find(|database| database.name_any() == found.database)?;
        Some(of_database(namespace, found, database))
    });
    let worst = of.max_by_key(|said| said.state)?;
    if worst.state == State::Protected && !installed.gates {
        let message = format!("{}; but snapshots are not waited for: the webhooks are not installed", worst.message);
        return Some(say(State::NotReady, message, Some("kubectl still doctor".to_owned())));
    }
    Some(worst)
}

/// Whether one of its Databases would be held while it is cut.
fn of_database(namespace: &str, found: &Found, database: &Database) -> Said {
    let name = &found.database;
    let not_ready = |message: String, fix: String| say(State::NotReady, message, Some(fix));
    if database.spec.paused {
        return not_ready(format!("Database {name} is paused"), "set spec.paused to false".to_owned());
    }
    let status = database.status.clone().unwrap_or_default();
    let wanted = database.spec.freeze.target.role;
    let member = status.members.iter().find(|member| member.name == found.pod);
    if let Some(member) = member.filter(|member| status.members.len() > 1 && member.role != wanted) {
        let message =
            format!("Pod {} is the {} of Database {name}, of which the {wanted} is held", member.name, member.role);
        return not_ready(message, "take snapshots of the other's claim; or see spec.freeze.target.role".to_owned());
    }
    let ready = status.conditions.iter().find(|condition| condition.type_ == types::READY);
    match ready {
        Some(ready) if ready.status == "True" => say(State::Protected, format!("Database {name}"), None),
        Some(ready) => not_ready(
            format!("Database {name} is not ready: {}: {}", ready.reason, ready.message),
            format!("kubectl still preflight {name} -n {namespace}"),
        ),
        None => not_ready(format!("Database {name} was not looked at yet"), "kubectl still doctor".to_owned()),
    }
}

/// What no Database's endpoint or labels lead to.
fn unheld(namespace: &str, claim: &str, kept: &Kept<'_>) -> Said {
    if let Some(prefix) = kept.operator {
        let message = format!(
            "an operator's ({}): held for its own snapshots, and for nobody else's",
            prefix.trim_end_matches('/')
        );
        let fix = "take its snapshots by that operator; or register a Database for it".to_owned();
        return say(State::Operator, message, Some(fix));
    }
    let served = kept.systems.iter().find_map(|system| match system {
        System::Served(engine) => Some(*engine),
        System::Other(_) => None,
    });
    let Some(engine) = served else {
        let systems: Vec<String> = kept.systems.iter().map(ToString::to_string).collect();
        return say(State::NoDriver, format!("nothing here holds {}", systems.join(", ")), None);
    };
    if let Some(why) = kept.skipped {
        let message = format!("no Database leads to it, and its Pod got no agent: {why}");
        return say(
            State::Unprotected,
            message,
            Some("mend the annotation, and make the Pod again (docs/injection.md)".to_owned()),
        );
    }
    let register = format!(
        "kubectl still database create {claim} -n {namespace} --engine {} --host SERVICE",
        engine.to_string().to_lowercase()
    );
    let fix = format!("label its Pods stillpoint.dev/inject=true (docs/injection.md), or: {register}");
    say(State::Unprotected, "no Database leads to it", Some(fix))
}

fn is_said_unrelated(claim: &str, databases: &[&Database]) -> bool {
    let said = databases.iter().filter_map(|database| database.annotations().get(UNRELATED_CLAIMS));
    said.into_iter().any(|said| said.split(',').any(|one| one.trim() == claim))
}
