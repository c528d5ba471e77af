//! Declared freezes: what somebody wants (`kubectl apply` of a `Freeze`), and what has to be done about it.

mod joined;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use api::{ClaimKind, Desired, Freeze, FreezeStatus, Phase, conditions};
use freeze::{Claimant, Ending, FreezeName, Refused};
use futures::StreamExt;
use http::StatusCode;
use jiff::Timestamp;
use tokio::time::interval;
use tracing::{info, warn};

use super::turns::Turns;
use crate::{
    records::{Seen, freeze_name},
    replicas::Place,
    verbs::Verbs,
};

/// Who declared a Freeze; set by the registry, never by the author.
pub const CREATED_BY: &str = "stillpoint.dev/created-by";

/// How often everything is looked at again: one that another replica was to begin, and did not.
const AGAIN: Duration = Duration::from_secs(5);
/// Freezes that are written to at once; those that are being taken hold of are not counted.
const AT_ONCE: usize = 64;

/// Reasons and messages of those that never held.
const WITHDRAWN: (&str, &str) = (conditions::reasons::RELEASED, "it was withdrawn before it was begun");
const LEFT: (&str, &str) = (conditions::reasons::FREEZER_DIED, "its freezer died before it began");

/// What a Freeze needs now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Nothing,
    /// It is over, and wanted away, and something of it is still to be undone.
    Undo,
    /// Nobody has begun it.
    Begin,
    /// It is not wanted any more.
    End(&'static str),
    /// It will never hold.
    Fail((&'static str, &'static str)),
    /// It holds nothing and is to be deleted.
    Let,
}

/// How long a verb may take until its Freeze, which is made in one write, has a status, which is another; and by how much clocks may
/// differ.
const OPENING: Duration = Duration::from_secs(30);

/// Made by a verb, and by no author: for whom it is, and whether it holds, its own freezer says. Others are not let to make one
/// that has both (`api::install::policies::JOURNAL`).
pub(super) fn is_a_verbs(freeze: &Freeze) -> bool {
    let labels = freeze.metadata.labels.as_ref();
    let finalizers = freeze.metadata.finalizers.iter().flatten();
    labels.is_some_and(|labels| labels.contains_key(api::LABEL_DATABASE))
        && finalizers.into_iter().any(|finalizer| finalizer == api::FINALIZER_THAW)
}

/// Decides; pure.
pub fn plan(freeze: &Freeze, now: Timestamp) -> Step {
    let made = freeze.metadata.creation_timestamp.as_ref().map_or(now, |made| made.0);
    let phase = freeze.status.as_ref().map_or(Phase::Pending, |status| status.phase);
    let deleted = freeze.metadata.deletion_timestamp.is_some();
    let thawed = freeze.spec.desired == Desired::Thawed;
    match phase {
        Phase::Pending if deleted => Step::Let,
        Phase::Pending if thawed => Step::Fail(WITHDRAWN),
        Phase::Pending if is_a_verbs(freeze) && now.duration_since(made).unsigned_abs() < OPENING => Step::Nothing,
        Phase::Pending if is_a_verbs(freeze) => Step::Fail(LEFT),
        Phase::Pending => Step::Begin,
        // What is still to be undone is written in it.
        phase if phase.is_finished() && deleted && has_undo(freeze) => Step::Undo,
        phase if phase.is_finished() && deleted => Step::Let,
        phase if phase.is_finished() => Step::Nothing,
        _ if deleted => Step::End("its Freeze was deleted"),
        _ if thawed => Step::End("its Freeze says desired: Thawed"),
        _ => Step::Nothing,
    }
}

/// Follows all Freezes.
pub async fn run(verbs: Verbs) {
    let under_way = UnderWay::default();
    let turns = Turns::new(&verbs.tasks, AT_ONCE, {
        let (verbs, under_way) = (verbs.clone(), under_way.clone());
        move |name| act(verbs.clone(), under_way.clone(), name)
    });
    let take = |freeze: &Freeze| {
        if plan(freeze, Timestamp::now()) != Step::Nothing
            && let Some(name) = freeze_name(freeze)
        {
            turns.take(name);
        }
    };
    let mut burial = joined::Burial::default();
    let mut freezes = verbs.records.follow_freezes();
    let mut tick = interval(AGAIN);
    loop {
        tokio::select! {
            seen = freezes.next() => match seen {
                Some(Seen::There(freeze)) => take(&freeze),
                // Somebody took our finalizer off: whatever it holds is let go all the same.
                Some(Seen::Gone(freeze)) => gone(&verbs, freeze),
                None => return,
            },
            _ = tick.tick() => {
                let all = verbs.records.freezes();
                for freeze in &all {
                    take(freeze);
                    if let Some(name) = freeze_name(freeze).filter(|name| is_forgotten(&verbs, &under_way, name, freeze)) {
                        turns.take(name);
                    }
                }
                // Before everything that is stored was seen, nothing follows from what is not there.
                if verbs.recovered.is_cancelled() && verbs.leads() {
                    burial.go_on(&verbs, &all);
                }
            }
        }
    }
}

