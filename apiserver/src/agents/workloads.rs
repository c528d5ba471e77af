//! What whoever has asked for agents needs beside them: a Database, where none leads to the Pod, and a word to the owner of a Pod that
//! was skipped. The leader's work; what it has done it sees in the cluster, so that another may go on with it.
//!
//! A Database that is made here is nobody's child: backups of it outlive the workload.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use api::{AgentPolicy, Database, DatabaseSpec, Endpoint, Engine, FreezePolicy, inject::Policy};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, ReplicaSet, StatefulSet},
        core::v1::{Event, EventSource, ObjectReference},
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference, Time},
};
use kube::{Api, Client, api::PostParams};
use sha2::{Digest, Sha256};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tracing::{info, warn};

use super::{Agents, Pod};
use crate::{topology::Asks, verbs::Verbs};

/// Looks after them.
pub(crate) struct Workloads {
    pub(crate) client: Client,
    pub(crate) agents: Agents,
    pub(crate) verbs: Verbs,
}

/// What Pods are made by, as far as members go: their name, and who they are.
struct Workload {
    kind: &'static str,
    name: String,
    selector: LabelSelector,
}

const LOOK: Duration = Duration::from_secs(5);
/// How long a Pod is without a Database until one is made: whoever applies a workload applies its Database with it.
const GRACE: Duration = Duration::from_secs(15);
/// How long it is waited after what could not be done.
const AGAIN: Duration = Duration::from_secs(300);
const ASKED_FOR: Duration = Duration::from_secs(10);
/// On a Database that was made here: for what.
const MADE_FOR: &str = "stillpoint.dev/made-for";

/// What this replica remembers while it leads.
#[derive(Default)]
struct Seen {
    /// Since when a Pod's agent is there and no Database leads to it, or when one could not be made.
    without: HashMap<Pod, Instant>,
    /// Events that are there.
    told: HashSet<String>,
}

