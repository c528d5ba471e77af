//! A declared Freeze that joined another: it is what its own claim on that one is.

use std::{collections::HashSet, sync::Arc};

use api::{Claim, ClaimKind, Freeze, FreezeStatus, Phase, conditions::reasons};
use freeze::{FreezeName, Granted};
use futures::{StreamExt, stream};
use tokio::sync::Mutex;
use tracing::warn;

use super::fail;
use crate::{error::ApiError, records::freeze_name, verbs::Verbs};

/// A Freeze that joined another is what its own claim is: held while that holds, and ended with it, or before.
pub(super) async fn follow(verbs: &Verbs, name: &FreezeName, freeze: &Freeze, granted: Granted) {
    let uid = granted.claim.uid.clone();
    let joined = granted.freeze.name;
    let database = freeze.spec.targets.first().map(|target| target.database.as_str()).unwrap_or_default();
    // Another may have begun meanwhile: that one is not ours.
    let still = verbs.freezer.view(&name.namespace, database).is_some_and(|view| view.freeze.name == joined);
    let mut watch = verbs.freezer.watch(&name.namespace, database).filter(|_| still);
    let mut status = granted.status;
    loop {
        let own = of_claim(&status, &uid, &joined);
        if let Err(error) = conclude(verbs, name, &own).await {
            warn!(freeze = %name, message = %error.message, "a Freeze that joined another could not be written");
        }
        if own.phase.is_finished() {
            return;
        }
        // Its last word comes before the channel closes, unless it was over before we looked.
        let Some(watch) = &mut watch else { break };
        if watch.changed().await.is_err() {
            break;
        }
        status = Arc::clone(&watch.borrow_and_update());
    }
    // The object of the other says how it ended: see [`Burial`].
}

/// The status of a Freeze whose claim is part of another freeze; pure. What is to be undone is the other's to undo, and no
/// freezer has begun this one: after a crash its Databases are not its to free.
pub(super) fn of_claim(status: &FreezeStatus, uid: &str, joined: &str) -> FreezeStatus {
    let mut own = FreezeStatus { freezer: None, epoch: None, ..status.clone() };
    own.claims.retain(|claim| claim.uid == uid);
    own.targets.iter_mut().for_each(|target| target.undo.clear());
    let ended = own.claims.iter().find_map(|claim| Some((claim.ended_at.as_ref()?.0, claim.until.0)));
    (own.phase, own.message) = match (status.phase, ended) {
        (phase, _) if phase.is_finished() => (
            phase,
            Some(format!("Freeze {joined}, which it joined: {}", status.message.as_deref().unwrap_or_default())),
        ),
        (_, Some((at, until))) if at >= until => (Phase::Expired, Some(format!("its claim on Freeze {joined} lapsed"))),
        (_, Some(_)) => (Phase::Thawed, Some(format!("its claim on Freeze {joined} was ended"))),
        (phase, None) => (phase, Some(format!("joined Freeze {joined}"))),
    };
    own
}

/// Writes a status unless the Freeze is finished already: finished phases never change.
pub(super) async fn conclude(verbs: &Verbs, name: &FreezeName, status: &FreezeStatus) -> Result<(), ApiError> {
    let change = |now: FreezeStatus| (!now.phase.is_finished()).then(|| status.clone());
    verbs.records.change_freeze(name, &change).await
}

/// Says of those that joined another how they ended, when nobody else does: the replica that followed them may be gone.
#[derive(Default)]
pub(super) struct Burial {
    /// Of these no freeze knew when it was looked last.
    unknown: HashSet<FreezeName>,
    /// Full while what was found last is still being written.
    writing: Arc<Mutex<()>>,
}

/// Freezes whose end is written at once.
const TOGETHER: usize = 8;

impl Burial {
    pub(super) fn go_on(&mut self, verbs: &Verbs, all: &[Arc<Freeze>]) {
        let Ok(writing) = Arc::clone(&self.writing).try_lock_owned() else { return };
        let (known, unknown): (Vec<_>, Vec<_>) = ended(all).into_iter().partition(|(_, end)| *end != End::Unknown);
        let unknown: HashSet<FreezeName> = unknown.into_iter().map(|(name, _)| name).collect();
        // What a mirror does not show it may show in a moment.
        let lost = unknown.intersection(&self.unknown).map(|name| (name.clone(), End::Unknown));
        let due: Vec<_> = known.into_iter().chain(lost).collect();
        self.unknown = unknown;
        let task = verbs.clone();
        verbs.tasks.spawn(async move {
            stream::iter(due).for_each_concurrent(TOGETHER, |(name, end)| bury(&task, name, end)).await;
            drop(writing);
        });
    }
}

async fn bury(verbs: &Verbs, name: FreezeName, end: End) {
    match end {
        End::As(status) => {
            if let Err(error) = conclude(verbs, &name, &status).await {
                warn!(freeze = %name, message = %error.message, "the end of a Freeze could not be written");
            }
        }
        End::Unknown => fail(verbs, &name, reasons::FREEZER_DIED, "nothing holds it any more").await,
    }
}

/// Those that joined another and have ended with it, but do not say so; pure.
fn ended(all: &[Arc<Freeze>]) -> Vec<(FreezeName, End)> {
    let joined = all.iter().filter(|freeze| is_joined(freeze));
    joined.filter_map(|freeze| Some((freeze_name(freeze)?, end_of(freeze, all)?))).collect()
}

