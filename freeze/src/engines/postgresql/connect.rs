//! Dedicated connections to one PostgreSQL server, and what it says of itself on each.
//!
//! Everything that limits a session is set by the startup packet: no statement of ours ever runs without.

use std::{
    hash::{Hash, Hasher},
    time::Duration,
};

use api::{ConnectionAddress, Incarnation, Role, TlsMode};
use jiff::Timestamp;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, Row,
    postgres::{PgConnectOptions, PgRow, PgSslMode},
};
use tokio::{runtime::Handle, sync::Semaphore, time::Instant};
use tokio_util::sync::CancellationToken;

use super::errors;
use crate::{
    driver::{Member, ServerInfo},
    engines::deadline::{by, left, unanswered},
    error::Error,
};

/// The mark of sessions of a freeze, in `application_name`: `stillpoint/<freeze uid>`.
pub(super) const MARK: &str = "stillpoint/";
/// The mark of sessions that hold nothing.
pub(super) const ASKING: &str = "stillpoint";
/// The database to talk to when the Database names none: every PostgreSQL has it unless somebody removed it.
const MAINTENANCE: &str = "postgres";
/// The oldest server whose statements this engine speaks (`pg_backup_start` came with 15).
const OLDEST: u32 = 150_000;
/// sqlx reads these, and they would change where and how we connect behind the Database's back.
const FOREIGN_SETTINGS: &[&str] = &["PGOPTIONS", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"];

/// One connection, limited from its first statement on.
#[derive(Debug)]
pub(super) struct Session {
    connection: PgConnection,
    /// A statement is under way, or was given up: the answer is not read, and the session is lost.
    unanswered: bool,
    /// The database that this session is in.
    pub(super) database: String,
    /// The `idle_session_timeout` that the startup packet asked for.
    idle: Duration,
}

/// A session, and the server's word on itself when it was opened.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) hello: Hello,
}

/// What a server says of itself and of our session.
#[derive(Clone, Debug)]
pub(super) struct Hello {
    pub(super) version_num: u32,
    pub(super) version: String,
    pub(super) incarnation: Incarnation,
    pub(super) started_at: Option<Timestamp>,
    /// As the server writes it.
    pub(super) postmaster_start: Option<String>,
    pub(super) backend_pid: i32,
    /// Without these, crash recovery of a copy is a matter of luck (manual, 20.5.1).
    pub(super) fsync: bool,
    pub(super) full_page_writes: bool,
    pub(super) deadlock_timeout: Duration,
}

/// One row, whatever the state of the server, and cheap for a session that knows nothing yet: functions rather than views
/// (a view's joins would be planned first), and nothing is cast or computed there that can be here.
const HELLO: &str = "SELECT current_setting('server_version_num'), current_setting('server_version'), \
    (pg_control_system()).system_identifier, pg_is_in_recovery(), pg_postmaster_start_time(), pg_backend_pid(), \
    current_setting('idle_session_timeout', true), \
    CASE WHEN NOT pg_is_in_recovery() THEN pg_walfile_name(pg_current_wal_insert_lsn()) END, \
    current_setting('fsync'), current_setting('full_page_writes'), current_setting('deadlock_timeout'), \
    host(inet_server_addr())";

/// In recovery there is no name of a WAL file, so the timeline is the last checkpoint's.
pub(super) const TIMELINE_OF_STANDBY: &str = "SELECT timeline_id FROM pg_control_checkpoint()";

/// Connections that may be opened on threads of their own at once; more are opened by the runtime's workers.
static THREADS: Semaphore = Semaphore::const_new(16);

