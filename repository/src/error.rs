//! What can go wrong with a repository, by what a caller can do about it. No message holds a secret.

use std::{fmt, io};

use thiserror::Error;

/// Why a repository could not be used as wanted.
#[derive(Debug, Error)]
pub enum Error {
    /// One location did not do what was asked of it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// None of the locations did.
    #[error("no location can be used: {}", listed(.0))]
    NoLocation(Vec<StoreError>),
    #[error("{location} cannot be reached as it is described: {why}")]
    Misdescribed { location: String, why: String },
    #[error("the password does not open the repository at {location}; it was made with another one")]
    WrongPassword { location: String },
    #[error("there is no repository at {location}: make one with `kubectl still repository create`")]
    NoRepository { location: String },
    /// Something is there that is none, or that is another one.
    #[error("{location} is not ours to use: {why}")]
    Foreign { location: String, why: String },
    #[error(
        "the repository at {location} has version {version} of restic's format, which keeps nothing compressed; `restic migrate upgrade_repo_v2` brings it to 2"
    )]
    OldFormat { location: String, version: u32 },
    /// Another program has it for itself.
    #[error(
        "the repository at {location} is locked by {holder} since {since}; wait for it, or, if it is dead, run `restic unlock`"
    )]
    Locked { location: String, holder: String, since: String },
    /// Somebody took this run for dead, and may have removed some of what it wrote.
    #[error("the lock of this run is gone from {location}: it was given up; begin another")]
    GivenUp { location: String },
    /// What was to be stored broke off. Nothing of it can be found in the catalogue.
    #[error("{file} could not be read to its end: {source}")]
    Source { file: String, source: io::Error },
    /// What is stored is not what was stored.
    #[error("{what} is damaged: {why}")]
    Damaged { what: String, why: String },
    #[error("there is no snapshot {0} in the repository")]
    NoSnapshot(String),
    #[error("the snapshot has no file {0:?}")]
    NoFile(String),
    /// The other end of what was read is gone.
    #[error("what was read could not be passed on: {0}")]
    Sink(io::Error),
    #[error("cancelled")]
    Cancelled,
    /// Anything that the format's library says and we have no name for.
    #[error("{0}")]
    Format(String),
}

/// One location that did not do what was asked of it.
#[derive(Clone, Debug, Error)]
#[error("{location}: {}{}: {message}", .fault.words(), about(.object))]
pub struct StoreError {
    pub location: String,
    pub fault: Fault,
    /// The object; empty where it is about none.
    pub object: String,
    /// What the store said.
    pub message: String,
}

/// What kind of trouble a store is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// It did not answer, or not in time, or said that it cannot for now.
    Unavailable,
    /// It does not let us.
    Denied,
    NotFound,
    /// There is no room for more.
    Full,
    /// What came back is not what was stored.
    Damaged,
    Other,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Fault {
    fn words(self) -> &'static str {
        match self {
            Self::Unavailable => "does not answer",
            Self::Denied => "does not let us in (are the credentials right, and not expired?)",
            Self::NotFound => "does not have",
            Self::Full => "has no room left",
            Self::Damaged => "has damaged",
            Self::Other => "failed",
        }
    }
}

impl StoreError {
    pub(crate) fn new(location: &str, fault: Fault, object: &str, message: impl fmt::Display) -> Self {
        Self { location: location.to_owned(), fault, object: object.to_owned(), message: short(&message.to_string()) }
    }
}

fn about(object: &str) -> String {
    if object.is_empty() { String::new() } else { format!(" ({object})") }
}

fn listed(errors: &[StoreError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// One line that a person can read; stores answer with whole documents.
pub(crate) fn short(text: &str) -> String {
    const LONGEST: usize = 400;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}
