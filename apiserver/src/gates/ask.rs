//! A gate is asked: whose volumes these are, whether it is a real snapshot that wants to be waited for, holding its Databases, and
//! what becomes of it if they cannot be held.

use std::time::Duration;

use api::{
    QuiesceStatus,
    gate::{Gate, GateAnswer, GateRequest},
};
use freeze::FreezeView;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info, warn};

use super::{
    Gates,
    cut::{self, Together, Wanted},
    holding::WAY_OUT,
    policy::{Missed, NamespacePolicy, Treatment, treatment},
    real::of_request,
    said,
};
use crate::metrics::Gated;

/// What is left of a deadline for the answer's way back.
const WAY_BACK: Duration = Duration::from_millis(200);
/// Why nothing is held.
enum NotHeld {
    /// It is no snapshot that anybody takes.
    Unreal { why: String, snapshot: Option<Box<ObjectMeta>> },
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
                if !request.dry_run {
                    self.forget_missed(&request.object.uid);
                    self.measure(&together, &status);
                }
                (Gated::Held, cut::held(request, &together, &status))
            }
            Err(NotHeld::LeftAlone(why)) => {
                info!(content = request.object.name, why, "a cut that is left alone");
                (Gated::LeftAlone, GateAnswer::allow())
            }
            Err(NotHeld::Unreal { why, snapshot }) => {
                warn!(content = request.object.name, user = request.user, why, "a review that nobody has a reason for");
                let policy = self.policy(request);
                let missed = policy.required.then(|| policy.missed(snapshot.as_deref(), Timestamp::now()));
                (Gated::Unreal, cut::unreal(missed, &why))
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
            Ok(Err(why)) => return Err(NotHeld::Unreal { why, snapshot: snapshot.ok().flatten() }),
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
        said::nothing_yet(self, request.object.group, snapshot.as_deref()).await;
        let held = self.hold(request, together, policy.required, deadline).await;
        let status = held.map_err(|why| missed(why, snapshot.clone()))?;
        if request.gate == Gate::Content
            && !request.dry_run
            && let Err(why) = self.is_before_its_cut(request, deadline).await
        {
            if let Some(claim) = &status.uid {
                self.let_go_of(together, claim, &why, deadline).await;
            }
            return Err(missed(why, snapshot));
        }
        Ok(status)
    }

    /// Whether a content without marks is held for since before its cut could begin, and why that is not known.
    async fn is_before_its_cut(&self, request: &GateRequest, deadline: Instant) -> Result<(), String> {
        match timeout_at(deadline, self.is_stored(request)).await {
            Ok(Ok(false)) => Ok(()),
            Ok(Ok(true)) => Err("its cut may have begun before its databases stood still".to_owned()),
            Ok(Err(error)) => Err(format!("whether its cut may have begun before is not known: {error}")),
            Err(_) => {
                Err("whether its cut may have begun before is not known: the API server did not answer in time"
                    .to_owned())
            }
        }
    }

    /// How long whoever is held waits for its cut because of us, which may be told before that it holds is written down. Where it is held
    /// elsewhere that is another clock, and who joined others is held for longer.
    fn measure(&self, together: &Together, status: &QuiesceStatus) {
        let view = together.databases.first();
        let view = view.and_then(|database| self.0.verbs.freezer.view(&together.namespace, database));
        // The verb's answer tells it in microseconds.
        let at = |at: &Option<MicroTime>| at.as_ref().map(|at| at.0.as_microsecond());
        let began = |view: &FreezeView| {
            let (seen, told) = (at(&view.status.frozen_at), at(&status.frozen_at));
            seen.zip(told).is_none_or(|(seen, told)| seen.abs_diff(told) <= 1)
        };
        if let Some(view) = view.filter(began)
            && let Some(held_for) = view.held_for
        {
            self.0.app.metrics.answered_after_frozen(held_for.as_secs_f64());
        }
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
            && self.note_missed(&request.object.uid, why)
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
        let policy = self.0.watched.policy(namespace);
        policy.or_required(request.required)
    }

    fn wanted(&self, request: &GateRequest) -> Result<Wanted, &'static str> {
        self.is_known()?;
        let index = self.0.watched.index();
        let of = request.snapshot.as_ref().map(|snapshot| snapshot.namespace.as_str());
        let driver = request.driver.as_deref().unwrap_or_default();
        let claims = cut::claims(&index, driver, &request.volume_handles, of);
        let namespace = claims.first().map(|(namespace, _)| namespace.as_str());
        let databases = self.0.verbs.records.databases(namespace);
        let databases: Vec<_> = databases.iter().map(AsRef::as_ref).collect();
        Ok(cut::wanted(&index, &claims, &databases))
    }

    pub(super) fn is_known(&self) -> Result<(), &'static str> {
        if !self.0.watched.is_complete() || !self.0.verbs.stored.is_cancelled() {
            return Err("Stillpoint has just started, and does not know yet whose volumes these are");
        }
        Ok(())
    }
}
