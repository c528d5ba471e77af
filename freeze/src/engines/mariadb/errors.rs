//! From what sqlx and the server say to what it means. A table of error numbers, and nothing else decides.

use sqlx::mysql::MySqlDatabaseError;

use crate::{engines::text::chain, error::Error};

/// What an error number means to a freeze (MariaDB documentation, "Error Codes").
#[derive(Clone, Copy)]
enum Meaning {
    Authentication,
    Privilege,
    Gone,
}

const NUMBERS: &[(u16, Meaning)] = &[
    (1045, Meaning::Authentication), // ER_ACCESS_DENIED_ERROR
    (1044, Meaning::Authentication), // ER_DBACCESS_DENIED_ERROR
    (1130, Meaning::Authentication), // ER_HOST_NOT_PRIVILEGED
    (1698, Meaning::Authentication), // ER_ACCESS_DENIED_NO_PASSWORD_ERROR
    (1142, Meaning::Privilege),      // ER_TABLEACCESS_DENIED_ERROR
    (1227, Meaning::Privilege),      // ER_SPECIFIC_ACCESS_DENIED_ERROR
    (1053, Meaning::Gone),           // ER_SERVER_SHUTDOWN
    (1927, Meaning::Gone),           // ER_CONNECTION_KILLED
    (4031, Meaning::Gone),           // the session was idle for longer than wait_timeout
];

/// ER_LOCK_WAIT_TIMEOUT, ER_STATEMENT_TIMEOUT, ER_QUERY_INTERRUPTED.
const NOT_GRANTED: &[u16] = &[1205, 1969, 1317];

/// An error while connecting as `user` to `address`.
pub(super) fn connecting(error: sqlx::Error, address: &str, user: &str) -> Error {
    match error {
        sqlx::Error::Database(error) => {
            let number = error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number);
            said(number, error.message(), "connecting", user)
        }
        sqlx::Error::Tls(error) if error.to_string().contains("does not support TLS") => Error::TlsUnavailable,
        sqlx::Error::Tls(error) => Error::TlsUntrusted { detail: chain(error.as_ref()) },
        sqlx::Error::Io(error)
            if error.kind() == std::io::ErrorKind::InvalidData && error.to_string().contains("certificate") =>
        {
            Error::TlsUntrusted { detail: chain(&error) }
        }
        other => Error::Unreachable { address: address.to_owned(), detail: chain(&other) },
    }
}

/// An error of a statement.
pub(super) fn running(error: sqlx::Error, doing: &'static str) -> Error {
    match error {
        sqlx::Error::Database(error) => {
            let number = error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number);
            said(number, error.message(), doing, "")
        }
        sqlx::Error::Io(error) => Error::Lost { detail: chain(&error) },
        other => Error::Server { doing: doing.into(), detail: chain(&other) },
    }
}

/// Whether a lock was not granted in time.
pub(super) fn not_granted(error: &sqlx::Error) -> bool {
    number(error).is_some_and(|number| NOT_GRANTED.contains(&number))
}

/// The server's number of an error, if it is the server's.
pub(super) fn number(error: &sqlx::Error) -> Option<u16> {
    let database = error.as_database_error().and_then(|error| error.try_downcast_ref::<MySqlDatabaseError>());
    database.map(MySqlDatabaseError::number)
}

fn said(number: u16, message: &str, doing: &'static str, user: &str) -> Error {
    let detail = format!("{message} (error {number})");
    match NUMBERS.iter().find(|(known, _)| *known == number).map(|(_, meaning)| meaning) {
        Some(Meaning::Authentication) => Error::Authentication { user: user.to_owned(), detail },
        Some(Meaning::Privilege) => Error::Privilege {
            privilege: message.to_owned(),
            grant: "what `kubectl still grants` prints for this Database".to_owned(),
        },
        Some(Meaning::Gone) => Error::Lost { detail },
        None => Error::Server { doing: doing.into(), detail },
    }
}