impl Session {
    /// Connects to `database` (or the first that the Database names).
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
        let database = options.get_database().unwrap_or(MAINTENANCE).to_owned();
        let connection = by(deadline, "connecting", async {
            connect(options).await.map_err(|error| errors::connecting(error, &address, &user))
        })
        .await?;
        Ok(Self { connection, unanswered: false, database, idle })
    }

    /// Asks who answers, and sets up the landmark of a freeze.
    pub(super) async fn hello(&mut self, freeze_uid: Option<&str>, deadline: Instant) -> Result<Hello, Error> {
        let doing = "asking who the server is";
        let landmark = freeze_uid.map(landmark).map(|(high, low)| {
            // The two-number form: each is a signed 32-bit integer, and shows as an oid.
            format!(", pg_try_advisory_lock_shared({}, {})", high.cast_signed(), low.cast_signed())
        });
        let landmark = landmark.unwrap_or_default();
        let rows = self.run(deadline, doing, &format!("{HELLO}{landmark}")).await?;
        let mut hello =
            hello(rows.first().ok_or(Error::Server { doing: doing.into(), detail: "no row".into() })?, self.idle)?;
        if hello.incarnation.replica {
            let rows = self.run(deadline, doing, TIMELINE_OF_STANDBY).await?;
            hello.incarnation.timeline =
                rows.first().and_then(|row| text(row, 0)).and_then(|timeline| timeline.parse().ok());
        }
        Ok(hello)
    }

    /// Runs statements that we wrote, by the simple protocol: several statements are one round trip.
    pub(super) async fn run(&mut self, deadline: Instant, doing: &'static str, sql: &str) -> Result<Vec<PgRow>, Error> {
        by(deadline, doing, async { self.attempt(sql).await.map_err(|error| errors::running(error, doing)) }).await
    }

    /// As [`Session::run`], and the caller judges the server's word itself. Dropped, it leaves the session lost.
    pub(super) async fn attempt(&mut self, sql: &str) -> Result<Vec<PgRow>, sqlx::Error> {
        if self.unanswered {
            return Err(unanswered());
        }
        self.unanswered = true;
        let answer = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.connection).await;
        self.unanswered = false;
        answer
    }

    /// Ends the session in order. Terminate is a courtesy: a socket that is dropped says the same.
    pub(super) async fn close(self, deadline: Instant) {
        if self.unanswered {
            return;
        }
        by(deadline, "closing", async { Ok(self.connection.close().await.ok()) }).await.ok();
    }
}

impl Link {
    /// Connects as [`Session::open`] does, and asks who answers.
    pub(super) async fn open(
        member: &Member,
        database: Option<&str>,
        freeze_uid: Option<&str>,
        idle: Duration,
        deadline: Instant,
    ) -> Result<Self, Error> {
        let mut session = Session::open(member, database, freeze_uid, idle, deadline).await?;
        let hello = session.hello(freeze_uid, deadline).await?;
        Ok(Self { session, hello })
    }

    /// See [`Session::run`].
    pub(super) async fn run(&mut self, deadline: Instant, doing: &'static str, sql: &str) -> Result<Vec<PgRow>, Error> {
        self.session.run(deadline, doing, sql).await
    }

    /// See [`Session::close`].
    pub(super) async fn close(self, deadline: Instant) {
        self.session.close(deadline).await;
    }
}

/// Logging in by SCRAM costs thousands of rounds of hashing, and sqlx yields to the scheduler after every fifth. On a worker
/// each yield goes through the whole scheduler (0.6 ms of nothing in all, measured); on a thread of its own it is free, and
/// keeps no worker from its work. Dropped, it ends its thread's work too.
async fn connect(options: PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let Ok(permit) = THREADS.try_acquire() else {
        return options.connect().await;
    };
    let unwanted = CancellationToken::new();
    let _ends_with_us = unwanted.clone().drop_guard();
    let runtime = Handle::current();
    let connecting = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        runtime.block_on(unwanted.run_until_cancelled_owned(options.connect()))
    });
    match connecting.await {
        Ok(Some(connected)) => connected,
        Ok(None) | Err(_) => Err(sqlx::Error::WorkerCrashed),
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

    /// The system identifier and the start of this run: no two runs of any servers share both.
    pub(super) fn whose(&self) -> (Option<String>, Option<String>) {
        (Some(self.incarnation.server.clone()), self.postmaster_start.clone())
    }

    /// Refuses versions whose statements we do not speak.
    pub(super) fn supported(&self) -> Result<(), Error> {
        if self.version_num >= OLDEST {
            return Ok(());
        }
        Err(errors::too_old(&self.version))
    }
}

/// The two numbers of an advisory lock that the main session of a freeze takes (manual, 13.3.5; also on a standby, 27.4.2):
/// whoever sees it held by that session is in the very run of the very server that is held. Shared, since a group may hold one
/// server by several Databases.
pub(super) fn landmark(freeze_uid: &str) -> (u32, u32) {
    let mut hasher = std::hash::DefaultHasher::new();
    freeze_uid.hash(&mut hasher);
    let number = hasher.finish().to_be_bytes();
    let half = |at: usize| u32::from_be_bytes([number[at], number[at + 1], number[at + 2], number[at + 3]]);
    (half(0), half(4))
}