/// Freezes that this replica has said to begin, until that came to something.
#[derive(Clone, Debug, Default)]
struct UnderWay(Arc<Mutex<HashSet<FreezeName>>>);

/// Of one; over when it is dropped.
struct Begun(UnderWay, FreezeName);

impl UnderWay {
    fn begin(&self, name: &FreezeName) -> Begun {
        self.names().insert(name.clone());
        Begun(self.clone(), name.clone())
    }

    fn names(&self) -> MutexGuard<'_, HashSet<FreezeName>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.0.names().remove(&self.1);
    }
}

/// It says that this replica begins it, and nothing here does: what became of it could not be written.
fn is_forgotten(verbs: &Verbs, under_way: &UnderWay, name: &FreezeName, freeze: &Freeze) -> bool {
    let ours = freeze.status.as_ref().is_some_and(|status| {
        status.phase == Phase::Preparing && status.freezer.as_deref() == Some(verbs.freezer.identity())
    });
    let shown = |target: &api::FreezeTarget| {
        verbs.freezer.view(&name.namespace, &target.database).is_some_and(|view| view.freeze == *name)
    };
    ours && !is_a_verbs(freeze) && !under_way.names().contains(name) && !freeze.spec.targets.iter().any(shown)
}

/// Whether another replica, that lives, has its Databases: then what is to be done is done there.
fn is_elsewhere(verbs: &Verbs, freeze: &Freeze) -> bool {
    let Some(replicas) = verbs.replicas.get() else { return false };
    let namespace = freeze.metadata.namespace.as_deref().unwrap_or_default();
    let mut targets = freeze.spec.targets.iter();
    targets.any(|target| matches!(replicas.holder(namespace, &target.database), Place::At(_)))
}

/// Lets go what a Freeze holds that is not there any more.
fn gone(verbs: &Verbs, freeze: Arc<Freeze>) {
    let Some(name) = freeze_name(&freeze) else { return };
    let task = verbs.clone();
    verbs.tasks.spawn(async move {
        let ending = Ending::Withdrawn { why: "its Freeze was deleted" };
        for target in &freeze.spec.targets {
            let view = task.freezer.view(&name.namespace, &target.database);
            if view.is_some_and(|view| view.freeze == name) {
                task.freezer.end(&name.namespace, &target.database, ending.clone()).await;
            }
        }
    });
}

async fn act(verbs: Verbs, under_way: UnderWay, name: FreezeName) {
    // What brought us here may be old.
    let Ok(freeze) = verbs.records.freeze(&name).await else { return };
    if !verbs.recovered.is_cancelled() || is_elsewhere(&verbs, &freeze) {
        return;
    }
    match plan(&freeze, Timestamp::now()) {
        Step::Nothing if is_forgotten(&verbs, &under_way, &name, &freeze) => put_back(&verbs, &name).await,
        Step::Nothing => {}
        // Another replica begins it, or the next run of this one.
        Step::Begin if verbs.freezer.is_draining() => {}
        Step::Begin => begin(&verbs, &under_way, name, freeze).await,
        Step::End(why) => end(&verbs, name, &freeze, why),
        Step::Fail((reason, message)) => {
            fail_while(&verbs, &name, reason, message, |phase| phase == Phase::Pending).await;
        }
        // Whoever has the member undoes it; of Databases that are gone there is nothing to undo.
        Step::Undo if any_is_there(&verbs, &freeze).await => {}
        Step::Undo | Step::Let => {
            if let Err(error) = verbs.records.let_go(&name).await {
                warn!(freeze = %name, message = %error.message, "a finished Freeze could not be let go");
            }
        }
    }
}

