//! What a cut was worth: whoever held for it says so as soon as it is thawed; of a cut that nobody was held for, whoever was asked
//! and could not, or else the leader.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use api::{
    Claim, Freeze, FreezeStatus, Phase, Via,
    gate::{atomic, claim},
};
use freeze::Ended;
use jiff::Timestamp;
use kube::api::DynamicObject;
use tokio::time::sleep;
use tracing::{info, warn};

use super::{
    Gates,
    contents::{Content, Fate},
    cut::{self, Together, Wanted},
    known::Called,
    policy::{Treatment, treatment},
    said::{self, If},
    verdict::{self, Calls, Held, Seen, Verdict, Window, judge},
};
use crate::csi_snapshots::Kind;

/// What was seen of a cut from outside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Observed {
    pub(super) seen_at: Timestamp,
    pub(super) created: Option<Timestamp>,
    pub(super) called: Called,
    /// Its snapshotter has said that it was about to cut.
    pub(super) marked: bool,
}

/// How often it is looked whether somebody has judged it.
const LOOK: Duration = Duration::from_secs(2);
/// No acquire timeout is longer, of which a barrier takes what is left.
const LONGEST_BARRIER: Duration = Duration::from_secs(15);
/// Whoever held for a cut says what it is worth within this, or is dead.
const LOOKS_AFTER_THAW: u32 = 3;
/// A freeze that lasts longer than this many looks is watched by nobody: see the Freeze.
const MOST_LOOKS: u32 = 600;

/// Of a cut that a claim was held for here, and is ended.
pub(super) async fn of_held(gates: &Gates, content: &Content, claim: &Claim, ended: &Ended, seen: Observed) {
    let class = class_says(gates, content).await;
    let claim = ended.status.claims.iter().rev().find(|ended| ended.uid == claim.uid).unwrap_or(claim);
    let verdict = judged(content, claim, &ended.status, seen, volumes(gates, content), class);
    info!(content = content.name, freeze = %ended.freeze, consistency = verdict.consistency.word(), "a cut is judged");
    // Whoever joined has a still point of his own, and where that was is not in the Freeze.
    let mut status = FreezeStatus::clone(&ended.status);
    if claim.frozen_at.is_some() && claim.frozen_at != status.frozen_at {
        status.targets.iter_mut().for_each(|target| target.position = None);
    }
    said::judgement(gates, content, Some((&ended.freeze.name, &status)), &verdict, If::Always).await;
}

/// Pure. `class`: its own word, or why it could not be read.
fn judged(
    content: &Content,
    claim: &Claim,
    status: &FreezeStatus,
    seen: Observed,
    volumes: Option<Together>,
    class: Result<Option<String>, String>,
) -> Verdict {
    let proved =
        !status.targets.is_empty() && status.targets.iter().all(|target| target.proof.as_ref().is_some_and(|p| p.held));
    let held = match claim.frozen_at.as_ref().or(status.frozen_at.as_ref()) {
        _ if claim.until.0 < seen.seen_at => {
            Held::Ended { why: "its claim had lapsed before the cut was seen".to_owned() }
        }
        None => Held::Ended { why: status.message.clone().unwrap_or_else(|| "it never held".to_owned()) },
        _ if seen.marked && content.claim.as_ref() != Some(&claim.uid) => Held::Not { why: UNANSWERED.to_owned() },
        Some(from) => {
            let calls = match seen.called {
                Called::NotBefore(called) if called >= from.0 => Calls::Within,
                Called::NotBefore(_) => Calls::Before,
                Called::Unsure => Calls::Untold,
            };
            let window = Window { from: from.0, to: seen.seen_at, complete: from.0 + LONGEST_BARRIER };
            Held::Throughout { window, calls, created: seen.created, proved }
        }
    };
    // Then it does not matter what was cut.
    if !matches!(held, Held::Throughout { proved: true, .. }) {
        return nothing_held(held);
    }
    // Its Pod is gone by now: nobody can tell whether these are all volumes that it had.
    let Some(together) = volumes else {
        return verdict::unknown("PodGone", "whoever had its volumes was gone when the cut was seen");
    };
    let held_of: BTreeSet<&str> = status.targets.iter().map(|target| target.database.as_str()).collect();
    if let Some(other) = together.databases.iter().find(|database| !held_of.contains(database.as_str())) {
        return verdict::unknown("NotAllHeld", &format!("Database {other} has data on it, too, and was not held"));
    }
    let class = match class {
        Ok(class) => class,
        Err(why) => return verdict::unknown("ClassUnknown", &format!("its class could not be read: {why}")),
    };
    let atomic = atomic::is_atomic(&content.driver, content.group, class.as_deref());
    let other = other(&together, status);
    judge(&Seen { atomic, other, cut: together.cut, of: together.of, held })
}