/// The text of a column, or nothing for NULL. The simple protocol carries every type as text.
pub(super) fn text(row: &PgRow, column: usize) -> Option<String> {
    row.try_get_unchecked::<Option<String>, _>(column).ok().flatten()
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

/// Reads [`HELLO`]. A session without the limits that it was asked for is not ours alone: a pooler keeps them to itself, or
/// has set what another client of its wanted.
fn hello(row: &PgRow, idle: Duration) -> Result<Hello, Error> {
    let doing = "asking who the server is";
    let column = |at: usize, what: &str| {
        text(row, at).ok_or_else(|| Error::Server { doing: doing.into(), detail: format!("no {what}") })
    };
    let unreadable =
        |what: &str, text: &str| Error::Server { doing: doing.into(), detail: format!("its {what} reads {text:?}") };
    let number = |at: usize, what: &str| {
        let text = column(at, what)?;
        text.parse::<u32>().map_err(|_| unreadable(what, &text))
    };
    let version_num = number(0, "version")?;
    let limit = text(row, 6).unwrap_or_default();
    if version_num >= OLDEST && duration(&limit).map(|limit| limit.as_millis()) != Some(idle.as_millis()) {
        return Err(Error::Pooler {
            detail: format!(
                "the session that we were given ends after {limit:?} of silence, and we asked for {} ms",
                idle.as_millis()
            ),
        });
    }
    let time = |at: usize, what: &str| {
        let text = column(at, what)?;
        timestamp(&text).ok_or_else(|| unreadable(what, &text))
    };
    let started_at = time(4, "start time")?;
    let replica = column(3, "recovery state")? == "t";
    let deadlock_timeout = column(10, "deadlock_timeout")?;
    Ok(Hello {
        version_num,
        version: column(1, "version")?,
        incarnation: Incarnation {
            server: column(2, "system identifier")?,
            host: text(row, 11),
            started_at: started_at.as_microsecond().to_string(),
            timeline: text(row, 7).as_deref().and_then(timeline_of),
            replica,
        },
        started_at: Some(started_at),
        postmaster_start: text(row, 4),
        backend_pid: i32::try_from(number(5, "backend pid")?).unwrap_or(0),
        fsync: column(8, "fsync")? == "on",
        full_page_writes: column(9, "full_page_writes")? == "on",
        deadlock_timeout: duration(&deadlock_timeout)
            .ok_or_else(|| unreadable("deadlock_timeout", &deadlock_timeout))?,
    })
}

/// `2026-11-24 16:40:00.123456+00`: sqlx asks for DateStyle ISO and for UTC in the startup packet.
fn timestamp(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// A WAL file's name begins with its timeline in hexadecimal (manual, 30.6 "WAL Internals").
fn timeline_of(wal_file: &str) -> Option<u32> {
    u32::from_str_radix(wal_file.get(..8)?, 16).ok()
}

/// A setting of time, as `current_setting` shows it: in the largest unit that leaves it whole (manual, 20.1.1).
fn duration(setting: &str) -> Option<Duration> {
    let digits = setting.find(|c: char| !c.is_ascii_digit()).unwrap_or(setting.len());
    let (number, unit) = setting.split_at(digits);
    let milliseconds = match unit {
        "" | "ms" => 1,
        "s" => 1000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(milliseconds).map(Duration::from_millis)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_and_timelines_are_read_as_the_server_writes_them() {
        let at = timestamp("2026-11-24 16:40:00.123456+00").unwrap();
        assert_eq!(at.to_string(), "2026-11-24T16:40:00.123456Z");
        assert_eq!(timestamp("2026-11-24 16:40:00+00").unwrap().as_second() % 60, 0);
        assert_eq!(timeline_of("0000001A000000030000004C"), Some(26));
        assert_eq!(duration("1s"), Some(Duration::from_secs(1)));
        assert_eq!(duration("150ms"), Some(Duration::from_millis(150)));
        assert_eq!(duration("2min"), Some(Duration::from_secs(120)));
    }

    proptest! {
        #[test]
        fn whatever_a_server_says_is_read_without_a_panic(value in ".*") {
            timestamp(&value);
            timeline_of(&value);
            duration(&value);
        }

        #[test]
        fn whatever_is_quoted_stays_inside_its_quotes(value in ".*") {
            let quoted = literal(&value);
            prop_assert!(quoted[1..quoted.len() - 1].replace("''", "").find('\'').is_none());
            let quoted = identifier(&value);
            prop_assert!(quoted[1..quoted.len() - 1].replace("\"\"", "").find('"').is_none());
        }
    }
}
