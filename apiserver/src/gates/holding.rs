//! Holding Databases for a cut, by a claim of its content's uid; and who is asked about one too often to be believed.

use std::{collections::HashMap, time::Duration};

use api::{
    CheckResult, Claim, FreezeStatus, QuiesceStatus,
    gate::{GateObject, GateRequest, claim},
};
use http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::warn;

use super::{
    Gates,
    contents::Content,
    cut::{self, Together},
    thaw::Ages,
    verb::Refusal,
};
use crate::own_account::Answered;

/// How often a content's claim may have ended and be made anew: a driver that fails is called again, and the gate asked again.
const AGAIN: u32 = 16;
/// What is left of a deadline for what has to be undone and said when nothing could be held.
pub(super) const WAY_OUT: Duration = Duration::from_secs(1);
/// While somebody else holds the same Databases in another way, or a replica takes over: how long until it is tried again.
const BUSY: Duration = Duration::from_millis(100);
const BUSY_LONGEST: Duration = Duration::from_secs(1);
/// Of somebody who will hold them for longer than anybody waits: how long it is waited all the same.
const BUSY_FOR_LONG: Duration = Duration::from_secs(2);

/// How often Databases were held in vain for a snapshot whose cut did not begin: somebody else denies it, or nobody means it. After a
/// few times nothing is held for a while, which grows.
#[derive(Debug, Default)]
pub(super) struct InVain(HashMap<String, Vain>);

#[derive(Debug)]
struct Vain {
    times: u32,
    claim: String,
    last: Instant,
}

/// So often at once, without a pause.
const FREE: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Snapshots that are remembered; of more the ones that were held for longest ago are forgotten.
const MOST: usize = 10_000;

impl InVain {
    /// How long nothing is held for this snapshot from now on.
    pub(super) fn rests(&self, snapshot: &str, now: Instant) -> Option<Duration> {
        let vain = self.0.get(snapshot).filter(|vain| vain.times >= FREE)?;
        let pause = FIRST_PAUSE.saturating_mul(1 << (vain.times - FREE).min(16)).min(LONGEST_PAUSE);
        Some((vain.last + pause).saturating_duration_since(now)).filter(|left| !left.is_zero())
    }

    /// It was held for, by this claim; the same one again is no other time.
    fn note(&mut self, snapshot: &str, claim: &str, now: Instant) {
        if self.0.len() >= MOST && !self.0.contains_key(snapshot) {
            let oldest = self.0.iter().min_by_key(|(_, vain)| vain.last).map(|(snapshot, _)| snapshot.clone());
            oldest.and_then(|oldest| self.0.remove(&oldest));
        }
        let vain = self.0.entry(snapshot.to_owned()).or_insert(Vain { times: 0, claim: String::new(), last: now });
        vain.times += u32::from(vain.claim != claim);
        (vain.claim, vain.last) = (claim.to_owned(), now);
    }

    /// Its cut has begun.
    pub(super) fn begun(&mut self, content: &Content) {
        if let Some(snapshot) = &content.snapshot.uid {
            self.0.remove(snapshot);
        }
    }
}

