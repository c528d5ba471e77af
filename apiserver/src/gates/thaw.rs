//! After the cut: every replica follows the contents of snapshots, and ends the claims that it holds for one as soon as the driver has
//! said that it has cut, or nobody waits for it any more.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::{
    Claim, Stage,
    gate::{Group, claim},
};
use freeze::FreezeView;
use futures::{
    StreamExt,
    stream::{BoxStream, select},
};
use jiff::Timestamp;
use kube::{
    Api,
    api::DynamicObject,
    runtime::{WatchStreamExt, watcher},
};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tracing::{debug, info, warn};

use super::{
    Gates,
    contents::{Content, Fate},
    judge::{self, Observed},
    known::{Called, News},
    said,
};
use crate::csi_snapshots::{Kind, Kinds};

/// How often it is looked for claims whose admission was never stored.
const LOOK: Duration = Duration::from_secs(1);
/// How long an admitted mark may take until it is stored, and seen here.
const STORED: Duration = Duration::from_secs(5);
/// What is done at once of each kind: a freeze is let go, or a cut is judged.
const MOST: usize = 1_000;
/// How often it is asked whether a cluster has these kinds now.
const NOT_SERVED: Duration = Duration::from_secs(30);

/// A claim that is held here for a content.
#[derive(Clone, Debug)]
struct Ours {
    namespace: String,
    database: String,
    claim: Claim,
}

/// Why a claim ends.
#[derive(Clone, Debug)]
enum End {
    Cut {
        content: Box<Content>,
        created: Option<Timestamp>,
        called: Called,
        marked: bool,
    },
    /// Nobody waits for it any more.
    Nobody(&'static str),
}

/// Since when each claim has been asked for: whoever asks again renews it.
#[derive(Debug, Default)]
pub(super) struct Ages(HashMap<String, (Timestamp, Instant)>);

/// What is being done in the background, each once.
#[derive(Clone, Debug, Default)]
struct Doing(Arc<Mutex<HashSet<String>>>);

/// For ever.
pub(super) async fn run(gates: Gates, watching: Kinds) {
    let mut events = select(events(watching.clone(), Group::Single), events(watching, Group::Group));
    let began = Timestamp::now();
    let (ending, judging, mut ages) = (Doing::default(), Doing::default(), Ages::default());
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some((group, event)) = events.next() => {
                let news = gates.known().take(group, event, Timestamp::now());
                if let (Some(content), Some(marks)) = (&news.content, news.marks) {
                    gates.0.marks(&content.driver, marks);
                }
                follow(&gates, news, &mut ages, began, &ending, &judging);
            }
            _ = tick.tick() => {
                let held = held_here(&gates);
                ages.retain(&held);
                for ours in held {
                    if let Some((_, uid)) = claim::content_of(&ours.claim.uid) {
                        gates.forget_missed(uid);
                    }
                    let why = why(&gates, &ours, ages.is_young(&ours.claim, Instant::now()));
                    end(&gates, ours, why, &ending);
                }
                gates.0.forget();
                // Before everything is known nothing follows from what is not there.
                if gates.0.verbs.leads() && gates.is_known().is_ok() {
                    look_after(&gates, began, &judging);
                }
            }
        }
    }
}

/// What follows from a content that has changed.
fn follow(gates: &Gates, news: News, ages: &mut Ages, began: Timestamp, ending: &Doing, judging: &Doing) {
    let Some(content) = news.content else { return };
    if content.fate != Fate::Before {
        gates.0.begun(&content);
    }
    let is_cut = matches!(content.fate, Fate::Cut { .. });
    // Nothing else ends a claim before the next tick.
    if !(is_cut || news.gone || content.deleting) {
        return;
    }
    let of_it = |ours: &Ours| claim::content_of(&ours.claim.uid).is_some_and(|(_, uid)| uid == content.uid);
    for ours in held_here(gates).into_iter().filter(of_it) {
        let gone = (news.gone || content.deleting && !is_cut).then_some(End::Nobody("its content is gone"));
        let why = gone.or_else(|| why(gates, &ours, ages.is_young(&ours.claim, Instant::now())));
        end(gates, ours, why, ending);
    }
    if is_cut && !news.gone && !content.is_judged && gates.missed(&content.uid).is_some() {
        not_held(gates, content, began, judging);
    }
}

