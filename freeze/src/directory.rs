//! Where Databases are *now*. An undo is tried for as long as it takes, and meanwhile an address, a password or a Secret
//! may change: so it asks again at each try.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::driver::{Driver, Member};

/// Finds the server of a Database.
///
/// # Contract
/// Answers within a few seconds, or `NotNow`. Dropping the future changes nothing.
#[async_trait]
pub trait Directory: fmt::Debug + Send + Sync + 'static {
    /// `member`: the one that is meant, by its name; of a Database that has no such member, whoever is frozen now.
    async fn find(&self, namespace: &str, database: &str, member: Option<&str>) -> Whereabouts;
}

/// What a [`Directory`] knows of a Database.
#[derive(Clone, Debug)]
pub enum Whereabouts {
    At(Arc<dyn Driver>, Member),
    /// It is there, and cannot be reached as it stands: its Secret is missing, say. Worth another try.
    NotNow(String),
    /// There is no such Database.
    Gone,
}