impl Workloads {
    /// For ever.
    pub(crate) async fn follow(self) {
        let (mut seen, mut tick) = (Seen::default(), interval(LOOK));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            if !self.verbs.leads() || !self.verbs.stored.is_cancelled() || !self.agents.0.watched.is_complete() {
                seen = Seen::default();
                continue;
            }
            let asking = self.agents.0.watched.index().asking();
            self.tell(&asking, &mut seen.told).await;
            self.make(&asking, &mut seen.without).await;
        }
    }

    /// Tells owners of Pods that were skipped, each once.
    async fn tell(&self, asking: &[(Pod, Asks)], told: &mut HashSet<String>) {
        let skipped = asking.iter().filter_map(|(pod, asks)| Some((pod, asks, asks.skipped.as_deref()?)));
        let events: Vec<Event> = skipped.map(|(pod, asks, why)| event(pod, asks, "NotInjected", why)).collect();
        let names = events.iter().filter_map(|event| event.metadata.name.clone()).collect();
        let new = events.into_iter().filter(|event| !told.contains(event.metadata.name.as_deref().unwrap_or_default()));
        for event in new {
            self.say(event).await;
        }
        *told = names;
    }

    /// Makes Databases for workloads whose agents are there, and that no Database leads to.
    async fn make(&self, asking: &[(Pod, Asks)], without: &mut HashMap<Pod, Instant>) {
        let mut bare = HashMap::new();
        for (pod, asks) in asking.iter().filter(|(_, asks)| asks.skipped.is_none() && asks.policy.database) {
            let Some(engine) = self.agents.engine(pod) else { continue };
            let databases = self.verbs.records.databases(Some(&pod.0));
            if self.agents.database_of(&pod.0, &pod.1, &databases).is_some() {
                continue;
            }
            let now = Instant::now();
            let mut due = *without.get(pod).unwrap_or(&(now + GRACE));
            if due <= now {
                due = now + AGAIN;
                let made = timeout(ASKED_FOR, self.made(pod, asks, engine)).await;
                if let Err(why) = made.unwrap_or_else(|_| Err("the API server did not answer in time".to_owned())) {
                    warn!(namespace = pod.0, pod = pod.1, why, "no Database was made");
                    self.say(event(pod, asks, "DatabaseNotMade", &why)).await;
                }
            }
            bare.insert(pod.clone(), due);
        }
        *without = bare;
    }

    async fn made(&self, pod: &Pod, asks: &Asks, engine: Engine) -> Result<(), String> {
        let workload = self.workload(pod, asks).await?;
        let database = database(pod, &workload, engine, asks.policy);
        let databases: Api<Database> = Api::namespaced(self.client.clone(), &pod.0);
        match databases.create(&PostParams::default(), &database).await {
            Ok(_) => {
                info!(namespace = pod.0, database = workload.name, workload.kind, "a Database was made");
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Err(format!(
                "Database {} is there, and does not lead to Pod {}: give it spec.podSelector, or an endpoint that does; or say \
                 {}database: \"false\" on the Pod",
                workload.name,
                pod.1,
                api::inject::PREFIX
            )),
            Err(error) => Err(format!("no Database could be made for {} {}: {error}", workload.kind, workload.name)),
        }
    }

    /// Whose member a Pod is.
    async fn workload(&self, (namespace, pod): &Pod, asks: &Asks) -> Result<Workload, String> {
        let client = || self.client.clone();
        let gone = |error: kube::Error| format!("what owns Pod {pod} could not be read: {error}");
        match asks.owner.as_ref() {
            Some(owner) if owner.kind == "StatefulSet" => {
                let set = Api::<StatefulSet>::namespaced(client(), namespace).get(&owner.name).await.map_err(gone)?;
                let selector = set.spec.map(|spec| spec.selector).unwrap_or_default();
                Ok(Workload { kind: "StatefulSet", name: owner.name.clone(), selector })
            }
            Some(owner) if owner.kind == "ReplicaSet" => {
                let set = Api::<ReplicaSet>::namespaced(client(), namespace).get(&owner.name).await.map_err(gone)?;
                let owners = set.metadata.owner_references.into_iter().flatten();
                let deployment = owners.into_iter().find(|owner| owner.kind == "Deployment");
                let deployment = deployment.ok_or_else(|| unknown(pod, owner))?;
                let all = Api::<Deployment>::namespaced(client(), namespace);
                let selector = all.get(&deployment.name).await.map_err(gone)?.spec.map(|spec| spec.selector);
                let selector = selector.unwrap_or_default();
                Ok(Workload { kind: "Deployment", name: deployment.name, selector })
            }
            Some(owner) => Err(unknown(pod, owner)),
            None if asks.labels.is_empty() => {
                Err(format!("Pod {pod} has no labels; register a Database that leads to it"))
            }
            None => {
                let selector = LabelSelector { match_labels: Some(asks.labels.clone()), match_expressions: None };
                Ok(Workload { kind: "Pod", name: pod.clone(), selector })
            }
        }
    }

    /// One that is there already was told by whoever led before.
    async fn say(&self, event: Event) {
        let namespace = event.metadata.namespace.clone().unwrap_or_default();
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        match timeout(ASKED_FOR, events.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => {}
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => {}
            other => warn!(namespace, message = event.message, ?other, "an Event was not written"),
        }
    }
}

fn unknown(pod: &str, owner: &OwnerReference) -> String {
    format!(
        "nobody knows which Pods of {} {} are members beside {pod}; register a Database of them",
        owner.kind, owner.name
    )
}

