//! The verbs: from a request for a Database to the freezer, and from what the freezer says to an answer.

use std::sync::Arc;

use api::{
    Check, Claim, ClaimKind, Copy, Database, FreezeSpec, FreezeTarget, Phase, Quiesce, QuiesceSpec, QuiesceStatus,
    Renew, RenewStatus, Unquiesce, UnquiesceStatus, conditions::reasons,
};
use freeze::{Claimant, Drivers, Ended, Ending, FreezeName, Freezer, Granted, Refused, Request};
use futures::future::join_all;
use http::StatusCode;
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{
    auth::{Authorizer, User, forbidden},
    body::{self, Body},
    error::{About, ApiError},
    meta,
    query::FieldValidation,
    registry::Registry,
    resources::{DATABASES, SECRETS, live},
    target::{ResourceTarget, Verb},
    targets::{self, Ingredients, Unresolved, Wanted},
};

/// What the verbs work with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Verbs {
    pub registry: Registry,
    pub freezer: Freezer,
    pub drivers: Drivers,
    pub authorizer: Arc<dyn Authorizer>,
    pub tasks: TaskTracker,
}

/// How a verb was called.
#[derive(Debug)]
pub struct Call<'a> {
    pub user: &'a User,
    pub namespace: &'a str,
    pub name: &'a str,
    pub dry_run: bool,
    pub validation: FieldValidation,
}

/// What a verb answers: the body it was given, with its status.
#[derive(Debug)]
pub struct Answered {
    pub code: StatusCode,
    pub body: Value,
    pub warnings: Vec<String>,
}

impl Verbs {
    /// Runs a verb of `databases`.
    pub async fn run(&self, verb: &str, call: Call<'_>, body: Body) -> Result<Answered, ApiError> {
        match verb {
            "quiesce" => self.quiesce(call, body).await,
            "unquiesce" => self.unquiesce(call, body).await,
            "renew" => self.renew(call, body).await,
            _ => Err(ApiError::no_such_path()),
        }
    }

    /// A Database with the Secrets that it names.
    pub fn ingredients(&self, namespace: &str, name: &str) -> Result<Ingredients, ApiError> {
        let database: Database = self.registry.typed(&DATABASES, Some(namespace), name)?;
        let names = targets::secret_names(&database);
        let secrets =
            names.iter().filter_map(|name| self.registry.typed::<Secret>(&SECRETS, Some(namespace), name).ok());
        let secrets = secrets.collect();
        Ok(Ingredients { database, secrets })
    }

    /// What a freeze of `spec` asks of the freezer; `freeze` is where it would be written to.
    pub fn request(
        &self,
        freeze: FreezeName,
        spec: &FreezeSpec,
        declared: bool,
        claimant: Claimant,
    ) -> Result<(Request, Vec<String>), ApiError> {
        let ingredients: Vec<Ingredients> = spec
            .targets
            .iter()
            .map(|target| self.ingredients(&freeze.namespace, &target.database))
            .collect::<Result<_, _>>()?;
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
            let target = targets::target(&self.drivers, ingredients, wanted).map_err(|error| unresolved(&error))?;
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
        let request =
            Request { freeze, spec: spec_written, claimant, targets, level, copy: spec.copy, ttl, max_frozen };
        Ok((request, warnings))
    }

    async fn quiesce(&self, call: Call<'_>, body: Body) -> Result<Answered, ApiError> {
        let (mut quiesce, mut warnings) = read::<Quiesce>(&call, body, "Quiesce")?;
        named(&call, &quiesce.metadata)?;
        let causes = api::validate::quiesce(call.name, &quiesce.spec);
        if !causes.is_empty() {
            return Err(ApiError::invalid(api::LIVE_GROUP, "Quiesce", call.name, &causes));
        }
        let spec = &quiesce.spec;
        for other in &spec.with {
            self.may_quiesce(call.user, call.namespace, other)?;
        }
        let freeze =
            FreezeName { namespace: call.namespace.to_owned(), name: meta::generated(&format!("{}-", call.name)) };
        let claimant = claimant(&call, spec.uid.as_deref());
        self.own_claim(&call, &claimant.uid)?;
        let (request, more) = self.request(freeze, &freeze_spec(call.name, spec), false, claimant)?;
        warnings.extend(more);
        let wait = spec.wait.unwrap_or(true);
        let copy = request.copy;
        let (code, status) = if call.dry_run {
            (StatusCode::OK, preflight(&request).await)
        } else if wait {
            let granted = self.freezer.quiesce(request).await.map_err(|refused| refusal(&call, refused))?;
            warnings.extend(granted.warnings.iter().map(|check| format!("{}: {}", check.name, check.message)));
            let code = if granted.existing { StatusCode::OK } else { StatusCode::CREATED };
            (code, holds(call.name, copy, granted))
        } else {
            (StatusCode::ACCEPTED, self.begin(request))
        };
        quiesce.status = Some(status);
        answer(code, &call, quiesce, "Quiesce", warnings, |quiesce, api_version, kind, metadata| {
            (quiesce.api_version, quiesce.kind, quiesce.metadata) = (api_version, kind, metadata);
        })
    }

