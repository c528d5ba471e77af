//! Where a Database is now, read from the registry each time it is asked for.

use api::Database;
use freeze::{Drivers, Whereabouts};
use k8s_openapi::api::core::v1::Secret;

use crate::{
    error::ApiError,
    registry::Registry,
    resources::{DATABASES, SECRETS},
    targets::{self, Ingredients},
};

/// The registry, as the freezer looks up Databases in it.
#[derive(Clone, Debug)]
pub struct Directory {
    pub registry: Registry,
    pub drivers: Drivers,
}

impl Directory {
    /// A Database with the Secrets that it names.
    pub fn ingredients(&self, namespace: &str, name: &str) -> Result<Ingredients, ApiError> {
        let database: Database = self.registry.typed(&DATABASES, Some(namespace), name)?;
        let names = targets::secret_names(&database);
        let secrets =
            names.iter().filter_map(|name| self.registry.typed::<Secret>(&SECRETS, Some(namespace), name).ok());
        let secrets = secrets.collect();
        Ok(Ingredients { database, secrets })
    }
}

impl freeze::Directory for Directory {
    /// Also of a paused Database: undoing needs no permission.
    fn find(&self, namespace: &str, database: &str) -> Whereabouts {
        let ingredients = match self.ingredients(namespace, database) {
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
