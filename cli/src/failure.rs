//! What a person reads when a command fails, and the exit code that a script reads.

use std::process::ExitCode;

use freeze::chain;

/// A failure with what to do about it, and its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    message: String,
    /// Indented under the message.
    details: Vec<String>,
    code: u8,
}

/// The freeze was lost or expired (as `timeout(1)` says "timed out").
pub const LOST: u8 = 124;
/// It never held, or could not be proved (as `timeout(1)` says "failed itself").
pub const NOT_HELD: u8 = 125;
/// The command cannot be run, or is not there (as `env(1)`).
pub const CANNOT_RUN: u8 = 126;
pub const NOT_FOUND: u8 = 127;

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), details: Vec::new(), code: 1 }
    }

    #[must_use]
    pub fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// One more thing to know of it.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.details.push(detail.into());
        self
    }

    /// Prints it and gives the exit code.
    pub fn report(&self) -> ExitCode {
        eprintln!("error: {}", self.message);
        for detail in &self.details {
            eprintln!("  - {detail}");
        }
        ExitCode::from(self.code)
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => {
                let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
                let details = causes.iter().map(|cause| match (cause.field.as_str(), cause.reason.as_str()) {
                    ("", "") => cause.message.clone(),
                    ("", reason) => format!("{reason}: {}", cause.message),
                    (field, _) => format!("{field}: {}", cause.message),
                });
                let details = details.collect();
                Self { message: format!("{} ({})", status.message, status.reason), details, code: 1 }
            }
            other => Self::new(format!(
                "the server cannot be asked: {}; is it running, and is KUBECONFIG its own?",
                chain(&other)
            )),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<freeze::Error> for Failure {
    fn from(error: freeze::Error) -> Self {
        Self::new(format!("{error}; {}", error.advice()))
    }
}
