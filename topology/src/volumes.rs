//! Volumes as their drivers know them, and the claims that they are bound to. Pure.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::PersistentVolume;

use super::Name;

/// A volume as its driver knows it: the driver's name, and the handle.
type Handle = (String, String);

/// What is bound to what.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    /// The claims that each volume is bound to, by the names of their PersistentVolumes: one in each namespace that shares it.
    bound: HashMap<Handle, BTreeMap<String, Name>>,
    /// By the names of PersistentVolumes.
    handles: HashMap<String, Handle>,
    /// The PersistentVolume of each claim.
    of_claims: HashMap<Name, String>,
}

impl Volumes {
    pub(crate) fn put(&mut self, volume: &PersistentVolume) {
        let Some(name) = volume.metadata.name.clone() else { return };
        self.remove(&name);
        let Some(spec) = &volume.spec else { return };
        // One that was released says whose it was, and its handle may be in another by now.
        let is_bound = volume.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"));
        let claim = spec.claim_ref.as_ref().and_then(|claim| Some((claim.namespace.clone()?, claim.name.clone()?)));
        let handle = spec.csi.as_ref().map(|csi| (csi.driver.clone(), csi.volume_handle.clone()));
        if let (true, Some(claim), Some(handle)) = (is_bound, claim, handle) {
            self.bound.entry(handle.clone()).or_default().insert(name.clone(), claim.clone());
            self.of_claims.insert(claim, name.clone());
            self.handles.insert(name, handle);
        }
    }

    pub(crate) fn remove(&mut self, name: &str) {
        let Some(handle) = self.handles.remove(name) else { return };
        let Some(bound) = self.bound.get_mut(&handle) else { return };
        if let Some(claim) = bound.remove(name)
            && self.of_claims.get(&claim).is_some_and(|volume| volume == name)
        {
            self.of_claims.remove(&claim);
        }
        if bound.is_empty() {
            self.bound.remove(&handle);
        }
    }

    /// The claims that a volume is bound to, in all namespaces.
    pub(crate) fn claims(&self, driver: &str, handle: &str) -> impl Iterator<Item = &Name> {
        self.bound.get(&(driver.to_owned(), handle.to_owned())).into_iter().flat_map(BTreeMap::values)
    }

    /// The driver of a claim's volume.
    pub(crate) fn driver(&self, namespace: &str, claim: &str) -> Option<&str> {
        let volume = self.of_claims.get(&(namespace.to_owned(), claim.to_owned()))?;
        self.handles.get(volume).map(|(driver, _)| driver.as_str())
    }
}