    /// `wait: false`: the claim waits for itself.
    fn begin(&self, request: Request) -> QuiesceStatus {
        let namespace = &request.freeze.namespace;
        let held = request.targets.first().and_then(|target| self.freezer.view(namespace, &target.database));
        let freeze = held.map_or_else(|| request.freeze.name.clone(), |view| view.freeze.name);
        let status = QuiesceStatus {
            freeze: Some(freeze),
            uid: Some(request.claimant.uid.clone()),
            phase: Phase::Pending,
            level: Some(request.level),
            copy: Some(request.copy),
            ..QuiesceStatus::default()
        };
        let freezer = self.freezer.clone();
        self.tasks.spawn(async move {
            if let Err(refused) = freezer.quiesce(request).await {
                tracing::info!(?refused, "a claim that nobody waited for was refused");
            }
        });
        status
    }

    async fn unquiesce(&self, call: Call<'_>, body: Body) -> Result<Answered, ApiError> {
        let (mut unquiesce, warnings) = read::<Unquiesce>(&call, body, "Unquiesce")?;
        named(&call, &unquiesce.metadata)?;
        self.registry.get(&DATABASES, Some(call.namespace), call.name)?;
        let spec = &unquiesce.spec;
        let ended = if spec.force {
            self.may(call.user, call.namespace, call.name, "thaw")?;
            if call.dry_run {
                None
            } else {
                self.freezer.end(call.namespace, call.name, Ending::Forced { by: call.user.name.clone() }).await.map(Ok)
            }
        } else if call.dry_run {
            None
        } else {
            let uid = claimant(&call, spec.uid.as_deref()).uid;
            self.own_claim(&call, &uid)?;
            self.freezer.unquiesce(call.namespace, call.name, &uid, spec.stage).await
        };
        let status = match ended {
            Some(ended) => ends(call.name, ended.map_err(|refused| refusal(&call, refused))?),
            None => {
                let held = self.freezer.view(call.namespace, call.name);
                let claims = held.as_ref().map(|view| view.status.claims.clone()).unwrap_or_default();
                UnquiesceStatus {
                    freeze: held.as_ref().map(|view| view.freeze.name.clone()),
                    phase: held.map(|view| view.status.phase),
                    still_claimed_by: claims.into_iter().filter(|claim| claim.ended_at.is_none()).collect(),
                    message: Some("there was nothing to end: no claim of yours is known".to_owned()),
                    ..UnquiesceStatus::default()
                }
            }
        };
        unquiesce.status = Some(status);
        answer(StatusCode::OK, &call, unquiesce, "Unquiesce", warnings, |unquiesce, api_version, kind, metadata| {
            (unquiesce.api_version, unquiesce.kind, unquiesce.metadata) = (api_version, kind, metadata);
        })
    }

