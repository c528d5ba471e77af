//! Whose data a volume holds: CSI handle → PersistentVolumeClaim → Pods that mount it → Databases whose endpoint leads to such a Pod.
//! Pure; fed by what a watch says.
//!
//! Only what the answer needs is kept of a PersistentVolume, a Pod, a Service and an EndpointSlice: a cluster has many of them.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use api::{Database, gate::UNRELATED_CLAIMS};
use k8s_openapi::api::{
    core::v1::{Namespace, PersistentVolume, Pod, PodSpec, Service},
    discovery::v1::EndpointSlice,
};

use super::policy::NamespacePolicy;

/// An object's name in its namespace.
pub(super) type Name = (String, String);

/// Of a Pod, what leads to it and what it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// PersistentVolumeClaims in its namespace that it may write to.
    pub(super) claims: BTreeSet<String>,
    addresses: Vec<IpAddr>,
    /// `<hostname>.<subdomain>`, as DNS knows a Pod of a StatefulSet (Kubernetes: "DNS for Services and Pods").
    hostname: Option<(String, String)>,
    /// It may write to its claims.
    runs: bool,
}

/// A volume as its driver knows it: the driver's name, and the handle.
pub(super) type Handle = (String, String);

/// Pods that an EndpointSlice leads to.
#[derive(Debug)]
struct Slice {
    service: String,
    pods: BTreeSet<String>,
}

/// What stands where.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The claim that each volume is bound to.
    bound: HashMap<Handle, Name>,
    /// By the names of PersistentVolumes.
    handles: HashMap<String, Handle>,
    /// The volume of each claim.
    volumes: HashMap<Name, Handle>,
    pods: HashMap<Name, Place>,
    /// Pods that mount a claim.
    mounted: HashMap<Name, BTreeSet<String>>,
    /// The addresses of Services themselves.
    services: HashMap<Name, Vec<IpAddr>>,
    slices: HashMap<Name, Slice>,
    /// The EndpointSlices of a Service.
    slices_of: HashMap<Name, BTreeSet<String>>,
    /// What Namespaces say of their snapshots; of those that say nothing there is none.
    policies: HashMap<String, NamespacePolicy>,
}

/// A Database whose data a claim holds, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) database: String,
    pub(super) pod: String,
    /// All claims of that Pod: a copy of fewer is not a copy of the Database.
    pub(super) claims: BTreeSet<String>,
}

/// What is known of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// No Pod that runs mounts it: nobody writes to it.
    Nobody,
    /// Pods mount it, and no Database's endpoint leads to any of them.
    Unknown,
    Databases(Vec<Found>),
}

impl Index {
    pub(super) fn put_volume(&mut self, volume: &PersistentVolume) {
        let Some(name) = volume.metadata.name.clone() else { return };
        self.remove_volume(&name);
        let Some(spec) = &volume.spec else { return };
        let claim = spec.claim_ref.as_ref().and_then(|claim| Some((claim.namespace.clone()?, claim.name.clone()?)));
        let handle = spec.csi.as_ref().map(|csi| (csi.driver.clone(), csi.volume_handle.clone()));
        if let (Some(claim), Some(handle)) = (claim, handle) {
            self.bound.insert(handle.clone(), claim.clone());
            self.volumes.insert(claim, handle.clone());
            self.handles.insert(name, handle);
        }
    }

    pub(super) fn remove_volume(&mut self, name: &str) {
        if let Some(handle) = self.handles.remove(name)
            && let Some(claim) = self.bound.remove(&handle)
            && self.volumes.get(&claim) == Some(&handle)
        {
            self.volumes.remove(&claim);
        }
    }

    /// The claim that a volume is bound to.
    pub(super) fn claim_of(&self, driver: &str, handle: &str) -> Option<&Name> {
        self.bound.get(&(driver.to_owned(), handle.to_owned()))
    }