/// Until it is said that we begin it; the freeze itself is a task of its own, for it waits for its servers.
async fn begin(verbs: &Verbs, under_way: &UnderWay, name: FreezeName, freeze: Arc<Freeze>) {
    let claimant = Claimant {
        kind: ClaimKind::Freeze,
        name: name.name.clone(),
        uid: freeze.metadata.uid.clone().unwrap_or_default(),
        chosen: true,
        user: verbs.records.author(&freeze).unwrap_or_default(),
    };
    let owned = match verbs.replicas.get() {
        None => None,
        Some(replicas) => {
            let databases: Vec<&str> = freeze.spec.targets.iter().map(|target| target.database.as_str()).collect();
            match replicas.place(&name.namespace, &databases, u32::MAX).await {
                Ok(Place::Here(owned)) => owned,
                // Whoever has them begins it, or it is tried again.
                Ok(Place::At(_)) | Err(_) => return,
            }
        }
    };
    let request = match verbs.request(name.clone(), &freeze.spec, true, claimant).await {
        Ok((request, _)) => request,
        // It says nothing of this Freeze: it is tried again.
        Err(error) if error.code.is_server_error() || error.code == StatusCode::TOO_MANY_REQUESTS => {
            return warn!(freeze = %name, message = %error.message, "a Freeze cannot be begun now; trying again");
        }
        Err(error) => return fail(verbs, &name, error.reason, &error.message).await,
    };
    if let Err(error) = verbs.records.keep(&name).await {
        warn!(freeze = %name, message = %error.message, "a Freeze could not be kept, and is not begun");
        return;
    }
    let begun = under_way.begin(&name);
    // Said before it is begun, and only by one: the event that brought us here may be old.
    let (ours, freezer) = (AtomicBool::new(false), verbs.freezer.identity());
    let change = |status: FreezeStatus| {
        let pending = status.phase == Phase::Pending;
        ours.store(pending, Ordering::Relaxed);
        // Whoever comes after us must know whose it was.
        pending.then(|| FreezeStatus { phase: Phase::Preparing, freezer: Some(freezer.to_owned()), ..status })
    };
    match verbs.records.change_freeze(&name, &change).await {
        Ok(()) if ours.load(Ordering::Relaxed) => {}
        Ok(()) => return,
        Err(error) => {
            warn!(freeze = %name, message = %error.message, "a Freeze could not be begun");
            return;
        }
    }
    let task = verbs.clone();
    verbs.tasks.spawn(async move {
        let _until_here = (owned, begun);
        match task.freezer.quiesce(request).await {
            // It joined a freeze that another object stands for.
            Ok(granted) if granted.freeze != name => joined::follow(&task, &name, &freeze, granted).await,
            Ok(_) => info!(freeze = %name, "declared freeze holds"),
            Err(Refused::NotHeld { freeze, .. } | Refused::Withdrawn { freeze }) if freeze == name => {}
            Err(refused) => {
                let message = match refused {
                    // How a freeze of its own ended its freezer writes.
                    Refused::Stopping { begun: Some(begun) } if begun == name => return,
                    // Another replica begins it, or the next run of this one.
                    Refused::Stopping { .. } => return put_back(&task, &name).await,
                    Refused::Conflict { freeze, why, .. } => format!("Freeze {} covers it: {why}", freeze.name),
                    Refused::Finished { freeze } => {
                        format!("its uid belongs to Freeze {}, which is finished", freeze.name)
                    }
                    Refused::Undoing { freeze } => format!("what Freeze {} left is still being undone", freeze.name),
                    Refused::NotHeld { freeze, .. } | Refused::Withdrawn { freeze } => {
                        format!("Freeze {}, which it waited for, did not hold", freeze.name)
                    }
                };
                fail(&task, &name, conditions::reasons::BLOCKED, &message).await;
            }
        }
    });
}

/// Ends the claim of this object; a freeze that was made by a verb is ended whole.
fn end(verbs: &Verbs, name: FreezeName, freeze: &Freeze, why: &'static str) {
    let uid = freeze.metadata.uid.clone().unwrap_or_default();
    let Some(database) = freeze.spec.targets.first().map(|target| target.database.clone()) else {
        return;
    };
    let task = verbs.clone();
    // Whoever has its members undoes what it lists, and says how it ended.
    let by = freeze.status.as_ref().and_then(|status| status.freezer.as_deref());
    let begun_elsewhere = by.is_some_and(|by| by != verbs.freezer.identity()) && verbs.replicas.get().is_some();
    verbs.tasks.spawn(async move {
        let view = task.freezer.view(&name.namespace, &database);
        match view {
            Some(view) if view.freeze == name => {
                task.freezer.end(&name.namespace, &database, Ending::Withdrawn { why }).await;
            }
            Some(_) => {
                let ended = task.freezer.unquiesce(&name.namespace, &database, &uid, api::Stage::Thaw).await;
                if let Some(Ok(ended)) = ended {
                    let status = joined::of_claim(&ended.status, &uid, &ended.freeze.name);
                    if let Err(error) = joined::conclude(&task, &name, &status).await {
                        warn!(freeze = %name, message = %error.message, "the end of a Freeze could not be written");
                    }
                } else {
                    fail(&task, &name, conditions::reasons::FREEZER_DIED, "nothing holds it any more").await;
                }
            }
            // Nothing holds: whatever it says, it is over.
            None if begun_elsewhere => {}
            None => {
                fail(&task, &name, conditions::reasons::FREEZER_DIED, "nothing holds it any more").await;
            }
        }
    });
}

