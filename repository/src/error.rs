//! What can go wrong with a repository, by what a caller can do about it. No message holds a secret.

use std::{fmt, io};

use thiserror::Error;

use crate::manifest::Manifest;

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
    #[error("there is no repository at {location}: a Repository has one made where all of its locations are empty")]
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
    /// Somebody removed an index that this run went by, and may have removed what that named.
    #[error(
        "something that this copy refers to is gone from {location}: another run was given up meanwhile; begin another"
    )]
    Shifted { location: String },
    /// The snapshot was written where nobody answered then. It is whole if it is there, and may be: the catalogue will tell.
    #[error("whether the snapshot is there is not known, look into the catalogue when this is well again: {}", listed(.0))]
    Unsettled(Vec<StoreError>),
    /// Nothing was written.
    #[error("{path:?} cannot be the path of a file in a snapshot: {why}")]
    Path { path: String, why: String },
    /// What was to be stored broke off. Nothing of it can be found in the catalogue.
    #[error("{file} could not be read to its end: {source}")]
    Source { file: String, source: io::Error },
    /// What is stored is not what was stored.
    #[error("{what} is damaged: {why}; take it from another location, or another snapshot")]
    Damaged { what: String, why: String },
    /// What is opened cannot be.
    #[error("the repository at {location} cannot be opened: {why}")]
    Unopened { location: String, why: String },
    #[error(
        "snapshot {id} was written by a newer Stillpoint (version {version} of what it says of itself, and {} is known here):          restore it with that, or upgrade",
        Manifest::VERSION
    )]
    Newer { id: String, version: u32 },
    /// Nobody wrote down what its files should be.
    #[error("snapshot {0} was not written by Stillpoint: `restic check --read-data` says whether it is whole")]
    NotOurs(String),
    #[error("there is no snapshot {0} in the repository")]
    NoSnapshot(String),
    #[error("the snapshot has no file {0:?}")]
    NoFile(String),
    /// The other end of what was read is gone.
    #[error("what was read could not be passed on: {0}")]
    Sink(io::Error),
    #[error("cancelled")]
    Cancelled,
    /// The format's library did; it may well go better in a while.
    #[error("the library of the repository's format broke: {0}; try again")]
    Broke(String),
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
            Self::Full => "has no room left (make some, or prune)",
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

/// What no location gave: the library's errors have it as their source.
#[derive(Clone, Debug, Error)]
#[error("{}", listed(.0))]
pub(crate) struct Unread(pub(crate) Vec<StoreError>);

impl From<Unread> for Error {
    /// Only what all of them answered, and none had whole, is damaged.
    fn from(Unread(errors): Unread) -> Self {
        let is_lost = |error: &StoreError| matches!(error.fault, Fault::Damaged | Fault::NotFound);
        if !errors.is_empty() && errors.iter().all(is_lost) {
            return Self::Damaged { what: "the repository".to_owned(), why: listed(&errors) };
        }
        Self::NoLocation(errors)
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
