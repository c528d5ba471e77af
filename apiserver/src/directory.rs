//! Where a Database is now, read each time it is asked for.

use std::sync::{Arc, OnceLock};

use api::{AgentPolicy, Database, Via};
use async_trait::async_trait;
use freeze::{Drivers, Then, Whereabouts};
use futures::future::try_join_all;

use crate::{
    agents::{Agents, Asked, Chosen, Missing},
    error::ApiError,
    records::Records,
    replicas::Replicas,
    targets::{self, Beside, Ingredients, Way},
};

/// The records, as the freezer looks up Databases in them.
#[derive(Clone, Debug)]
pub struct Directory {
    pub records: Arc<dyn Records>,
    pub drivers: Drivers,
    /// Names of hosts are this cluster's.
    pub in_cluster: bool,
    /// Who stands beside servers, where anybody can.
    pub(crate) agents: Option<Agents>,
    pub(crate) replicas: Arc<OnceLock<Replicas>>,
}

impl Directory {
    /// A Database with whoever stands beside its server, or the Secrets that it names. `member`: the Pod that is meant, if one is.
    pub async fn ingredients(
        &self,
        namespace: &str,
        name: &str,
        member: Option<&str>,
    ) -> Result<Ingredients, ApiError> {
        let database = self.records.database(namespace, name).await?;
        let chosen = match &self.agents {
            Some(agents) => agents.choose(namespace, &database, member).await,
            None => Chosen::Nobody,
        };
        self.with(namespace, name, database, chosen).await
    }

    async fn with(
        &self,
        namespace: &str,
        name: &str,
        database: Arc<Database>,
        chosen: Chosen,
    ) -> Result<Ingredients, ApiError> {
        let beside = match chosen {
            Chosen::Nobody => Beside::Nobody,
            Chosen::One(agent) => Beside::Agent { agent, epoch: self.epoch(namespace, name) },
            // Its endpoint may still lead to the right one, for whoever may log in there.
            Chosen::NoneOfThem(_) if database.spec.credentials.is_some() && is_dialled(&database) => Beside::Nobody,
            Chosen::NoneOfThem(said) | Chosen::Split(said) => Beside::Undecided(said),
        };
        let secrets = if matches!(beside, Beside::Nobody) {
            let names = targets::secret_names(&database);
            try_join_all(names.iter().map(|name| self.records.secret(namespace, name))).await?
        } else {
            Vec::new()
        };
        let mut database = Arc::unwrap_or_clone(database);
        if self.in_cluster {
            database.spec.endpoint = database.spec.endpoint.within(namespace);
        }
        Ok(Ingredients { database, secrets: secrets.into_iter().flatten().collect(), beside })
    }

    async fn at(&self, namespace: &str, name: &str, chosen: Chosen) -> Result<Ingredients, ApiError> {
        let database = self.records.database(namespace, name).await?;
        self.with(namespace, name, database, chosen).await
    }

    /// What every member of a Database is, where there are several and agents stand beside them.
    pub(crate) async fn members(&self, namespace: &str, database: &Database) -> Vec<Asked> {
        match &self.agents {
            Some(agents) => agents.members(namespace, database).await,
            None => Vec::new(),
        }
    }

    /// Whether a Pod is one of several members, and an agent stands in it.
    pub(crate) fn is_one_of_several(&self, namespace: &str, database: &Database, pod: &str) -> bool {
        self.agents.as_ref().is_some_and(|agents| agents.is_one_of_several(namespace, database, pod))
    }

    /// The claims that a Pod may write to.
    pub(crate) fn volumes(&self, namespace: &str, pod: &str) -> Vec<String> {
        self.agents.as_ref().map(|agents| agents.volumes(namespace, pod)).unwrap_or_default()
    }

    /// How often its Lease has changed hands: whoever has it now has the highest.
    fn epoch(&self, namespace: &str, name: &str) -> i64 {
        self.replicas.get().map_or(0, |replicas| replicas.epoch(namespace, name))
    }
}

fn is_dialled(database: &Database) -> bool {
    database.spec.agent != AgentPolicy::Required
}

#[async_trait]
impl freeze::Directory for Directory {
    /// Also of a paused Database: undoing needs no permission.
    async fn find(&self, namespace: &str, database: &str, held: Option<Then<'_>>) -> Whereabouts {
        let ingredients = match (&self.agents, held) {
            (Some(agents), Some(Then { target, since })) if target.via == Via::Agent => {
                match agents.at(namespace, &target.member, target.engine, since) {
                    Ok(agent) => self.at(namespace, database, Chosen::One(agent)).await,
                    // Nobody waits for what is not registered any more.
                    Err(Missing::Agent) => self.records.database(namespace, database).await.and_then(|_| {
                        Err(ApiError::in_motion(format!("the agent in Pod {} is not connected here", target.member)))
                    }),
                    Err(Missing::Pod) => self.ingredients(namespace, database, None).await,
                }
            }
            (Some(_), Some(_)) => match self.at(namespace, database, Chosen::Nobody).await {
                // It is dialled by nobody any more; whoever answers says whether he is the one.
                Ok(found) if !is_dialled(&found.database) => self.ingredients(namespace, database, None).await,
                found => found,
            },
            _ => self.ingredients(namespace, database, None).await,
        };
        let ingredients = match ingredients {
            Ok(ingredients) => ingredients,
            Err(error) if error.code == http::StatusCode::NOT_FOUND => return Whereabouts::Gone,
            Err(error) => return Whereabouts::NotNow(error.message),
        };
        match targets::way(&self.drivers, &ingredients) {
            Ok(Way { driver, member, .. }) => Whereabouts::At(driver, member),
            Err(unresolved) => Whereabouts::NotNow(unresolved.to_string()),
        }
    }
}
