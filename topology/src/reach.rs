//! Which Pods an endpoint's name or address leads to, as the cluster's own DNS and Services have it. Pure.
//!
//! A name is read as whoever dials it does: from another namespace than the Database's (`api::Endpoint::within`).

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::IpAddr,
};

use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};

use super::{Name, name_of, places::Place};

/// Pods that an EndpointSlice leads to.
#[derive(Debug)]
struct Slice {
    service: String,
    pods: Behind,
}

/// The Pods that a Service, or an address, leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Behind {
    pub(crate) all: BTreeSet<String>,
    /// Those that connections go to now.
    pub(crate) ready: BTreeSet<String>,
}

/// What leads where.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// Pods of a namespace by what leads to one of them.
    pods_at: HashMap<(String, At), BTreeSet<String>>,
    /// The addresses of Services themselves, and the Services of each.
    services: HashMap<Name, Vec<IpAddr>>,
    services_at: HashMap<(String, IpAddr), BTreeSet<String>>,
    slices: HashMap<Name, Slice>,
    /// The EndpointSlices of a Service.
    slices_of: HashMap<Name, BTreeSet<String>>,
}

/// What leads to one Pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum At {
    Address(IpAddr),
    /// `<hostname>.<subdomain>`.
    Host(String, String),
}

impl Reach {
    pub(crate) fn put_pod(&mut self, name: &Name, place: &Place) {
        for at in at(place) {
            self.pods_at.entry((name.0.clone(), at)).or_default().insert(name.1.clone());
        }
    }

    pub(crate) fn remove_pod(&mut self, (namespace, name): &Name, place: &Place) {
        for at in at(place) {
            take(&mut self.pods_at, &(namespace.clone(), at), name);
        }
    }

    pub(crate) fn put_service(&mut self, service: &Service) {
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

    pub(crate) fn remove_service(&mut self, name: &Name) {
        for address in self.services.remove(name).unwrap_or_default() {
            take(&mut self.services_at, &(name.0.clone(), address), &name.1);
        }
    }

    pub(crate) fn put_slice(&mut self, slice: &EndpointSlice) {
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

    pub(crate) fn remove_slice(&mut self, name: &Name) {
        let Some(Slice { service, .. }) = self.slices.remove(name) else { return };
        take(&mut self.slices_of, &(name.0.clone(), service), &name.1);
    }

    /// The Pods of a namespace that a host leads to. `domain`: the cluster's own.
    pub(crate) fn pods(&self, namespace: &str, host: &str, domain: &str) -> Behind {
        if let Ok(address) = host.parse::<IpAddr>() {
            let mut behind = self.pods_at(namespace, At::Address(address));
            let services = self.services_at.get(&(namespace.to_owned(), address)).into_iter().flatten();
            for service in services {
                behind.extend(&self.pods_behind(namespace, service));
            }
            return behind;
        }
        match host_in(host, namespace, domain) {
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
}

impl Behind {
    fn extend(&mut self, other: &Self) {
        self.all.extend(other.all.iter().cloned());
        self.ready.extend(other.ready.iter().cloned());
    }

    pub(crate) fn retain(&mut self, is_one: impl Fn(&String) -> bool) {
        self.all.retain(&is_one);
        self.ready.retain(&is_one);
    }
}

/// What leads to it. The address of one that is over may be another's by now.
fn at(place: &Place) -> Vec<At> {
    if !place.runs {
        return Vec::new();
    }
    let host = place.subdomain.iter().map(|(name, subdomain)| At::Host(name.clone(), subdomain.clone()));
    place.addresses.iter().copied().map(At::Address).chain(host).collect()
}

/// Takes one out of a set, and the set out when it was the last.
pub(crate) fn take<K: Eq + Hash>(sets: &mut HashMap<K, BTreeSet<String>>, of: &K, one: &str) {
    if let Some(set) = sets.get_mut(of) {
        set.remove(one);
        if set.is_empty() {
            sets.remove(of);
        }
    }
}

/// A name that the cluster's DNS has in a namespace: a Service's, or a Pod's behind one. `None`: it is of another namespace, or of no
/// cluster, or of another one.
fn host_in<'h>(host: &'h str, namespace: &str, domain: &str) -> Option<(&'h str, Option<&'h str>)> {
    let host = host.trim_end_matches('.');
    let named = match host.strip_suffix(domain).and_then(|rest| rest.strip_suffix(".svc.")) {
        Some(named) => named,
        None => host.strip_suffix(".svc").unwrap_or(host),
    };
    match *named.split('.').collect::<Vec<_>>() {
        // A name alone is the Database's own namespace's; that is how it is dialled.
        [service] if named == host => Some((service, None)),
        [service, of] if of == namespace => Some((service, None)),
        [pod, service, of] if of == namespace => Some((service, Some(pod))),
        _ => None,
    }
}

fn service_of(slice: &EndpointSlice) -> Option<String> {
    slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name").cloned()
}
