//! Whether the cluster's CRDs are those that this server was built with, or newer ones. With older ones it would lose what it
//! writes, so it is not ready.

use std::{sync::Arc, time::Duration};

use api::crds::{self, SCHEMA};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{Api, Client};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::health::Condition;

const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Looks for ever. What cannot be read changes nothing.
pub(super) async fn look(client: Client, condition: Arc<Condition>) {
    let crds: Api<CustomResourceDefinition> = Api::all(client);
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        match missing(&crds).await {
            Ok(None) => condition.is_met(),
            Ok(Some(why)) => condition.is_not_met(why),
            Err(error) => warn!(%error, "the CRDs cannot be read"),
        }
    }
}

async fn missing(crds: &Api<CustomResourceDefinition>) -> Result<Option<String>, kube::Error> {
    for wanted in crds::all() {
        let name = wanted.metadata.name.unwrap_or_default();
        let found = crds.get_opt(&name).await?;
        if let Some(why) = too_old(&name, found.as_ref().map(crds::schema_of)) {
            return Ok(Some(why));
        }
    }
    Ok(None)
}

/// Pure.
fn too_old(name: &str, schema: Option<u32>) -> Option<String> {
    let there = match schema {
        Some(schema) if schema >= SCHEMA => return None,
        Some(schema) => format!("is of schema {schema}"),
        None => "is missing".to_owned(),
    };
    Some(format!("CRD {name} {there}, and this server needs schema {SCHEMA}: apply deploy/crds of its version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_crd_is_refused_with_what_to_do_and_a_newer_one_is_none_of_our_business() {
        assert_eq!((too_old("x", Some(SCHEMA)), too_old("x", Some(SCHEMA + 1))), (None, None));
        let old = too_old("databases.stillpoint.dev", Some(SCHEMA - 1)).unwrap();
        assert!(old.contains("is of schema 0") && old.contains("apply deploy/crds"), "{old}");
        assert!(too_old("x", None).unwrap().contains("is missing"));
    }
}
