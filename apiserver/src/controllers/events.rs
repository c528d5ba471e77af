//! What people see in `kubectl describe`: Events on the Freeze and its Databases, and each Database's newest freeze.
//!
//! Told a moment after the fact and together, because what was just written is often followed by the freeze's own next write.
//! What was told before the server ends is written before it ends.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use api::{DatabaseStatus, LastFreeze, Phase, TargetStatus};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::{
    journal::{Told, last_freeze},
    meta,
    records::Records,
    resources::{DATABASES, FREEZES, Resource},
};

/// How long the first told phase waits for others: longer than a freeze usually takes from one of its writes to the next,
/// too short for anybody who looks.
const GATHER: Duration = Duration::from_millis(100);
/// Phases that are told together at most.
const TOGETHER: usize = 64;
/// An Event's message (Kubernetes `pkg/apis/core/validation/events.go`).
const LONGEST: usize = 1024;

/// Tells each phase that is worth telling, until `over`; then what is left. That it cannot be written is no reason to stop.
pub async fn run(records: Arc<dyn Records>, mut told: mpsc::Receiver<Told>, over: CancellationToken) {
    while let Some(first) = heard(&mut told, &over).await {
        let until = Instant::now() + GATHER;
        let mut batch = vec![first];
        while batch.len() < TOGETHER
            && let Ok(Some(next)) = timeout_at(until, heard(&mut told, &over)).await
        {
            batch.push(next);
        }
        tell(records.as_ref(), &batch).await;
    }
}

/// The next told phase; once it is over, those that wait already, at once. Safe to cancel.
async fn heard(told: &mut mpsc::Receiver<Told>, over: &CancellationToken) -> Option<Told> {
    tokio::select! {
        biased;
        next = told.recv() => next,
        () = over.cancelled() => {
            told.close();
            told.recv().await
        }
    }
}

async fn tell(records: &dyn Records, batch: &[Told]) {
    let events = join_all(batch.iter().map(|told| events(records, told))).await.concat();
    // A Database has one freeze after the other, so of two that are told together the later one stands.
    let mut newest: BTreeMap<(&str, &str), LastFreeze> = BTreeMap::new();
    for Told { freeze, status, .. } in batch.iter().filter(|told| told.status.phase.is_finished()) {
        for target in &status.targets {
            newest.insert((&freeze.namespace, &target.database), last_freeze(freeze, status));
        }
    }
    let newest = join_all(newest.iter().map(|((namespace, database), last)| show(records, namespace, database, last)));
    // At once: so they share a sync to disk, and a freeze that writes meanwhile waits for one or two.
    tokio::join!(newest, records.tell(events));
}

async fn show(records: &dyn Records, namespace: &str, database: &str, last: &LastFreeze) {
    let change = |status: DatabaseStatus| Some(DatabaseStatus { last_freeze: Some(last.clone()), ..status });
    match records.change_database(namespace, database, &change).await {
        Ok(()) => {}
        Err(error) if error.code == 404 => debug!(namespace, database, "a Database is gone before its lastFreeze"),
        Err(error) => {
            let why = error.internal.unwrap_or(error.message);
            warn!(namespace, database, %why, "a Database's lastFreeze was not written");
        }
    }
}

async fn events(records: &dyn Records, told: &Told) -> Vec<Event> {
    let Told { freeze, status, .. } = told;
    let message = match (status.phase, &status.message) {
        (Phase::Frozen, _) => {
            let until = status.expires_at.as_ref().map(|at| at.0.to_string()).unwrap_or_default();
            format!("held at {} until {until}", status.level.unwrap_or_default())
        }
        (_, Some(message)) => message.clone(),
        (phase, None) => phase.to_string(),
    };
    let of_database = |target: &TargetStatus| {
        let (database, message) = (target.database.clone(), format!("Freeze {}: {message}", freeze.name));
        async move {
            let object = records.database(&freeze.namespace, &database).await.ok()?;
            Some(event(&DATABASES, &object.metadata, told, &message))
        }
    };
    // None about what is not there any more.
    let of_freeze = async {
        let object = records.freeze(freeze).await.ok()?;
        Some(event(&FREEZES, &object.metadata, told, &message))
    };
    let (of_freeze, of_databases) = tokio::join!(of_freeze, join_all(status.targets.iter().map(of_database)));
    of_freeze.into_iter().chain(of_databases.into_iter().flatten()).collect()
}

fn event(kind: &Resource, about: &ObjectMeta, told: &Told, message: &str) -> Event {
    let good = matches!(told.status.phase, Phase::Frozen | Phase::Thawed);
    let reason = told.status.phase.to_string();
    event_about(kind.reference(about), good, &reason, message, told.at)
}