    /// The driver of a claim's volume.
    pub(super) fn driver_of(&self, namespace: &str, claim: &str) -> Option<&str> {
        self.volumes.get(&(namespace.to_owned(), claim.to_owned())).map(|(driver, _)| driver.as_str())
    }

    pub(super) fn put_namespace(&mut self, namespace: &Namespace) {
        let Some(name) = namespace.metadata.name.clone() else { return };
        match NamespacePolicy::read(&namespace.metadata) {
            policy if policy == NamespacePolicy::default() => self.policies.remove(&name),
            policy => self.policies.insert(name, policy),
        };
    }

    pub(super) fn remove_namespace(&mut self, name: &str) {
        self.policies.remove(name);
    }

    pub(super) fn policy(&self, namespace: &str) -> NamespacePolicy {
        self.policies.get(namespace).cloned().unwrap_or_default()
    }

    /// Namespaces that want no copy that is not consistent.
    pub(super) fn required(&self) -> Vec<String> {
        self.policies.iter().filter(|(_, policy)| policy.required).map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn put_pod(&mut self, pod: &Pod) {
        let Some(name) = name_of(&pod.metadata) else { return };
        self.remove_pod(&name);
        let place = place(pod);
        for claim in &place.claims {
            self.mounted.entry((name.0.clone(), claim.clone())).or_default().insert(name.1.clone());
        }
        self.pods.insert(name, place);
    }

    pub(super) fn remove_pod(&mut self, (namespace, name): &Name) {
        let Some(place) = self.pods.remove(&(namespace.clone(), name.clone())) else { return };
        for claim in place.claims {
            let claim = (namespace.clone(), claim);
            if let Some(pods) = self.mounted.get_mut(&claim) {
                pods.remove(name);
                if pods.is_empty() {
                    self.mounted.remove(&claim);
                }
            }
        }
    }

    pub(super) fn put_service(&mut self, service: &Service) {
        let Some(name) = name_of(&service.metadata) else { return };
        let spec = service.spec.as_ref();
        let addresses = spec.and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten();
        // A headless Service says `None`.
        self.services.insert(name, addresses.filter_map(|address| address.parse().ok()).collect());
    }

    pub(super) fn remove_service(&mut self, name: &Name) {
        self.services.remove(name);
    }

    pub(super) fn put_slice(&mut self, slice: &EndpointSlice) {
        let Some(name) = name_of(&slice.metadata) else { return };
        self.remove_slice(&name);
        let Some(service) = service_of(slice) else { return };
        let pods = slice.endpoints.iter().filter_map(|endpoint| {
            let target = endpoint.target_ref.as_ref()?;
            (target.kind.as_deref() == Some("Pod")).then(|| target.name.clone())?
        });
        let pods = pods.collect();
        self.slices_of.entry((name.0.clone(), service.clone())).or_default().insert(name.1.clone());
        self.slices.insert(name, Slice { service, pods });
    }

    pub(super) fn remove_slice(&mut self, name: &Name) {
        let Some(Slice { service, .. }) = self.slices.remove(name) else { return };
        let service = (name.0.clone(), service);
        if let Some(slices) = self.slices_of.get_mut(&service) {
            slices.remove(&name.1);
            if slices.is_empty() {
                self.slices_of.remove(&service);
            }
        }
    }

    /// Whose data is in a claim; `databases` are those of its namespace.
    pub(super) fn holds<'d>(
        &self,
        namespace: &str,
        claim: &str,
        databases: impl IntoIterator<Item = &'d Database>,
    ) -> Holds {
        let mounted = self.mounted.get(&(namespace.to_owned(), claim.to_owned())).into_iter().flatten();
        let running: BTreeSet<&str> = mounted
            .filter(|pod| self.pod(namespace, pod).is_some_and(|place| place.runs))
            .map(String::as_str)
            .collect();
        if running.is_empty() {
            return Holds::Nobody;
        }
        let mut found = Vec::new();
        for database in databases {
            let Some(name) = &database.metadata.name else { continue };
            let unrelated = unrelated(database);
            if unrelated.contains(claim) {
                continue;
            }
            for pod in self.pods_of(namespace, database).into_iter().filter(|pod| running.contains(pod.as_str())) {
                let claims = self.pod(namespace, &pod).map(|place| &place.claims).into_iter().flatten();
                let claims = claims.filter(|claim| !unrelated.contains(claim.as_str())).cloned().collect();
                found.push(Found { database: name.clone(), pod, claims });
            }
        }
        if found.is_empty() { Holds::Unknown } else { Holds::Databases(found) }
    }