/// What a watch says, for ever; begun again where a cluster gets these kinds later, or another version of them.
fn events(kinds: Kinds, group: Group) -> BoxStream<'static, (Group, watcher::Event<DynamicObject>)> {
    let again = futures::stream::unfold((kinds, false), move |(kinds, again)| async move {
        // Served, and then not found: it comes, or goes.
        if again {
            sleep(NOT_SERVED).await;
        }
        loop {
            match kinds.are_served(group).await {
                Ok(true) => break,
                Ok(false) => debug!(?group, "this cluster has no such snapshots"),
                Err(error) => warn!(?group, %error, "it is not known whether this cluster has snapshots"),
            }
            sleep(NOT_SERVED).await;
        }
        let api: Api<DynamicObject> = kinds.all(Kind::Content, group);
        let events = watcher(api, watcher::Config::default()).default_backoff();
        // While the version is served, whatever else is wrong is tried again with pauses.
        let events = events.take_while(move |event| std::future::ready(!event.as_ref().is_err_and(is_not_served)));
        let events = events.filter_map(move |event| async move {
            event
                .inspect_err(|error| warn!(?group, %error, "contents of snapshots cannot be followed now"))
                .ok()
                .map(|event| (group, event))
        });
        Some((events, (kinds, true)))
    });
    again.flatten().boxed()
}

fn is_not_served(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    matches!(error, InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) if status.code == 404)
}

/// Claims of gates in freezes that this replica executes.
fn held_here(gates: &Gates) -> Vec<Ours> {
    let us = &gates.0.own.user.name;
    let views = gates.0.verbs.freezer.views();
    views.iter().flat_map(|view| claims(view, us)).collect()
}

fn claims<'v>(view: &'v FreezeView, us: &'v str) -> impl Iterator<Item = Ours> + 'v {
    let database = view.status.targets.first().map(|target| target.database.clone()).unwrap_or_default();
    let live =
        view.status.claims.iter().filter(move |claim| {
            claim.ended_at.is_none() && claim.user == us && claim::content_of(&claim.uid).is_some()
        });
    live.map(move |claim| Ours {
        namespace: view.freeze.namespace.clone(),
        database: database.clone(),
        claim: claim.clone(),
    })
}

/// Ends a claim if there is a reason to.
fn end(gates: &Gates, ours: Ours, why: Option<End>, ending: &Doing) {
    let Some(why) = why else { return };
    let seen_at = Timestamp::now();
    let of = gates.clone();
    ending.once(gates, ours.claim.uid.clone(), async move { finish(&of, ours, why, seen_at).await });
}

/// `young`: its admission may yet be stored, and seen here.
fn why(gates: &Gates, ours: &Ours, young: bool) -> Option<End> {
    let (_, uid) = claim::content_of(&ours.claim.uid)?;
    let known = gates.known();
    let Some(content) = known.get(uid) else { return (!young).then_some(End::Nobody("its content is not there")) };
    match content.fate {
        Fate::Cut { created } => {
            let (called, marked) = (known.called(uid), known.is_marked(uid));
            Some(End::Cut { created, called, marked, content: Box::new(content.clone()) })
        }
        _ if content.deleting => Some(End::Nobody("its content is being deleted")),
        // Its copy is worth no more than if nobody were held. What is seen may be older than what is held.
        Fate::Calling if !young && content.claim.as_ref() != Some(&ours.claim.uid) => {
            Some(End::Nobody(judge::UNANSWERED))
        }
        Fate::Calling => None,
        // Nothing tells when such a driver is called.
        Fate::Before if gates.0.is_unmarked(&content.driver) => None,
        // Somebody else has denied it, or the driver has said no for good; whoever tries again asks again.
        Fate::Before => (!young).then_some(End::Nobody("the cut that it was held for did not begin")),
    }
}

