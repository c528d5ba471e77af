//! Why a run came to nothing: for people, with a reason for programs, and whether it may go better in a while.

use std::fmt;

use api::{
    conditions::reasons,
    runner::{FailedRun, UNTOUCHED},
};
use freeze::{Error as Frozen, NoMember};
use repository::{Error as Stored, Fault, StoreError};

#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) again: bool,
    /// Of a restore: what state the target is in.
    pub(crate) target: Option<String>,
}

impl Failure {
    pub(crate) fn new(reason: &'static str, message: impl fmt::Display) -> Self {
        Self { reason, message: message.to_string(), again: false, target: None }
    }

    /// Whoever started us did it wrong.
    pub(crate) fn bug(message: impl fmt::Display) -> Self {
        Self::new(reasons::SERVER_ERROR, message)
    }

    /// What state the target is in.
    pub(crate) fn leaves(self, target: impl Into<String>) -> Self {
        Self { target: Some(target.into()), ..self }
    }

    /// Of a restore that was still looking.
    pub(crate) fn untouched(self) -> Self {
        Self { target: self.target.or_else(|| Some(UNTOUCHED.to_owned())), ..self }
    }

    pub(crate) fn told(self) -> FailedRun {
        FailedRun { reason: self.reason.to_owned(), message: self.message, again: self.again, target: self.target }
    }

    pub(crate) fn about(database: &str, error: &Frozen) -> Self {
        let message = format!("Database {database}: {error}; {}", error.advice());
        let again = matches!(error.reason(), reasons::UNREACHABLE | reasons::TIMEOUT | reasons::SERVER_ERROR);
        Self { reason: error.reason(), message, again, target: None }
    }

    pub(crate) fn no_member(database: &str, error: &NoMember) -> Self {
        Self::new(reasons::CREDENTIALS_MISSING, format!("Database {database}: {error}"))
    }
}

impl From<Stored> for Failure {
    fn from(error: Stored) -> Self {
        let (reason, again) = match &error {
            Stored::Store(StoreError { fault, .. }) => (reasons::REPOSITORY_UNAVAILABLE, *fault != Fault::Denied),
            Stored::NoLocation(_) | Stored::GivenUp { .. } | Stored::Shifted { .. } | Stored::Locked { .. } => {
                (reasons::REPOSITORY_UNAVAILABLE, true)
            }
            Stored::WrongPassword { .. } | Stored::OldFormat { .. } | Stored::NoRepository { .. } => {
                (reasons::REPOSITORY_LOCKED, false)
            }
            Stored::Source { .. } => (reasons::TOOL_FAILED, true),
            // The next run looks whether it is there.
            Stored::Unsettled(_) => (reasons::REPOSITORY_UNAVAILABLE, true),
            Stored::Damaged { .. } | Stored::Unopened { .. } => (reasons::DAMAGED, false),
            Stored::Newer { .. } | Stored::NotOurs(_) => (reasons::UNSUPPORTED, false),
            Stored::Path { .. } => (reasons::SERVER_ERROR, false),
            Stored::NoSnapshot(_) | Stored::NoFile(_) => (reasons::NOT_FOUND, false),
            Stored::Cancelled => (reasons::SHUTDOWN, true),
            Stored::Misdescribed { .. } | Stored::Foreign { .. } => (reasons::REPOSITORY_UNAVAILABLE, false),
            Stored::Sink(_) | Stored::Format(_) | Stored::Broke(_) => (reasons::SERVER_ERROR, true),
        };
        Self { reason, message: error.to_string(), again, target: None }
    }
}
