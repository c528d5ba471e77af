//! The verbs: from a request for a Database to the freezer, and from what the freezer says to an answer.

pub(crate) mod bodies;
mod call;
mod refusals;

use std::{
    collections::BTreeSet,
    sync::{Arc, OnceLock},
};

use api::{
    Check, Claim, ClaimKind, Copy, Database, FreezeSpec, FreezeTarget, Phase, Quiesce, QuiesceSpec, QuiesceStatus,
    Renew, RenewStatus, Unquiesce, UnquiesceSpec, UnquiesceStatus, gate::claim,
};
use freeze::{AnsweredWhen, Claimant, Ending, FreezeName, Freezer, Granted, Refused, Request};
use futures::future::{join_all, try_join_all};
use http::StatusCode;
use tokio::{sync::Notify, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    auth::{self, Authorizer, User},
    body::Body,
    directory::Directory,
    error::ApiError,
    meta,
    records::Records,
    replicas::{MOST_HOPS, Place, Replicas},
    resources::live,
    shown::Shown,
    target::ResourceTarget,
    targets::{self, Ingredients, Wanted},
};
use bodies::{answer, ends, holds, named, read};
pub use call::{Answered, Call};
use refusals::{refusal, unresolved};

/// What the verbs work with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Verbs {
    pub records: Arc<dyn Records>,
    pub freezer: Freezer,
    pub directory: Directory,
    pub authorizer: Arc<dyn Authorizer>,
    pub tasks: TaskTracker,
    /// Cancelled once what dead servers left is known and taken care of: before, nothing may be frozen.
    pub recovered: CancellationToken,
    /// Cancelled once everything that is stored was read.
    pub stored: CancellationToken,
    /// Whose snapshots we are asked about.
    pub shown: Shown,
    /// The others, where there are others.
    pub(crate) replicas: Arc<OnceLock<Replicas>>,
}

impl Verbs {
    /// Runs a verb of `databases`.
    pub async fn run(&self, verb: &str, call: Call<'_>, body: Body) -> Result<Answered, ApiError> {
        if !self.recovered.is_cancelled() {
            return Err(starting());
        }
        match verb {
            "quiesce" => self.quiesce(call, body).await,
            "unquiesce" => self.unquiesce(call, body).await,
            "renew" => self.renew(call, body).await,
            _ => Err(ApiError::no_such_path()),
        }
    }

    /// Whether what only one process has to do is done here.
    pub fn leads(&self) -> bool {
        self.replicas.get().is_none_or(Replicas::leads)
    }

    /// Claims of this user's that hold, or are on their way, as far as they are known here.
    pub(crate) fn living(&self, user: &str, is_one: impl Fn(&str) -> bool) -> Vec<Claim> {
        let (held, freezes) = (self.freezer.views(), self.records.freezes());
        // What is held here is in the records, too, and perhaps as it was a moment ago.
        let here: BTreeSet<(&str, &str)> =
            held.iter().map(|view| (view.freeze.namespace.as_str(), view.freeze.name.as_str())).collect();
        let elsewhere = freezes.iter().filter(|freeze| {
            let meta = &freeze.metadata;
            !here.contains(&(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default()))
        });
        let held = held.iter().map(|view| view.status.as_ref());
        let statuses = held.chain(elsewhere.filter_map(|freeze| freeze.status.as_ref()));
        let claims = statuses.filter(|status| !status.phase.is_finished()).flat_map(|status| &status.claims);
        let lives = |claim: &&Claim| claim.user == user && claim.ended_at.is_none() && is_one(&claim.uid);
        claims.filter(lives).cloned().collect()
    }

    /// Where a verb is to be executed: only one replica freezes a member.
    pub(crate) async fn place(&self, verb: &str, call: &Call<'_>, body: &Body, hops: u32) -> Result<Place, ApiError> {
        let Some(replicas) = self.replicas.get() else { return Ok(Place::Here(None)) };
        if !self.recovered.is_cancelled() {
            return Err(starting());
        }
        match verb {
            "quiesce" if call.dry_run => Ok(Place::Here(None)),
            "quiesce" => {
                // A member is claimed for nobody who may not freeze it, and there is none of what is not there.
                let (quiesce, _) = self.admitted(call, body.clone()).await?;
                let with = quiesce.spec.with.iter().map(String::as_str);
                let databases: Vec<&str> = std::iter::once(call.name).chain(with).collect();
                for name in &databases {
                    self.records.database(call.namespace, name).await?;
                }
                replicas.place(call.namespace, &databases, hops).await
            }
            // Whoever was sent so often is not sent on.
            _ if hops >= MOST_HOPS => Ok(Place::Here(None)),
            _ => replicas.find(call.namespace, call.name).await,
        }
    }

