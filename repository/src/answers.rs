//! What an error of a store means: by its kind and its HTTP status, and by the code that stores of S3, Google and Azure send with it.

use std::{error::Error as _, io};

use object_store::client::HttpError;

use crate::error::Fault;

pub(crate) fn fault(error: &object_store::Error) -> Fault {
    let text = said(error);
    if code(&text).is_some_and(|code| FULL.contains(&code)) {
        return Fault::Full;
    }
    match error {
        object_store::Error::NotFound { .. } => return Fault::NotFound,
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            return Fault::Denied;
        }
        _ => {}
    }
    match below::<io::Error>(error).map(io::Error::kind) {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => return Fault::Full,
        Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => return Fault::Denied,
        _ => {}
    }
    match (status(&text), code(&text)) {
        (Some(507), _) => Fault::Full,
        // Of a list, whose errors the library does not tell apart; S3 says 400 when a session is over (API Reference, Error responses).
        (Some(401 | 403), _) | (_, Some("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired")) => Fault::Denied,
        (Some(404), _) => Fault::NotFound,
        // Less is there than what was asked for: objects never shrink.
        (Some(416), _) => Fault::Damaged,
        (Some(408 | 429 | 500..), _) => Fault::Unavailable,
        (None, _) if below::<HttpError>(error).is_some() => Fault::Unavailable,
        (None, _) if text.contains("Out of range of file") || text.contains("Requested range was invalid") => {
            Fault::Damaged
        }
        _ => Fault::Other,
    }
}

/// The store has no such request.
pub(crate) fn is_unsupported(error: &object_store::Error) -> bool {
    matches!(error, object_store::Error::NotImplemented { .. }) || status(&said(error)) == Some(501)
}

/// Of MinIO (cmd/api-errors.go) and Ceph (rgw_common.cc); the rest say 507 (RFC 4918).
const FULL: &[&str] = &["XMinioStorageFull", "QuotaExceeded"];

/// The chain, in which nothing is said twice; of a document of a store, its code and message.
pub(crate) fn said(error: &object_store::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let more = source.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = source.source();
    }
    if text.contains("UnknownIssuer") || text.contains("BadSignature") {
        text.push_str(" (an authority of your own is trusted by caSecretRef)");
    }
    text
}

/// What a person has to read of it.
pub(crate) fn brief(error: &object_store::Error) -> String {
    let text = said(error);
    match (status(&text), code(&text), element(&text, "Message")) {
        (Some(status), Some(code), Some(message)) => format!("{status} {code}: {message}"),
        _ => text,
    }
}

fn status(text: &str) -> Option<u16> {
    let after = text.split_once("status code: ")?.1;
    after.get(..3)?.parse().ok()
}

fn code(text: &str) -> Option<&str> {
    element(text, "Code")
}

fn element<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let after = text.split_once(&format!("<{name}>"))?.1;
    Some(after.split_once("</")?.0)
}

/// The first error of a kind in the chain.
fn below<E: std::error::Error + 'static>(error: &object_store::Error) -> Option<&E> {
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(found) = source.downcast_ref::<E>() {
            return Some(found);
        }
        next = source.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> object_store::Error {
        object_store::Error::Generic { store: "S3", source: text.to_owned().into() }
    }

    #[test]
    fn a_name_that_has_the_digits_of_a_status_says_nothing() {
        let digits =
            "Error performing PUT http://h/backups/data/50/507503500 in 1s - Server returned non-2xx status code: ";
        assert_eq!(fault(&error(&format!("{digits}409 Conflict: "))), Fault::Other);
        assert_eq!(fault(&error(&format!("{digits}507 Insufficient Storage: "))), Fault::Full);
        assert_eq!(fault(&error(&format!("{digits}503 Service Unavailable: "))), Fault::Unavailable);
    }

    #[test]
    fn of_a_document_the_code_and_the_message_are_told() {
        let answer = "Server returned non-2xx status code: 400 Bad Request: <?xml version=\"1.0\"?>\n<Error>\
                      <Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>";
        assert_eq!(fault(&error(answer)), Fault::Denied);
        assert_eq!(brief(&error(answer)), "400 ExpiredToken: The provided token has expired.");
    }
}
