//! Whose data a volume holds: CSI handle → PersistentVolumeClaim → Pods that mount it → Databases that such a Pod is a member of.
//! Pure; fed by watches, or by lists.
//!
//! Only what the answer needs is kept of a PersistentVolume, a Pod, a Service and an EndpointSlice: a cluster has many of them.

mod data;
mod places;
mod reach;
#[cfg(test)]
mod tests;
mod volumes;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use api::{Database, Role, gate::UNRELATED_CLAIMS, runner::job::is_run};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{PersistentVolume, Pod, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};
use kube::core::{Selector, SelectorExt};

pub use self::{
    data::{Data, NoData},
    places::{Asks, claim_of},
};
use self::{
    places::Place,
    reach::{Behind, Reach, take},
    volumes::Volumes,
};

/// An object's name in its namespace.
pub type Name = (String, String);

/// What stands where.
#[derive(Debug)]
pub struct Index {
    /// What the names of this cluster end in.
    domain: String,
    volumes: Volumes,
    pods: HashMap<Name, Place>,
    /// The Pods of each namespace.
    pods_in: HashMap<String, BTreeSet<String>>,
    /// Pods that mount a claim.
    mounted: HashMap<Name, BTreeSet<String>>,
    reach: Reach,
}

/// A Database whose data a claim holds, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub database: String,
    pub pod: String,
    /// All claims of that Pod, and what else it writes to: a copy of fewer is not a copy of the Database.
    pub claims: BTreeSet<String>,
    /// What the server in that Pod says of where it runs, one of these: whoever says something else is another.
    pub names: BTreeSet<String>,
    /// Nothing of it was there before.
    pub since: Option<Timestamp>,
}

/// Which of a Database's members a Pod is, as they were seen last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The one that is held, or the only one.
    Meant,
    /// One that has another role than the one that is held.
    Other(Role),
    /// One of several, and nobody has asked it.
    Unknown,
}

/// What is known of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// No Pod that runs mounts it: nobody writes to it.
    Nobody,
    /// Pods mount it, and no Database's endpoint leads to any of them.
    Unknown,
    Databases(Vec<Found>),
}

impl Index {
    pub fn new(domain: String) -> Self {
        let (volumes, pods, pods_in, mounted, reach) = Default::default();
        Self { domain, volumes, pods, pods_in, mounted, reach }
    }

    pub fn put_volume(&mut self, volume: &PersistentVolume) {
        self.volumes.put(volume);
    }

    pub fn remove_volume(&mut self, name: &str) {
        self.volumes.remove(name);
    }

    pub fn put_service(&mut self, service: &Service) {
        self.reach.put_service(service);
    }

    pub fn remove_service(&mut self, name: &Name) {
        self.reach.remove_service(name);
    }

    pub fn put_slice(&mut self, slice: &EndpointSlice) {
        self.reach.put_slice(slice);
    }

    pub fn remove_slice(&mut self, name: &Name) {
        self.reach.remove_slice(name);
    }

    /// One of a run of ours is no member, whatever labels its template has given it, and what it mounts is nobody's data.
    pub fn put_pod(&mut self, pod: &Pod) {
        let Some(name) = name_of(&pod.metadata) else { return };
        self.remove_pod(&name);
        if pod.metadata.labels.as_ref().is_some_and(is_run) {
            return;
        }
        let place = Place::of(pod);
        for claim in &place.claims {
            self.mounted.entry((name.0.clone(), claim.clone())).or_default().insert(name.1.clone());
        }
        self.reach.put_pod(&name, &place);
        self.pods_in.entry(name.0.clone()).or_default().insert(name.1.clone());
        self.pods.insert(name, place);
    }

    pub fn remove_pod(&mut self, name: &Name) {
        let Some(place) = self.pods.remove(name) else { return };
        self.reach.remove_pod(name, &place);
        take(&mut self.pods_in, &name.0, &name.1);
        for claim in place.claims {
            take(&mut self.mounted, &(name.0.clone(), claim), &name.1);
        }
    }

