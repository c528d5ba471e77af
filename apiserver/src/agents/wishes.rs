//! What is asked for in a Pod, by whoever may run a command there: its own Database is held, by a claim like any other.
//!
//! Nobody's right to `quiesce` is asked: it is the database's own Pod that asks, for that database and for no other.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use api::{
    Database, Freeze, Quiesce, QuiesceSpec, QuiesceStatus,
    agent::{Granted, Wish},
};
use freeze::remote;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Door, Pod};

/// How long the server beside it may take to say what it is.
const ASKED_FOR: Duration = Duration::from_secs(2);
/// How long a claim may take to be taken back.
const TAKEN_BACK: Duration = Duration::from_secs(1);

/// Does it.
pub(super) async fn grant(door: &Door, pod: &Pod, wish: Wish) -> Granted {
    granted(door, pod, wish).await.unwrap_or_else(|why| Granted::Refused { why })
}

async fn granted(door: &Door, (namespace, pod): &Pod, wish: Wish) -> Result<Granted, String> {
    let databases = door.verbs.records.databases(Some(namespace));
    let found = door.agents.database_of(namespace, pod, &databases);
    let found =
        found.ok_or_else(|| format!("no Database of namespace {namespace} leads to Pod {pod}; register one"))?;
    let database = found.metadata.name.clone().unwrap_or_default();
    // A claim that has ended stays ended, so that each has a number of its own, which the agent gives it.
    let prefix = format!("Pod/{namespace}/{pod}/");
    let several = door.agents.has_several(namespace, &found);
    match wish {
        Wish::Freeze { claim, seconds, within, level, reason } => {
            let deadline = Instant::now() + Duration::from_secs(within.into());
            if several && let Some(why) = door.of_another_role(namespace, pod, &found).await {
                return Ok(Granted::Elsewhere { why });
            }
            let uid = format!("{prefix}{claim}");
            let spec = QuiesceSpec {
                uid: Some(uid.clone()),
                // Whoever else has the role is no business of this Pod's.
                member: several.then(|| pod.clone()),
                level,
                ttl_seconds: Some(seconds),
                reason: Some(reason),
                ..QuiesceSpec::default()
            };
            let quiesce = Quiesce { spec, ..Quiesce::default() };
            let asked = door.ask(namespace, &database, "quiesce", &quiesce);
            let Ok(status) = timeout_at(deadline, asked).await else {
                // Nothing comes to hold for it. Where this cannot be said, it ends when it holds, for nobody hears of it.
                timeout(TAKEN_BACK, door.unquiesce(namespace, &database, &uid)).await.ok();
                return Err(format!("given up: it was not held within {within} s"));
            };
            let status = QuiesceStatus::deserialize(&status?).map_err(|error| error.to_string())?;
            let (Some(freeze), Some(level)) = (status.freeze, status.level) else {
                return Err("it is not said which Freeze holds, and how".to_owned());
            };
            Ok(Granted::Frozen { freeze, level, until: status.expires_at.map(|at| at.0.to_string()) })
        }
        Wish::Thaw { claims } => {
            let mut wished: BTreeSet<String> = claims.iter().map(|claim| format!("{prefix}{claim}")).collect();
            if wished.is_empty() {
                // An agent that has begun anew knows of none: whatever lives is meant.
                let living = door.verbs.living(&door.own.user.name, |uid| uid.starts_with(&prefix));
                wished = living.into_iter().map(|claim| claim.uid).collect();
            }
            let (mut thawed, mut failed) = (Thawed::default(), None);
            // Whatever fails, the others are let go.
            for uid in &wished {
                match door.unquiesce(namespace, &database, uid).await {
                    Ok(status) => thawed.add(&status, || door.freeze_of(uid)),
                    Err(why) => failed = Some(why),
                }
            }
            failed.map_or(Ok(Granted::Thawed { freeze: thawed.freeze, proved: thawed.proved }), Err)
        }
        Wish::Status => Ok(door.status(namespace, &database)),
    }
}

