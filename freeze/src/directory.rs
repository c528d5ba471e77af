//! Where Databases are *now*. An undo is tried for as long as it takes, and meanwhile an address, a password or a Secret
//! may change: so it asks again at each try.

use std::{fmt, sync::Arc};

use api::TargetStatus;
use async_trait::async_trait;
use jiff::Timestamp;

use crate::driver::{Driver, Member};

/// Finds the server of a Database.
///
/// # Contract
/// Answers within a few seconds, or `NotNow`. Dropping the future changes nothing.
#[async_trait]
pub trait Directory: fmt::Debug + Send + Sync + 'static {
    /// `held`: what was held of it. The answer is that very member, however many there are by now, or `NotNow` while that is there and
    /// cannot be reached; once it is gone, or if it never had a name, whoever would be held now.
    async fn find(&self, namespace: &str, database: &str, held: Option<Then<'_>>) -> Whereabouts;
}

/// What was held, and since when: what began later is another.
#[derive(Clone, Copy, Debug)]
pub struct Then<'a> {
    pub target: &'a TargetStatus,
    pub since: Option<Timestamp>,
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
