//! Agents beside databases: each dials every replica, says which Pod it is in, and executes there what a freezer here decides.
//!
//! ```text
//! agent ─► TLS (our authority) ─► Hello: a token that is bound to its Pod ─► TokenReview ─► Link, for as long as the stream lasts
//! Database ─► the Pod that its endpoint leads to ─► the agent in it, if there is one
//! ```
//! An agent speaks for its own Pod and for nothing else: which Database that is follows from where the Database's endpoint leads.

mod meeting;
mod wishes;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::{AgentPolicy, Database, Engine};
use freeze::remote::Link;
use tracing::info;

use crate::topology::Watched;

pub(crate) use meeting::{Door, serve};

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

/// Agents at once on one replica.
pub(crate) const MOST: usize = 20_000;

impl Agents {
    pub(crate) fn new(watched: Watched) -> Self {
        Self(Arc::new(Inner { watched, connected: Mutex::default() }))
    }

    /// The agent beside the server that a Database's endpoint leads to. `member`: of several Pods, the one that is wanted.
    pub(crate) fn of(&self, namespace: &str, database: &Database, member: Option<&str>) -> Option<Agent> {
        if database.spec.agent == AgentPolicy::Never {
            return None;
        }
        let pods = self.0.watched.pods_of(namespace, database);
        let connected = self.connected();
        let mut found = pods.into_iter().filter(|pod| member.is_none_or(|member| member == pod)).filter_map(|pod| {
            let agent = connected.get(&(namespace.to_owned(), pod))?;
            (agent.engine == database.spec.engine && !agent.link.is_closed()).then(|| agent.clone())
        });
        let first = found.next()?;
        // Of several nobody can say which one a connection to the endpoint would reach.
        found.next().is_none().then_some(first)
    }

    /// The Database that a Pod is the server of.
    fn database_of(&self, namespace: &str, pod: &str, databases: &[Arc<Database>]) -> Option<String> {
        let leads_here =
            |database: &&Arc<Database>| self.0.watched.pods_of(namespace, database).iter().any(|of| of == pod);
        databases.iter().find(leads_here)?.metadata.name.clone()
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
