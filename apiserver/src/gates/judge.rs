//! What a cut was worth: whoever held for it says so as soon as it is thawed; of a cut that nobody was held for, whoever was asked
//! and could not, or else the leader.

use std::{collections::BTreeSet, time::Duration};

use api::{Claim, FreezeStatus, Phase};
use freeze::Ended;
use jiff::Timestamp;
use kube::api::DynamicObject;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    Gates, atomic,
    contents::{Content, Fate},
    cut::{self, Wanted},
    kinds::Kind,
    policy::{Treatment, treatment},
    said::{self, If},
    verdict::{self, Calls, Held, Seen, Verdict, Window, judge},
};

/// What was seen of a cut from outside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observed {
    pub(super) seen_at: Timestamp,
    pub(super) created: Option<Timestamp>,
    /// The driver may have been called more than once.
    pub(super) again: bool,
}

/// How often it is looked whether somebody has judged it.
const LOOK: Duration = Duration::from_secs(2);
/// Whoever held for a cut says what it is worth within this, or is dead.
const LOOKS_AFTER_THAW: u32 = 3;
/// A freeze that lasts longer than this many looks is watched by nobody: see the Freeze.
const MOST_LOOKS: u32 = 600;

/// Of a cut that a claim was held for here, and is ended.
pub(super) async fn of_held(gates: &Gates, content: &Content, claim: &Claim, ended: &Ended, seen: Observed) {
    let verdict = judged(gates, content, claim, &ended.status, seen).await;
    info!(content = content.name, freeze = %ended.freeze, consistency = verdict.consistency.word(), "a cut is judged");
    said::judgement(gates, content, Some((&ended.freeze.name, &ended.status)), &verdict, If::Always).await;
}

async fn judged(gates: &Gates, content: &Content, claim: &Claim, status: &FreezeStatus, seen: Observed) -> Verdict {
    let class = class_says(gates, content).await;
    let atomic = atomic::is_atomic(&content.driver, content.group, class.as_deref());
    let claim = status.claims.iter().rev().find(|ended| ended.uid == claim.uid).unwrap_or(claim);
    let proved =
        !status.targets.is_empty() && status.targets.iter().all(|target| target.proof.as_ref().is_some_and(|p| p.held));
    let held = match claim.frozen_at.as_ref().or(status.frozen_at.as_ref()) {
        _ if claim.until.0 < seen.seen_at => {
            Held::Ended { why: "its claim had lapsed before the cut was seen".to_owned() }
        }
        None => Held::Ended { why: status.message.clone().unwrap_or_else(|| "it never held".to_owned()) },
        Some(from) => {
            let calls = if seen.again { Calls::Again { created: seen.created } } else { Calls::Once };
            Held::Throughout { window: Window { from: from.0, to: seen.seen_at }, calls, proved }
        }
    };
    match (volumes(gates, content), held) {
        (Some((cut, of)), held) => judge(&Seen { atomic, cut, of, held }),
        (None, held @ Held::Ended { .. }) => judge(&Seen { atomic, cut: BTreeSet::new(), of: BTreeSet::new(), held }),
        // Its Pod is gone by now: nobody can tell whether these are all volumes that it had.
        (None, _) => verdict::unknown("PodGone", "whoever had its volumes was gone when the cut was seen"),
    }
}

/// Of a cut that nothing is held for here; waits for whoever may hold for it. Ends at once if nothing of ours is on it.
pub(super) async fn of_not_held(gates: Gates, content: Content) {
    let mut thawed = 0;
    for _ in 0..MOST_LOOKS {
        let missed = gates.missed(&content.uid);
        if missed.is_none() {
            sleep(LOOK).await;
        }
        let Some(content) = now(&gates, &content).await else { return };
        let snapshot = match gates.snapshot(content.group, &content.snapshot.0, &content.snapshot.1).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                warn!(content = content.name, %error, "its snapshot could not be read");
                continue;
            }
        };
        let treated = treatment(snapshot.as_ref().map(|snapshot| &snapshot.metadata));
        if matches!(treated, Treatment::Foreign(_)) || volumes(&gates, &content).is_none() {
            return;
        }
        let verdict = match (freeze_of(&gates, &content), missed) {
            (Some(Freezed::Goes), _) => {
                sleep(LOOK).await;
                continue;
            }
            (Some(Freezed::Thawed), _) if thawed < LOOKS_AFTER_THAW => {
                thawed += 1;
                sleep(LOOK).await;
                continue;
            }
            (Some(Freezed::Thawed), _) => {
                verdict::unknown("NotJudged", "whoever held for it was gone before it had said what the copy is worth")
            }
            (Some(Freezed::Ended(why)), _) => nothing_held(Held::Ended { why }),
            (None, _) if treated == Treatment::Skip => verdict::skipped(),
            (None, Some(why)) => nothing_held(Held::Not { why }),
            (None, None) => nothing_held(Held::Not {
                why: "nobody asked before the cut: stillpoint-webhooks was not there, or is not configured; `kubectl still doctor` \
                      says what is missing"
                    .to_owned(),
            }),
        };
        info!(
            content = content.name,
            consistency = verdict.consistency.word(),
            "a cut that nobody was held for is judged"
        );
        said::judgement(&gates, &content, None, &verdict, If::Unchanged).await;
        sleep(LOOK).await;
    }
}

