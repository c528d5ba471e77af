//! A gate is asked: whose volumes these are, whether it is a real snapshot that wants to be waited for, holding its Databases, and
//! what becomes of it if they cannot be held.

use std::time::Duration;

use api::{
    QuiesceStatus,
    gate::{Gate, GateAnswer, GateObject, GateRequest, Group, ObjectRef},
};
use http::StatusCode;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::ListParams;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::{debug, info, warn};

use super::{
    Gates, atomic,
    contents::{Content, Fate, Of},
    cut::{self, Together, Wanted},
    judge,
    kinds::Kind,
    policy::{Missed, NamespacePolicy, Treatment, treatment},
    preflight::{self, Declared},
    said,
    verb::Refusal,
};
use crate::metrics::Gated;

/// How often a content's claim may have ended and be made anew: a driver that fails is called again, and the gate asked again.
const AGAIN: u32 = 16;
/// What is left of a deadline for the answer's way back.
const WAY_BACK: Duration = Duration::from_millis(200);
/// What is left of it for what has to be undone and said when nothing could be held.
const WAY_OUT: Duration = Duration::from_secs(1);
/// While somebody else holds the same Databases in another way, or a replica takes over: how long until it is tried again.
const BUSY: Duration = Duration::from_millis(100);
const BUSY_LONGEST: Duration = Duration::from_secs(1);

/// Why nothing is held.
enum NotHeld {
    /// It is no snapshot that anybody takes.
    Unreal(String),
    /// It does not want to be waited for, and says whose business it is.
    LeftAlone(String),
    /// It should have been held.
    Missed { why: String, snapshot: Option<Box<ObjectMeta>> },
}

impl Gates {
    /// Answers a gate by its deadline.
    pub(super) async fn ask(&self, request: &GateRequest, deadline: Instant) -> GateAnswer {
        let deadline = deadline.checked_sub(WAY_BACK).unwrap_or(deadline);
        match request.gate {
            Gate::Preflight => {
                let answer = timeout_at(deadline, self.preflight(request)).await;
                answer.unwrap_or_else(|_| GateAnswer::allow())
            }
            Gate::Cut | Gate::Content => {
                let (began, metrics) = (Instant::now(), &self.0.app.metrics);
                let (gated, answer) = self.cut(request, deadline).await;
                metrics.gated(gated, began.elapsed().as_secs_f64());
                answer
            }
        }
    }

    async fn cut(&self, request: &GateRequest, deadline: Instant) -> (Gated, GateAnswer) {
        let hold = deadline.checked_sub(WAY_OUT).unwrap_or(deadline);
        let together = match self.wanted(request) {
            Ok(Wanted::Hold(together)) => together,
            Ok(Wanted::Nothing(why)) => {
                debug!(?why, content = request.object.name, "a cut that nothing is held for");
                return (Gated::Nothing, GateAnswer::allow());
            }
            Err(why) => return (Gated::Missed, self.missed_now(request, why, None, deadline).await),
        };
        match self.held(request, &together, hold).await {
            Ok(status) => {
                self.is_held(&request.object.uid);
                if let Some(frozen) = &status.frozen_at {
                    let since = Timestamp::now().duration_since(frozen.0);
                    self.0.app.metrics.answered_after_frozen(since.as_secs_f64());
                }
                (Gated::Held, cut::held(&together, &status))
            }
            Err(NotHeld::LeftAlone(why)) => {
                info!(content = request.object.name, why, "a cut that is left alone");
                (Gated::LeftAlone, GateAnswer::allow())
            }
            Err(NotHeld::Unreal(why)) => {
                warn!(content = request.object.name, user = request.user, why, "a review that nobody has a reason for");
                (Gated::Unreal, cut::unreal(self.policy(request).required, &why))
            }
            Err(NotHeld::Missed { why, snapshot }) => {
                warn!(content = request.object.name, databases = ?together.databases, why, "not held for a cut");
                (Gated::Missed, self.missed_now(request, &why, snapshot, deadline).await)
            }
        }
    }