/// Why it is not known that whoever was held is whose volumes these are: each server says itself where it runs.
fn other(together: &Together, status: &FreezeStatus) -> Option<String> {
    let spelled = |host: &str| host.parse::<IpAddr>().map_or_else(|_| host.to_owned(), |address| address.to_string());
    together.databases.iter().find_map(|database| {
        let target = status.targets.iter().find(|target| target.database == *database)?;
        // An agent speaks to the server in its own Pod, which may call itself by whatever is said there.
        let host = match target.via {
            Via::Agent => Some(target.member.clone()),
            Via::Network => {
                target.incarnation.as_ref().and_then(|incarnation| incarnation.host.as_deref()).map(spelled)
            }
        };
        let names = together.names.get(database);
        if let (Some(host), Some(names)) = (&host, names)
            && names.contains(host)
        {
            return None;
        }
        let names = names.map(|names| names.iter().map(String::as_str).collect::<Vec<_>>().join(", "));
        Some(match (host, names.filter(|names| !names.is_empty())) {
            (Some(host), Some(names)) => format!(
                "whoever was held for Database {database} says that it runs at {host}, and the volumes are of {names}: give \
                 each server a Database of its own, by an address that leads to it alone"
            ),
            (None, _) => format!("whoever was held for Database {database} does not say where it runs"),
            (_, None) => format!("several Pods write to volumes of Database {database}, and one of them was held"),
        })
    })
}

