//! Where dumps are kept: restic's format, version 2, in one or several locations that hold the same.
//!
//! ```text
//! place        a declared location and its Secrets  ─► Place            (pure)
//! location     Place                                ─► objects, one store, with deadlines
//! opening      locations and a password             ─► Repository       (made, opened, compared)
//! capture      streams                              ─► a snapshot in every location that did as it was asked; or none
//! replicate    a snapshot that a location lacks     ─► and then has
//! catalogue    what is really there                 ─► Entry
//! restore      an Entry                             ─► its files, each checked
//! ```
//! Chunking, deduplication, encryption and packing are `rustic_core`'s; nothing outside of this crate speaks to it. Everything but
//! [`Location`] blocks: it is called from threads that may, never from a runtime's own, and drives its requests on the
//! multi-threaded runtime that it is given.

mod answers;
mod capture;
mod catalogue;
mod check;
mod copies;
mod error;
mod format;
mod keys;
mod location;
mod locks;
mod manifest;
mod opening;
mod place;
mod replicate;
mod repository;
mod restore;
mod standing;
mod stores;
mod streams;
mod sweep;
#[cfg(feature = "testing")]
mod testing;
mod trees;

pub use capture::{Capture, Captured, Describe, Open, Source, StoredFile};
pub use catalogue::{Catalogue, Entry, Writer};
pub use check::{Finding, ReadData};
pub use error::{Error, Fault, Result, StoreError};
pub use location::{Location, Object};
pub use manifest::{Manifest, Origin};
pub use place::{Secrets, place};
pub use repository::{Key, Opened, Repository, Run, Unlock};
pub use restore::Restorable;
pub use stores::{Azure, Patience, Place, S3, S3Credentials};

use error::Unread;
use rustic_core::{RepositoryBackends, RepositoryOptions, RusticError};

/// The library's view of some locations, before anything is asked of them.
fn unopened(copies: &copies::Copies) -> Result<rustic_core::Repository<()>> {
    let mut options = RepositoryOptions::default();
    options.no_cache = true;
    let backends = RepositoryBackends::new(std::sync::Arc::new(copies.clone()), None);
    rustic_core::Repository::new(&options, &backends).map_err(|error| told(&error))
}

/// The library breaks where it should give an error, of a machine that is busy (`index.rs`, "index still in use"): that is an error of
/// what was asked, and of nothing else.
fn unbroken<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|broken| {
        let text = broken.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| broken.downcast_ref::<String>().cloned()).unwrap_or_default();
        Err(Error::Broke(error::short(&text)))
    })
}

/// In one line: the library's own display is a page, and asks people to report to it.
fn told(error: &RusticError) -> Error {
    let mut text = error.display_log();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        if let Some(unread) = source.downcast_ref::<Unread>() {
            return unread.clone().into();
        }
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    let text = match text.split_once(" (kind: ").map(|(what, rest)| (what, rest.split_once(')'))) {
        Some((what, Some((_, why)))) => format!("{what}{why}"),
        _ => text,
    };
    Error::Format(error::short(text.trim_start_matches("Error: ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaks_is_an_error() {
        let broke = unbroken::<()>(|| panic!("index {} in use", "still"));
        assert!(matches!(broke, Err(Error::Broke(text)) if text == "index still in use"));
        assert_eq!(unbroken(|| Ok(7)).unwrap(), 7);
    }
}