impl Gates {
    /// Holds them, wherever their members are. While others hold them in another way, that is waited for. What cannot be held by the
    /// deadline is not held later either.
    pub(super) async fn hold(
        &self,
        request: &GateRequest,
        together: &Together,
        is_required: bool,
        deadline: Instant,
    ) -> Result<QuiesceStatus, String> {
        let database = together.databases.first().ok_or("no Database")?;
        let snapshot = request.snapshot.as_ref().and_then(|snapshot| snapshot.uid.clone()).unwrap_or_default();
        if let Some(left) = self.in_vain().rests(&snapshot, Instant::now()) {
            let left = left.as_secs();
            return Err(format!(
                "it was held for {FREE} times and more, and was not cut; it is held for again in {left} s"
            ));
        }
        let mut asking = Asking {
            gates: self.clone(),
            namespace: together.namespace.clone(),
            database: database.clone(),
            member: self.member(together),
            content: request.object.uid.clone(),
            is_required,
            again: self.finished(&request.object),
            claim: None,
            until: None,
        };
        let (began, mut busy, mut pause) = (Instant::now(), None, BUSY);
        loop {
            let held = timeout_at(deadline, self.hold_once(request, together, &mut asking)).await;
            match held {
                Err(_) => {
                    if let Some(claim) = asking.claim.take() {
                        self.let_go_of(together, &claim, TOO_LATE, deadline).await;
                    }
                    return Err(busy.unwrap_or_else(|| TOO_LATE.to_owned()));
                }
                Ok(Ok(status)) => {
                    if let Some(claim) = asking.claim.take() {
                        self.in_vain().note(&snapshot, &claim, Instant::now());
                    }
                    return Ok(status);
                }
                Ok(Err(Refusal::Final(why))) => {
                    asking.claim = None;
                    return Err(why);
                }
                Ok(Err(Refusal::Busy(why))) => {
                    asking.claim = None;
                    let gives_up = began.elapsed() >= BUSY_FOR_LONG && self.is_held_beyond(together, deadline);
                    if gives_up || Instant::now() + pause >= deadline {
                        return Err(why);
                    }
                    busy = Some(why);
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(BUSY_LONGEST);
        }
    }

    /// Ends a claim that nobody waits for any more.
    pub(super) async fn let_go_of(&self, together: &Together, claim: &str, why: &str, deadline: Instant) {
        let Some(database) = together.databases.first() else { return };
        timeout_at(deadline + WAY_OUT, self.unquiesce(&together.namespace, database, claim)).await.ok();
        self.was_let_go(claim, why);
    }

    /// The same content again is the same claim, and its time begins anew; one that has ended is followed by another.
    async fn hold_once(
        &self,
        request: &GateRequest,
        together: &Together,
        asking: &mut Asking,
    ) -> Result<QuiesceStatus, Refusal> {
        let (namespace, database) = (&together.namespace, asking.database.clone());
        for _ in 0..AGAIN {
            let claim = claim::uid(request.object.group, &request.object.uid, asking.again);
            (asking.claim, asking.until) = ((!request.dry_run).then(|| claim.clone()), None);
            let quiesce = cut::quiesce(together, asking.member.clone(), claim.clone(), cut::reason(request));
            let Answered { code, body, warnings } =
                self.quiesce(namespace, &database, &quiesce, request.dry_run).await?;
            let until = match code {
                StatusCode::CREATED => Some(None),
                StatusCode::OK if request.dry_run => Some(None),
                StatusCode::OK => self.renew(namespace, &database, &claim).await?.map(Some),
                StatusCode::GONE => None,
                code => return Err(Refusal::read(code, &body)),
            };
            // Nothing less is wanted than what is written down: who renews is answered after that, or not at all.
            let until = match until {
                Some(None) if asking.is_required && !request.dry_run => {
                    self.renew(namespace, &database, &claim).await?.map(Some)
                }
                until => until,
            };
            if let Some(until) = until {
                let status = QuiesceStatus::deserialize(&body["status"]);
                let status = status.map_err(|error| Refusal::Final(error.to_string()))?;
                asking.until = until.or(status.expires_at.as_ref().map(|at| at.0));
                // A dry run says what would fail, and does not fail.
                if let Some(check) = status.checks.iter().find(|check| check.result == CheckResult::Fail) {
                    return Err(Refusal::Final(format!("{}: {}", check.database, check.message)));
                }
                return Ok(QuiesceStatus { warnings: [status.warnings, warnings].concat(), ..status });
            }
            asking.again = asking.again.checked_add(1).ok_or_else(|| Refusal::Final(TOO_OFTEN.to_owned()))?;
        }
        Err(Refusal::Final(TOO_OFTEN.to_owned()))
    }

    /// Of a Database with several members, the one whose volumes are cut, if an agent can hold that one.
    fn member(&self, together: &Together) -> Option<String> {
        let (database, pod) = cut::member(together)?;
        let databases = self.0.verbs.records.databases(Some(&together.namespace));
        let database = databases.iter().find(|one| one.metadata.name.as_deref() == Some(database))?;
        self.0.verbs.directory.is_one_of_several(&together.namespace, database, pod).then(|| pod.to_owned())
    }

    /// Whether somebody who is no gate holds one of these Databases for longer than anybody waits here.
    fn is_held_beyond(&self, together: &Together, deadline: Instant) -> bool {
        let deadline = Timestamp::now() + deadline.saturating_duration_since(Instant::now());
        let freezes = self.0.verbs.records.freezes();
        let held = freezes.iter().filter(|freeze| freeze.metadata.namespace.as_ref() == Some(&together.namespace));
        let held = held.filter_map(|freeze| freeze.status.as_ref()).filter(|status| !status.phase.is_finished());
        let of_these =
            |status: &&FreezeStatus| status.targets.iter().any(|target| together.databases.contains(&target.database));
        let claims = held.filter(of_these).flat_map(|status| &status.claims);
        claims.into_iter().any(|claim| {
            claim.ended_at.is_none() && claim::content_of(&claim.uid).is_none() && claim.until.0 > deadline
        })
    }

    /// How many claims of a content are known to have ended: the next is none of them.
    fn finished(&self, object: &GateObject) -> u32 {
        let freezes = self.0.verbs.records.freezes();
        let claims = freezes.iter().filter_map(|freeze| freeze.status.as_ref());
        let claims = claims.flat_map(|status| status.claims.iter().map(|claim| (status.phase.is_finished(), claim)));
        // Whoever may quiesce may choose such a uid.
        let ended = claims
            .filter(|(finished, claim)| claim.user == self.0.own.user.name && (*finished || claim.ended_at.is_some()));
        let of_it = ended.filter_map(|(_, claim)| claim::number_of(&claim.uid, object.group, &object.uid));
        of_it.max().map_or(0, |last| last.saturating_add(1))
    }
}

/// A gate that asks for a claim. Whoever asked may be gone before it is held, and then it is dropped: nobody waits for it.
struct Asking {
    gates: Gates,
    namespace: String,
    database: String,
    /// Of several, the Pod that is meant.
    member: Option<String>,
    content: String,
    /// A cut that is not held must not begin.
    is_required: bool,
    again: u32,
    /// That may be held, and that nobody was told of.
    claim: Option<String>,
    /// Until when, as we were told.
    until: Option<Timestamp>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(claim) = self.claim.take() else { return };
        let (gates, namespace, database, until) =
            (self.gates.clone(), self.namespace.clone(), self.database.clone(), self.until);
        gates.was_let_go(&claim, GONE);
        gates.note_missed(&self.content, GONE);
        self.gates.0.verbs.tasks.spawn(async move {
            // The same question may have been asked of another replica since, and answered: then it is that one's.
            let is_anothers =
                |now: Claim| now.frozen_at.is_some() && until.is_none_or(|until| Ages::differ(now.until.0, until));
            let living = gates.0.verbs.living(&gates.0.own.user.name, |uid| uid == claim).pop();
            if living.is_some_and(is_anothers) {
                return;
            }
            if let Err(why) = gates.unquiesce(&namespace, &database, &claim).await {
                warn!(claim, ?why, "a claim that nobody waits for ends by itself");
            }
        });
    }
}

const TOO_LATE: &str = "its databases did not stand still in time";
const TOO_OFTEN: &str = "it was tried too often";
const GONE: &str = "whoever asked was gone before its databases stood still";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_is_held_for_in_vain_waits_longer_and_longer_and_a_cut_that_begins_ends_that() {
        let (mut vain, now) = (InVain::default(), Instant::now());
        for claim in ["a", "a", "b"] {
            vain.note("noon", claim, now);
        }
        assert_eq!(vain.rests("noon", now), None, "the same claim again is no other time");
        vain.note("noon", "c", now);
        assert_eq!(vain.rests("noon", now), Some(FIRST_PAUSE));
        assert_eq!(vain.rests("noon", now + FIRST_PAUSE), None);
        assert_eq!(vain.rests("evening", now), None);
        vain.note("noon", "d", now);
        assert_eq!(vain.rests("noon", now), Some(FIRST_PAUSE * 2));
        for claim in 0..100 {
            vain.note("noon", &claim.to_string(), now);
        }
        assert_eq!(vain.rests("noon", now), Some(LONGEST_PAUSE));
        for snapshot in 0..=MOST {
            vain.note(&snapshot.to_string(), "a", now + FIRST_PAUSE);
        }
        assert!(vain.0.len() == MOST && vain.rests("noon", now).is_none());
    }
}