    /// The Pods that a Database's endpoint leads to.
    fn pods_of(&self, namespace: &str, database: &Database) -> BTreeSet<String> {
        let Some(host) = &database.spec.endpoint.host else { return BTreeSet::new() };
        let of_namespace = |((of, _), _): &(&Name, &Place)| of == namespace;
        if let Ok(address) = host.parse::<IpAddr>() {
            let pods = self.pods.iter().filter(of_namespace);
            let own = pods.filter(|(_, place)| place.addresses.contains(&address)).map(|((_, pod), _)| pod.clone());
            let services =
                self.services.iter().filter(|((of, _), addresses)| of == namespace && addresses.contains(&address));
            return own.chain(services.flat_map(|(service, _)| self.pods_behind(service))).collect();
        }
        match host_in(host, namespace) {
            Some((service, None)) => self.pods_behind(&(namespace.to_owned(), service.to_owned())).collect(),
            Some((service, Some(pod))) => {
                let known = |place: &Place| {
                    place.hostname.as_ref().is_some_and(|(name, subdomain)| name == pod && subdomain == service)
                };
                let pods = self.pods.iter().filter(of_namespace).filter(|(_, place)| known(place));
                pods.map(|((_, pod), _)| pod.clone()).collect()
            }
            None => BTreeSet::new(),
        }
    }

    fn pods_behind<'i>(&'i self, service: &'i Name) -> impl Iterator<Item = String> + 'i {
        let slices = self.slices_of.get(service).into_iter().flatten();
        let slices = slices.filter_map(|slice| self.slices.get(&(service.0.clone(), slice.clone())));
        slices.flat_map(|slice| slice.pods.iter().cloned())
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<&Place> {
        self.pods.get(&(namespace.to_owned(), name.to_owned()))
    }
}

/// Claims that a Database says it has no data on.
fn unrelated(database: &Database) -> BTreeSet<&str> {
    let annotations = database.metadata.annotations.as_ref();
    let said = annotations.and_then(|all| all.get(UNRELATED_CLAIMS)).map(String::as_str).unwrap_or_default();
    said.split(',').map(str::trim).filter(|claim| !claim.is_empty()).collect()
}

/// A name that DNS knows in a namespace: a Service's, or a Pod's behind one. `None`: it is of another namespace, or of no cluster.
fn host_in<'h>(host: &'h str, namespace: &str) -> Option<(&'h str, Option<&'h str>)> {
    let labels: Vec<&str> = host.trim_end_matches('.').split('.').collect();
    // With or without the cluster's own domain, whatever that is.
    let svc = labels.iter().position(|label| *label == "svc");
    let named = match svc {
        Some(at) if at >= 2 && labels[at - 1] == namespace => &labels[..at - 1],
        Some(_) => return None,
        None if labels.len() > 1 && labels.last() == Some(&namespace) => &labels[..labels.len() - 1],
        None => &labels[..],
    };
    match named {
        [service] => Some((service, None)),
        [pod, service] => Some((service, Some(pod))),
        _ => None,
    }
}

