//! Gates: `stillpoint-webhooks` asks right before a cut, and is answered once the Databases whose data is on the volumes stand still;
//! whoever holds them lets them go as soon as the driver has said that it has cut, and says on the snapshot what it is worth.
//!
//! ```text
//! GateRequest ─► claims of the volumes ─► Databases behind them ─► held (by whichever replica has them) ─► GateAnswer
//! content gets its handle ─► every replica ends the claims that it holds for it ─► verdict ─► labels
//! ```

mod atomic;
mod contents;
mod cut;
mod endpoint;
mod index;
mod thaw;
mod verdict;
mod watched;

use std::{sync::Arc, time::Duration};

use api::{
    QuiesceStatus,
    gate::{Gate, GateAnswer, GateRequest},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use kube::Client;
use serde::Serialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::{
    answer::{Answer, Parts},
    app::App,
    auth::User,
    negotiate::Form,
    query::Query,
    target::{ResourceTarget, Verb},
    verbs::Verbs,
};
use cut::{Together, Wanted};
use watched::Watched;

pub(crate) use endpoint::serve;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gates(Arc<Inner>);

struct Inner {
    app: Arc<App>,
    verbs: Verbs,
    client: Client,
    watched: Watched,
    /// As whom Databases are held: our own account.
    us: User,
    stopping: CancellationToken,
}

/// How often a content's claim may have ended and be made anew: a driver that fails is called again, and the gate asked again.
const AGAIN: u32 = 16;
/// What is left of a deadline for the answer's way back.
const WAY_BACK: Duration = Duration::from_millis(200);

impl Gates {
    pub(crate) fn new(
        app: Arc<App>,
        verbs: Verbs,
        client: Client,
        namespace: &str,
        stopping: CancellationToken,
    ) -> Self {
        let us = User {
            name: api::install::account_user(namespace),
            groups: ["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}"), "system:authenticated"]
                .map(str::to_owned)
                .into(),
            ..User::default()
        };
        Self(Arc::new(Inner { app, verbs, client, watched: Watched::new(), us, stopping }))
    }

    /// `watching`: a client whose requests may be silent for long.
    pub(crate) fn loops(&self, watching: &Client) -> Vec<(&'static str, BoxFuture<'static, ()>)> {
        let mut loops = self.0.watched.loops(watching);
        loops.push(("contents of snapshots", Box::pin(thaw::run(self.clone(), watching.clone()))));
        loops
    }

    /// Answers a gate by its deadline.
    async fn ask(&self, request: &GateRequest, deadline: Instant) -> GateAnswer {
        let deadline = deadline.checked_sub(WAY_BACK).unwrap_or(deadline);
        match request.gate {
            Gate::Preflight => GateAnswer::allow(),
            Gate::Cut | Gate::Content => {
                let answered = timeout_at(deadline, self.cut(request)).await;
                answered
                    .unwrap_or_else(|_| cut::not_held(request.required, "its databases did not stand still in time"))
            }
        }
    }

    async fn cut(&self, request: &GateRequest) -> GateAnswer {
        let together = match self.wanted(request) {
            Ok(Wanted::Hold(together)) => together,
            Ok(Wanted::Nothing(why)) => {
                tracing::debug!(?why, content = request.object.name, "a cut that nothing is held for");
                return GateAnswer::allow();
            }
            Err(why) => return cut::not_held(request.required, why),
        };
        match self.hold(request, &together).await {
            Ok(status) => cut::held(&together, &status),
            Err(message) => {
                tracing::warn!(content = request.object.name, databases = ?together.databases, message, "not held for a cut");
                cut::not_held(request.required, &message)
            }
        }
    }

    fn wanted(&self, request: &GateRequest) -> Result<Wanted, &'static str> {
        if !self.0.watched.is_complete() || !self.0.verbs.stored.is_cancelled() {
            return Err("Stillpoint has just started, and does not know yet whose volumes these are");
        }
        let index = self.0.watched.index();
        let claims = cut::claims(&index, request.driver.as_deref().unwrap_or_default(), &request.volume_handles);
        let namespace = claims.first().map(|(namespace, _)| namespace.as_str());
        let databases = self.0.verbs.records.databases(namespace);
        let databases: Vec<_> = databases.iter().map(AsRef::as_ref).collect();
        Ok(cut::wanted(&index, &claims, &databases))
    }

    /// Holds them, wherever their members are. The same content again is the same claim, and its time begins anew; one that has ended
    /// is followed by another.
    async fn hold(&self, request: &GateRequest, together: &Together) -> Result<QuiesceStatus, String> {
        let database = together.databases.first().ok_or("no Database")?;
        for again in 0..AGAIN {
            let uid = cut::claim_uid(request.object.group, &request.object.uid, again);
            let quiesce = cut::quiesce(together, uid.clone(), cut::reason(request));
            let (code, body) = self.verb(&together.namespace, database, "quiesce", &quiesce, request.dry_run).await?;
            match code {
                StatusCode::OK | StatusCode::CREATED => {
                    if code == StatusCode::OK && !request.dry_run {
                        let renew = serde_json::json!({"spec": {"uid": uid}});
                        self.verb(&together.namespace, database, "renew", &renew, false).await?;
                    }
                    return serde_json::from_value(body["status"].clone()).map_err(|error| error.to_string());
                }
                StatusCode::GONE => {}
                _ => return Err(body["message"].as_str().unwrap_or("no reason was given").to_owned()),
            }
        }
        Err(format!("it was tried {AGAIN} times"))
    }

    /// A verb as our own account, sent on to the replica that has the Database.
    async fn verb(
        &self,
        namespace: &str,
        database: &str,
        verb: &str,
        body: &(impl Serialize + Sync),
        dry_run: bool,
    ) -> Result<(StatusCode, Value), String> {
        let target = ResourceTarget {
            verb: Verb::Create,
            group: api::LIVE_GROUP.to_owned(),
            version: api::VERSION.to_owned(),
            namespace: Some(namespace.to_owned()),
            resource: "databases".to_owned(),
            name: Some(database.to_owned()),
            subresource: Some(verb.to_owned()),
        };
        let headers = HeaderMap::new();
        let query = Query::parse(dry_run.then_some("dryRun=All"));
        let parts = Parts { headers: &headers, query, form: Form::Object };
        let bytes = Bytes::from(serde_json::to_vec(body).map_err(|error| error.to_string())?);
        let Inner { app, us, stopping, .. } = &*self.0;
        let answer = app.objects.serve(us, target, &parts, bytes, Timestamp::now(), stopping).await;
        match answer {
            Ok(Answer::Json { code, bytes, .. }) => {
                Ok((code, serde_json::from_slice(&bytes).map_err(|error| error.to_string())?))
            }
            Ok(_) => Err("the verb answered in a form that is not its own".to_owned()),
            Err(error) => Ok((error.code, serde_json::json!({"message": error.message}))),
        }
    }
}
