//! Agents beside databases: each dials every replica, says which Pod it is in, and executes there what a freezer here decides.
//!
//! ```text
//! agent ─► TLS (our authority) ─► Hello: a token that is bound to its Pod ─► TokenReview ─► Link, for as long as the stream lasts
//! Database ─► the Pods that its endpoint leads to ─► the agents in them ─► of several, the one whose server has the role that is wanted
//! ```
//! An agent speaks for its own Pod and for nothing else: which Database that is follows from where that one's endpoint leads, or
//! from the labels of its Pods.

mod meeting;
mod members;
mod wishes;
mod workloads;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::{AgentPolicy, Database, Engine};
use freeze::remote::Link;
use jiff::Timestamp;
use tracing::info;

use crate::indexed::Watched;

pub(crate) use meeting::{Door, serve};
pub(crate) use members::{Asked, Chosen};
pub(crate) use workloads::Workloads;

/// A Pod, in its namespace.
type Pod = (String, String);

/// Those that are connected to this replica. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Agents(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    watched: Watched,
    connected: Mutex<HashMap<Pod, Agent>>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) pod: String,
    pub(crate) engine: Engine,
    pub(crate) link: Link,
}

/// Why there is no agent in a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is not connected to this replica, and may come.
    Agent,
    /// The Pod is gone, or over, and whatever ran in it.
    Pod,
}

/// Agents at once on one replica.
pub(crate) const MOST: usize = 20_000;

impl Agents {
    pub(crate) fn new(watched: Watched) -> Self {
        Self(Arc::new(Inner { watched, connected: Mutex::default() }))
    }

    /// The agents beside the servers of a Database, by the names of their Pods; and how many members it has.
    fn beside(&self, namespace: &str, database: &Database) -> (Vec<Agent>, usize) {
        if database.spec.agent == AgentPolicy::Never {
            return (Vec::new(), 0);
        }
        let pods = self.0.watched.members(namespace, database);
        let (count, connected) = (pods.len(), self.connected());
        let agents = pods.into_iter().filter_map(|pod| {
            let agent = connected.get(&(namespace.to_owned(), pod))?;
            (agent.engine == database.spec.engine && !agent.link.is_closed()).then(|| agent.clone())
        });
        (agents.collect(), count)
    }

    /// The agent in a Pod; or whether the Pod that ran there `then` runs still, and its agent is not there.
    pub(crate) fn at(
        &self,
        namespace: &str,
        pod: &str,
        engine: Engine,
        then: Option<Timestamp>,
    ) -> Result<Agent, Missing> {
        let agent = self.agent(&(namespace.to_owned(), pod.to_owned()));
        // Before all is known nothing follows from what is not there.
        let runs = || !self.0.watched.is_complete() || self.0.watched.index().ran(namespace, pod, then);
        agent.filter(|agent| agent.engine == engine).ok_or_else(|| if runs() { Missing::Agent } else { Missing::Pod })
    }

    /// Whether a Database has several members.
    fn has_several(&self, namespace: &str, database: &Database) -> bool {
        self.0.watched.members(namespace, database).len() > 1
    }

    /// Whether a Pod is one of several members, and has an agent.
    pub(crate) fn is_one_of_several(&self, namespace: &str, database: &Database, pod: &str) -> bool {
        self.0.watched.index().is_one_of_several(namespace, database, pod)
    }

    /// The claims that a Pod may write to.
    pub(crate) fn volumes(&self, namespace: &str, pod: &str) -> Vec<String> {
        self.0.watched.index().claims(namespace, pod)
    }

    /// The Database that a Pod is the server of.
    fn database_of(&self, namespace: &str, pod: &str, databases: &[Arc<Database>]) -> Option<Arc<Database>> {
        let index = self.0.watched.index();
        databases.iter().find(|database| index.is_member(namespace, database, pod)).cloned()
    }

    /// The one in a Pod, while it is connected.
    fn agent(&self, pod: &Pod) -> Option<Agent> {
        self.connected().get(pod).filter(|agent| !agent.link.is_closed()).cloned()
    }

    /// The newest of a Pod is the one.
    fn enter(&self, pod: Pod, agent: Agent) {
        info!(namespace = pod.0, pod = pod.1, engine = %agent.engine, "an agent has come");
        if let Some(before) = self.connected().insert(pod, agent) {
            before.link.close();
        }
    }

    fn leave(&self, pod: &Pod, link: &Link) {
        let mut connected = self.connected();
        if connected.get(pod).is_some_and(|agent| agent.link.is(link)) {
            connected.remove(pod);
            info!(namespace = pod.0, pod = pod.1, "an agent is gone");
        }
    }

    /// Tells all of them whose certificates replicas are going to show.
    pub(crate) async fn trust(&self, bundle: &str) {
        let links: Vec<Link> = self.connected().values().map(|agent| agent.link.clone()).collect();
        for link in links {
            link.trust(bundle.to_owned()).await;
        }
    }

    fn connected(&self) -> MutexGuard<'_, HashMap<Pod, Agent>> {
        self.0.connected.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