fn place(pod: &Pod) -> Place {
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let written = spec.map(written).unwrap_or_default();
    let volumes = spec.and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
    let volumes = volumes.filter(|volume| written.contains(volume.name.as_str()));
    let claims = volumes.filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
        (Some(claim), _) => (claim.read_only != Some(true)).then(|| claim.claim_name.clone()),
        // Named so by the control plane (Kubernetes: "Ephemeral Volumes").
        (None, Some(_)) => Some(format!("{name}-{}", volume.name)),
        (None, None) => None,
    });
    let addresses = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
    let hostname = spec.and_then(|spec| Some((spec.hostname.clone()?, spec.subdomain.clone()?)));
    // One that is being deleted writes until it is gone.
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    Place {
        claims: claims.collect(),
        addresses: addresses.filter_map(|address| address.ip.parse().ok()).collect(),
        hostname,
        runs: !matches!(phase, "Succeeded" | "Failed"),
    }
}

/// The volumes of a Pod that one of its containers may write to.
fn written(spec: &PodSpec) -> BTreeSet<&str> {
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let volumes = containers.flat_map(|container| {
        let mounts = container.volume_mounts.iter().flatten().filter(|mount| mount.read_only != Some(true));
        let devices = container.volume_devices.iter().flatten().map(|device| device.name.as_str());
        mounts.map(|mount| mount.name.as_str()).chain(devices)
    });
    volumes.collect()
}

fn service_of(slice: &EndpointSlice) -> Option<String> {
    slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name").cloned()
}

