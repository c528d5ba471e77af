//! Whose data a volume holds: CSI handle → PersistentVolumeClaim → Pods that mount it → Databases whose endpoint leads to such a Pod.
//! Pure; fed by what a watch says.
//!
//! Only what the answer needs is kept of a PersistentVolume, a Pod, a Service and an EndpointSlice: a cluster has many of them.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
};

use api::{Database, gate::UNRELATED_CLAIMS};
use k8s_openapi::api::{
    core::v1::{Namespace, PersistentVolume, Pod, PodSpec, Service, Volume},
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
    /// Other volumes that outlive it and that it may write to, by their names in it: no snapshot has them.
    others: BTreeSet<String>,
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
    pods: Behind,
}

/// The Pods that a Service, or an address, leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Behind {
    all: BTreeSet<String>,
    /// Those that connections go to now.
    ready: BTreeSet<String>,
}

/// What stands where.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// The claim that each volume is bound to, and by which PersistentVolume.
    bound: HashMap<Handle, (String, Name)>,
    /// By the names of PersistentVolumes.
    handles: HashMap<String, Handle>,
    /// The volume of each claim.
    volumes: HashMap<Name, Handle>,
    pods: HashMap<Name, Place>,
    /// Pods of a namespace by what leads to one of them.
    pods_at: HashMap<(String, At), BTreeSet<String>>,
    /// Pods that mount a claim.
    mounted: HashMap<Name, BTreeSet<String>>,
    /// The addresses of Services themselves, and the Services of each.
    services: HashMap<Name, Vec<IpAddr>>,
    services_at: HashMap<(String, IpAddr), BTreeSet<String>>,
    slices: HashMap<Name, Slice>,
    /// The EndpointSlices of a Service.
    slices_of: HashMap<Name, BTreeSet<String>>,
    /// What Namespaces say of their snapshots; of those that say nothing there is none.
    policies: HashMap<String, NamespacePolicy>,
}

/// What leads to one Pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum At {
    Address(IpAddr),
    /// `<hostname>.<subdomain>`.
    Host(String, String),
}

