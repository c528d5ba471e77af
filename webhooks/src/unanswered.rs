//! Why the apiserver gave no answer.

use thiserror::Error;

/// Short: people read it in a warning.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unanswered {
    #[error("we have no {0} for stillpoint-apiserver yet")]
    Unprepared(&'static str),
    #[error("stillpoint-apiserver cannot be reached: {0}")]
    Unreachable(String),
    #[error("the connection to stillpoint-apiserver was lost")]
    Lost(String),
    #[error("stillpoint-apiserver gave no answer in time")]
    Late,
    #[error("stillpoint-apiserver answered {code}: {message}")]
    Refused { code: u16, message: String },
    #[error("stillpoint-apiserver's answer cannot be read")]
    Unreadable(String),
}