/// It is part of another, and not over.
fn is_joined(freeze: &Freeze) -> bool {
    let status = freeze.status.as_ref();
    status
        .is_some_and(|status| status.freezer.is_none() && status.phase != Phase::Pending && !status.phase.is_finished())
}

/// How a Freeze that joined another has ended.
#[derive(Clone, Debug, PartialEq)]
enum End {
    As(Box<FreezeStatus>),
    /// No freeze knows of its claim.
    Unknown,
}

/// Its claim has its own uid, at a freeze of the same Databases. `None`: it has not ended. Claims that a verb made say nothing: their
/// uids are whatever somebody chose.
fn end_of(freeze: &Freeze, all: &[Arc<Freeze>]) -> Option<End> {
    let uid = freeze.metadata.uid.as_deref()?;
    let covers = |other: &&Arc<Freeze>| {
        other.metadata.namespace == freeze.metadata.namespace
            && other.metadata.uid.as_deref() != Some(uid)
            && other.status.as_ref().is_some_and(|status| status.freezer.is_some())
            && other.spec.targets.iter().any(|one| freeze.spec.targets.iter().any(|own| own.database == one.database))
    };
    let own = |claim: &&Claim| claim.kind == ClaimKind::Freeze && claim.uid == uid;
    let mut unfinished = false;
    for other in all.iter().filter(covers) {
        let (status, name) = (other.status.as_ref()?, other.metadata.name.as_deref()?);
        if status.claims.iter().any(|claim| own(&claim)) {
            let end = of_claim(status, uid, name);
            return end.phase.is_finished().then(|| End::As(Box::new(end)));
        }
        unfinished |= !status.phase.is_finished();
    }
    // A claim may be granted a while before it is written.
    (!unfinished).then_some(End::Unknown)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_freeze_that_joined_another_ends_with_its_claim_or_with_the_other() {
        let at = "2026-01-01T00:00:00Z";
        let status = |phase: &str, ended: Option<&str>, until: &str| -> FreezeStatus {
            let claim = |uid: &str| json!({"kind": "Freeze", "name": "f", "uid": uid, "user": "dba", "since": at, "until": until});
            let mut own = claim("own");
            own["endedAt"] = ended.into();
            serde_json::from_value(
                json!({"phase": phase, "freezer": "other's", "message": "why", "claims": [claim("other"), own]}),
            )
            .unwrap()
        };
        let (before, after) = ("2026-01-01T00:00:10Z", "2026-01-01T00:01:00Z");
        for (status, phase) in [
            (status("Frozen", None, after), Phase::Frozen),
            (status("Frozen", Some(before), after), Phase::Thawed),
            (status("Frozen", Some(after), after), Phase::Expired),
            (status("Lost", None, after), Phase::Lost),
            (status("Expired", Some(after), after), Phase::Expired),
        ] {
            let own = of_claim(&status, "own", "other");
            assert_eq!((own.phase, own.claims.len(), &own.freezer), (phase, 1, &None), "{own:?}");
        }
    }

    #[test]
    fn one_whose_replica_died_ends_as_the_freeze_that_it_joined() {
        let at = "2026-01-01T00:00:00Z";
        let freeze = |name: &str, status: serde_json::Value| -> Arc<Freeze> {
            let value = json!({
                "apiVersion": api::API_VERSION, "kind": "Freeze",
                "metadata": {"namespace": "shop", "name": name, "uid": format!("uid of {name}")},
                "spec": {"targets": [{"database": "orders"}]}, "status": status,
            });
            Arc::new(serde_json::from_value(value).unwrap())
        };
        let claim =
            json!({"kind": "Freeze", "name": "joins", "uid": "uid of joins", "user": "", "since": at, "until": at});
        let joins = freeze("joins", json!({"phase": "Frozen", "claims": [claim]}));
        let other = |phase: &str| freeze("other", json!({"phase": phase, "freezer": "dead", "claims": [claim]}));
        let without = |phase: &str| freeze("without", json!({"phase": phase, "freezer": "dead", "claims": []}));
        let mut by_verb = Freeze::clone(&other("Thawed"));
        by_verb.status.as_mut().unwrap().claims[0].kind = ClaimKind::User;
        let mut elsewhere = Freeze::clone(&other("Thawed"));
        elsewhere.metadata.namespace = Some("aaa".to_owned());
        let mut of_others = Freeze::clone(&other("Thawed"));
        of_others.spec.targets[0].database = "billing".to_owned();
        assert!(is_joined(&joins) && !is_joined(&other("Frozen")) && !is_joined(&freeze("new", json!(null))));
        assert_eq!(end_of(&joins, &[joins.clone(), other("Frozen")]), None);
        assert_eq!(end_of(&joins, &[joins.clone(), without("Frozen")]), None, "its claim is not written yet");
        assert_eq!(end_of(&joins, &[joins.clone(), without("Lost")]), Some(End::Unknown));
        for forged in [by_verb, elsewhere, of_others].map(Arc::new) {
            let all = [forged.clone(), joins.clone(), other("Frozen")];
            assert_eq!(end_of(&joins, &all), None, "{forged:?}");
        }
        let Some(End::As(status)) = end_of(&joins, &[joins.clone(), other("Lost")]) else { panic!() };
        assert_eq!((status.phase, status.freezer), (Phase::Lost, None));
    }
}
