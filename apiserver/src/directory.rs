//! Where a Database is now, read each time it is asked for.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use freeze::{Drivers, Whereabouts};
use futures::future::try_join_all;

use crate::{
    agents::Agents,
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
    /// A Database with whoever stands beside its server, or the Secrets that it names.
    pub async fn ingredients(&self, namespace: &str, name: &str) -> Result<Ingredients, ApiError> {
        let database = self.records.database(namespace, name).await?;
        let agent = self.agents.as_ref().and_then(|agents| agents.of(namespace, &database, None));
        let beside = agent.map(|agent| Beside { agent, epoch: self.epoch(namespace, name) });
        let secrets = if beside.is_some() {
            Vec::new()
        } else {
            let names = targets::secret_names(&database);
            try_join_all(names.iter().map(|name| self.records.secret(namespace, name))).await?
        };
        let mut database = Arc::unwrap_or_clone(database);
        if self.in_cluster {
            database.spec.endpoint = database.spec.endpoint.within(namespace);
        }
        Ok(Ingredients { database, secrets: secrets.into_iter().flatten().collect(), beside })
    }

    /// How often its Lease has changed hands: whoever has it now has the highest.
    fn epoch(&self, namespace: &str, name: &str) -> i64 {
        self.replicas.get().map_or(0, |replicas| replicas.epoch(namespace, name))
    }
}

#[async_trait]
impl freeze::Directory for Directory {
    /// Also of a paused Database: undoing needs no permission.
    async fn find(&self, namespace: &str, database: &str) -> Whereabouts {
        let ingredients = match self.ingredients(namespace, database).await {
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
