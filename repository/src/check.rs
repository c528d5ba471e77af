//! Whether all that a location should have is there, and as it was written.

use rustic_core::{CheckOptions, Credentials};

use crate::{
    Location, Repository,
    copies::Copies,
    error::{Error, Result, short},
    told, unbroken, unopened,
};

/// Something that is wrong, or odd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Something cannot be restored.
    pub is_error: bool,
    pub message: String,
}

/// How much of it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadData {
    /// Names, sizes, indexes and trees.
    No,
    /// Every byte.
    All,
}

/// Whoever asks is told of damage, and not that a thread was slow.
const TRIES: u32 = 3;

impl Repository {
    /// One location, for itself: what another has does not help it.
    pub fn check(&self, location: &Location, read: ReadData) -> Result<Vec<Finding>> {
        let mut tries = 0;
        loop {
            tries += 1;
            match unbroken(|| self.looked_at(location, read)) {
                Err(Error::Broke(_)) if tries < TRIES => {}
                found => return found,
            }
        }
    }

    fn looked_at(&self, location: &Location, read: ReadData) -> Result<Vec<Finding>> {
        let copies = Copies::new(std::slice::from_ref(location), None, self.inner.runtime.clone());
        let open =
            unopened(&copies)?.open(&Credentials::Masterkey(self.inner.key.0.clone())).map_err(|error| told(&error))?;
        let options = CheckOptions::default().read_data(read == ReadData::All);
        let results = open.check(options).map_err(|error| told(&error))?;
        let finding = |(level, error): &(_, _)| Finding {
            is_error: format!("{level:?}") == "Error",
            message: short(&ToString::to_string(error)),
        };
        Ok(results.0.iter().map(finding).collect())
    }
}