    /// What a freeze of `spec` asks of the freezer; `freeze` is where it would be written to.
    pub async fn request(
        &self,
        freeze: FreezeName,
        spec: &FreezeSpec,
        declared: bool,
        claimant: Claimant,
    ) -> Result<(Request, Vec<String>), ApiError> {
        let asked = spec
            .targets
            .iter()
            .map(|target| self.directory.ingredients(&freeze.namespace, &target.database, target.member.as_deref()));
        let ingredients: Vec<Ingredients> = try_join_all(asked).await?;
        let databases: Vec<Database> = ingredients.iter().map(|ingredients| ingredients.database.clone()).collect();
        let level = targets::level(&databases, spec.level);
        let (ttl, max_frozen) = targets::durations(&databases, level, spec.copy, spec.ttl_seconds);
        let mut warnings = Vec::new();
        if spec.ttl_seconds.is_some_and(|wanted| u64::from(wanted) > max_frozen.as_secs()) {
            warnings.push(format!("ttlSeconds is {}, the longest that is allowed here", max_frozen.as_secs()));
        }
        let uid = uuid::Uuid::new_v4().to_string();
        let targets = ingredients.iter().zip(&spec.targets).map(|(ingredients, wanted)| {
            let wanted = Wanted { level, copy: spec.copy, freeze_uid: &uid, member: wanted.member.as_deref() };
            let target =
                targets::target(&self.directory.drivers, ingredients, wanted).map_err(|error| unresolved(&error))?;
            target.driver.supports(level, spec.copy).map_err(|error| {
                let name = ingredients.database.metadata.name.as_deref().unwrap_or_default();
                let field = if spec.copy == Copy::Files { "spec.copy" } else { "spec.level" };
                let message = format!("{error}; {}", error.advice());
                let cause =
                    api::validate::Cause { field: field.into(), kind: api::validate::CauseKind::Invalid, message };
                ApiError::invalid(api::LIVE_GROUP, "Quiesce", name, &[cause])
            })?;
            Ok::<_, ApiError>(target)
        });
        let mut targets = targets.collect::<Result<Vec<_>, _>>()?;
        // Members of a group are taken in one order, so that two groups never wait for each other.
        targets.sort_by(|a, b| a.database.cmp(&b.database));
        let spec_written = (!declared).then(|| FreezeSpec { level: Some(level), ..spec.clone() });
        let request = Request {
            freeze,
            spec: spec_written,
            claimant,
            targets,
            level,
            copy: spec.copy,
            ttl,
            max_frozen,
            accepted: None,
            answered: AnsweredWhen::Written,
        };
        Ok((request, warnings))
    }

    /// What is asked for, if it makes sense and the caller may have it.
    async fn admitted(&self, call: &Call<'_>, body: Body) -> Result<(Quiesce, Vec<String>), ApiError> {
        let (quiesce, warnings) = read::<Quiesce>(call, body, "Quiesce")?;
        named(call, &quiesce.metadata)?;
        let causes = api::validate::quiesce(call.name, &quiesce.spec);
        if !causes.is_empty() {
            return Err(ApiError::invalid(api::LIVE_GROUP, "Quiesce", call.name, &causes));
        }
        for other in &quiesce.spec.with {
            self.may_quiesce(call.user, call.namespace, other).await?;
        }
        Ok((quiesce, warnings))
    }

    async fn quiesce(&self, call: Call<'_>, body: Body) -> Result<Answered, ApiError> {
        let (mut quiesce, mut warnings) = self.admitted(&call, body).await?;
        let spec = &quiesce.spec;
        let freeze =
            FreezeName { namespace: call.namespace.to_owned(), name: meta::generated(&format!("{}-", call.name)) };
        let claimant = claimant(&call, spec.uid.as_deref());
        self.own_claim(&call, &claimant.uid).await?;
        let answered = self.answered(&call, &claimant.uid);
        let (request, more) = self.request(freeze, &freeze_spec(call.name, spec), false, claimant).await?;
        let request = Request { answered, ..request };
        warnings.extend(more);
        let wait = spec.wait.unwrap_or(true);
        let copy = request.copy;
        let (code, status) = if call.dry_run {
            (StatusCode::OK, preflight(&request).await)
        } else if wait {
            granted(&call, copy, self.freezer.quiesce(request).await)?
        } else {
            self.begin(&call, request).await?
        };
        let not_passed = status.checks.iter().filter(|_| !call.dry_run);
        warnings.extend(not_passed.map(|check| format!("{}: {}", check.name, check.message)));
        quiesce.status = Some(status);
        answer(code, &call, quiesce, "Quiesce", warnings, |quiesce, api_version, kind, metadata| {
            (quiesce.api_version, quiesce.kind, quiesce.metadata) = (api_version, kind, metadata);
        })
    }

