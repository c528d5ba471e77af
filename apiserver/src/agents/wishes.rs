//! What is asked for in a Pod, by whoever may run a command there: its own Database is held, by a claim like any other.
//!
//! Nobody's right to `quiesce` is asked: it is the database's own Pod that asks, for that database and for no other.

use std::sync::Arc;

use api::{
    Database, Freeze, Phase, Quiesce, QuiesceSpec, QuiesceStatus,
    agent::{Granted, Wish},
};
use freeze::remote;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Door, Pod};

/// How long the server beside it may take to say what it is.
const ASKED_FOR: std::time::Duration = std::time::Duration::from_secs(2);

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
    let living = door.verbs.living(&door.own.user.name, |uid| uid.starts_with(&prefix)).map(|claim| claim.uid);
    let several = door.agents.has_several(namespace, &found);
    match wish {
        Wish::Freeze { seconds, level, reason } => {
            if several && let Some(why) = door.of_another_role(namespace, pod, &found).await {
                return Ok(Granted::Elsewhere { why });
            }
            let spec = QuiesceSpec {
                uid: Some(living.unwrap_or_else(|| format!("{prefix}{}", Uuid::new_v4()))),
                // Whoever else has the role is no business of this Pod's.
                member: several.then(|| pod.clone()),
                level,
                ttl_seconds: Some(seconds),
                reason: Some(reason),
                ..QuiesceSpec::default()
            };
            let status = door.ask(namespace, &database, "quiesce", &Quiesce { spec, ..Quiesce::default() }).await?;
            let status = QuiesceStatus::deserialize(&status).map_err(|error| error.to_string())?;
            let (Some(freeze), Some(level)) = (status.freeze, status.level) else {
                return Err("it is not said which Freeze holds, and how".to_owned());
            };
            Ok(Granted::Frozen { freeze, level, until: status.expires_at.map(|at| at.0.to_string()) })
        }
        Wish::Thaw => {
            let Some(uid) = living else { return Ok(door.over(&prefix)) };
            let status = door.ask(namespace, &database, "unquiesce", &json!({"spec": {"uid": uid}})).await?;
            // Others' hold goes on, and is proved at its own end; whatever ended before was not held until now.
            let others = status["stillClaimedBy"].as_array().is_some_and(|others| !others.is_empty());
            let proved = (!others).then(|| status["proof"]["held"] == true);
            Ok(Granted::Thawed { freeze: text(&status["freeze"]), proved })
        }
        Wish::Status => Ok(door.status(namespace, &database)),
    }
}

impl Door {
    /// Of what does not hold any more: whether the last that was wished for had ended before anybody ended it.
    fn over(&self, prefix: &str) -> Granted {
        let freezes = self.verbs.records.freezes();
        let of = |freeze: &Arc<Freeze>| {
            let claims = freeze.status.as_ref()?.claims.iter();
            let wished = claims.filter(|claim| claim.user == self.own.user.name && claim.uid.starts_with(prefix));
            Some((wished.map(|claim| claim.since.0).max()?, Arc::clone(freeze)))
        };
        let last = freezes.iter().filter_map(of).max_by_key(|(since, _)| *since).map(|(_, freeze)| freeze);
        let lapsed = last.filter(|freeze| {
            freeze.status.as_ref().is_some_and(|status| matches!(status.phase, Phase::Expired | Phase::Lost))
        });
        let freeze = lapsed.and_then(|freeze| freeze.metadata.name.clone());
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

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}