    async fn renew(&self, call: Call<'_>, body: Body) -> Result<Answered, ApiError> {
        let (mut renew, warnings) = read::<Renew>(&call, body, "Renew")?;
        named(&call, &renew.metadata)?;
        self.registry.get(&DATABASES, Some(call.namespace), call.name)?;
        let wanted = renew.spec.ttl_seconds;
        let uid = claimant(&call, renew.spec.uid.as_deref()).uid;
        self.own_claim(&call, &uid)?;
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
    fn own_claim(&self, call: &Call<'_>, uid: &str) -> Result<(), ApiError> {
        let Some(view) = self.freezer.view(call.namespace, call.name) else { return Ok(()) };
        let mut alive = view.status.claims.iter().filter(|claim| claim.ended_at.is_none());
        match alive.find(|claim| claim.uid == uid && claim.user != call.user.name) {
            None => Ok(()),
            Some(_) => self.may(call.user, call.namespace, call.name, "thaw"),
        }
    }

    /// Whether a user may quiesce a Database: the question behind `with[]` and behind a declared Freeze.
    pub fn may_quiesce(&self, user: &User, namespace: &str, database: &str) -> Result<(), ApiError> {
        self.may(user, namespace, database, "quiesce")
    }

    fn may(&self, user: &User, namespace: &str, database: &str, subresource: &str) -> Result<(), ApiError> {
        let target = ResourceTarget {
            verb: Verb::Create,
            group: api::LIVE_GROUP.to_owned(),
            version: api::VERSION.to_owned(),
            namespace: Some(namespace.to_owned()),
            resource: "databases".to_owned(),
            name: Some(database.to_owned()),
            subresource: Some(subresource.to_owned()),
        };
        self.authorizer.allowed(user, &target).map_err(|why| forbidden(user, &target, &why))
    }
}

/// Every check of every target, nothing touched.
pub async fn preflight(request: &Request) -> QuiesceStatus {
    let checks = join_all(request.targets.iter().map(|target| async {
        let deadline = Instant::now() + target.prepare_timeout.min(PREFLIGHT);
        let checks = target.driver.preflight(&target.member, &target.plan, deadline).await;
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

/// What stands in the way of a Database before any server was asked, as a check.
pub fn unresolved_check(error: &Unresolved) -> Check {
    let (reason, fix) = match error {
        Unresolved::Paused { .. } => (reasons::PAUSED, "set spec.paused: false"),
        Unresolved::Credentials { .. } => (reasons::CREDENTIALS_MISSING, "create the Secret, or name the right key"),
        Unresolved::Endpoint { .. } => (reasons::UNREACHABLE, "give spec.endpoint.host, or spec.endpoint.socket"),
        Unresolved::Engine { .. } => (reasons::UNSUPPORTED, "use a server that has a driver for it"),
        Unresolved::Member { .. } => (reasons::UNSUPPORTED, "leave spec.member out"),
    };
    Check::fail("resolved", reason, error.to_string(), fix)
}

fn unresolved(error: &Unresolved) -> ApiError {
    let check = unresolved_check(error);
    let name = match error {
        Unresolved::Paused { database }
        | Unresolved::Credentials { database, .. }
        | Unresolved::Endpoint { database }
        | Unresolved::Member { database, .. } => database.as_str(),
        Unresolved::Engine { .. } => "",
    };
    let message = format!("{}; {}", check.message, check.fix.as_deref().unwrap_or_default());
    let about = About { group: api::LIVE_GROUP, plural: "databases", name };
    ApiError::conflict(about, message).because(check.reason.as_deref().unwrap_or_default(), "", check.message)
}

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

fn holds(database: &str, copy: Copy, granted: Granted) -> QuiesceStatus {
    let target = granted.status.targets.iter().find(|target| target.database == database);
    QuiesceStatus {
        freeze: Some(granted.freeze.name),
        uid: Some(granted.claim.uid),
        phase: granted.status.phase,
        level: granted.status.level,
        copy: Some(copy),
        position: target.and_then(|target| target.position.clone()),
        targets: granted.status.targets.clone(),
        frozen_at: granted.claim.frozen_at,
        expires_at: Some(granted.claim.until),
        checks: granted.warnings,
        warnings: Vec::new(),
    }
}

fn ends(database: &str, ended: Ended) -> UnquiesceStatus {
    let Ended { freeze, status, still_claimed_by } = ended;
    let target = status.targets.iter().find(|target| target.database == database);
    UnquiesceStatus {
        freeze: Some(freeze.name),
        phase: Some(status.phase),
        frozen_at: status.frozen_at.clone(),
        thawed_at: status.thawed_at.clone(),
        frozen_milliseconds: status.frozen_milliseconds,
        artifacts: target.map(|target| target.artifacts.clone()).unwrap_or_default(),
        proof: target.and_then(|target| target.proof.clone()),
        targets: status.targets.clone(),
        still_claimed_by,
        message: status.message.clone(),
    }
}

/// Why a claim does not hold, for a client: conflicts name claims and deadline.
fn refusal(call: &Call<'_>, refused: Refused) -> ApiError {
    let about = live::DATABASES.about(call.name);
    match refused {
        Refused::Conflict { freeze, status, why } => {
            let claims: Vec<&Claim> = status.claims.iter().filter(|claim| claim.ended_at.is_none()).collect();
            let names = claims.iter().map(|claim| format!("{} (uid {})", claim.user, claim.uid)).collect::<Vec<_>>();
            let until =
                status.expires_at.as_ref().map_or_else(|| "not held yet".to_owned(), |at| format!("until {}", at.0));
            let message = format!("Freeze {} covers it for {}, {until}: {why}", freeze.name, names.join(", "));
            let error = ApiError::conflict(about, message);
            claims.iter().fold(error, |error, claim| {
                error.because(
                    "Claimed",
                    "",
                    format!("{} holds claim {} until {}", claim.user, claim.uid, claim.until.0),
                )
            })
        }
        Refused::NotHeld { freeze, causes, .. } => {
            let said: Vec<String> = causes
                .iter()
                .map(|check| {
                    format!("{}: {}; {}", check.database, check.message, check.fix.as_deref().unwrap_or_default())
                })
                .collect();
            let error =
                ApiError::conflict(about, format!("it does not hold (Freeze {}): {}", freeze.name, said.join("; ")));
            causes.iter().fold(error, |error, check| {
                error.because(check.reason.as_deref().unwrap_or_default(), &check.database, check.message.clone())
            })
        }
        Refused::Finished { freeze } => ApiError::gone(format!(
            "the claim with this uid belongs to Freeze {}, which is finished; use another uid",
            freeze.name
        )),
        Refused::Withdrawn { freeze } => {
            ApiError::conflict(about, format!("the claim was ended while it waited (Freeze {})", freeze.name))
        }
        Refused::Undoing { freeze } => ApiError::conflict(
            about,
            format!("what Freeze {} left is still being undone; see its status, and try again", freeze.name),
        ),
        Refused::Stopping => ApiError::unavailable("the server is going down and begins no freeze; try again"),
    }
}

/// Decodes a verb's body; what it does not know refuses, or is warned of.
fn read<T: DeserializeOwned + Default>(call: &Call<'_>, body: Body, kind: &str) -> Result<(T, Vec<String>), ApiError> {
    for (field, wanted) in [("apiVersion", api::LIVE_API_VERSION), ("kind", kind)] {
        let found = body.value[field].as_str().unwrap_or_default();
        if !found.is_empty() && found != wanted {
            return Err(ApiError::bad_request(format!("the {field} of the body is {found:?}; it must be {wanted:?}")));
        }
    }
    let (typed, unknown) = body::typed::<T>(body.value, kind)?;
    let strange = unknown.iter().map(|path| format!("unknown field {path:?}"));
    let strange: Vec<String> =
        strange.chain(body.duplicates.iter().map(|path| format!("duplicate field {path:?}"))).collect();
    match call.validation {
        FieldValidation::Strict if !strange.is_empty() => Err(ApiError::bad_request(format!(
            "{kind} in version \"v1alpha1\" cannot be handled as a {kind}: strict decoding error: {}",
            strange.join(", ")
        ))),
        FieldValidation::Ignore => Ok((typed, Vec::new())),
        _ => Ok((typed, strange)),
    }
}

fn named(call: &Call<'_>, metadata: &ObjectMeta) -> Result<(), ApiError> {
    match metadata.name.as_deref() {
        Some(name) if !name.is_empty() && name != call.name => Err(ApiError::bad_request(format!(
            "the name of the body ({name}) does not match the name on the URL ({})",
            call.name
        ))),
        _ => Ok(()),
    }
}

fn answer<T: Serialize>(
    code: StatusCode,
    call: &Call<'_>,
    mut typed: T,
    kind: &str,
    warnings: Vec<String>,
    name: impl FnOnce(&mut T, String, String, ObjectMeta),
) -> Result<Answered, ApiError> {
    let metadata = ObjectMeta {
        name: Some(call.name.to_owned()),
        namespace: Some(call.namespace.to_owned()),
        ..ObjectMeta::default()
    };
    name(&mut typed, api::LIVE_API_VERSION.to_owned(), kind.to_owned(), metadata);
    let body = serde_json::to_value(typed).map_err(ApiError::internal)?;
    Ok(Answered { code, body, warnings })
}