/// An Event about an object of a namespace, under a name of its own.
pub(crate) fn event_about(about: ObjectReference, good: bool, reason: &str, message: &str, at: Timestamp) -> Event {
    let at = Time(at);
    Event {
        metadata: ObjectMeta {
            name: Some(meta::generated(&format!("{}.", about.name.as_deref().unwrap_or_default()))),
            namespace: about.namespace.clone(),
            ..ObjectMeta::default()
        },
        involved_object: about,
        type_: Some(if good { "Normal" } else { "Warning" }.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.chars().take(LONGEST).collect()),
        source: Some(EventSource { component: Some(api::install::ACCOUNT.to_owned()), host: None }),
        first_timestamp: Some(at.clone()),
        last_timestamp: Some(at),
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use api::FreezeStatus;
    use freeze::FreezeName;
    use serde_json::{Value, json};
    use tokio::{
        task::yield_now,
        time::{sleep, timeout},
    };
    use tokio_util::task::TaskTracker;

    use super::*;
    use crate::{
        registry::Registry,
        resources::{self, EVENTS},
        store::Store,
    };

    const SOON: Duration = Duration::from_secs(10);

    async fn registry() -> Registry {
        let registry = Registry::new(Store::in_memory(&resources::stored(), &TaskTracker::new()));
        let database = json!({
            "metadata": {"name": "orders", "namespace": "ns"},
            "spec": {"engine": "PostgreSQL", "endpoint": {"host": "127.0.0.1"}},
        });
        registry.create_with_status(&DATABASES, "ns", &database).await.unwrap();
        registry
    }

    fn told(name: &str, phase: &str) -> Told {
        let status = json!({
            "phase": phase,
            "targets": [{"database": "orders", "engine": "PostgreSQL", "member": "127.0.0.1:5432"}],
        });
        let status: FreezeStatus = serde_json::from_value(status).unwrap();
        Told { freeze: FreezeName { namespace: "ns".into(), name: name.into() }, status, at: Timestamp::now() }
    }

    fn last_freeze_of_orders(registry: &Registry) -> Value {
        registry.typed::<Value>(&DATABASES, Some("ns"), "orders").unwrap()["status"]["lastFreeze"]["name"].clone()
    }

    fn reasons(registry: &Registry) -> Vec<Value> {
        registry.all::<Value>(&EVENTS, None).into_iter().map(|event| event["reason"].clone()).collect()
    }

    #[tokio::test]
    async fn what_is_told_within_a_moment_is_written_together_and_the_newest_freeze_stands() {
        let registry = registry().await;
        let (tell, hear) = mpsc::channel(8);
        let (_, mut watch) = registry.list_and_watch(&DATABASES, None).unwrap();
        let running = tokio::spawn(run(Arc::new(registry.clone()), hear, CancellationToken::new()));
        for (name, phase) in [("z", "Frozen"), ("z", "Thawed"), ("a", "Failed")] {
            tell.send(told(name, phase)).await.unwrap();
            yield_now().await;
        }
        assert_eq!(reasons(&registry), [""; 0], "the first one waits for the others");
        timeout(SOON, watch.next()).await.unwrap().unwrap();
        assert_eq!(last_freeze_of_orders(&registry), "a", "one write for both freezes");
        // The negative control: what is told later is written by itself.
        tell.send(told("b", "Thawed")).await.unwrap();
        timeout(SOON, watch.next()).await.unwrap().unwrap();
        assert_eq!(last_freeze_of_orders(&registry), "b");
        drop(tell);
        timeout(SOON, running).await.unwrap().unwrap();
        assert_eq!(reasons(&registry).len(), 4);
    }

    #[tokio::test]
    async fn what_was_told_before_the_end_is_written_at_once() {
        let registry = registry().await;
        let (tell, hear) = mpsc::channel(200);
        let over = CancellationToken::new();
        let running = tokio::spawn(run(Arc::new(registry.clone()), hear, over.clone()));
        tell.send(told("first", "Frozen")).await.unwrap();
        sleep(Duration::from_millis(1)).await;
        for n in 0..2 * TOGETHER {
            tell.send(told(&format!("{n}"), "Thawed")).await.unwrap();
        }
        over.cancel();
        // While somebody could still tell more: the sender lives.
        timeout(SOON, running).await.unwrap().unwrap();
        assert_eq!(reasons(&registry).len(), 1 + 2 * TOGETHER);
        assert_eq!(last_freeze_of_orders(&registry), json!(format!("{}", 2 * TOGETHER - 1)));
        assert!(tell.send(told("late", "Thawed")).await.is_err());
    }
}