/// Reached through its agents alone: no address and no password of it is known here.
fn database((namespace, _): &Pod, workload: &Workload, engine: Engine, policy: Policy) -> Database {
    let freeze = FreezePolicy {
        level: policy.level.unwrap_or_default(),
        ttl_seconds: policy.ttl_seconds,
        ..FreezePolicy::default()
    };
    let spec = DatabaseSpec {
        engine,
        endpoint: Endpoint::default(),
        pod_selector: Some(workload.selector.clone()),
        databases: Vec::new(),
        credentials: None,
        tls: None,
        freeze,
        agent: AgentPolicy::Required,
        paused: false,
    };
    let mut database = Database::new(&workload.name, spec);
    database.metadata.namespace = Some(namespace.clone());
    database.metadata.labels = Some([("app.kubernetes.io/managed-by".to_owned(), "stillpoint".to_owned())].into());
    let made_for = format!("{}/{}", workload.kind, workload.name);
    database.metadata.annotations = Some([(MADE_FOR.to_owned(), made_for)].into());
    database
}

/// On the Pod's owner, or on the Pod. The same word to the same one has the same name.
fn event((namespace, pod): &Pod, asks: &Asks, reason: &str, why: &str) -> Event {
    let about = match &asks.owner {
        Some(owner) => ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            namespace: Some(namespace.clone()),
            ..ObjectReference::default()
        },
        None => ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.clone()),
            uid: Some(asks.uid.clone()),
            namespace: Some(namespace.clone()),
            ..ObjectReference::default()
        },
    };
    let hash = Sha256::digest(format!("{} {reason} {why}", about.uid.as_deref().unwrap_or_default()));
    let hash = hash.iter().take(8).fold(String::new(), |text, byte| format!("{text}{byte:02x}"));
    let of: String = about.name.iter().flat_map(|name| name.chars()).take(LONGEST_OF).collect();
    let at = Time(Timestamp::now());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{of}.{hash}")),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: about,
        type_: Some("Warning".to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(why.chars().take(LONGEST).collect()),
        source: Some(EventSource { component: Some(api::install::ACCOUNT.to_owned()), host: None }),
        first_timestamp: Some(at.clone()),
        last_timestamp: Some(at),
        count: Some(1),
        ..Event::default()
    }
}

/// Of whom it is about, in an Event's name: with what follows it is no longer than a name may be.
const LONGEST_OF: usize = 200;
/// An Event's message (Kubernetes `pkg/apis/core/validation/events.go`).
const LONGEST: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(owner: Option<&str>) -> Asks {
        let owner = owner.map(|name| OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: "StatefulSet".to_owned(),
            name: name.to_owned(),
            uid: format!("of-{name}"),
            ..OwnerReference::default()
        });
        let labels = [("app".to_owned(), "orders".to_owned())].into();
        Asks { uid: "u".to_owned(), labels, owner, skipped: None, policy: Policy::default() }
    }

    #[test]
    fn what_is_made_is_valid_and_nobodys_child() {
        let selector = LabelSelector { match_labels: Some(asks(None).labels), match_expressions: None };
        let workload = Workload { kind: "StatefulSet", name: "orders".to_owned(), selector };
        let policy = Policy { level: Some(api::Level::WriteBlocked), ..Policy::default() };
        let made = database(&("shop".to_owned(), "orders-0".to_owned()), &workload, Engine::MariaDB, policy);
        assert_eq!(api::validate::database(&made.spec), []);
        assert_eq!(made.metadata.owner_references, None);
        assert_eq!(made.spec.freeze.level, api::Level::WriteBlocked);
        assert_eq!(made.metadata.annotations.unwrap()[MADE_FOR], "StatefulSet/orders");
    }

    #[test]
    fn an_owner_is_told_once_however_many_pods_it_has() {
        let of =
            |pod: &str, owner, why: &str| event(&("shop".to_owned(), pod.to_owned()), &asks(owner), "NotInjected", why);
        let [first, second] = ["orders-0", "orders-1"].map(|pod| of(pod, Some("orders"), "why").metadata.name);
        assert_eq!(first, second);
        assert_ne!(first, of("orders-0", Some("orders"), "another why").metadata.name);
        assert_ne!(first, of("orders-0", Some("others"), "why").metadata.name);
        let alone = of("orders-0", None, "why");
        assert_eq!(alone.involved_object.kind.as_deref(), Some("Pod"));
    }
}
