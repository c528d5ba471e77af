//! After the cut: every replica follows the contents of snapshots, and ends the claims that it holds for one as soon as the driver has
//! said that it has cut, or nobody waits for it any more.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use api::{Claim, Stage, gate::Group};
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
    cut,
    judge::{self, Observed},
    kinds::{Kind, Kinds},
    said,
};

/// How often it is looked for claims whose admission was never stored.
const LOOK: Duration = Duration::from_secs(1);
/// How long an admitted mark may take until it is stored, and seen here.
const STORED: Duration = Duration::from_secs(10);
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
        again: bool,
    },
    /// The driver has refused, the content is gone, or its admission was never stored.
    Nobody,
}

/// What is being done in the background, each once.
#[derive(Clone, Debug, Default)]
struct Doing(Arc<Mutex<HashSet<String>>>);

/// For ever.
pub(super) async fn run(gates: Gates, watching: Kinds) {
    let mut events = select(events(watching.clone(), Group::Single), events(watching, Group::Group));
    let began = Timestamp::now();
    let (ending, judging) = (Doing::default(), Doing::default());
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some((group, event)) = events.next() => {
                let news = gates.known().take(group, event, Instant::now());
                if let Some(driver) = news.unmarked_driver {
                    gates.0.unmarked(driver);
                }
                let Some(content) = news.content else { continue };
                let of_it = |ours: &Ours| cut::content_of(&ours.claim.uid).is_some_and(|(_, uid)| uid == content.uid);
                for ours in held_here(&gates).into_iter().filter(of_it) {
                    end(&gates, ours, &ending);
                }
                if matches!(content.fate, Fate::Cut { .. }) && gates.missed(&content.uid).is_some() && !content.is_judged {
                    not_held(&gates, content, &judging);
                }
            }
            _ = tick.tick() => {
                for ours in held_here(&gates) {
                    end(&gates, ours, &ending);
                }
                gates.0.forget();
                if gates.0.verbs.leads() {
                    look_after(&gates, began, &judging);
                }
            }
        }
    }
}

/// What a watch says, for ever; begun again where a cluster gets these kinds later, or another version of them.
fn events(kinds: Kinds, group: Group) -> BoxStream<'static, (Group, watcher::Event<DynamicObject>)> {
    let again = futures::stream::unfold(kinds, move |kinds| async move {
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
        Some((events, kinds))
    });
    again.flatten().boxed()
}

fn is_not_served(error: &watcher::Error) -> bool {
    use watcher::Error::{InitialListFailed, WatchStartFailed};
    matches!(error, InitialListFailed(kube::Error::Api(status)) | WatchStartFailed(kube::Error::Api(status)) if status.code == 404)
}

/// Claims of gates in freezes that this replica executes.
fn held_here(gates: &Gates) -> Vec<Ours> {
    let us = &gates.0.us.name;
    let views = gates.0.verbs.freezer.views();
    views.iter().flat_map(|view| claims(view, us)).collect()
}

fn claims<'v>(view: &'v FreezeView, us: &'v str) -> impl Iterator<Item = Ours> + 'v {
    let database = view.status.targets.first().map(|target| target.database.clone()).unwrap_or_default();
    let live = view
        .status
        .claims
        .iter()
        .filter(move |claim| claim.ended_at.is_none() && claim.user == us && cut::content_of(&claim.uid).is_some());
    live.map(move |claim| Ours {
        namespace: view.freeze.namespace.clone(),
        database: database.clone(),
        claim: claim.clone(),
    })
}

/// Ends a claim if there is a reason to.
fn end(gates: &Gates, ours: Ours, ending: &Doing) {
    let Some(why) = why(gates, &ours) else { return };
    let seen_at = Timestamp::now();
    let gates_ = gates.clone();
    ending.once(gates, ours.claim.uid.clone(), async move { finish(&gates_, ours, why, seen_at).await });
}

fn why(gates: &Gates, ours: &Ours) -> Option<End> {
    let (_, uid) = cut::content_of(&ours.claim.uid)?;
    let young = Timestamp::now().duration_since(ours.claim.since.0).unsigned_abs() < STORED;
    let known = gates.known();
    let Some(content) = known.get(uid) else { return (!young).then_some(End::Nobody) };
    match content.fate {
        Fate::Cut { created } => {
            Some(End::Cut { created, again: known.has_failed(uid), content: Box::new(content.clone()) })
        }
        Fate::Calling { .. } => None,
        // Nothing tells when such a driver is called.
        Fate::Before if gates.0.is_unmarked(&content.driver) => None,
        Fate::Before => (!young).then_some(End::Nobody),
    }
}

async fn finish(gates: &Gates, ours: Ours, end: End, seen_at: Timestamp) {
    let freezer = &gates.0.verbs.freezer;
    let watch = freezer.watch(&ours.namespace, &ours.database);
    let ended = freezer.unquiesce(&ours.namespace, &ours.database, &ours.claim.uid, Stage::Thaw).await;
    let Some(Ok(mut ended)) = ended else {
        debug!(claim = ours.claim.uid, ?ended, "it was let go already");
        return;
    };
    let End::Cut { content, created, again } = end else {
        info!(claim = ours.claim.uid, "nobody waits for this cut any more");
        return;
    };
    if ended.status.phase.is_finished() {
        let thawed = ended.status.thawed_at.as_ref().map_or_else(Timestamp::now, |at| at.0);
        gates.0.app.metrics.thawed_after_cut(thawed.duration_since(seen_at).as_secs_f64());
    } else if let Some(mut watch) = watch {
        // Others hold it still, and it is proved when the last of them lets go.
        if let Ok(status) = watch.wait_for(|status| status.phase.is_finished()).await {
            ended.status = Arc::clone(&status);
        }
    }
    judge::of_held(gates, &content, &ours.claim, &ended, Observed { seen_at, created, again }).await;
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
        not_held(gates, content, judging);
    }
    for (member, group) in members {
        let gates_ = gates.clone();
        judging.once(gates, member.uid.clone(), async move { said::of_group(&gates_, &member, &group).await });
    }
}

fn not_held(gates: &Gates, content: Content, judging: &Doing) {
    let gates_ = gates.clone();
    judging.once(gates, content.uid.clone(), judge::of_not_held(gates_, content));
}

impl Doing {
    /// Until it is done, or the server ends.
    fn once(&self, gates: &Gates, key: String, work: impl Future<Output = ()> + Send + 'static) {
        if !self.lock().insert(key.clone()) {
            return;
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
