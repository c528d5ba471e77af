//! From what sqlx and the server say to what it means. A table of SQLSTATEs, and nothing else decides.

use sqlx::error::DatabaseError;

use crate::{engines::text::chain, error::Error};

/// What a SQLSTATE means to a freeze (PostgreSQL manual, appendix A).
enum Meaning {
    Authentication,
    Privilege,
    Pooler,
    Starting,
    TooOld,
    Gone,
}

const SQLSTATES: &[(&str, Meaning)] = &[
    ("28P01", Meaning::Authentication), // invalid_password
    ("28000", Meaning::Authentication), // invalid_authorization_specification: pg_hba.conf, no such role
    ("42501", Meaning::Privilege),      // insufficient_privilege
    ("08P01", Meaning::Pooler),         // protocol_violation: PgBouncer's "unsupported startup parameter"
    ("42704", Meaning::TooOld),         // undefined_object: a limit of ours that the server does not know
    ("57P03", Meaning::Starting),       // cannot_connect_now
    ("57P01", Meaning::Gone),           // admin_shutdown, and pg_terminate_backend
    ("57P02", Meaning::Gone),           // crash_shutdown
    ("25P03", Meaning::Gone),           // idle_in_transaction_session_timeout
    ("57P05", Meaning::Gone),           // idle_session_timeout
];

/// lock_not_available, query_canceled (our statement_timeout), deadlock_detected.
const NOT_GRANTED: &[&str] = &["55P03", "57014", "40P01"];

/// An error while connecting as `user` to `address`.
pub(super) fn connecting(error: sqlx::Error, address: &str, user: &str) -> Error {
    match error {
        sqlx::Error::Database(error) => said(error.as_ref(), "connecting", user, address),
        sqlx::Error::Tls(error) if error.to_string().contains("does not support TLS") => Error::TlsUnavailable,
        sqlx::Error::Tls(error) => Error::TlsUntrusted { detail: chain(error.as_ref()) },
        sqlx::Error::Io(error) if certificate(&error) => Error::TlsUntrusted { detail: chain(&error) },
        sqlx::Error::Protocol(detail) => Error::Pooler { detail: format!("unexpected answer: {detail}") },
        other => Error::Unreachable { address: address.to_owned(), detail: chain(&other) },
    }
}

/// An error of a statement.
pub(super) fn running(error: sqlx::Error, doing: &'static str) -> Error {
    match error {
        sqlx::Error::Database(error) => said(error.as_ref(), doing, "", ""),
        sqlx::Error::Io(error) => Error::Lost { detail: chain(&error) },
        other => Error::Server { doing: doing.into(), detail: chain(&other) },
    }
}

/// Whether a lock was not granted in time; the caller knows who held it.
pub(super) fn not_granted(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| NOT_GRANTED.contains(&code.as_ref()))
}

fn said(error: &dyn DatabaseError, doing: &'static str, user: &str, address: &str) -> Error {
    let code = error.code().unwrap_or_default();
    let detail = format!("{} (SQLSTATE {code})", error.message());
    match SQLSTATES.iter().find(|(state, _)| *state == code).map(|(_, meaning)| meaning) {
        Some(Meaning::Authentication) => Error::Authentication { user: user.to_owned(), detail },
        Some(Meaning::Privilege) => Error::Privilege {
            privilege: error.message().to_owned(),
            grant: "what `kubectl still grants` prints for this Database".to_owned(),
        },
        Some(Meaning::Pooler) => Error::Pooler { detail },
        // Only the startup packet names settings that a server may not know.
        Some(Meaning::TooOld) if !address.is_empty() => too_old("13 or older"),
        Some(Meaning::Starting) => Error::Unreachable { address: address.to_owned(), detail },
        Some(Meaning::Gone) => Error::Lost { detail },
        Some(Meaning::TooOld) | None => Error::Server { doing: doing.into(), detail },
    }
}

/// rustls reports a certificate that it refuses as invalid data of the stream.
fn certificate(error: &std::io::Error) -> bool {
    error.kind() == std::io::ErrorKind::InvalidData && error.to_string().contains("certificate")
}

/// A server whose statements this engine does not speak.
pub(super) fn too_old(version: &str) -> Error {
    let engine = api::Engine::PostgreSQL;
    Error::Version { engine, found: version.to_owned(), supported: "PostgreSQL 15 or later".into() }
}