/// It was to be begun here, and was not.
async fn put_back(verbs: &Verbs, name: &FreezeName) {
    let change = |now: FreezeStatus| {
        let ours = now.phase == Phase::Preparing && now.freezer.as_deref() == Some(verbs.freezer.identity());
        ours.then_some(FreezeStatus { phase: Phase::Pending, freezer: None, ..now })
    };
    if let Err(error) = verbs.records.change_freeze(name, &change).await {
        warn!(freeze = %name, message = %error.message, "a Freeze that this replica does not begin could not be put back");
    }
}

async fn fail(verbs: &Verbs, name: &FreezeName, reason: &str, message: &str) {
    fail_while(verbs, name, reason, message, |phase| !phase.is_finished()).await;
}

/// Unless it is otherwise by now. What it lists stays: it may have to be undone.
async fn fail_while(
    verbs: &Verbs,
    name: &FreezeName,
    reason: &str,
    message: &str,
    still: impl Fn(Phase) -> bool + Send + Sync,
) {
    let mut status =
        FreezeStatus { phase: Phase::Failed, message: Some(message.to_owned()), ..FreezeStatus::default() };
    let type_ = conditions::types::FROZEN;
    conditions::set_condition(&mut status.conditions, type_, false, reason, message, None, Timestamp::now());
    let change = |now: FreezeStatus| {
        let FreezeStatus { freezer, epoch, targets, claims, .. } = now;
        still(now.phase).then(|| FreezeStatus { freezer, epoch, targets, claims, ..status.clone() })
    };
    if let Err(error) = verbs.records.change_freeze(name, &change).await {
        warn!(freeze = %name, message = %error.message, "a failed Freeze could not be written");
    }
}

fn has_undo(freeze: &Freeze) -> bool {
    freeze.status.iter().flat_map(|status| &status.targets).any(|target| !target.undo.is_empty())
}

/// Whether any of its Databases is still there, as far as can be told.
async fn any_is_there(verbs: &Verbs, freeze: &Freeze) -> bool {
    let namespace = freeze.metadata.namespace.as_deref().unwrap_or_default();
    for target in &freeze.spec.targets {
        match verbs.records.database(namespace, &target.database).await {
            Err(error) if error.code == StatusCode::NOT_FOUND => {}
            _ => return true,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn freeze(phase: Option<&str>, desired: &str, deleted: bool) -> Freeze {
        let mut value = json!({
            "apiVersion": api::API_VERSION, "kind": "Freeze", "metadata": {"name": "f"},
            "spec": {"targets": [{"database": "orders"}], "desired": desired},
        });
        if let Some(phase) = phase {
            value["status"] = json!({"phase": phase});
        }
        if deleted {
            value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn every_state_has_one_step() {
        let cases = [
            (freeze(None, "Frozen", false), Step::Begin),
            (freeze(None, "Thawed", false), Step::Fail(WITHDRAWN)),
            (freeze(None, "Frozen", true), Step::Let),
            (freeze(Some("Preparing"), "Frozen", false), Step::Nothing),
            (freeze(Some("Frozen"), "Frozen", false), Step::Nothing),
            (freeze(Some("Frozen"), "Thawed", false), Step::End("its Freeze says desired: Thawed")),
            (freeze(Some("Frozen"), "Frozen", true), Step::End("its Freeze was deleted")),
            (freeze(Some("Thawed"), "Frozen", false), Step::Nothing),
            (freeze(Some("Lost"), "Frozen", true), Step::Let),
        ];
        for (freeze, step) in cases {
            assert_eq!(plan(&freeze, Timestamp::now()), step, "{:?}", freeze.status);
        }
    }

    /// Between its two writes it looks like a declared one, and must not be begun a second time, for nobody.
    #[test]
    fn a_freeze_that_a_verb_made_is_its_freezers_to_begin() {
        let made = Timestamp::from_second(1_000).unwrap();
        let at = |after: Duration| made + jiff::SignedDuration::try_from(after).unwrap();
        let mut by_verb = freeze(None, "Frozen", false);
        by_verb.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(made));
        by_verb.metadata.labels = Some([(api::LABEL_DATABASE.to_owned(), "orders".to_owned())].into());
        assert_eq!(plan(&by_verb, at(OPENING / 2)), Step::Begin, "a label is anybody's to set");
        by_verb.metadata.finalizers = Some(vec![api::FINALIZER_THAW.to_owned()]);
        assert_eq!(plan(&by_verb, at(OPENING / 2)), Step::Nothing);
        assert_eq!(plan(&by_verb, at(OPENING * 2)), Step::Fail(LEFT));
        by_verb.metadata.labels = None;
        assert_eq!(plan(&by_verb, at(OPENING * 2)), Step::Begin, "it was declared, and whoever kept it died");
    }
}
