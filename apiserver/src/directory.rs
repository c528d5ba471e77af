//! Where a Database is now, read each time it is asked for.

use std::sync::Arc;

use async_trait::async_trait;
use freeze::{Drivers, Whereabouts};
use futures::future::try_join_all;

use crate::{
    error::ApiError,
    records::Records,
    targets::{self, Ingredients},
};

/// The records, as the freezer looks up Databases in them.
#[derive(Clone, Debug)]
pub struct Directory {
    pub records: Arc<dyn Records>,
    pub drivers: Drivers,
    /// Names of hosts are this cluster's.
    pub in_cluster: bool,
}

impl Directory {
    /// A Database with the Secrets that it names.
    pub async fn ingredients(&self, namespace: &str, name: &str) -> Result<Ingredients, ApiError> {
        let database = self.records.database(namespace, name).await?;
        let names = targets::secret_names(&database);
        let secrets = try_join_all(names.iter().map(|name| self.records.secret(namespace, name))).await?;
        let mut database = Arc::unwrap_or_clone(database);
        if self.in_cluster {
            database.spec.endpoint = database.spec.endpoint.within(namespace);
        }
        Ok(Ingredients { database, secrets: secrets.into_iter().flatten().collect() })
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
        let engine = ingredients.database.spec.engine;
        match (self.drivers.of(engine), targets::member(&ingredients)) {
            (Some(driver), Ok(member)) => Whereabouts::At(driver.clone(), member),
            (None, _) => Whereabouts::NotNow(format!("this server has no driver for {engine}")),
            (_, Err(unresolved)) => Whereabouts::NotNow(unresolved.to_string()),
        }
    }
}