async fn finish(gates: &Gates, ours: Ours, end: End, seen_at: Timestamp) {
    // Whoever asked again since then renewed it.
    let renewed = |now: &Ours| now.claim.uid == ours.claim.uid && Ages::differ(now.claim.until.0, ours.claim.until.0);
    if let End::Nobody(_) = end
        && held_here(gates).iter().any(renewed)
    {
        return;
    }
    let freezer = &gates.0.verbs.freezer;
    let ended = freezer.unquiesce(&ours.namespace, &ours.database, &ours.claim.uid, Stage::Thaw).await;
    let Some(Ok(ended)) = ended else {
        debug!(claim = ours.claim.uid, ?ended, "it was let go already");
        return;
    };
    let (content, seen) = match end {
        End::Cut { content, created, called, marked } => (content, Observed { seen_at, created, called, marked }),
        End::Nobody(why) => {
            info!(claim = ours.claim.uid, why, "let go without a cut");
            gates.was_let_go(&ours.claim.uid, why);
            if let Some((_, uid)) = claim::content_of(&ours.claim.uid) {
                gates.note_missed(uid, why);
            }
            return;
        }
    };
    if ended.status.phase.is_finished() {
        let thawed = ended.status.thawed_at.as_ref().map_or_else(Timestamp::now, |at| at.0);
        gates.0.app.metrics.thawed_after_cut(thawed.duration_since(seen_at).as_secs_f64());
    }
    judge::of_held(gates, &content, &ours.claim, &ended, seen).await;
}

/// What only one replica does: cuts that nobody judges, and members of groups.
fn look_after(gates: &Gates, began: Timestamp, judging: &Doing) {
    // Of what was cut before anybody could have asked us nothing is said.
    let since = gates.installed().unwrap_or(began);
    let (unjudged, members) = {
        let known = gates.known();
        let unjudged: Vec<Content> = known.unjudged().filter(|content| content.made >= since).cloned().collect();
        (unjudged, known.members_of_judged())
    };
    for content in unjudged {
        not_held(gates, content, began, judging);
    }
    for (member, group) in members {
        let of = gates.clone();
        judging.once(gates, member.uid.clone(), async move { said::of_group(&of, &member, &group).await });
    }
}

fn not_held(gates: &Gates, content: Content, began: Timestamp, judging: &Doing) {
    judging.once(gates, content.uid.clone(), judge::of_not_held(gates.clone(), content, began));
}

impl Ages {
    fn is_young(&mut self, claim: &Claim, now: Instant) -> bool {
        let until = claim.until.0;
        let (known, since) = self.0.entry(claim.uid.clone()).or_insert((until, now));
        if Self::differ(*known, until) {
            (*known, *since) = (until, now);
        }
        now.duration_since(*since) < STORED
    }

    /// By more than what a deadline of the monotonic clock is rounded by when it is told.
    pub(super) fn differ(one: Timestamp, other: Timestamp) -> bool {
        one.duration_since(other).unsigned_abs() > Duration::from_millis(500)
    }

    fn retain(&mut self, held: &[Ours]) {
        let held: HashSet<&str> = held.iter().map(|ours| ours.claim.uid.as_str()).collect();
        self.0.retain(|uid, _| held.contains(uid.as_str()));
    }
}

impl Doing {
    /// Until it is done, or the server ends. Beyond [`MOST`] it is not begun: whoever looks every second comes again.
    fn once(&self, gates: &Gates, key: String, work: impl Future<Output = ()> + Send + 'static) {
        {
            let mut doing = self.lock();
            if doing.len() >= MOST || !doing.insert(key.clone()) {
                return;
            }
        }
        let (doing, over) = (self.clone(), gates.0.over.clone());
        gates.0.verbs.tasks.spawn(async move {
            over.run_until_cancelled(work).await;
            doing.lock().remove(&key);
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_that_is_renewed_is_young_again() {
        let claim = |until: &str| -> Claim {
            serde_json::from_value(json!({
                "kind": "User", "name": "us", "uid": "VolumeSnapshotContent/u", "user": "us",
                "since": "2026-01-01T00:00:00Z", "until": until,
            }))
            .unwrap()
        };
        let (mut ages, now) = (Ages::default(), Instant::now());
        let (first, renewed) = (claim("2026-01-01T00:01:00Z"), claim("2026-01-01T00:01:04Z"));
        assert!(ages.is_young(&first, now) && ages.is_young(&first, now + STORED / 2));
        assert!(!ages.is_young(&first, now + STORED));
        assert!(ages.is_young(&renewed, now + STORED));
        assert!(!ages.is_young(&renewed, now + STORED * 2));
        ages.retain(&[]);
        assert!(ages.is_young(&renewed, now + STORED * 2), "it is forgotten when it is over");
    }
}