    /// `wait: false`: answers when the claim is part of a freeze that is written down, or was refused; from then on it waits for
    /// itself.
    async fn begin(&self, call: &Call<'_>, mut request: Request) -> Result<(StatusCode, QuiesceStatus), ApiError> {
        let accepted = Arc::new(Notify::new());
        request.accepted = Some(Arc::clone(&accepted));
        let (namespace, database) = (request.freeze.namespace.clone(), call.name.to_owned());
        let (freeze, uid) = (request.freeze.name.clone(), request.claimant.uid.clone());
        let (level, copy) = (request.level, request.copy);
        let freezer = self.freezer.clone();
        let mut claiming = Box::pin(async move { freezer.quiesce(request).await });
        tokio::select! {
            biased;
            done = &mut claiming => granted(call, copy, done),
            () = accepted.notified() => {
                let held = self.freezer.view(&namespace, &database);
                self.tasks.spawn(async move {
                    if let Err(refused) = claiming.await {
                        tracing::info!(?refused, "a claim that nobody waited for came to nothing");
                    }
                });
                let status = QuiesceStatus {
                    freeze: Some(held.as_ref().map_or(freeze, |view| view.freeze.name.clone())),
                    uid: Some(uid),
                    phase: held.map_or(Phase::Preparing, |view| view.status.phase),
                    level: Some(level),
                    copy: Some(copy),
                    ..QuiesceStatus::default()
                };
                Ok((StatusCode::ACCEPTED, status))
            }
        }
    }

    /// A cut waits for no journal: what it is worth is said by the Freeze in the end.
    fn answered(&self, call: &Call<'_>, uid: &str) -> AnsweredWhen {
        let ours = self.replicas.get().is_some_and(|replicas| replicas.is_our_account(&call.user.name));
        if ours && claim::content_of(uid).is_some() { AnsweredWhen::Held } else { AnsweredWhen::Written }
    }

    async fn unquiesce(&self, call: Call<'_>, body: Body) -> Result<Answered, ApiError> {
        let (mut unquiesce, warnings) = read::<Unquiesce>(&call, body, "Unquiesce")?;
        named(&call, &unquiesce.metadata)?;
        self.records.database(call.namespace, call.name).await?;
        let spec = &unquiesce.spec;
        let ended = if spec.force {
            self.may(call.user, call.namespace, call.name, "thaw").await?;
            if call.dry_run {
                None
            } else {
                self.freezer.end(call.namespace, call.name, Ending::Forced { by: call.user.name.clone() }).await.map(Ok)
            }
        } else {
            let uid = claimant(&call, spec.uid.as_deref()).uid;
            self.own_claim(&call, &uid).await?;
            if call.dry_run { None } else { self.freezer.unquiesce(call.namespace, call.name, &uid, spec.stage).await }
        };
        let status = match ended {
            Some(ended) => ends(call.name, ended.map_err(|refused| refusal(&call, refused))?),
            None => self.nothing_ended(&call, spec),
        };
        unquiesce.status = Some(status);
        answer(StatusCode::OK, &call, unquiesce, "Unquiesce", warnings, |unquiesce, api_version, kind, metadata| {
            (unquiesce.api_version, unquiesce.kind, unquiesce.metadata) = (api_version, kind, metadata);
        })
    }

    /// A dry run, or no claim to end: what holds, and what would be ended.
    fn nothing_ended(&self, call: &Call<'_>, spec: &UnquiesceSpec) -> UnquiesceStatus {
        let held = self.freezer.view(call.namespace, call.name);
        let uid = claimant(call, spec.uid.as_deref()).uid;
        let claims = held.as_ref().map(|view| view.status.claims.clone()).unwrap_or_default();
        let alive = claims.into_iter().filter(|claim| claim.ended_at.is_none());
        let (ending, still_claimed_by): (Vec<_>, Vec<_>) =
            alive.partition(|claim| call.dry_run && (spec.force || claim.uid == uid));
        let message = match ending.as_slice() {
            [] => "there was nothing to end: no claim of yours is known".to_owned(),
            claims => {
                let names: Vec<_> = claims.iter().map(|claim| format!("{} of {}", claim.uid, claim.user)).collect();
                format!("dry run: this would end claim {}", names.join(", "))
            }
        };
        UnquiesceStatus {
            freeze: held.as_ref().map(|view| view.freeze.name.clone()),
            phase: held.map(|view| view.status.phase),
            still_claimed_by,
            message: Some(message),
            ..UnquiesceStatus::default()
        }
    }

