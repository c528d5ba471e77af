//! Of a Pod, what leads to it and what it has. Pure; only what the answer needs is kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use api::inject::{self, Policy};
use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Pod, PodSpec, Volume},
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};

/// Where a Pod is, and what it writes to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// PersistentVolumeClaims in its namespace that it may write to.
    pub(crate) claims: BTreeSet<String>,
    /// Other volumes that outlive it and that it may write to, by their names in it: no snapshot has them.
    pub(crate) others: BTreeSet<String>,
    pub(crate) addresses: Vec<IpAddr>,
    /// `<hostname>.<subdomain>`, as DNS knows a Pod of a StatefulSet (Kubernetes: "DNS for Services and Pods").
    pub(crate) subdomain: Option<(String, String)>,
    pub(crate) labels: BTreeMap<String, String>,
    /// It has asked for an agent, and stays.
    pub(crate) asks: Option<Box<Asks>>,
    /// What a process in it reads as the name of its host.
    hostname: String,
    pub(crate) started: Option<Timestamp>,
    /// It may write to its claims.
    pub(crate) runs: bool,
}

/// Of a Pod that has asked for an agent, what came of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Asks {
    pub uid: String,
    /// What made it.
    pub owner: Option<OwnerReference>,
    /// Why it got none.
    pub skipped: Option<String>,
    pub policy: Policy,
}

/// A name of a host has 64 characters at most (`sethostname(2)`); a kubelet cuts longer ones to 63.
const LONGEST_HOSTNAME: usize = 63;

impl Place {
    pub(crate) fn of(pod: &Pod) -> Self {
        let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let written = spec.map(written).unwrap_or_default();
        let volumes = spec.and_then(|spec| spec.volumes.as_ref()).into_iter().flatten();
        let (mut claims, mut others) = (BTreeSet::new(), BTreeSet::new());
        for volume in volumes.filter(|volume| written.contains(volume.name.as_str())) {
            let is_read_only =
                volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.read_only == Some(true));
            match claim_of(volume, name) {
                Some(_) if is_read_only => {}
                Some(claim) => drop(claims.insert(claim)),
                None if outlives(volume) => drop(others.insert(volume.name.clone())),
                None => {}
            }
        }
        let addresses = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten();
        // One that is being deleted writes until it is gone.
        let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
        Self {
            claims,
            others,
            addresses: addresses.filter_map(|address| address.ip.parse().ok()).collect(),
            subdomain: spec.and_then(|spec| Some((spec.hostname.clone()?, spec.subdomain.clone()?))),
            labels: pod.metadata.labels.clone().unwrap_or_default(),
            asks: Asks::of(pod).filter(|_| pod.metadata.deletion_timestamp.is_none()).map(Box::new),
            hostname: hostname(spec, name),
            started: status.and_then(|status| status.start_time.as_ref()).map(|started| started.0),
            runs: !matches!(phase, "Succeeded" | "Failed"),
        }
    }

    /// What a server in it says of where it runs, one of these.
    pub(crate) fn names(&self) -> BTreeSet<String> {
        let addresses = self.addresses.iter().map(ToString::to_string);
        addresses.chain(std::iter::once(self.hostname.clone())).collect()
    }
}

impl Asks {
    fn of(pod: &Pod) -> Option<Self> {
        let annotations = pod.metadata.annotations.as_ref()?;
        let status = annotations.get(inject::STATUS)?;
        let why = || annotations.get(inject::MESSAGE).cloned().unwrap_or_default();
        let owners = pod.metadata.owner_references.iter().flatten();
        Some(Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            owner: owners.into_iter().find(|owner| owner.controller == Some(true)).cloned(),
            skipped: (status == inject::SKIPPED).then(why),
            policy: Policy::of(annotations),
        })
    }
}

fn hostname(spec: Option<&PodSpec>, name: &str) -> String {
    let on_host = spec.and_then(|spec| spec.node_name.as_ref().filter(|_| spec.host_network == Some(true)));
    let own = spec.and_then(|spec| spec.hostname.as_ref());
    let hostname = on_host.or(own).map_or(name, String::as_str);
    hostname.chars().take(LONGEST_HOSTNAME).collect::<String>().trim_end_matches(['-', '.']).to_owned()
}

/// The claim that a volume of a Pod is, or that is made for it.
pub fn claim_of(volume: &Volume, pod: &str) -> Option<String> {
    let claim = volume.persistent_volume_claim.as_ref().map(|claim| claim.claim_name.clone());
    // Named so by the control plane (Kubernetes: "Ephemeral Volumes").
    claim.or_else(|| volume.ephemeral.as_ref().map(|_| format!("{pod}-{}", volume.name)))
}

/// Whether what is written to it is there when the Pod is not. One of a CSI driver's own, without a claim, is not: it is ephemeral
/// (Kubernetes: "Ephemeral Volumes").
fn outlives(volume: &Volume) -> bool {
    let goes = [
        volume.config_map.is_some(),
        volume.csi.is_some(),
        volume.downward_api.is_some(),
        volume.empty_dir.is_some(),
        volume.image.is_some(),
        volume.nfs.as_ref().is_some_and(|nfs| nfs.read_only == Some(true)),
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
