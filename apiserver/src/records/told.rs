//! What a cluster's API server answers, in our words.

use crate::error::{About, ApiError};

/// What the API server said, as our clients may hear it.
pub(crate) fn told(error: &kube::Error, about: About<'_>) -> ApiError {
    match error {
        kube::Error::Api(status) => match status.code {
            404 => ApiError::not_found(about),
            409 if status.reason == "AlreadyExists" => ApiError::already_exists(about),
            409 => ApiError::modified(about),
            // Not our caller's fault: it is we who were refused.
            code => ApiError {
                internal: Some(format!("{code} {}: {}", status.reason, status.message)),
                ..ApiError::unavailable("the cluster's API server refused what Stillpoint asked of it; see the log")
            },
        },
        kube::Error::SerdeError(error) => ApiError::unavailable(format!(
            "{}.{} {:?} cannot be read as it is stored: {error}; write it otherwise, or make it anew",
            about.plural, about.group, about.name
        )),
        other => ApiError {
            internal: Some(other.to_string()),
            ..ApiError::unavailable("the cluster's API server cannot be reached; see the log")
        },
    }
}
