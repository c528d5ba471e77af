//! Dedicated connections to one PostgreSQL server, and what it says of itself on each.
//!
//! Everything that limits a session is set by the startup packet: no statement of ours ever runs without.

use std::time::Duration;

use api::{ConnectionAddress, Incarnation, Role, TlsMode};
use jiff::Timestamp;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row,
    postgres::{PgConnectOptions, PgRow, PgSslMode},
};
use tokio::time::Instant;

use super::errors;
use crate::{
    driver::{Member, ServerInfo},
    engines::deadline::{by, left},
    error::Error,
};

/// The mark of sessions of a freeze, in `application_name`: `stillpoint/<freeze uid>`.
pub(super) const MARK: &str = "stillpoint/";
/// The mark of sessions that hold nothing.
const ASKING: &str = "stillpoint";
/// The database to talk to when the Database names none: every PostgreSQL has it unless somebody removed it.
const MAINTENANCE: &str = "postgres";
/// The oldest server whose statements this engine speaks (`pg_backup_start` came with 15).
const OLDEST: u32 = 150_000;
/// sqlx reads these, and they would change where and how we connect behind the Database's back.
const FOREIGN_SETTINGS: &[&str] = &["PGOPTIONS", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"];

/// One connection, and the server's word on itself when it was opened.
#[derive(Debug)]
pub(super) struct Link {
    connection: PgConnection,
    pub(super) hello: Hello,
}

/// What a server says of itself and of our session.
#[derive(Clone, Debug)]
pub(super) struct Hello {
    pub(super) version_num: u32,
    pub(super) version: String,
    pub(super) incarnation: Incarnation,
    pub(super) started_at: Option<Timestamp>,
    pub(super) backend_pid: i32,
}

/// One row, whatever the state of the server. Functions rather than views: a new session would plan the views' joins first,
/// which takes milliseconds. `pg_walfile_name` fails in recovery, so the timeline comes from the last
/// checkpoint there.
const HELLO: &str = "SELECT current_setting('server_version_num'), current_setting('server_version'), \
    (SELECT system_identifier::text FROM pg_control_system()), \
    CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id::text FROM pg_control_checkpoint()) \
         ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int::text END, \
    pg_is_in_recovery()::text, \
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint::text, \
    pg_backend_pid()::text, \
    (SELECT (extract(epoch FROM clock_timestamp() - backend_start) * 1000)::bigint::text \
       FROM pg_stat_get_activity(pg_backend_pid()))";

impl Link {
    /// Connects to `database` (or the first that the Database names) and asks who answers.
    ///
    /// `idle`: after how much silence the server ends the session. The session also ends when the client's socket is
    /// closed in the middle of a statement (`client_connection_check_interval`, PostgreSQL 14).
    pub(super) async fn open(
        member: &Member,
        database: Option<&str>,
        freeze_uid: Option<&str>,
        idle: Duration,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let options = options(member, database, freeze_uid, idle, left(deadline))?;
        let address = member.address.to_string();
        let user = options.get_username().to_owned();
        let began = Instant::now();
        let mut connection = by(deadline, "connecting", async {
            options.connect().await.map_err(|error| errors::connecting(error, &address, &user))
        })
        .await?;
        let rows = run(&mut connection, deadline, "asking who the server is", HELLO).await?;
        let row = rows.first().ok_or(Error::Server { doing: "asking who the server is", detail: "no row".into() })?;
        let hello = hello(row, began.elapsed())?;
        Ok(Self { connection, hello })
    }

    /// Runs statements that we wrote, by the simple protocol: several statements are one round trip.
    pub(super) async fn run(&mut self, deadline: Instant, doing: &'static str, sql: &str) -> Result<Vec<PgRow>, Error> {
        run(&mut self.connection, deadline, doing, sql).await
    }

    /// As [`Link::run`], and the caller judges the server's word itself.
    pub(super) async fn attempt(&mut self, sql: &str) -> Result<Vec<PgRow>, sqlx::Error> {
        sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.connection).await
    }

    /// Ends the session in order, so that it is gone when this returns.
    pub(super) async fn close(self, deadline: Instant) {
        // Terminate is a courtesy: a socket that is dropped says the same.
        by(deadline, "closing", async { Ok(self.connection.close().await.ok()) }).await.ok();
    }
}

impl Hello {
    pub(super) fn server(&self) -> ServerInfo {
        ServerInfo {
            version: self.version.clone(),
            role: if self.incarnation.replica { Role::Replica } else { Role::Primary },
            incarnation: self.incarnation.clone(),
            started_at: self.started_at,
        }
    }

    /// Refuses versions whose statements we do not speak.
    pub(super) fn supported(&self) -> Result<(), Error> {
        if self.version_num >= OLDEST {
            return Ok(());
        }
        Err(Error::Version {
            engine: api::Engine::PostgreSQL,
            found: self.version.clone(),
            supported: "PostgreSQL 15 or later",
        })
    }
}

/// The text of a column, or nothing for NULL. All our statements answer text.
pub(super) fn text(row: &PgRow, column: usize) -> Option<String> {
    row.try_get::<Option<String>, _>(column).ok().flatten()
}

