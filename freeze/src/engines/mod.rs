//! The engines, and the table that finds them. To add one: implement [`Driver`] in a file here, add it to
//! [`Drivers::real`] and to `api::Engine`, and call the contract suite for a real server.

use std::sync::Arc;

use api::Engine;

use crate::driver::Driver;

mod deadline;
mod in_the_way;
pub mod mariadb;
#[cfg(feature = "testing")]
pub mod memory;
pub mod postgresql;
pub(crate) mod text;
pub mod turn;

/// The drivers that a freezer works with, by engine.
#[derive(Clone, Debug)]
pub struct Drivers(Vec<Arc<dyn Driver>>);

impl Drivers {
    /// Every engine that this version has.
    pub fn real() -> Self {
        Self(vec![Arc::new(postgresql::Postgresql::default()), Arc::new(mariadb::Mariadb)])
    }

    /// For tests: any set, at most one per engine.
    pub fn new(drivers: Vec<Arc<dyn Driver>>) -> Self {
        Self(drivers)
    }

    /// The driver of `engine`, if there is one.
    pub fn of(&self, engine: Engine) -> Option<&Arc<dyn Driver>> {
        self.0.iter().find(|driver| driver.engine() == engine)
    }
}