    async fn held(
        &self,
        request: &GateRequest,
        together: &Together,
        deadline: Instant,
    ) -> Result<QuiesceStatus, NotHeld> {
        let looked_up =
            timeout_at(deadline, async { tokio::join!(self.is_real(request, together), self.snapshot_of(request)) });
        let Ok((real, snapshot)) = looked_up.await else {
            return Err(NotHeld::Missed { why: "the API server did not answer in time".to_owned(), snapshot: None });
        };
        let missed = |why, snapshot| NotHeld::Missed { why, snapshot };
        match real {
            Ok(Ok(())) => {}
            Ok(Err(why)) => return Err(NotHeld::Unreal(why)),
            Err(error) => return Err(missed(format!("its content could not be looked up: {error}"), None)),
        }
        let snapshot = snapshot.map_err(|error| missed(format!("its snapshot could not be read: {error}"), None))?;
        match treatment(snapshot.as_deref()) {
            Treatment::Hold => {}
            Treatment::Skip => return Err(NotHeld::LeftAlone("it says so itself".to_owned())),
            Treatment::Foreign(operator) => return Err(NotHeld::LeftAlone(format!("{operator} makes it consistent"))),
        }
        let policy = self.policy(request);
        if policy.required
            && let Missed::Failed { .. } = policy.missed(snapshot.as_deref(), Timestamp::now())
        {
            // Nobody waits for it any more, and no writer is to.
            let why = self.missed(&request.object.uid).unwrap_or_else(|| "its deadline is over".to_owned());
            return Err(missed(why, snapshot));
        }
        match self.hold(request, together, deadline).await {
            Ok(status) => Ok(status),
            Err(why) => Err(missed(why, snapshot)),
        }
    }

    /// Whether this is about a content that is there, is about to be cut, and has these volumes: whoever reaches the webhooks' port
    /// can write a review. The inner error says what is wrong with it.
    async fn is_real(&self, request: &GateRequest, together: &Together) -> Result<Result<(), String>, kube::Error> {
        let Some(of) = &request.snapshot else { return Ok(Err("it is the content of no snapshot".to_owned())) };
        if of.namespace != together.namespace {
            return Ok(Err(format!("its volumes are of claims in namespace {}", together.namespace)));
        }
        let object = &request.object;
        if request.gate == Gate::Content {
            // It is not stored yet, but its snapshot is, and says what is to be cut.
            if !self.0.is_unmarked(request.driver.as_deref().unwrap_or_default()) {
                return Ok(Err("its driver tells when it cuts".to_owned()));
            }
            let found = self.0.kinds.snapshots(object.group, &of.namespace).get_opt(&of.name).await?;
            let same = found.filter(|found| found.metadata.uid == of.uid && of.uid.is_some());
            let right =
                same.is_some_and(|found| match found.data["spec"]["source"]["persistentVolumeClaimName"].as_str() {
                    Some(claim) => together.cut.iter().all(|cut| cut == claim),
                    None => object.group == Group::Group,
                });
            return Ok(right.then_some(()).ok_or_else(|| "there is no such snapshot of these claims".to_owned()));
        }
        let known = self.known().get(&object.uid).cloned();
        let known = match known {
            Some(known) => Some(known),
            // The watch may be behind.
            None => {
                let there = self.0.kinds.all(Kind::Content, object.group).get_opt(&object.name).await?;
                there.and_then(|there| Content::read(&there, object.group))
            }
        };
        let right = known.is_some_and(|known| is_of(request, &known));
        Ok(right.then_some(()).ok_or_else(|| "there is no such content that is about to be cut".to_owned()))
    }

