//! Into a Database one Restore goes at a time: two would leave what is of neither.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::{Restore, RestorePhase};

use crate::copies::{Copies, kept::who};

/// The Databases that something is restored into from here, in their namespaces. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in crate::copies) struct Claimed(Arc<Mutex<HashSet<(String, String)>>>);

/// One of them; ends when it is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    of: Claimed,
    database: (String, String),
}

impl Claimed {
    fn take(&self, database: (String, String)) -> Option<Claim> {
        self.all().insert(database.clone()).then(|| Claim { of: self.clone(), database })
    }

    fn all(&self) -> MutexGuard<'_, HashSet<(String, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.of.all().remove(&self.database);
    }
}

impl Copies {
    /// Or which other Restore has it: one that goes on here, or that somebody else has begun.
    pub(super) fn claim_target(&self, restore: &Restore) -> Result<Claim, String> {
        let (namespace, _, uid) = who(restore);
        let database = &restore.spec.database;
        let all = self.restores.all(Some(&namespace));
        let other = all.iter().find(|other| {
            let is_running = other.status.as_ref().is_some_and(|status| status.phase == RestorePhase::Running);
            is_running && other.spec.database == *database && other.metadata.uid.as_deref() != Some(&uid)
        });
        if let Some(other) = other {
            return Err(format!("Restore {} goes into Database {database} now", who(&**other).1));
        }
        let key = (namespace, database.clone());
        self.targets.take(key).ok_or_else(|| format!("another Restore goes into Database {database} now"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_has_a_database() {
        let claimed = Claimed::default();
        let of = |name: &str| claimed.take(("shop".to_owned(), name.to_owned()));
        let first = of("orders");
        assert!(first.is_some() && of("orders").is_none() && of("stock").is_some());
        drop(first);
        assert!(of("orders").is_some());
    }
}
