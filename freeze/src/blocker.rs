//! A session that stands in the way of a freeze, as an engine found it and as a person reads of it.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// A session that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blocker {
    /// The server's number for it.
    pub id: i64,
    pub user: String,
    pub application: String,
    /// How long its statement or transaction has been running.
    pub age: Duration,
    /// What it is doing, cut to 120 characters, without literals of the statement where the server lets us.
    pub doing: String,
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {} ({}", self.id, self.user)?;
        if !self.application.is_empty() {
            write!(f, ", {}", self.application)?;
        }
        write!(f, "), {:.1} s: {}", self.age.as_secs_f64(), self.doing)
    }
}
