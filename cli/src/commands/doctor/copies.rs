//! Every namespace that has copies, or wants some: whether Stillpoint may make there what they are made of.

use std::collections::BTreeSet;

use api::{Repository, Restore, Snapshot};
use kube::{Resource, api::ListParams, core::NamespaceResourceScope};
use serde::de::DeserializeOwned;

use super::{Finding, rights};
use crate::{client::Api, seen::all_of};

/// Of all namespaces, or of the one that was named.
pub(super) async fn look(api: &Api, named: Option<&str>, home: &str) -> Vec<Finding> {
    let mut namespaces = BTreeSet::new();
    for found in [
        namespaces_of::<Repository>(api, named).await,
        namespaces_of::<Snapshot>(api, named).await,
        namespaces_of::<Restore>(api, named).await,
    ] {
        match found {
            Ok(found) => namespaces.extend(found),
            Err(error) => return vec![Finding::unseen("copies", "Repositories, Snapshots and Restores", &error)],
        }
    }
    let mut findings = Vec::new();
    for namespace in namespaces {
        findings.push(rights::copies(&api.client, home, &namespace).await.of(&namespace));
    }
    findings
}

async fn namespaces_of<K>(api: &Api, named: Option<&str>) -> Result<BTreeSet<String>, kube::Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let all = all_of::<K>(&api.client, named).list_metadata(&ListParams::default()).await?;
    Ok(all.items.into_iter().filter_map(|one| one.metadata.namespace).collect())
}