/// A Database whose data a claim holds, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) database: String,
    pub(super) pod: String,
    /// All claims of that Pod, and what else it writes to: a copy of fewer is not a copy of the Database.
    pub(super) claims: BTreeSet<String>,
    /// Whoever connects to the Database connects to that Pod, and to no other.
    pub(super) is_the_one: bool,
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
        // One that was released says whose it was, and its handle may be in another by now.
        let is_bound = volume.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Bound"));
        let claim = spec.claim_ref.as_ref().and_then(|claim| Some((claim.namespace.clone()?, claim.name.clone()?)));
        let handle = spec.csi.as_ref().map(|csi| (csi.driver.clone(), csi.volume_handle.clone()));
        if let (true, Some(claim), Some(handle)) = (is_bound, claim, handle) {
            self.bound.insert(handle.clone(), (name.clone(), claim.clone()));
            self.volumes.insert(claim, handle.clone());
            self.handles.insert(name, handle);
        }
    }

    pub(super) fn remove_volume(&mut self, name: &str) {
        let Some(handle) = self.handles.remove(name) else { return };
        if self.bound.get(&handle).is_none_or(|(volume, _)| volume != name) {
            return;
        }
        if let Some((_, claim)) = self.bound.remove(&handle)
            && self.volumes.get(&claim) == Some(&handle)
        {
            self.volumes.remove(&claim);
        }
    }

    /// The claim that a volume is bound to.
    pub(super) fn claim_of(&self, driver: &str, handle: &str) -> Option<&Name> {
        self.bound.get(&(driver.to_owned(), handle.to_owned())).map(|(_, claim)| claim)
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
        for at in place.at() {
            self.pods_at.entry((name.0.clone(), at)).or_default().insert(name.1.clone());
        }
        self.pods.insert(name, place);
    }

    pub(super) fn remove_pod(&mut self, (namespace, name): &Name) {
        let Some(place) = self.pods.remove(&(namespace.clone(), name.clone())) else { return };
        for at in place.at() {
            take(&mut self.pods_at, &(namespace.clone(), at), name);
        }
        for claim in place.claims {
            take(&mut self.mounted, &(namespace.clone(), claim), name);
        }
    }

    pub(super) fn put_service(&mut self, service: &Service) {
        let Some(name) = name_of(&service.metadata) else { return };
        self.remove_service(&name);
        let spec = service.spec.as_ref();
        let addresses = spec.and_then(|spec| spec.cluster_ips.as_ref()).into_iter().flatten();
        // A headless Service says `None`.
        let addresses: Vec<IpAddr> = addresses.filter_map(|address| address.parse().ok()).collect();
        for address in &addresses {
            self.services_at.entry((name.0.clone(), *address)).or_default().insert(name.1.clone());
        }
        self.services.insert(name, addresses);
    }

    pub(super) fn remove_service(&mut self, name: &Name) {
        for address in self.services.remove(name).unwrap_or_default() {
            take(&mut self.services_at, &(name.0.clone(), address), &name.1);
        }
    }

    pub(super) fn put_slice(&mut self, slice: &EndpointSlice) {
        let Some(name) = name_of(&slice.metadata) else { return };
        self.remove_slice(&name);
        let Some(service) = service_of(slice) else { return };
        let mut pods = Behind::default();
        for endpoint in &slice.endpoints {
            let Some(target) = endpoint.target_ref.as_ref().filter(|of| of.kind.as_deref() == Some("Pod")) else {
                continue;
            };
            let Some(pod) = &target.name else { continue };
            pods.all.insert(pod.clone());
            // Of what is not known it is to be taken as ready (`discovery/v1` EndpointConditions).
            if endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready != Some(false)) {
                pods.ready.insert(pod.clone());
            }
        }
        self.slices_of.entry((name.0.clone(), service.clone())).or_default().insert(name.1.clone());
        self.slices.insert(name, Slice { service, pods });
    }

    pub(super) fn remove_slice(&mut self, name: &Name) {
        let Some(Slice { service, .. }) = self.slices.remove(name) else { return };
        take(&mut self.slices_of, &(name.0.clone(), service), &name.1);
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
            let Behind { all, ready } = self.pods_of(namespace, database);
            for pod in all.into_iter().filter(|pod| running.contains(pod.as_str())) {
                // Connections go to others: what is on this one's volumes nobody could hold.
                if !ready.is_empty() && !ready.contains(&pod) {
                    continue;
                }
                let place = self.pod(namespace, &pod);
                let volumes = place.into_iter().flat_map(|place| place.claims.iter().chain(&place.others));
                let claims = volumes.filter(|volume| !unrelated.contains(volume.as_str())).cloned().collect();
                let is_the_one = ready.len() == 1 && ready.contains(&pod);
                found.push(Found { database: name.clone(), pod, claims, is_the_one });
            }
        }
        if found.is_empty() { Holds::Unknown } else { Holds::Databases(found) }
    }

    /// The Pods that a Database's endpoint leads to.
    fn pods_of(&self, namespace: &str, database: &Database) -> Behind {
        let Some(host) = &database.spec.endpoint.host else { return Behind::default() };
        if let Ok(address) = host.parse::<IpAddr>() {
            let mut behind = self.pods_at(namespace, At::Address(address));
            let services = self.services_at.get(&(namespace.to_owned(), address)).into_iter().flatten();
            for service in services {
                behind.extend(&self.pods_behind(namespace, service));
            }
            return behind;
        }
        match host_in(host, namespace) {
            Some((service, None)) => self.pods_behind(namespace, service),
            Some((service, Some(pod))) => self.pods_at(namespace, At::Host(pod.to_owned(), service.to_owned())),
            None => Behind::default(),
        }
    }

    /// By what leads to a Pod itself, ready or not.
    fn pods_at(&self, namespace: &str, at: At) -> Behind {
        let all = self.pods_at.get(&(namespace.to_owned(), at)).cloned().unwrap_or_default();
        Behind { ready: all.clone(), all }
    }

    fn pods_behind(&self, namespace: &str, service: &str) -> Behind {
        let slices = self.slices_of.get(&(namespace.to_owned(), service.to_owned())).into_iter().flatten();
        let slices = slices.filter_map(|slice| self.slices.get(&(namespace.to_owned(), slice.clone())));
        let mut behind = Behind::default();
        slices.for_each(|slice| behind.extend(&slice.pods));
        behind
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<&Place> {
        self.pods.get(&(namespace.to_owned(), name.to_owned()))
    }
}

impl Behind {
    fn extend(&mut self, other: &Self) {
        self.all.extend(other.all.iter().cloned());
        self.ready.extend(other.ready.iter().cloned());
    }
}

impl Place {
    /// What leads to it.
    fn at(&self) -> Vec<At> {
        let host = self.hostname.iter().map(|(name, subdomain)| At::Host(name.clone(), subdomain.clone()));
        self.addresses.iter().copied().map(At::Address).chain(host).collect()
    }
}

/// Takes one out of a set, and the set out when it was the last.
fn take<K: Eq + Hash>(sets: &mut HashMap<K, BTreeSet<String>>, of: &K, one: &str) {
    if let Some(set) = sets.get_mut(of) {
        set.remove(one);
        if set.is_empty() {
            sets.remove(of);
        }
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
    let (mut claims, mut others) = (BTreeSet::new(), BTreeSet::new());
    for volume in volumes.filter(|volume| written.contains(volume.name.as_str())) {
        match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) if claim.read_only == Some(true) => {}
            (Some(claim), _) => drop(claims.insert(claim.claim_name.clone())),
            // Named so by the control plane (Kubernetes: "Ephemeral Volumes").
            (None, Some(_)) => drop(claims.insert(format!("{name}-{}", volume.name))),
            (None, None) if outlives(volume) => drop(others.insert(volume.name.clone())),
            (None, None) => {}
        }
    }
    let addresses = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
    let hostname = spec.and_then(|spec| Some((spec.hostname.clone()?, spec.subdomain.clone()?)));
    // One that is being deleted writes until it is gone.
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    Place {
        claims,
        others,
        addresses: addresses.filter_map(|address| address.ip.parse().ok()).collect(),
        hostname,
        runs: !matches!(phase, "Succeeded" | "Failed"),
    }
}