/// What became of the freeze that a content had a claim in.
enum Freezed {
    /// It holds, or is on its way: whoever holds judges.
    Goes,
    Thawed,
    /// Before the cut was seen.
    Ended(String),
}

fn freeze_of(gates: &Gates, content: &Content) -> Option<Freezed> {
    let has = |claim: &Claim| cut::content_of(&claim.uid).is_some_and(|(_, uid)| uid == content.uid);
    let freezes = gates.0.verbs.records.freezes();
    let of = |freeze: &std::sync::Arc<api::Freeze>| {
        let status = freeze.status.as_ref()?;
        let claim = status.claims.iter().rev().find(|claim| has(claim))?;
        let name = freeze.metadata.name.clone().unwrap_or_default();
        Some(match status.phase {
            phase if !phase.is_finished() => Freezed::Goes,
            // It was refused, and whoever was told knows why.
            Phase::Failed => return None,
            Phase::Thawed if claim.ended_at.is_some() => Freezed::Thawed,
            phase => {
                let why = status.message.clone().unwrap_or_default();
                Freezed::Ended(format!("Freeze {name} ended as {phase} before the cut was seen: {why}"))
            }
        })
    };
    // The one that goes is the one that counts.
    let mut found: Vec<Freezed> = freezes.iter().filter_map(of).collect();
    found.sort_by_key(|freezed| match freezed {
        Freezed::Goes => 0,
        Freezed::Thawed => 1,
        Freezed::Ended(_) => 2,
    });
    found.into_iter().next()
}

fn nothing_held(held: Held) -> Verdict {
    judge(&Seen { atomic: false, cut: BTreeSet::new(), of: BTreeSet::new(), held })
}

/// The content as it is now. `None`: it is judged, or gone.
async fn now(gates: &Gates, content: &Content) -> Option<Content> {
    match gates.0.kinds.all(Kind::Content, content.group).get_opt(&content.name).await {
        Ok(now) => {
            let now = Content::read(&now?, content.group)?;
            let same = now.uid == content.uid && !now.is_judged && matches!(now.fate, Fate::Cut { .. });
            same.then_some(now)
        }
        Err(error) => {
            warn!(content = content.name, %error, "it could not be read again");
            Some(content.clone())
        }
    }
}

/// The claims that were cut, and all that their Databases have data on. `None`: no Database has any on them.
pub(super) fn volumes(gates: &Gates, content: &Content) -> Option<(BTreeSet<String>, BTreeSet<String>)> {
    let index = gates.0.watched.index();
    let claims = cut::claims(&index, &content.driver, &content.handles);
    let databases = gates.0.verbs.records.databases(claims.first().map(|(namespace, _)| namespace.as_str()));
    let databases: Vec<_> = databases.iter().map(AsRef::as_ref).collect();
    match cut::wanted(&index, &claims, &databases) {
        Wanted::Hold(together) => Some((together.cut, together.of)),
        Wanted::Nothing(_) => None,
    }
}

async fn class_says(gates: &Gates, content: &Content) -> Option<String> {
    said_by_class(&gates.class(content.group, content.class.as_deref()?).await?)
}

/// A class's own word for whether its driver cuts as of one instant.
pub(super) fn said_by_class(class: &DynamicObject) -> Option<String> {
    let metadata = &class.metadata;
    let said = [&metadata.labels, &metadata.annotations];
    said.into_iter().find_map(|all| all.as_ref()?.get(api::gate::ATOMIC).cloned())
}
