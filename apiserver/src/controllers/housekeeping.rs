//! What has to go: namespaces that are being deleted, finished Freezes, old Events.

use std::{collections::HashMap, sync::Arc, time::Duration};

use api::Freeze;
use freeze::FreezeName;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Namespace};
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::{
    records::freeze_name,
    registry::{DeleteOptions, Registry},
    resources::{EVENTS, NAMESPACES},
    verbs::Verbs,
};

/// While a namespace is being deleted somebody waits for it.
const NAMESPACES_EVERY: Duration = Duration::from_millis(250);
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Finished Freezes that are kept of each Database, and how long a Freeze is kept at most; younger than the least age
/// many more are kept.
const KEEP_FREEZES: usize = 20;
const KEEP_YOUNG_FREEZES: usize = 200;
const FREEZE_AGE: (Duration, Duration) = (Duration::from_secs(3600), Duration::from_secs(7 * 24 * 3600));
/// Upstream's `--event-ttl`.
const EVENT_AGE: Duration = Duration::from_secs(3600);

/// Deletes the contents of namespaces that are going, and then these.
pub async fn namespaces(registry: Registry) {
    let mut tick = interval(NAMESPACES_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let all = registry.all::<Namespace>(&NAMESPACES, None);
        for namespace in all.iter().filter(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
            let Some(name) = &namespace.metadata.name else { continue };
            for (resource, object) in registry.contents(name) {
                registry.delete(resource, Some(name), &object, &DeleteOptions::default(), Timestamp::now()).await.ok();
            }
            if !registry.has_contents(name) {
                registry.delete(&NAMESPACES, None, name, &DeleteOptions::default(), Timestamp::now()).await.ok();
            }
        }
    }
}

/// Removes finished Freezes by count and age.
pub async fn freezes(verbs: Verbs) {
    let records = Arc::clone(&verbs.records);
    let mut tick = interval(SWEEP_EVERY);
    loop {
        tick.tick().await;
        if !verbs.leads() {
            continue;
        }
        for name in over(&records.freezes(), Timestamp::now()) {
            // In this order: without its finalizer it would look like one that somebody declared.
            for removed in [records.delete_freeze(&name).await, records.let_go(&name).await] {
                if let Err(error) = removed {
                    debug!(freeze = %name, message = %error.message, "not removed yet; trying again");
                }
            }
        }
    }
}

/// Removes old Events.
pub async fn events(registry: Registry) {
    let mut tick = interval(SWEEP_EVERY);
    loop {
        tick.tick().await;
        let now = Timestamp::now();
        for event in registry.all::<Event>(&EVENTS, None) {
            let old = event.last_timestamp.as_ref().is_some_and(|seen| now.duration_since(seen.0) > older(EVENT_AGE));
            if let (true, Some(namespace), Some(name)) = (old, &event.metadata.namespace, &event.metadata.name) {
                registry.delete(&EVENTS, Some(namespace), name, &DeleteOptions::default(), now).await.ok();
            }
        }
    }
}

/// Whether nobody but us made it, or somebody who made many of one kind. One that was declared by its name is its author's to
/// delete: who keeps a cluster as it is written (GitOps) would declare it again, and with that freeze again.
fn is_history(freeze: &Freeze) -> bool {
    super::freeze::is_a_verbs(freeze) || freeze.metadata.generate_name.is_some()
}

/// The finished Freezes that are too many or too old; pure. What still has to be undone is kept.
fn over(freezes: &[Arc<Freeze>], now: Timestamp) -> Vec<FreezeName> {
    let mut finished: Vec<(&Arc<Freeze>, Timestamp)> = freezes
        .iter()
        .filter(|freeze| is_history(freeze))
        .filter(|freeze| {
            freeze.status.as_ref().is_some_and(|status| {
                status.phase.is_finished() && status.targets.iter().all(|target| target.undo.is_empty())
            })
        })
        .filter_map(|freeze| Some((freeze, freeze.metadata.creation_timestamp.as_ref()?.0)))
        .collect();
    finished.sort_by_key(|(_, created)| std::cmp::Reverse(*created));
    let mut of_database: HashMap<(Option<&str>, Option<&str>), usize> = HashMap::new();
    let mut over = Vec::new();
    for (freeze, created) in finished {
        let database = freeze.spec.targets.first().map(|target| target.database.as_str());
        let count = of_database.entry((freeze.metadata.namespace.as_deref(), database)).or_default();
        *count += 1;
        let age = now.duration_since(created);
        let many = *count > KEEP_YOUNG_FREEZES || (*count > KEEP_FREEZES && age > older(FREEZE_AGE.0));
        if many || age > older(FREEZE_AGE.1) {
            over.extend(freeze_name(freeze));
        }
    }
    over
}

fn older(than: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(than).unwrap_or(jiff::SignedDuration::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn finished_freezes_go_by_count_and_age_and_what_is_to_be_undone_stays() {
        let now: Timestamp = "2026-06-10T00:00:00Z".parse().unwrap();
        let freeze = |name: &str, created: &str, phase: &str, undo: bool| -> Freeze {
            let undo = if undo { json!([{"version": 1, "kind": "mariadbGlobals"}]) } else { json!([]) };
            serde_json::from_value(json!({
                "apiVersion": api::API_VERSION, "kind": "Freeze",
                "metadata": {"name": name, "namespace": "ns", "creationTimestamp": created,
                    "labels": {api::LABEL_DATABASE: "orders"}, "finalizers": [api::FINALIZER_THAW]},
                "spec": {"targets": [{"database": "orders"}]},
                "status": {"phase": phase, "targets": [
                    {"database": "orders", "engine": "MariaDB", "member": "m", "undo": undo}]},
            }))
            .unwrap()
        };
        let mut freezes: Vec<Freeze> =
            (0..25).map(|n| freeze(&format!("f{n}"), "2026-06-09T00:00:00Z", "Thawed", false)).collect();
        freezes.push(freeze("ancient", "2026-05-01T00:00:00Z", "Lost", false));
        freezes.push(freeze("undoing", "2026-05-01T00:00:00Z", "Lost", true));
        freezes.push(freeze("held", "2026-05-01T00:00:00Z", "Frozen", false));
        let mut declared = freeze("declared", "2026-05-01T00:00:00Z", "Thawed", false);
        declared.metadata.labels = None;
        let mut one_of_many = Freeze { metadata: declared.metadata.clone(), ..declared.clone() };
        (one_of_many.metadata.name, one_of_many.metadata.generate_name) =
            (Some("nightly-x".to_owned()), Some("nightly-".to_owned()));
        freezes.extend([declared, one_of_many]);
        let freezes: Vec<_> = freezes.into_iter().map(Arc::new).collect();
        let gone = over(&freezes, now);
        assert_eq!(gone.len(), 7, "{gone:?}");
        let young = (0..201).map(|n| Arc::new(freeze(&format!("y{n}"), "2026-06-09T23:59:00Z", "Thawed", false)));
        assert_eq!(over(&young.collect::<Vec<_>>(), now).len(), 1, "a Database that is frozen all the time");
        assert!(gone.iter().all(|gone| !["undoing", "held", "declared"].contains(&gone.name.as_str())));
        assert!(gone.iter().any(|gone| gone.name == "nightly-x"));
    }
}