/// A text literal. PostgreSQL manual, 4.1.2.1: with `standard_conforming_strings` on, as we set it at startup, only the
/// quote itself is special.
pub(super) fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''").replace('\0', ""))
}

/// An identifier. PostgreSQL manual, 4.1.1: in double quotes, a double quote is doubled.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\"").replace('\0', ""))
}

async fn run(
    connection: &mut PgConnection,
    deadline: Instant,
    doing: &'static str,
    sql: &str,
) -> Result<Vec<PgRow>, Error> {
    by(deadline, doing, async {
        sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(connection).await.map_err(|error| errors::running(error, doing))
    })
    .await
}

fn options(
    member: &Member,
    database: Option<&str>,
    freeze_uid: Option<&str>,
    idle: Duration,
    statement: Duration,
) -> Result<PgConnectOptions, Error> {
    if let Some(name) = FOREIGN_SETTINGS.iter().find(|name| std::env::var_os(name).is_some()) {
        return Err(Error::Unsupported {
            what: format!("{name} is set in this process's environment and would change the connection"),
            instead: format!("unset {name} where this process is started"),
        });
    }
    let database = database.or(member.databases.first().map(String::as_str)).unwrap_or(MAINTENANCE);
    let (user, password) = member
        .account
        .as_ref()
        .map_or(("postgres", None), |account| (account.user.as_str(), account.password.as_deref()));
    let name = freeze_uid.map_or(ASKING.to_owned(), |uid| format!("{MARK}{uid}"));
    let idle = idle.as_millis().to_string();
    let statement = statement.as_millis().to_string();
    let options = PgConnectOptions::new_without_pgpass()
        .username(user)
        .password(password.unwrap_or_default())
        .database(database)
        .application_name(&name)
        .extra_float_digits(None)
        .options([
            ("idle_session_timeout", idle.as_str()),
            ("idle_in_transaction_session_timeout", idle.as_str()),
            ("statement_timeout", statement.as_str()),
            ("client_connection_check_interval", "1000"),
            ("standard_conforming_strings", "on"),
        ])
        .ssl_mode(match member.tls.mode {
            TlsMode::Disable => PgSslMode::Disable,
            TlsMode::Require => PgSslMode::Require,
            TlsMode::VerifyCA => PgSslMode::VerifyCa,
            TlsMode::VerifyFull => PgSslMode::VerifyFull,
        })
        .disable_statement_logging();
    let options = match &member.address {
        ConnectionAddress::Tcp { host, port } => options.host(host).port(*port),
        ConnectionAddress::Socket { path, port } => options.socket(path).port(*port),
    };
    let Some(roots) = &member.tls.roots else {
        return Ok(options);
    };
    let options = match &roots.ca {
        Some(ca) => options.ssl_root_cert_from_pem(ca.as_bytes().to_vec()),
        None => options,
    };
    Ok(match &roots.identity {
        Some((certificate, key)) => {
            options.ssl_client_cert_from_pem(certificate.as_bytes()).ssl_client_key_from_pem(key.as_bytes())
        }
        None => options,
    })
}

/// Reads [`HELLO`]. A session that is older than our connecting was somebody else's before: a pooler lent it to us.
fn hello(row: &PgRow, since_connecting: Duration) -> Result<Hello, Error> {
    let column = |at: usize, what: &'static str| {
        text(row, at).ok_or_else(|| Error::Server { doing: "asking who the server is", detail: format!("no {what}") })
    };
    let number = |at: usize, what: &'static str| {
        column(at, what)?.parse::<i64>().map_err(|_| Error::Server {
            doing: "asking who the server is",
            detail: format!("its {what} is no number"),
        })
    };
    let age = Duration::from_millis(u64::try_from(number(7, "session age")?).unwrap_or(0));
    if age > since_connecting + POOLER_MARGIN {
        return Err(Error::Pooler {
            detail: format!("the session that we were given is {:.1} s older than our connection", age.as_secs_f64()),
        });
    }
    let started = number(5, "start time")?;
    Ok(Hello {
        version_num: u32::try_from(number(0, "version")?).unwrap_or(0),
        version: column(1, "version")?,
        incarnation: Incarnation {
            server: column(2, "system identifier")?,
            started_at: started.to_string(),
            timeline: u32::try_from(number(3, "timeline")?).ok(),
            replica: column(4, "recovery state")? == "true",
        },
        started_at: Timestamp::from_microsecond(started).ok(),
        backend_pid: i32::try_from(number(6, "backend pid")?).unwrap_or(0),
    })
}

/// The server may start our session a little before we begin to count; a pooled one is usually much older.
const POOLER_MARGIN: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn whatever_is_quoted_stays_inside_its_quotes(value in ".*") {
            let quoted = literal(&value);
            prop_assert!(quoted[1..quoted.len() - 1].replace("''", "").find('\'').is_none());
            let quoted = identifier(&value);
            prop_assert!(quoted[1..quoted.len() - 1].replace("\"\"", "").find('"').is_none());
        }
    }
}