    async fn snapshot_of(&self, request: &GateRequest) -> Result<Option<Box<ObjectMeta>>, kube::Error> {
        let Some(of) = &request.snapshot else { return Ok(None) };
        self.snapshot(request.object.group, &of_request(of)).await
    }

    /// Nothing could be held: the cut waits where that is wanted, and else is made all the same. People are told when it is news.
    async fn missed_now(
        &self,
        request: &GateRequest,
        why: &str,
        snapshot: Option<Box<ObjectMeta>>,
        deadline: Instant,
    ) -> GateAnswer {
        let policy = self.policy(request);
        let missed = policy.required.then(|| policy.missed(snapshot.as_deref(), Timestamp::now()));
        let answer = cut::not_held(missed, why);
        if !request.dry_run
            && self.is_missed(&request.object.uid, why)
            && let Some(of) = &request.snapshot
        {
            let uid = snapshot.and_then(|snapshot| snapshot.uid);
            let waits = matches!(missed, Some(Missed::Again { .. } | Missed::Failed { .. }));
            let (of, reason) = (of_request(of), if waits { "CutWaits" } else { "NotFrozen" });
            let telling = said::event(self, request.object.group, &of, uid, false, reason, why);
            timeout_at(deadline, telling).await.ok();
        }
        answer
    }

    /// As the namespace says now; the configuration may be behind.
    fn policy(&self, request: &GateRequest) -> NamespacePolicy {
        let namespace = request.snapshot.as_ref().map(|snapshot| snapshot.namespace.as_str());
        let namespace = namespace.or(request.object.namespace.as_deref()).unwrap_or_default();
        let policy = self.0.watched.index().policy(namespace);
        policy.or_required(request.required)
    }