    /// Pods that have asked for an agent, and are not over.
    pub fn asking(&self) -> Vec<(Name, Asks)> {
        let asking = self.pods.iter().filter(|(_, place)| place.runs);
        asking.filter_map(|(name, place)| Some((name.clone(), Asks::clone(place.asks.as_deref()?)))).collect()
    }

    /// The claim that a volume is bound to: the one of this namespace, if it is bound in several.
    pub fn claim_of(&self, driver: &str, handle: &str, namespace: Option<&str>) -> Option<&Name> {
        let here = self.volumes.claims(driver, handle).find(|(of, _)| Some(of.as_str()) == namespace);
        here.or_else(|| self.volumes.claims(driver, handle).next())
    }

    /// Whether others than this claim write to its volume, too.
    pub fn is_shared(&self, driver: &str, handle: &str) -> bool {
        self.volumes.claims(driver, handle).nth(1).is_some()
    }

    /// The driver of a claim's volume.
    pub fn driver_of(&self, namespace: &str, claim: &str) -> Option<&str> {
        self.volumes.driver(namespace, claim)
    }

    /// Whose data is in a claim; `databases` are those of its namespace.
    pub fn holds<'d>(&self, namespace: &str, claim: &str, databases: impl IntoIterator<Item = &'d Database>) -> Holds {
        let mounted = self.mounted.get(&(namespace.to_owned(), claim.to_owned())).into_iter().flatten();
        let running: BTreeSet<&str> = mounted.filter(|pod| self.runs(namespace, pod)).map(String::as_str).collect();
        if running.is_empty() {
            return Holds::Nobody;
        }
        let mut found = Vec::new();
        for database in databases.into_iter().filter(|database| !unrelated(database).contains(claim)) {
            let Behind { all, ready } = self.members_among(&running, namespace, database);
            // Connections go to those that are ready: what is on the others' volumes nobody could hold.
            let reached = |pod: &String| running.contains(pod.as_str()) && (ready.is_empty() || ready.contains(pod));
            for pod in all.into_iter().filter(reached) {
                found.extend(self.found(namespace, database, pod));
            }
        }
        if found.is_empty() { Holds::Unknown } else { Holds::Databases(found) }
    }

    fn found(&self, namespace: &str, database: &Database, pod: String) -> Option<Found> {
        let (name, place) = (database.metadata.name.clone()?, self.pod(namespace, &pod)?);
        let unrelated = unrelated(database);
        let volumes = place.claims.iter().chain(&place.others);
        let registered = database.metadata.creation_timestamp.as_ref().map(|made| made.0);
        Some(Found {
            database: name,
            claims: volumes.filter(|volume| !unrelated.contains(volume.as_str())).cloned().collect(),
            names: place.names().into_iter().chain([pod.clone()]).collect(),
            since: place.started.max(registered),
            pod,
        })
    }

    /// The Pods that are a Database's members and run, ready or not: one that is held may not be.
    pub fn members(&self, namespace: &str, database: &Database) -> BTreeSet<String> {
        let runs = |pod: &String| self.runs(namespace, pod);
        self.pods_of(namespace, database).all.into_iter().filter(runs).collect()
    }

    /// Which of a Database's members a Pod is, as its status says.
    pub fn standing(&self, namespace: &str, database: &Database, pod: &str) -> Standing {
        let seen = database.status.as_ref().map(|status| status.members.as_slice()).unwrap_or_default();
        match seen.iter().find(|member| member.name == pod) {
            Some(member) if member.role == database.spec.freeze.target.role => Standing::Meant,
            Some(member) => Standing::Other(member.role),
            None if self.members(namespace, database).len() > 1 => Standing::Unknown,
            None => Standing::Meant,
        }
    }

    /// Whether a Pod is one of several members, and has an agent.
    pub fn is_one_of_several(&self, namespace: &str, database: &Database, pod: &str) -> bool {
        let asks = self.pod(namespace, pod).and_then(|place| place.asks.as_ref());
        let members = self.members(namespace, database);
        members.len() > 1 && members.contains(pod) && asks.is_some_and(|asks| asks.skipped.is_none())
    }

    /// Whether a Pod is a Database's member and runs.
    pub fn is_member(&self, namespace: &str, database: &Database, pod: &str) -> bool {
        self.runs(namespace, pod) && self.members_among(&BTreeSet::from([pod]), namespace, database).all.contains(pod)
    }

    /// Whether a Pod runs that may have run then.
    pub fn ran(&self, namespace: &str, pod: &str, then: Option<Timestamp>) -> bool {
        let began_later = |place: &Place| place.started.zip(then).is_some_and(|(started, then)| started > then);
        self.pod(namespace, pod).is_some_and(|place| place.runs && !began_later(place))
    }

    pub fn runs(&self, namespace: &str, pod: &str) -> bool {
        self.pod(namespace, pod).is_some_and(|place| place.runs)
    }

    pub fn addresses(&self, namespace: &str, pod: &str) -> Option<Vec<IpAddr>> {
        self.pod(namespace, pod).map(|place| place.addresses.clone())
    }

    /// The claims that a Pod may write to.
    pub fn claims(&self, namespace: &str, pod: &str) -> Vec<String> {
        self.pod(namespace, pod).into_iter().flat_map(|place| place.claims.iter().cloned()).collect()
    }

    /// The Pods that are a Database's members: by their labels, or because its endpoint leads to them.
    fn pods_of(&self, namespace: &str, database: &Database) -> Behind {
        if let Some(selector) = &database.spec.pod_selector {
            let pods = self.pods_in.get(namespace).into_iter().flatten().map(String::as_str);
            return self.selected(pods, namespace, selector);
        }
        let host = database.spec.endpoint.host.as_ref();
        let mut behind = host.map(|host| self.reach.pods(namespace, host, &self.domain)).unwrap_or_default();
        // A Service may lead to what is no server.
        behind.retain(|pod| self.pod(namespace, pod).is_some());
        behind
    }

    /// Of these Pods those that are a Database's members: of labels nobody else is looked at.
    fn members_among(&self, these: &BTreeSet<&str>, namespace: &str, database: &Database) -> Behind {
        match &database.spec.pod_selector {
            Some(selector) => self.selected(these.iter().copied(), namespace, selector),
            None => self.pods_of(namespace, database),
        }
    }

    /// One that says nothing selects nobody, for it would select everybody.
    fn selected<'p>(&self, pods: impl Iterator<Item = &'p str>, namespace: &str, selector: &LabelSelector) -> Behind {
        let Ok(selector) = Selector::try_from(selector.clone()) else { return Behind::default() };
        if selector.selects_all() {
            return Behind::default();
        }
        let is_one =
            |pod: &&str| self.pod(namespace, pod).is_some_and(|place| place.runs && selector.matches(&place.labels));
        let all: BTreeSet<String> = pods.filter(is_one).map(str::to_owned).collect();
        Behind { ready: all.clone(), all }
    }

    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<&Place> {
        self.pods.get(&(namespace.to_owned(), name.to_owned()))
    }
}

/// Claims that a Database says it has no data on.
pub fn unrelated(database: &Database) -> BTreeSet<&str> {
    let annotations = database.metadata.annotations.as_ref();
    let said = annotations.and_then(|all| all.get(UNRELATED_CLAIMS)).map(String::as_str).unwrap_or_default();
    said.split(',').map(str::trim).filter(|claim| !claim.is_empty()).collect()
}

fn name_of(meta: &ObjectMeta) -> Option<Name> {
    Some((meta.namespace.clone()?, meta.name.clone()?))
}