fn name_of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Option<Name> {
    Some((meta.namespace.clone()?, meta.name.clone()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, claims: &[&str], phase: &str, ip: &str) -> Pod {
        let volumes: Vec<_> =
            claims.iter().map(|claim| json!({"name": claim, "persistentVolumeClaim": {"claimName": claim}})).collect();
        let mounts: Vec<_> =
            claims.iter().map(|claim| json!({"name": claim, "mountPath": format!("/{claim}")})).collect();
        let containers = json!([{"name": "c", "volumeMounts": mounts}]);
        serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": name},
            "spec": {"containers": containers, "volumes": volumes, "hostname": name, "subdomain": "all"},
            "status": {"phase": phase, "podIPs": [{"ip": ip}]},
        }))
        .unwrap()
    }

    fn slice(service: &str, pods: &[&str]) -> EndpointSlice {
        let endpoints: Vec<_> = pods
            .iter()
            .map(|pod| json!({"addresses": ["10.0.0.9"], "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod}}))
            .collect();
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "shop", "name": format!("{service}-x"), "labels": {"kubernetes.io/service-name": service},
            },
            "addressType": "IPv4", "endpoints": endpoints,
        }))
        .unwrap()
    }

    fn database(host: &str) -> Database {
        serde_json::from_value(json!({
            "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"namespace": "shop", "name": "orders"},
            "spec": {"engine": "PostgreSQL", "endpoint": {"host": host}},
        }))
        .unwrap()
    }

    fn index() -> Index {
        let mut index = Index::default();
        index.put_pod(&pod("pg-0", &["data-0", "wal-0"], "Running", "10.0.0.1"));
        index.put_pod(&pod("pg-1", &["data-1"], "Running", "10.0.0.2"));
        index.put_pod(&pod("done", &["old"], "Succeeded", "10.0.0.3"));
        index.put_slice(&slice("primary", &["pg-0"]));
        let service = json!({
            "metadata": {"namespace": "shop", "name": "primary"},
            "spec": {"clusterIPs": ["10.96.0.7"], "clusterIP": "10.96.0.7"},
        });
        index.put_service(&serde_json::from_value(service).unwrap());
        index
    }

    #[test]
    fn every_way_to_name_an_endpoint_leads_to_its_pod_and_no_other_does() {
        let index = index();
        let claims: BTreeSet<String> = ["data-0", "wal-0"].map(str::to_owned).into();
        let found = Holds::Databases(vec![Found { database: "orders".into(), pod: "pg-0".into(), claims }]);
        for host in [
            "primary",
            "primary.shop",
            "primary.shop.svc",
            "primary.shop.svc.cluster.local",
            "primary.shop.svc.example.org.",
            "pg-0.all",
            "pg-0.all.shop.svc.cluster.local",
            "10.96.0.7",
            "10.0.0.1",
        ] {
            assert_eq!(index.holds("shop", "data-0", [&database(host)]), found, "{host}");
            assert_eq!(index.holds("shop", "data-1", [&database(host)]), Holds::Unknown, "{host}");
        }
        for host in ["primary.other.svc", "pg-0.others", "db.example.org", "10.0.0.9", "secondary"] {
            assert_eq!(index.holds("shop", "data-0", [&database(host)]), Holds::Unknown, "{host}");
        }
    }

    #[test]
    fn what_nobody_mounts_who_runs_is_nobodys() {
        let mut index = index();
        let database = database("primary");
        for claim in ["old", "unheard-of"] {
            assert_eq!(index.holds("shop", claim, [&database]), Holds::Nobody, "{claim}");
        }
        assert_eq!(index.holds("other", "data-0", [&database]), Holds::Nobody, "a claim is its namespace's");
        index.remove_pod(&("shop".to_owned(), "pg-0".to_owned()));
        assert_eq!(index.holds("shop", "data-0", [&database]), Holds::Nobody);
        assert!(!index.mounted.keys().any(|(_, claim)| claim == "data-0"), "nothing is left of it");
    }

    #[test]
    fn a_volume_is_known_by_its_driver_and_handle_while_it_is_bound() {
        let volume = |claim: serde_json::Value| -> PersistentVolume {
            serde_json::from_value(json!({
                "metadata": {"name": "pv"},
                "spec": {"csi": {"driver": "one", "volumeHandle": "h"}, "claimRef": claim},
            }))
            .unwrap()
        };
        let mut index = Index::default();
        index.put_volume(&volume(json!({"namespace": "shop", "name": "data-0"})));
        assert_eq!(index.claim_of("one", "h"), Some(&("shop".to_owned(), "data-0".to_owned())));
        assert_eq!((index.claim_of("other", "h"), index.claim_of("one", "g")), (None, None));
        index.put_volume(&volume(json!(null)));
        assert_eq!(index.claim_of("one", "h"), None, "released");
    }

    #[test]
    fn what_no_container_writes_to_and_what_a_database_says_it_has_nothing_on_is_not_its_own() {
        let mut index = index();
        let mut reads = pod("pg-0", &["data-0", "wal-0", "backups"], "Running", "10.0.0.1");
        let mounts = reads.spec.as_mut().unwrap().containers[0].volume_mounts.as_mut().unwrap();
        mounts[1].read_only = Some(true);
        index.put_pod(&reads);
        let of = |claim: &str, database: &Database| index.holds("shop", claim, [database]);
        let found = |claims: &[&str]| {
            let claims = claims.iter().map(|claim| (*claim).to_owned()).collect();
            Holds::Databases(vec![Found { database: "orders".into(), pod: "pg-0".into(), claims }])
        };
        let mut database = database("primary");
        assert_eq!(of("data-0", &database), found(&["backups", "data-0"]));
        assert_eq!(of("wal-0", &database), Holds::Nobody);
        database.metadata.annotations = Some([(UNRELATED_CLAIMS.to_owned(), " backups, x".to_owned())].into());
        assert_eq!(of("data-0", &database), found(&["data-0"]));
        assert_eq!(of("backups", &database), Holds::Unknown);
    }

    #[test]
    fn a_database_follows_its_service_from_pod_to_pod() {
        let mut index = index();
        let database = database("primary");
        index.put_slice(&slice("primary", &["pg-1"]));
        assert_eq!(index.holds("shop", "data-0", [&database]), Holds::Unknown, "it has failed over");
        assert!(matches!(index.holds("shop", "data-1", [&database]), Holds::Databases(_)));
        index.remove_slice(&("shop".to_owned(), "primary-x".to_owned()));
        assert_eq!(index.holds("shop", "data-1", [&database]), Holds::Unknown);
    }
}