    fn wanted(&self, request: &GateRequest) -> Result<Wanted, &'static str> {
        self.is_known()?;
        let index = self.0.watched.index();
        let claims = cut::claims(&index, request.driver.as_deref().unwrap_or_default(), &request.volume_handles);
        let namespace = claims.first().map(|(namespace, _)| namespace.as_str());
        let databases = self.0.verbs.records.databases(namespace);
        let databases: Vec<_> = databases.iter().map(AsRef::as_ref).collect();
        Ok(cut::wanted(&index, &claims, &databases))
    }

    fn is_known(&self) -> Result<(), &'static str> {
        if !self.0.watched.is_complete() || !self.0.verbs.stored.is_cancelled() {
            return Err("Stillpoint has just started, and does not know yet whose volumes these are");
        }
        Ok(())
    }

    async fn preflight(&self, request: &GateRequest) -> GateAnswer {
        let mut answer = GateAnswer::allow();
        let Some(namespace) = request.object.namespace.as_deref() else { return answer };
        if self.is_known().is_err() {
            return answer;
        }
        let claims = match &request.selector {
            Some(selector) => self.selected(namespace, selector).await,
            None => request.claims.clone(),
        };
        let names = preflight::names(namespace, &claims);
        let databases = self.0.verbs.records.databases(Some(namespace));
        let databases: Vec<_> = databases.iter().map(AsRef::as_ref).collect();
        let (wanted, driver) = {
            let index = self.0.watched.index();
            let driver = preflight::driver(&index, namespace, &claims).map(str::to_owned);
            (cut::wanted(&index, &names, &databases), driver)
        };
        if !matches!(wanted, Wanted::Hold(_)) {
            return answer;
        }
        let group = request.object.group;
        let class = match &request.class {
            Some(class) => self.class(group, class).await.ok().flatten(),
            None => None,
        };
        let said = class.as_ref().and_then(judge::said_by_class);
        // Which class is the default one is the snapshot controller's to find out.
        let known = said.is_some() || request.class.is_some();
        let atomic = driver.filter(|_| known).map(|driver| atomic::is_atomic(&driver, group, said.as_deref()));
        answer.warnings = preflight::warnings(&Declared { group, wanted: &wanted, databases: &databases, atomic });
        answer
    }

    /// The claims that a LabelSelector selects. What cannot be listed is nobody's: it is only about warnings.
    async fn selected(&self, namespace: &str, selector: &Value) -> Vec<String> {
        let Some(selector) = labels(selector) else { return Vec::new() };
        match self.0.kinds.claims(namespace).list_metadata(&ListParams::default().labels(&selector)).await {
            Ok(claims) => claims.items.into_iter().filter_map(|claim| claim.metadata.name).collect(),
            Err(error) => {
                debug!(namespace, %error, "the claims of a group could not be listed");
                Vec::new()
            }
        }
    }

    /// Holds them, wherever their members are. While others hold them in another way, that is waited for. What cannot be held by the
    /// deadline is not held later either.
    async fn hold(
        &self,
        request: &GateRequest,
        together: &Together,
        deadline: Instant,
    ) -> Result<QuiesceStatus, String> {
        let database = together.databases.first().ok_or("no Database")?;
        let mut asking = Asking {
            gates: self.clone(),
            namespace: together.namespace.clone(),
            database: database.clone(),
            content: request.object.uid.clone(),
            again: self.finished(&request.object),
            claim: None,
        };
        let (mut busy, mut pause) = (None, BUSY);
        loop {
            let held = timeout_at(deadline, self.hold_once(request, together, &mut asking)).await;
            match held {
                Err(_) => {
                    if let Some(claim) = asking.claim.take() {
                        let ended = self.unquiesce(&asking.namespace, database, &claim);
                        timeout_at(deadline + WAY_OUT, ended).await.ok();
                        self.was_let_go(&claim, TOO_LATE);
                    }
                    return Err(busy.unwrap_or_else(|| TOO_LATE.to_owned()));
                }
                Ok(Ok(status)) => {
                    asking.claim = None;
                    return Ok(status);
                }
                Ok(Err(Refusal::Final(why))) => {
                    asking.claim = None;
                    return Err(why);
                }
                Ok(Err(Refusal::Busy(why))) if Instant::now() + pause >= deadline => return Err(why),
                Ok(Err(Refusal::Busy(why))) => busy = Some(why),
            }
            asking.claim = None;
            sleep(pause).await;
            pause = (pause * 2).min(BUSY_LONGEST);
        }
    }

    /// The same content again is the same claim, and its time begins anew; one that has ended is followed by another.
    async fn hold_once(
        &self,
        request: &GateRequest,
        together: &Together,
        asking: &mut Asking,
    ) -> Result<QuiesceStatus, Refusal> {
        let last = asking.again + AGAIN;
        let database = asking.database.clone();
        while asking.again < last {
            let claim = cut::claim_uid(request.object.group, &request.object.uid, asking.again);
            asking.claim = (!request.dry_run).then(|| claim.clone());
            let quiesce = cut::quiesce(together, claim.clone(), cut::reason(request));
            let (code, body) = self.quiesce(&together.namespace, &database, &quiesce, request.dry_run).await?;
            let lives = match code {
                StatusCode::CREATED => true,
                StatusCode::OK => request.dry_run || self.renew(&together.namespace, &database, &claim).await?,
                StatusCode::GONE => false,
                code => return Err(Refusal::read(code, &body)),
            };
            if lives {
                return serde_json::from_value(body["status"].clone())
                    .map_err(|error| Refusal::Final(error.to_string()));
            }
            asking.again += 1;
        }
        Err(Refusal::Final(format!("it was tried {AGAIN} times")))
    }

    /// How many claims of a content are known to have ended: the next is none of them.
    fn finished(&self, object: &GateObject) -> u32 {
        let freezes = self.0.verbs.records.freezes();
        let claims = freezes.iter().filter_map(|freeze| freeze.status.as_ref());
        let claims = claims.flat_map(|status| status.claims.iter().map(|claim| (status.phase.is_finished(), claim)));
        let ended = claims.filter(|(finished, claim)| *finished || claim.ended_at.is_some());
        let of_it = ended.filter_map(|(_, claim)| cut::number_of(&claim.uid, object.group, &object.uid));
        of_it.max().map_or(0, |last| last + 1)
    }
}

