//! What people see in `kubectl describe`: Events on the Freeze and its Databases, and each Database's newest freeze.

use api::Phase;
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::debug;

use crate::{
    journal::{Told, last_freeze},
    meta,
    registry::Registry,
    resources::{DATABASES, EVENTS, FREEZES, Resource},
};

/// Tells each phase that is worth telling. An Event that cannot be written is no reason to stop.
pub async fn run(registry: Registry, mut told: mpsc::Receiver<Told>) {
    while let Some(told) = told.recv().await {
        tell(&registry, &told).await;
    }
}

async fn tell(registry: &Registry, told: &Told) {
    let Told { freeze, status } = told;
    let good = matches!(status.phase, Phase::Frozen | Phase::Thawed);
    let message = match (status.phase, &status.message) {
        (Phase::Frozen, _) => {
            let until = status.expires_at.as_ref().map(|at| at.0.to_string()).unwrap_or_default();
            format!("held at {} until {until}", status.level.unwrap_or_default())
        }
        (_, Some(message)) => message.clone(),
        (phase, None) => phase.to_string(),
    };
    let namespace = &freeze.namespace;
    let of_freeze = emit(registry, &FREEZES, namespace, &freeze.name, good, status.phase, &message);
    let of_databases = join_all(status.targets.iter().map(|target| async {
        let message = format!("Freeze {}: {message}", freeze.name);
        let event = emit(registry, &DATABASES, namespace, &target.database, good, status.phase, &message);
        let newest = async {
            if status.phase.is_finished() {
                let last = json!(last_freeze(freeze, status));
                let change = |of_database: &mut Value| of_database["lastFreeze"] = last.clone();
                registry.change_status(&DATABASES, namespace, &target.database, change).await.ok();
            }
        };
        tokio::join!(event, newest);
    }));
    // At once: so they share one sync to disk, and a freeze that writes meanwhile waits for one at most.
    tokio::join!(of_freeze, of_databases);
}

async fn emit(
    registry: &Registry,
    about: &Resource,
    namespace: &str,
    name: &str,
    good: bool,
    phase: Phase,
    message: &str,
) {
    let Ok(object) = registry.typed::<Value>(about, Some(namespace), name) else {
        return;
    };
    let now = Time(Timestamp::now());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(meta::generated(&format!("{name}."))),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(about.api_version()),
            kind: Some(about.kind.to_owned()),
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            uid: object["metadata"]["uid"].as_str().map(str::to_owned),
            ..ObjectReference::default()
        },
        type_: Some(if good { "Normal" } else { "Warning" }.to_owned()),
        reason: Some(phase.to_string()),
        message: Some(message.chars().take(1024).collect()),
        source: Some(EventSource { component: Some("stillpoint-apiserver".to_owned()), host: None }),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..Event::default()
    };
    if let Err(error) = registry.create_with_status(&EVENTS, namespace, &event).await {
        debug!(message = %error.message, "an Event was not written");
    }
}
