//! What a VolumeSnapshot of a claim would be worth now. Pure.

use std::collections::{BTreeMap, BTreeSet};

use api::{
    Database,
    conditions::{self, types},
    inject::System,
};
use kube::ResourceExt;
use serde::Serialize;
use topology::{Found, Holds, Standing, unrelated};

use super::waits::Waits;
use crate::seen::{Running, Seen};

/// A claim that looks like a database's, or is one's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(clippy::struct_field_names, reason = "as they are called where this is printed")]
pub(super) struct Claim {
    pub(super) namespace: String,
    pub(super) claim: String,
    pub(super) pods: BTreeSet<String>,
    /// The systems that keep data on it.
    pub(super) systems: BTreeSet<String>,
    #[serde(flatten)]
    pub(super) said: Said,
}

/// From what is well to what is worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum State {
    /// A Database that is ready is held while it is cut.
    Protected,
    /// One of several members, of which another is held, as it is to be.
    Standby,
    /// Its Database is held, and has other volumes, too.
    Partial,
    /// An operator holds it for its own snapshots, and nobody for anybody else's.
    Operator,
    /// There is no driver for what it looks like.
    NoDriver,
    /// There is a Database that could hold it, and it would not be worth `application` now.
    NotReady,
    /// Nobody would hold it.
    Unprotected,
}

/// What is said of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Said {
    pub(super) state: State,
    /// The Database, or why there is nothing that holds it.
    pub(super) message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) fix: Option<String>,
}

/// What keeps data on one claim.
#[derive(Default)]
struct Kept<'s> {
    pods: BTreeSet<&'s str>,
    systems: BTreeSet<System>,
    operator: Option<&'static str>,
    skipped: Option<&'s str>,
}

/// What claims of one namespace are judged by.
struct Judge<'a> {
    seen: &'a Seen,
    waits: &'a Waits,
    namespace: &'a str,
    databases: &'a [&'a Database],
}

/// By namespace and name.
pub(super) fn claims(seen: &Seen, waits: &Waits) -> Vec<Claim> {
    let databases = seen.databases_by_namespace();
    let of = |namespace: &str| databases.get(namespace).map(Vec::as_slice).unwrap_or_default();
    let mut kept: BTreeMap<(&str, String), Kept<'_>> = BTreeMap::new();
    for pod in &seen.pods {
        for (claim, system) in data(seen, pod, of(&pod.namespace)) {
            let kept = kept.entry((&pod.namespace, claim)).or_default();
            kept.pods.insert(&pod.name);
            kept.systems.insert(system);
            kept.operator = kept.operator.or(pod.operator);
            kept.skipped = kept.skipped.or(pod.skipped());
        }
    }
    let judged = kept.into_iter().map(|((namespace, claim), kept)| {
        let said = Judge { seen, waits, namespace, databases: of(namespace) }.said(&claim, &kept);
        let systems = kept.systems.iter().map(ToString::to_string).collect();
        let pods = kept.pods.iter().map(|pod| (*pod).to_owned()).collect();
        Claim { namespace: namespace.to_owned(), claim, pods, systems, said }
    });
    judged.collect()
}

/// The claims of a Pod that a system keeps its data on: by what it looks like, or else because a Database is in it, unless that says that
/// it has nothing there.
fn data(seen: &Seen, pod: &Running, databases: &[&Database]) -> BTreeMap<String, System> {
    let written = seen.index.claims(&pod.namespace, &pod.name);
    let looks = pod.keeps.iter().flat_map(|(system, claims)| claims.iter().map(|claim| (claim.clone(), *system)));
    let mut data: BTreeMap<String, System> = looks.filter(|(claim, _)| written.contains(claim)).collect();
    let member = databases.iter().find(|database| seen.index.is_member(&pod.namespace, database, &pod.name));
    if let Some(database) = member {
        let own = System::Served(database.spec.engine);
        let unrelated = unrelated(database);
        data.retain(|claim, system| *system != own || !unrelated.contains(claim.as_str()));
        for claim in written.into_iter().filter(|claim| !unrelated.contains(claim.as_str())) {
            data.entry(claim).or_insert(own);
        }
    }
    data
}

fn say(state: State, message: impl Into<String>, fix: impl Into<String>) -> Said {
    Said { state, message: message.into(), fix: Some(fix.into()).filter(|fix| !fix.is_empty()) }
}