/// Of a cut that nothing is held for here; waits for whoever may hold for it. Ends at once if nothing of ours is on it. `began`: of
/// what was made before, the Pods and Databases of today say nothing unless they were there then.
pub(super) async fn of_not_held(gates: Gates, content: Content, began: Timestamp) {
    let mut thawed = 0;
    for _ in 0..MOST_LOOKS {
        let missed = gates.missed(&content.uid);
        if missed.is_none() {
            sleep(LOOK).await;
        }
        let was_there =
            |since: Option<Timestamp>| content.made >= began || since.is_none_or(|since| content.made >= since);
        if volumes(&gates, &content).is_none_or(|together| !was_there(together.since)) {
            gates.known().settle(&content.uid);
            return;
        }
        let Some(content) = now(&gates, &content).await else { return };
        let snapshot = match gates.snapshot(content.group, &content.snapshot).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                warn!(content = content.name, %error, "its snapshot could not be read");
                sleep(LOOK).await;
                continue;
            }
        };
        let treated = if content.skips { Treatment::Skip } else { treatment(snapshot.as_deref()) };
        if matches!(treated, Treatment::Foreign(_)) {
            gates.known().settle(&content.uid);
            return;
        }
        let freezes = gates.0.verbs.records.freezes();
        let verdict = match (freeze_of(freezes.iter().map(AsRef::as_ref), &content.uid, &gates.0.own.user.name), missed)
        {
            (Some(Freezed::Goes), _) => {
                sleep(LOOK).await;
                continue;
            }
            (Some(Freezed::Ended(why)), _) => nothing_held(Held::Ended { why }),
            (Some(Freezed::Thawed { claim }), _) => match gates.let_go(&claim) {
                Some(why) if why == UNANSWERED => nothing_held(Held::Not { why }),
                Some(why) => nothing_held(Held::Ended { why }),
                None if thawed < LOOKS_AFTER_THAW => {
                    thawed += 1;
                    sleep(LOOK).await;
                    continue;
                }
                None => verdict::unknown(
                    "NotJudged",
                    "whoever held for it was gone before it had said what the copy is worth",
                ),
            },
            (None | Some(Freezed::Failed(_)), _) if treated == Treatment::Skip => verdict::skipped(),
            (None | Some(Freezed::Failed(_)), Some(why)) | (Some(Freezed::Failed(why)), None) => {
                nothing_held(Held::Not { why })
            }
            (None, None) => nothing_held(Held::Not { why: NOBODY_ASKED.to_owned() }),
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

/// Why a cut is worth no more than if nobody were held.
pub(super) const UNANSWERED: &str = "its cut was let begin without the answer that its databases were held, and may have begun before they were: \
                          `kubectl still doctor` says what is missing";

const NOBODY_ASKED: &str = "nobody asked before the cut, or whoever held for it was gone before that was written: stillpoint-webhooks \
                            was not there, or could ask nobody; `kubectl still doctor` says what is missing";

/// What became of the freeze that a content had its newest claim in.
#[derive(Debug, PartialEq, Eq)]
enum Freezed {
    /// It holds, or is on its way: whoever holds judges.
    Goes,
    /// Its owner has ended this claim.
    Thawed { claim: String },
    /// Before the cut was seen.
    Ended(String),
    /// It never held; whoever was told so knows more.
    Failed(String),
}

/// Pure. `None`: nothing was ever asked for it. `us`: whoever else claims it claims nothing of ours.
fn freeze_of<'f>(freezes: impl Iterator<Item = &'f Freeze>, content: &str, us: &str) -> Option<Freezed> {
    let of = |freeze: &'f Freeze| {
        let status = freeze.status.as_ref()?;
        let has =
            |claim: &&Claim| claim.user == us && claim::content_of(&claim.uid).is_some_and(|(_, uid)| uid == content);
        Some((freeze, status, status.claims.iter().filter(has).max_by_key(|claim| claim.since.0)?))
    };
    // One that was refused held nothing: any other goes before it.
    let newest = freezes.filter_map(of).max_by_key(|(_, status, claim)| (status.phase != Phase::Failed, claim.since.0));
    let (freeze, status, claim) = newest?;
    let name = freeze.metadata.name.as_deref().unwrap_or_default();
    let why = status.message.as_deref().unwrap_or_default();
    Some(match status.phase {
        Phase::Failed => Freezed::Failed(format!("Freeze {name} failed: {why}")),
        _ if claim.was_let_go(status) => Freezed::Thawed { claim: claim.uid.clone() },
        phase if !phase.is_finished() => Freezed::Goes,
        phase => Freezed::Ended(format!("Freeze {name} ended as {phase} before the cut was seen: {why}")),
    })
}

