//! Where dumps are kept: restic's format, version 2, in one or several locations that hold the same.
//!
//! ```text
//! place        a declared location and its Secrets  ─► Place            (pure)
//! location     Place                                ─► objects, one store, with deadlines
//! repository   locations and a password             ─► Repository       (made, opened, compared)
//! capture      streams                              ─► a snapshot in every location that did as it was asked; or none
//! replicate    a snapshot that a location lacks     ─► and then has
//! catalogue    what is really there                 ─► Entry
//! restore      an Entry                             ─► its files, each checked
//! ```
//! Chunking, deduplication, encryption and packing are `rustic_core`'s; nothing outside of this crate speaks to it. Everything but
//! [`Location`] blocks: it is called from threads that may, never from a runtime's own, and drives its requests on the
//! multi-threaded runtime that it is given.

mod capture;
mod catalogue;
mod check;
mod copies;
mod error;
mod format;
mod location;
mod locks;
mod manifest;
mod place;
mod replicate;
mod repository;
mod restore;
mod sweep;
#[cfg(feature = "testing")]
mod testing;

pub use capture::{Capture, Captured, Describe, Open, Source, StoredFile};
pub use catalogue::{Catalogue, Entry};
pub use check::{Finding, ReadData};
pub use error::{Error, Fault, Result, StoreError};
pub use location::{Azure, Location, Object, Patience, Place, S3, S3Credentials};
pub use manifest::{Manifest, Origin};
pub use place::{Secrets, place};
pub use repository::{Key, Opened, Repository, Run, Unlock};
pub use restore::Restorable;

use rustic_core::{RepositoryBackends, RepositoryOptions, RusticError};

/// The library's view of some locations, before anything is asked of them.
fn unopened(copies: &copies::Copies) -> Result<rustic_core::Repository<()>> {
    let mut options = RepositoryOptions::default();
    options.no_cache = true;
    let backends = RepositoryBackends::new(std::sync::Arc::new(copies.clone()), None);
    rustic_core::Repository::new(&options, &backends).map_err(|error| told(&error))
}

/// In one line: the library's own display is a page, and asks people to report to it.
fn told(error: &RusticError) -> Error {
    use std::error::Error as _;
    let mut text = error.display_log();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    Error::Format(error::short(text.trim_start_matches("Error: ")))
}