impl Judge<'_> {
    fn said(&self, claim: &str, kept: &Kept<'_>) -> Said {
        let (seen, namespace) = (self.seen, self.namespace);
        let Holds::Databases(found) = seen.index.holds(namespace, claim, self.databases.iter().copied()) else {
            return self.unheld(claim, kept);
        };
        if let Some(why) = self.never_cut(claim) {
            return why;
        }
        let of = found.iter().filter_map(|one| {
            let database = self.databases.iter().find(|database| database.name_any() == one.database)?;
            let several = found.iter().filter(|other| other.database == one.database).count() > 1;
            Some(self.of_database(claim, one, database, several))
        });
        let worst = of.max_by_key(|said| said.state).unwrap_or_else(|| self.unheld(claim, kept));
        let held = matches!(worst.state, State::Protected | State::Partial);
        match (held, self.waits.refusal(namespace)) {
            (true, Some(why)) => say(State::NotReady, format!("{}; but {why}", worst.message), "kubectl still doctor"),
            _ => worst,
        }
    }

    /// Whatever holds it, there is no snapshot of it, or none is waited for.
    fn never_cut(&self, claim: &str) -> Option<Said> {
        let namespace = self.namespace;
        if self.waits.leaves_alone(namespace) {
            let message = format!("nothing in namespace {namespace} is ever held");
            return Some(say(State::Unprotected, message, "move it to a namespace of its own"));
        }
        let is_bound = !self.seen.volumes || self.seen.index.driver_of(namespace, claim).is_some();
        (!is_bound).then(|| {
            let message = "its volume is of no CSI driver: there are no snapshots of it";
            say(State::Unprotected, message, "hold it around whatever copies it: kubectl still quiesce --help")
        })
    }

    /// Whether one of its Databases would be held while it is cut.
    fn of_database(&self, claim: &str, found: &Found, database: &Database, several: bool) -> Said {
        let (name, pod) = (&found.database, &found.pod);
        let not_ready = |message: String, fix: String| say(State::NotReady, message, fix);
        if database.spec.paused {
            return not_ready(format!("Database {name} is paused"), "set spec.paused to false".to_owned());
        }
        let preflight = format!("kubectl still preflight {name} -n {}", self.namespace);
        let wanted = database.spec.freeze.target.role;
        match self.seen.index.standing(self.namespace, database, pod) {
            _ if several => {
                let message =
                    format!("several Pods of Database {name} write to it: nobody could tell which of them was held");
                return not_ready(message, "give each member a claim of its own".to_owned());
            }
            Standing::Meant => {}
            Standing::Other(role) => {
                let message = format!("Pod {pod} is the {role} of Database {name}, of which the {wanted} is held");
                return say(State::Standby, message, "take snapshots of the other's claim (docs/injection.md)");
            }
            Standing::Unknown => {
                let message =
                    format!("Database {name} has several members, and nobody has heard which of them Pod {pod} is");
                return not_ready(message, format!("give each an agent (docs/injection.md), then {preflight}"));
            }
        }
        let status = database.status.as_ref();
        let is_old = status.is_some_and(|status| status.observed_generation < database.metadata.generation);
        match status.and_then(|status| conditions::find(&status.conditions, types::READY)) {
            None => not_ready(format!("Database {name} was not looked at yet"), "kubectl still doctor".to_owned()),
            Some(_) if is_old => not_ready(
                format!("Database {name} was changed, and not looked at since"),
                "kubectl still doctor".to_owned(),
            ),
            Some(ready) if ready.status != "True" => {
                not_ready(format!("Database {name} is not ready: {}: {}", ready.reason, ready.message), preflight)
            }
            Some(_) => self.worth(claim, found),
        }
    }

    /// Of what is held.
    fn worth(&self, claim: &str, found: &Found) -> Said {
        let name = &found.database;
        let driver = self.seen.index.driver_of(self.namespace, claim);
        if let Some(driver) = driver.filter(|driver| self.seen.is_atomic(driver) == Some(false)) {
            let message =
                format!("Database {name}; but {driver} is not known to cut at one instant: a snapshot says unknown");
            let fix =
                format!("if its manual says that it does, label its VolumeSnapshotClass {}=true", api::gate::ATOMIC);
            return say(State::NotReady, message, fix);
        }
        let others: Vec<&str> = found.claims.iter().map(String::as_str).filter(|other| *other != claim).collect();
        if others.is_empty() {
            return say(State::Protected, format!("Database {name}"), "");
        }
        let message =
            format!("Database {name}; of this claim alone it is partial, for it writes to {}, too", others.join(", "));
        say(State::Partial, message, "take a VolumeGroupSnapshot of all of them (docs/gates.md)")
    }

    /// What no Database's endpoint or labels lead to.
    fn unheld(&self, claim: &str, kept: &Kept<'_>) -> Said {
        let served = kept.systems.iter().find_map(|system| match system {
            System::Served(engine) => Some(*engine),
            System::Other(_) => None,
        });
        let Some(engine) = served else {
            let systems: Vec<String> = kept.systems.iter().map(ToString::to_string).collect();
            return say(State::NoDriver, format!("nothing here holds {}", systems.join(", ")), "");
        };
        if let Some(prefix) = kept.operator {
            let prefix = prefix.trim_end_matches('/');
            let message = format!("an operator's ({prefix}): held for its own snapshots, and for nobody else's");
            return say(State::Operator, message, "take its snapshots by that operator; or register a Database for it");
        }
        if let Some(why) = self.never_cut(claim) {
            return why;
        }
        if let Some(why) = kept.skipped {
            let message = format!("no Database leads to it, and its Pod got no agent: {why}");
            return say(State::Unprotected, message, "mend that, and make the Pod again (docs/injection.md)");
        }
        let (engine, namespace) = (engine.to_string().to_lowercase(), self.namespace);
        let register = format!("kubectl still database create {claim} -n {namespace} --engine {engine} --host SERVICE");
        let fix = format!("label its Pods stillpoint.dev/inject=true (docs/injection.md), or: {register}");
        say(State::Unprotected, "no Database leads to it", fix)
    }
}
