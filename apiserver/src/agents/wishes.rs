//! What is asked for in a Pod, by whoever may run a command there: its own Database is held, by a claim like any other.
//!
//! Nobody's right to `quiesce` is asked: it is the database's own Pod that asks, for that database and for no other.

use std::{sync::Arc, time::Duration};

use api::{
    Claim, Database, Freeze, FreezeStatus, Phase, Quiesce, QuiesceSpec, QuiesceStatus,
    agent::{Granted, Wish},
};
use freeze::remote;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

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
    // A claim that has ended stays ended, so that each has a number of its own.
    let prefix = format!("Pod/{namespace}/{pod}/");
    let living = door.verbs.living(&door.own.user.name, |uid| uid.starts_with(&prefix));
    let several = door.agents.has_several(namespace, &found);
    match wish {
        Wish::Freeze { seconds, within, level, reason } => {
            if several && let Some(why) = door.of_another_role(namespace, pod, &found).await {
                return Ok(Granted::Elsewhere { why });
            }
            // One that holds is asked for again; one that is on its way is another hook's, who may give it up.
            let held = living.into_iter().find(|claim| claim.frozen_at.is_some()).map(|claim| claim.uid);
            let is_new = held.is_none();
            let uid = held.unwrap_or_else(|| format!("{prefix}{}", Uuid::new_v4()));
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
            let Ok(status) = timeout(Duration::from_secs(within.into()), asked).await else {
                // Nothing comes to hold for it. Where this cannot be said, it ends when it holds, for nobody hears of it.
                let back = json!({"spec": {"uid": uid}});
                let taken_back = door.ask(namespace, &database, "unquiesce", &back);
                if is_new {
                    timeout(TAKEN_BACK, taken_back).await.ok();
                }
                return Err(format!("given up: it was not held within {within} s"));
            };
            let status = status?;
            let status = QuiesceStatus::deserialize(&status).map_err(|error| error.to_string())?;
            let (Some(freeze), Some(level)) = (status.freeze, status.level) else {
                return Err("it is not said which Freeze holds, and how".to_owned());
            };
            Ok(Granted::Frozen { freeze, level, until: status.expires_at.map(|at| at.0.to_string()) })
        }
        Wish::Thaw => {
            let mut thawed = None;
            for Claim { uid, .. } in living {
                let status = door.ask(namespace, &database, "unquiesce", &json!({"spec": {"uid": uid}})).await?;
                // Others' hold goes on, and is proved at its own end; whatever ended before was not held until now.
                let others = status["stillClaimedBy"].as_array().is_some_and(|others| !others.is_empty());
                let proved = (!others).then(|| status["proof"]["held"] == true);
                thawed = Some(Granted::Thawed { freeze: text(&status["freeze"]), proved });
            }
            Ok(thawed.unwrap_or_else(|| door.over(&prefix)))
        }
        Wish::Status => Ok(door.status(namespace, &database)),
    }
}

impl Door {
    /// Of what does not hold any more: whether the last that was wished for had ended before it was thawed from here.
    fn over(&self, prefix: &str) -> Granted {
        let freezes = self.verbs.records.freezes();
        let of = |freeze: &Arc<Freeze>| {
            let claims = freeze.status.as_ref()?.claims.iter();
            let wished = claims.filter(|claim| claim.user == self.own.user.name && claim.uid.starts_with(prefix));
            Some((wished.max_by_key(|claim| claim.since.0)?.clone(), Arc::clone(freeze)))
        };
        let last = freezes.iter().filter_map(of).max_by_key(|(claim, _)| claim.since.0);
        let ended = last
            .filter(|(claim, freeze)| freeze.status.as_ref().is_some_and(|status| was_ended_elsewhere(claim, status)));
        let freeze = ended.and_then(|(_, freeze)| freeze.metadata.name.clone());
        Granted::Thawed { proved: freeze.as_ref().map(|_| false), freeze }
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

/// Whether a claim that held has ended otherwise than by a thaw of its own: by its lease, by somebody who ends all, or with what held it.
fn was_ended_elsewhere(claim: &Claim, status: &FreezeStatus) -> bool {
    let held = status.frozen_at.is_some() && status.phase != Phase::Failed;
    held && (claim.has_lapsed() || !claim.was_let_go(status))
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use api::conditions::{reasons, types};
    use serde_json::from_value;

    use super::*;

    #[test]
    fn whoever_thaws_what_was_ended_elsewhere_is_told() {
        let claim = |ended: &str| -> Claim {
            from_value(json!({
                "kind": "User", "name": "pod", "uid": "Pod/shop/pg-0/1", "user": "us", "since": "2026-01-01T00:00:00.000000Z",
                "until": "2026-01-01T00:01:00.000000Z", "endedAt": ended, "frozenAt": "2026-01-01T00:00:01.000000Z",
            }))
            .unwrap()
        };
        let status = |phase: &str, reason: &str| -> FreezeStatus {
            from_value(json!({
                "phase": phase, "frozenAt": "2026-01-01T00:00:01.000000Z", "thawedAt": "2026-01-01T00:00:30.000000Z",
                "conditions": [{
                    "type": types::FROZEN, "status": "False", "reason": reason, "message": "",
                    "lastTransitionTime": "2026-01-01T00:00:00Z",
                }],
            }))
            .unwrap()
        };
        let (early, late) = (claim("2026-01-01T00:00:30.000000Z"), claim("2026-01-01T00:01:00.000000Z"));
        for (claim, phase, reason, elsewhere) in [
            (&early, "Thawed", reasons::RELEASED, false),
            (&early, "Thawed", reasons::FORCED, true),
            (&early, "Thawed", reasons::SHUTDOWN, true),
            (&early, "Lost", reasons::RELEASED, true),
            (&late, "Expired", reasons::LEASE_EXPIRED, true),
            // Others went on with it.
            (&late, "Thawed", reasons::RELEASED, true),
            (&late, "Frozen", reasons::RELEASED, true),
            (&early, "Frozen", reasons::RELEASED, false),
            // It never held.
            (&early, "Failed", reasons::SERVER_ERROR, false),
        ] {
            assert_eq!(was_ended_elsewhere(claim, &status(phase, reason)), elsewhere, "{phase} {reason}");
        }
    }
}