impl Door {
    /// The Freeze that a claim was of, as far as that is known here.
    fn freeze_of(&self, uid: &str) -> Option<String> {
        let freezes = self.verbs.records.freezes();
        let of = |freeze: &&Arc<Freeze>| {
            let status = freeze.status.as_ref();
            status.is_some_and(|status| status.claims.iter().any(|claim| claim.uid == uid))
        };
        freezes.iter().find(of).and_then(|freeze| freeze.metadata.name.clone())
    }

    async fn unquiesce(&self, namespace: &str, database: &str, uid: &str) -> Result<Value, String> {
        self.ask(namespace, database, "unquiesce", &json!({"spec": {"uid": uid}})).await
    }

    /// Of several members those that have another role than the one that is held: a hook in each of them is no fault.
    async fn of_another_role(&self, namespace: &str, pod: &str, database: &Database) -> Option<String> {
        let agent = self.agents.agent(&(namespace.to_owned(), pod.to_owned()))?;
        let server = remote::probe(&agent.link, Instant::now() + ASKED_FOR).await.ok()?;
        let (is, wanted) = (server.role, database.spec.freeze.target.role);
        let name = database.metadata.name.as_deref().unwrap_or_default();
        (is != wanted).then(|| format!("the server in this Pod is a {is}, and Database {name} wants a {wanted}"))
    }

    /// What covers it now, wherever it is held.
    fn status(&self, namespace: &str, database: &str) -> Granted {
        let freezes = self.verbs.records.freezes();
        let covers = |freeze: &&Arc<Freeze>| {
            let of = freeze.metadata.namespace.as_deref() == Some(namespace);
            let held = freeze.status.as_ref().is_some_and(|status| !status.phase.is_finished());
            of && held && freeze.spec.targets.iter().any(|target| target.database == database)
        };
        let freeze = freezes.iter().find(covers);
        let status = freeze.and_then(|freeze| freeze.status.as_ref());
        Granted::Status {
            phase: status.map(|status| status.phase).unwrap_or_default(),
            freeze: freeze.and_then(|freeze| freeze.metadata.name.clone()),
            until: status.and_then(|status| status.expires_at.as_ref()).map(|at| at.0.to_string()),
        }
    }

    /// The verb's status, or why it was refused.
    async fn ask(
        &self,
        namespace: &str,
        database: &str,
        verb: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<Value, String> {
        let answered = self.own.verb(namespace, database, verb, body, false).await?;
        if answered.code.is_success() {
            return Ok(answered.body["status"].clone());
        }
        Err(text(&answered.body["message"]).unwrap_or_else(|| answered.code.to_string()))
    }
}

/// What came of several claims together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Thawed {
    freeze: Option<String>,
    proved: Option<bool>,
}

impl Thawed {
    /// Others' hold goes on, and is proved at its own end. A claim that is not there any more has ended before, and nobody proves it.
    fn add(&mut self, status: &Value, freeze: impl FnOnce() -> Option<String>) {
        let others = status["stillClaimedBy"].as_array().is_some_and(|others| !others.is_empty());
        let is_of_a_proof = status["proof"].is_object();
        let proved = if others && !is_of_a_proof { None } else { Some(status["proof"]["held"] == true) };
        // What is not proved of one is not proved of all.
        self.proved = match (self.proved, proved) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), _) | (_, Some(true)) => Some(true),
            (None, None) => None,
        };
        self.freeze = freeze().or_else(|| text(&status["freeze"])).or_else(|| self.freeze.take());
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_proved_of_one_claim_is_not_proved_of_all() {
        let held = json!({"freeze": "f", "proof": {"held": true}});
        let others = json!({"freeze": "f", "stillClaimedBy": [{}]});
        let (broken, nothing) =
            (json!({"freeze": "f", "proof": {"held": false}}), json!({"message": "nothing to end"}));
        for (statuses, proved) in [
            (vec![&held], Some(true)),
            (vec![&others], None),
            (vec![&others, &held], Some(true)),
            (vec![&broken, &held], Some(false)),
            (vec![&held, &nothing], Some(false)),
            (vec![], None),
        ] {
            let mut thawed = Thawed::default();
            for status in &statuses {
                thawed.add(status, || None);
            }
            assert_eq!(thawed.proved, proved, "{statuses:?}");
        }
    }
}