/// Whether what is written to it is there when the Pod is not.
fn outlives(volume: &Volume) -> bool {
    let goes = [
        volume.config_map.is_some(),
        volume.downward_api.is_some(),
        volume.empty_dir.is_some(),
        volume.image.is_some(),
        volume.projected.is_some(),
        volume.secret.is_some(),
    ];
    !goes.contains(&true)
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
        let found = Found { database: "orders".into(), pod: "pg-0".into(), claims, is_the_one: true };
        let found = Holds::Databases(vec![found]);
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
        let named = |name: &str, claim: &str, phase: &str| -> PersistentVolume {
            serde_json::from_value(json!({
                "metadata": {"name": name},
                "spec": {
                    "csi": {"driver": "one", "volumeHandle": "h"}, "claimRef": {"namespace": "shop", "name": claim},
                },
                "status": {"phase": phase},
            }))
            .unwrap()
        };
        let mut index = Index::default();
        index.put_volume(&named("pv", "data-0", "Bound"));
        let data = ("shop".to_owned(), "data-0".to_owned());
        assert_eq!(index.claim_of("one", "h"), Some(&data));
        assert_eq!((index.claim_of("other", "h"), index.claim_of("one", "g")), (None, None));
        assert_eq!(index.driver_of("shop", "data-0"), Some("one"));
        index.put_volume(&named("pv", "data-0", "Released"));
        assert_eq!((index.claim_of("one", "h"), index.driver_of("shop", "data-0")), (None, None));
        // Bound again by another PersistentVolume: what becomes of the old one is none of its business.
        index.put_volume(&named("new", "data-0", "Bound"));
        index.put_volume(&named("pv", "old", "Released"));
        index.remove_volume("pv");
        assert_eq!(index.claim_of("one", "h"), Some(&data));
    }

    #[test]
    fn whoever_is_not_led_to_is_not_held_and_of_several_nobody_knows_which() {
        let mut index = index();
        let database = database("primary");
        let several = |ready: [bool; 2]| -> EndpointSlice {
            let mut slice = slice("primary", &["pg-0", "pg-1"]);
            for (endpoint, ready) in slice.endpoints.iter_mut().zip(ready) {
                endpoint.conditions = serde_json::from_value(json!({"ready": ready})).unwrap();
            }
            slice
        };
        let the_one = |index: &Index, claim: &str| match index.holds("shop", claim, [&database]) {
            Holds::Databases(found) => Some(found[0].is_the_one),
            _ => None,
        };
        for (ready, of_first, of_second) in [
            ([true, false], Some(true), None),
            ([true, true], Some(false), Some(false)),
            // Nobody can connect: it is tried, and said that it cannot be held.
            ([false, false], Some(false), Some(false)),
        ] {
            index.put_slice(&several(ready));
            assert_eq!((the_one(&index, "data-0"), the_one(&index, "data-1")), (of_first, of_second), "{ready:?}");
        }
    }

    #[test]
    fn what_is_written_to_and_is_no_claim_is_missing_in_every_copy() {
        let mut index = index();
        let mut pod = pod("pg-0", &["data-0"], "Running", "10.0.0.1");
        let spec = pod.spec.as_mut().unwrap();
        let more = json!([{"name": "wal", "hostPath": {"path": "/wal"}}, {"name": "run", "emptyDir": {}}]);
        spec.volumes.as_mut().unwrap().extend(serde_json::from_value::<Vec<Volume>>(more).unwrap());
        for name in ["wal", "run"] {
            let mount = serde_json::from_value(json!({"name": name, "mountPath": "/x"})).unwrap();
            spec.containers[0].volume_mounts.as_mut().unwrap().push(mount);
        }
        index.put_pod(&pod);
        let mut database = database("primary");
        let of = |database: &Database| match index.holds("shop", "data-0", [database]) {
            Holds::Databases(found) => found[0].claims.iter().cloned().collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(of(&database), ["data-0", "wal"]);
        database.metadata.annotations = Some([(UNRELATED_CLAIMS.to_owned(), "wal".to_owned())].into());
        assert_eq!(of(&database), ["data-0"]);
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
            Holds::Databases(vec![Found { database: "orders".into(), pod: "pg-0".into(), claims, is_the_one: true }])
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