    async fn renew(&self, call: Call<'_>, body: Body) -> Result<Answered, ApiError> {
        let (mut renew, warnings) = read::<Renew>(&call, body, "Renew")?;
        named(&call, &renew.metadata)?;
        self.records.database(call.namespace, call.name).await?;
        let wanted = renew.spec.ttl_seconds;
        let uid = claimant(&call, renew.spec.uid.as_deref()).uid;
        self.own_claim(&call, &uid).await?;
        let ttl = wanted.map(|seconds| std::time::Duration::from_secs(u64::from(seconds)));
        if call.dry_run {
            return Err(ApiError::bad_request("renew has no dry run: nothing can be told of it but by doing it"));
        }
        let about = live::DATABASES.about(call.name);
        let Some(granted) = self.freezer.renew(call.namespace, call.name, &uid, ttl).await else {
            return Err(ApiError::conflict(about, "no live claim of this uid is held; quiesce again"));
        };
        let until = granted.claim.until.0;
        let short = ttl.is_some_and(|ttl| until < jiff::Timestamp::now() + ttl - std::time::Duration::from_millis(500));
        let warning = short.then(|| "it got less than it asked for: the freeze may not last longer".to_owned());
        renew.status = Some(RenewStatus {
            freeze: Some(granted.freeze.name),
            expires_at: Some(granted.claim.until),
            warnings: warning.into_iter().collect(),
        });
        answer(StatusCode::OK, &call, renew, "Renew", warnings, |renew, api_version, kind, metadata| {
            (renew.api_version, renew.kind, renew.metadata) = (api_version, kind, metadata);
        })
    }

    /// A uid is no secret: a live claim is its user's, and for anybody else the right to thaw is asked.
    async fn own_claim(&self, call: &Call<'_>, uid: &str) -> Result<(), ApiError> {
        let Some(view) = self.freezer.view(call.namespace, call.name) else { return Ok(()) };
        match view.claimants.get(uid).filter(|user| **user != call.user.name) {
            None => Ok(()),
            Some(_) => self.may(call.user, call.namespace, call.name, "thaw").await,
        }
    }

    /// Whether a user may quiesce a Database: the question behind `with[]` and behind a declared Freeze.
    pub async fn may_quiesce(&self, user: &User, namespace: &str, database: &str) -> Result<(), ApiError> {
        self.may(user, namespace, database, "quiesce").await
    }

    async fn may(&self, user: &User, namespace: &str, database: &str, subresource: &str) -> Result<(), ApiError> {
        let target = ResourceTarget::verb_of(namespace, database, subresource);
        auth::ask(self.authorizer.as_ref(), user, (&target).into()).await
    }
}

fn granted(
    call: &Call<'_>,
    copy: Copy,
    done: Result<Granted, Refused>,
) -> Result<(StatusCode, QuiesceStatus), ApiError> {
    let granted = done.map_err(|refused| refusal(call, refused))?;
    let code = if granted.existing { StatusCode::OK } else { StatusCode::CREATED };
    Ok((code, holds(call.name, copy, granted)))
}

fn starting() -> ApiError {
    ApiError::in_motion("starting: what is frozen is not known yet; try again in a moment")
}

/// Every check of every target, nothing touched.
pub async fn preflight(request: &Request) -> QuiesceStatus {
    let checks = join_all(request.targets.iter().map(|target| async {
        let deadline = Instant::now() + target.prepare_timeout.min(PREFLIGHT);
        let checks = target.driver.preflight(&target.member, &target.plan, deadline).await.checks;
        checks.into_iter().map(|check| Check { database: target.database.clone(), ..check }).collect::<Vec<_>>()
    }));
    QuiesceStatus {
        level: Some(request.level),
        copy: Some(request.copy),
        checks: checks.await.into_iter().flatten().collect(),
        ..QuiesceStatus::default()
    }
}

/// A preflight is asked by people.
const PREFLIGHT: std::time::Duration = std::time::Duration::from_secs(10);

/// The claim of a call: its own uid, or one per user and Database.
fn claimant(call: &Call<'_>, uid: Option<&str>) -> Claimant {
    let user = &call.user.name;
    Claimant {
        kind: ClaimKind::User,
        name: user.clone(),
        uid: uid.map_or_else(|| format!("{user}/{}/{}", call.namespace, call.name), str::to_owned),
        chosen: uid.is_some(),
        user: user.clone(),
    }
}

fn freeze_spec(name: &str, spec: &QuiesceSpec) -> FreezeSpec {
    let target = |database: &str, member: Option<String>| FreezeTarget { database: database.to_owned(), member };
    let others = spec.with.iter().map(|other| target(other, None));
    FreezeSpec {
        targets: std::iter::once(target(name, spec.member.clone())).chain(others).collect(),
        level: spec.level,
        copy: spec.copy.unwrap_or_default(),
        ttl_seconds: spec.ttl_seconds,
        desired: api::Desired::Frozen,
        reason: spec.reason.clone(),
    }
}