fn nothing_held(held: Held) -> Verdict {
    judge(&Seen { atomic: false, other: None, cut: BTreeSet::new(), of: BTreeSet::new(), held })
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

/// What these volumes are of now. `None`: no Database has data on them.
pub(super) fn volumes(gates: &Gates, content: &Content) -> Option<Together> {
    let index = gates.0.watched.index();
    let claims = cut::claims(&index, &content.driver, &content.handles, Some(&content.snapshot.namespace));
    let shared = content.handles.iter().any(|handle| index.is_shared(&content.driver, handle));
    let databases = gates.0.verbs.records.databases(claims.first().map(|(namespace, _)| namespace.as_str()));
    let databases: Vec<_> = databases.iter().map(AsRef::as_ref).collect();
    match cut::wanted(&index, &claims, &databases) {
        Wanted::Hold(mut together) => {
            // Whoever writes to it from another namespace was not held.
            if shared {
                together.names.clear();
            }
            Some(together)
        }
        Wanted::Nothing(_) => None,
    }
}

async fn class_says(gates: &Gates, content: &Content) -> Result<Option<String>, String> {
    let Some(name) = &content.class else { return Ok(None) };
    for _ in 0..CLASS_TRIES {
        match gates.class(content.group, name).await {
            Ok(class) => return Ok(class.as_ref().and_then(said_by_class)),
            Err(error) => warn!(name, %error, "a snapshot class could not be read"),
        }
        sleep(LOOK).await;
    }
    gates
        .class(content.group, name)
        .await
        .map_err(|error| error.to_string())
        .map(|class| class.as_ref().and_then(said_by_class))
}

const CLASS_TRIES: u32 = 3;

/// A class's own word for whether its driver cuts as of one instant.
pub(super) fn said_by_class(class: &DynamicObject) -> Option<String> {
    atomic::said_by_class(&class.metadata).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use api::{
        conditions::reasons,
        gate::{BEING_CREATED, Group},
    };
    use serde_json::{Value, json};

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    fn content() -> Content {
        let content = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": "c", "uid": "u", "annotations": {BEING_CREATED: "VolumeSnapshotContent/u"}},
            "spec": {
                "driver": "d", "source": {"volumeHandle": "h"},
                "volumeSnapshotRef": {"namespace": "shop", "name": "noon", "uid": "of"},
            },
            "status": {"snapshotHandle": "s"},
        });
        Content::read(&serde_json::from_value(content).unwrap(), Group::Single).unwrap()
    }

    /// Held from second 0, by a claim until second 60.
    fn status(phase: &str, ended: bool, proved: bool) -> FreezeStatus {
        let reason = if phase == "Thawed" && ended { "Released" } else { "Forced" };
        let ended = ended.then(|| at(10).to_string());
        serde_json::from_value(json!({
            "phase": phase, "message": "why", "frozenAt": at(0).to_string(), "thawedAt": at(10).to_string(),
            "conditions": [{
                "type": "Frozen", "status": "False", "reason": reason, "message": "", "lastTransitionTime": at(10).to_string(),
            }],
            "claims": [{
                "kind": "User", "name": "us", "uid": "VolumeSnapshotContent/u", "user": "us",
                "since": at(-1).to_string(), "until": at(60).to_string(), "endedAt": ended,
            }],
            "targets": [{
                "database": "orders", "engine": "PostgreSQL", "member": "m",
                "proof": {
                    "held": proved, "kind": "SessionHeld", "incarnation": {"server": "s", "startedAt": "t", "replica": false},
                },
                "incarnation": {"server": "s", "host": "fd00:0::1", "startedAt": "t", "replica": false},
            }],
        }))
        .unwrap()
    }

    fn together(databases: &[&str], at: &str) -> Together {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Together {
            namespace: "shop".to_owned(),
            databases: names(databases),
            level: api::Level::Durable,
            cut: names(&["data"]),
            of: names(&["data"]),
            names: databases.iter().map(|name| ((*name).to_owned(), names(&[at, "orders-0"]))).collect(),
            pods: BTreeMap::new(),
            since: None,
        }
    }

    #[test]
    fn only_what_was_held_before_the_driver_could_be_called_is_worth_what_was_proved() {
        let seen = |called, seen_at: i64| Observed { seen_at: at(seen_at), created: None, called, marked: true };
        let (once, late) = (Called::NotBefore(at(1)), Called::NotBefore(at(-1)));
        let whole = || Some(together(&["orders"], "fd00::1"));
        let says = || Ok(Some("true".to_owned()));
        let frozen = status("Thawed", true, true);
        for (status, seen, volumes, class, reason) in [
            (&frozen, seen(once, 10), whole(), says(), "Proved"),
            // It was called before it was held, or nobody knows.
            (&frozen, seen(late, 10), whole(), says(), "CutUnknown"),
            (&frozen, seen(Called::Unsure, 10), whole(), says(), "CutUnknown"),
            (&frozen, seen(once, 61), whole(), says(), "FreezeEnded"),
            (&status("Thawed", true, false), seen(once, 10), whole(), says(), "NotProved"),
            (&frozen, seen(once, 10), None, says(), "PodGone"),
            (&frozen, seen(once, 10), Some(together(&["orders", "audit"], "fd00::1")), says(), "NotAllHeld"),
            (&frozen, seen(once, 10), Some(together(&["orders"], "10.0.0.1")), says(), "MemberUnknown"),
            (
                &frozen,
                seen(once, 10),
                Some(Together { names: BTreeMap::new(), ..whole().unwrap() }),
                says(),
                "MemberUnknown",
            ),
            (&frozen, seen(once, 10), whole(), Err("403".to_owned()), "ClassUnknown"),
            (&frozen, seen(once, 10), whole(), Ok(None), "DriverUnknown"),
        ] {
            let verdict = judged(&content(), &status.claims[0], status, seen, volumes, class);
            assert_eq!(verdict.reason, reason, "{seen:?}: {verdict:?}");
        }
        // Its mark was stored without an answer of ours, or with that to an older question.
        for claim in [None, Some("yes".to_owned()), Some("VolumeSnapshotContent/u/1".to_owned())] {
            let content = Content { claim, ..content() };
            let verdict = judged(&content, &frozen.claims[0], &frozen, seen(once, 10), whole(), says());
            assert_eq!(verdict.reason, "NotFrozen", "{verdict:?}");
            assert!(verdict.message.contains("without the answer"), "{verdict:?}");
        }
        // A snapshotter that makes no mark leaves nothing to write a claim beside.
        let (unmarked, content) = (Observed { marked: false, ..seen(once, 10) }, Content { claim: None, ..content() });
        let verdict = judged(&content, &frozen.claims[0], &frozen, unmarked, whole(), says());
        assert_eq!(verdict.reason, "Proved", "{verdict:?}");
    }

    #[test]
    fn what_became_of_a_freeze_is_what_became_of_its_newest_claim() {
        let freeze = |name: &str, status: FreezeStatus| -> Freeze {
            let freeze = json!({
                "apiVersion": api::API_VERSION, "kind": "Freeze", "metadata": {"namespace": "shop", "name": name},
                "spec": {"targets": [{"database": "orders"}]},
            });
            Freeze { status: Some(status), ..serde_json::from_value(freeze).unwrap() }
        };
        let of = |freezes: &[Freeze]| freeze_of(freezes.iter(), "u", "us");
        let thawed = || Some(Freezed::Thawed { claim: "VolumeSnapshotContent/u".to_owned() });
        assert_eq!(of(&[]), None);
        let failed = of(&[freeze("a", status("Failed", false, false))]);
        assert!(matches!(&failed, Some(Freezed::Failed(why)) if why.starts_with("Freeze a failed")), "{failed:?}");
        assert_eq!(of(&[freeze("a", status("Frozen", false, false))]), Some(Freezed::Goes));
        assert_eq!(of(&[freeze("a", status("Thawed", true, true))]), thawed());
        // Others hold it still.
        assert_eq!(of(&[freeze("a", status("Frozen", true, false))]), thawed());
        for phase in ["Expired", "Lost", "Thawed"] {
            let ended = format!("Freeze a ended as {phase} before the cut was seen: why");
            assert_eq!(of(&[freeze("a", status(phase, false, false))]), Some(Freezed::Ended(ended)));
        }
        // Whatever ended the freeze ended its claims, too.
        for phase in ["Expired", "Lost"] {
            assert!(matches!(of(&[freeze("a", status(phase, true, false))]), Some(Freezed::Ended(_))), "{phase}");
        }
        let mut forced = status("Thawed", true, true);
        forced.conditions[0].reason = reasons::FORCED.to_owned();
        assert!(matches!(of(&[freeze("a", forced)]), Some(Freezed::Ended(_))));
        let mut newer = status("Frozen", false, false);
        newer.claims[0].since = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(at(5));
        let both = [freeze("b", newer), freeze("a", status("Thawed", true, true))];
        assert_eq!(of(&both), Some(Freezed::Goes));
        let other: Value = json!("VolumeSnapshotContent/other");
        let mut others = status("Frozen", false, false);
        others.claims[0].uid = other.as_str().unwrap().to_owned();
        assert_eq!(of(&[freeze("a", others)]), None);
        let mut somebody = status("Frozen", false, false);
        somebody.claims[0].user = "somebody".to_owned();
        assert_eq!(of(&[freeze("a", somebody)]), None, "whoever may quiesce may choose a uid");
    }
}