/// A gate that asks for a claim. Whoever asked may be gone before it is held, and then it is dropped: nobody waits for it.
struct Asking {
    gates: Gates,
    namespace: String,
    database: String,
    content: String,
    again: u32,
    /// That may be held, and that nobody was told of.
    claim: Option<String>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        let Some(claim) = self.claim.take() else { return };
        let (gates, namespace, database) = (self.gates.clone(), self.namespace.clone(), self.database.clone());
        gates.was_let_go(&claim, GONE);
        gates.is_missed(&self.content, GONE);
        self.gates.0.verbs.tasks.spawn(async move {
            if let Err(why) = gates.unquiesce(&namespace, &database, &claim).await {
                warn!(claim, ?why, "a claim that nobody waits for ends by itself");
            }
        });
    }
}

const TOO_LATE: &str = "its databases did not stand still in time";
const GONE: &str = "whoever asked was gone before its databases stood still";

/// Whether a review says of a content what is stored of it, and it was not cut yet. Pure.
fn is_of(request: &GateRequest, known: &Content) -> bool {
    let object = &request.object;
    let snapshot = request.snapshot.as_ref().map(of_request);
    let same = known.group == object.group && known.uid == object.uid && known.name == object.name;
    let same_cut = known.handles == request.volume_handles && Some(&known.driver) == request.driver.as_ref();
    same && same_cut && snapshot.as_ref() == Some(&known.snapshot) && !matches!(known.fate, Fate::Cut { .. })
}

fn of_request(of: &ObjectRef) -> Of {
    Of { namespace: of.namespace.clone(), name: of.name.clone(), uid: of.uid.clone() }
}

/// A LabelSelector as a query has it. `None`: it is none.
fn labels(selector: &Value) -> Option<String> {
    let equal = selector["matchLabels"].as_object().into_iter().flatten();
    let equal = equal.map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten().map(|expression| {
        let key = expression["key"].as_str()?;
        let values = expression["values"].as_array().into_iter().flatten();
        let values = values.map(Value::as_str).collect::<Option<Vec<_>>>()?.join(",");
        Some(match expression["operator"].as_str()? {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "Exists" => key.to_owned(),
            "DoesNotExist" => format!("!{key}"),
            _ => return None,
        })
    });
    let all: Vec<String> = equal.chain(expressions).collect::<Option<_>>()?;
    (!all.is_empty()).then(|| all.join(","))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    proptest! {
        #[test]
        fn whatever_selects_is_asked_for_or_not(key in "\\PC{0,20}", operator in "\\PC{0,12}|In|Exists", values: Vec<i8>) {
            let expression = json!({"key": key, "operator": operator, "values": values});
            labels(&json!({"matchLabels": {key: values}, "matchExpressions": [expression]}));
            labels(&json!(operator));
        }
    }

    #[test]
    fn a_selector_is_asked_for_as_kubernetes_reads_it() {
        let selector = json!({
            "matchLabels": {"app": "shop"},
            "matchExpressions": [
                {"key": "tier", "operator": "In", "values": ["a", "b"]},
                {"key": "old", "operator": "DoesNotExist"}, {"key": "data", "operator": "Exists"},
                {"key": "x", "operator": "NotIn", "values": ["y"]},
            ],
        });
        assert_eq!(labels(&selector).as_deref(), Some("app=shop,tier in (a,b),!old,data,x notin (y)"));
        for wrong in
            [json!({}), json!({"matchLabels": {"a": 1}}), json!({"matchExpressions": [{"key": "a", "operator": "?"}]})]
        {
            assert_eq!(labels(&wrong), None, "{wrong}");
        }
    }
}
