//! Dedicated connections to one MariaDB server, and what it says of itself on each.

use std::time::Duration;

use api::{ConnectionAddress, Incarnation, MariadbPosition, Role, TlsMode};
use jiff::Timestamp;
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, MySqlConnection, Row,
    mysql::{MySqlConnectOptions, MySqlRow, MySqlSslMode},
};
use tokio::time::Instant;

use super::errors;
use crate::{
    driver::{Member, ServerInfo},
    engines::deadline::{by, left, unanswered},
    error::Error,
};

/// The user lock that every freeze of ours holds, one at a time per server; with `/<uid>`, the one of that freeze.
pub(super) const MARK: &str = "stillpoint";

/// One connection.
#[derive(Debug)]
pub(super) struct Session {
    connection: MySqlConnection,
    /// A statement is under way, or was given up: the answer is not read, and the session is lost.
    unanswered: bool,
}

/// A session, and the server's word on itself when it was opened.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) session: Session,
    pub(super) hello: Hello,
}

/// What a server says of itself and of our session.
#[derive(Clone, Debug, Default)]
pub(super) struct Hello {
    pub(super) version: String,
    pub(super) comment: String,
    pub(super) connection_id: u64,
    pub(super) incarnation: Incarnation,
    pub(super) started_at: Option<Timestamp>,
    pub(super) flush_log_at_trx_commit: u32,
    pub(super) sync_binlog: u32,
    pub(super) log_bin: bool,
    pub(super) doublewrite: bool,
    /// Members of a Galera cluster, 0 outside of one.
    pub(super) cluster_size: u32,
    /// Statements that this session ran before ours: a fresh one has none.
    pub(super) questions: u64,
}

/// One row, then one per status variable: cheap enough to be asked at every connect.
const HELLO: &str = "SELECT VERSION(), @@version_comment, CONNECTION_ID(), @@server_id, @@hostname, @@datadir, @@read_only, \
    UNIX_TIMESTAMP(), @@global.innodb_flush_log_at_trx_commit, @@global.sync_binlog, @@log_bin, @@innodb_doublewrite; \
    SHOW GLOBAL STATUS WHERE Variable_name IN ('Uptime', 'Slaves_running', 'wsrep_cluster_size'); \
    SHOW SESSION STATUS LIKE 'Questions'";

/// What [`Link::position`] wants besides variables.
const STANDING: &str = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Innodb_lsn_current', 'Slaves_running')";

/// What our own connecting has run on a fresh session when [`HELLO`] asks: at most this many statements.
const OUR_QUESTIONS: u64 = 8;

impl Session {
    /// Connects. The first statement has to bring the session's [`limits`].
    pub(super) async fn open(member: &Member, deadline: Instant) -> Result<Self, Error> {
        let options = options(member);
        let address = member.address.to_string();
        let user = options.get_username().to_owned();
        let connection = by(deadline, "connecting", async {
            options.connect().await.map_err(|error| errors::connecting(error, &address, &user))
        })
        .await?;
        Ok(Self { connection, unanswered: false })
    }

    /// Asks who answers; the session is limited from here on.
    pub(super) async fn hello(&mut self, idle: Duration, deadline: Instant) -> Result<Hello, Error> {
        let sql = format!("{}; {HELLO}", limits(idle, left(deadline)));
        Hello::read(&self.run(deadline, "asking who the server is", &sql).await?)
    }

    /// Runs statements that we wrote, by the text protocol (`BACKUP STAGE` has no other): several are one round trip.
    pub(super) async fn run(
        &mut self,
        deadline: Instant,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<MySqlRow>, Error> {
        by(deadline, doing, async { self.attempt(sql).await.map_err(|error| errors::running(error, doing)) }).await
    }

    /// As [`Session::run`], and the caller judges the server's word itself. Dropped, it leaves the session lost.
    pub(super) async fn attempt(&mut self, sql: &str) -> Result<Vec<MySqlRow>, sqlx::Error> {
        if self.unanswered {
            return Err(unanswered());
        }
        self.unanswered = true;
        let answer = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut self.connection).await;
        self.unanswered = false;
        answer
    }

    /// Ends the session in order. The goodbye is a courtesy: a socket that is dropped says the same.
    pub(super) async fn close(self, deadline: Instant) {
        if self.unanswered {
            return;
        }
        by(deadline, "closing", async { Ok(self.connection.close().await.ok()) }).await.ok();
    }
}

impl Link {
    /// Connects, limits the session and asks who answers. `idle`: after how much silence the server ends the session.
    pub(super) async fn open(member: &Member, idle: Duration, deadline: Instant) -> Result<Self, Error> {
        let mut session = Session::open(member, deadline).await?;
        let hello = session.hello(idle, deadline).await?;
        hello.not_pooled()?;
        Ok(Self { session, hello })
    }

    /// See [`Session::run`].
    pub(super) async fn run(
        &mut self,
        deadline: Instant,
        doing: &'static str,
        sql: &str,
    ) -> Result<Vec<MySqlRow>, Error> {
        self.session.run(deadline, doing, sql).await
    }

    /// See [`Session::attempt`].
    pub(super) async fn attempt(&mut self, sql: &str) -> Result<Vec<MySqlRow>, sqlx::Error> {
        self.session.attempt(sql).await
    }

    /// Where the server stands, and whether it is a replica now. Without the right to see the binary log, its position is
    /// left out.
    pub(super) async fn position(&mut self, deadline: Instant) -> Result<(MariadbPosition, bool), Error> {
        let doing = "reading the position";
        let sql = format!("SELECT @@gtid_binlog_pos, @@read_only; {STANDING}");
        let rows = self.run(deadline, doing, &sql).await?;
        let replica = rows.first().is_some_and(|row| is_replica(text(row, 1), &rows));
        let mut position = MariadbPosition {
            innodb_lsn: status(&rows, "Innodb_lsn_current").and_then(|lsn| u64::try_from(lsn).ok()),
            ..MariadbPosition::default()
        };
        if !self.hello.log_bin {
            return Ok((position, replica));
        }
        position.gtid_binlog_pos = rows.first().and_then(|row| text(row, 0));
        match self.run(deadline, doing, "SHOW MASTER STATUS").await {
            Ok(rows) => {
                position.binlog_file = rows.first().and_then(|row| text(row, 0));
                position.binlog_position = rows.first().and_then(|row| text(row, 1)).and_then(|at| at.parse().ok());
            }
            Err(Error::Privilege { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok((position, replica))
    }

    /// What the account may do everywhere, as it may see of itself.
    pub(super) async fn privileges(&mut self, deadline: Instant) -> Result<Vec<String>, Error> {
        let sql = "SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES \
                   WHERE GRANTEE = CONCAT('\\'', SUBSTRING_INDEX(CURRENT_USER(), '@', 1), '\\'@\\'', \
                   SUBSTRING_INDEX(CURRENT_USER(), '@', -1), '\\'')";
        let rows = self.run(deadline, "reading rights", sql).await?;
        Ok(rows.iter().filter_map(|row| text(row, 0)).collect())
    }

    /// See [`Session::close`].
    pub(super) async fn close(self, deadline: Instant) {
        self.session.close(deadline).await;
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

    /// Whether this is the run of the server that `other` was read of. Its start is computed from two clocks that count whole
    /// seconds.
    pub(super) fn is_same_run(&self, other: &Incarnation) -> bool {
        let started = |incarnation: &Incarnation| incarnation.started_at.parse::<i64>().unwrap_or_default();
        self.incarnation.server == other.server && started(&self.incarnation).abs_diff(started(other)) <= 1
    }

    /// BACKUP STAGE came with 10.4.1.
    pub(super) fn supported(&self) -> Result<(), Error> {
        let unsupported = |found: String| Error::Version {
            engine: api::Engine::MariaDB,
            found,
            supported: "MariaDB 10.4.1 or later".into(),
        };
        if !self.version.contains("MariaDB") {
            return Err(unsupported(format!("(another server: {} {})", self.comment, self.version)));
        }
        match numbers(&self.version) {
            Some(version) if version >= (10, 4, 1) => Ok(()),
            _ => Err(unsupported(self.version.clone())),
        }
    }

    fn not_pooled(&self) -> Result<(), Error> {
        let proxy =
            ["ProxySQL", "MaxScale"].iter().find(|name| self.comment.contains(*name) || self.version.contains(*name));
        if let Some(name) = proxy {
            return Err(Error::Pooler { detail: format!("it calls itself {name}") });
        }
        if self.questions > OUR_QUESTIONS {
            let detail = format!("the session that we were given has run {} statements before", self.questions);
            return Err(Error::Pooler { detail });
        }
        Ok(())
    }

    fn read(rows: &[MySqlRow]) -> Result<Self, Error> {
        let missing =
            |what: &str| Error::Server { doing: "asking who the server is".into(), detail: format!("no {what}") };
        let row = rows.iter().find(|row| row.len() == 12).ok_or_else(|| missing("answer"))?;
        let column = |at| text(row, at).unwrap_or_default();
        let number = |at| column(at).parse::<i64>().unwrap_or(0);
        let status = |name: &str| status(rows, name);
        let started = number(7) - status("Uptime").ok_or_else(|| missing("uptime"))?;
        Ok(Self {
            version: column(0),
            comment: column(1),
            connection_id: u64::try_from(number(2)).unwrap_or(0),
            incarnation: Incarnation {
                server: format!("{}@{}:{}", column(3), column(4), column(5)),
                host: text(row, 4),
                started_at: started.to_string(),
                timeline: None,
                replica: is_replica(text(row, 6), rows),
            },
            started_at: Timestamp::from_second(started).ok(),
            flush_log_at_trx_commit: u32::try_from(number(8)).unwrap_or(0),
            sync_binlog: u32::try_from(number(9)).unwrap_or(0),
            log_bin: on(&column(10)),
            // Also DETECT_AND_RECOVER counts as on (10.11).
            doublewrite: !matches!(column(11).as_str(), "0" | "OFF" | "off" | "fast"),
            cluster_size: u32::try_from(status("wsrep_cluster_size").unwrap_or(0)).unwrap_or(0),
            questions: u64::try_from(status("Questions").unwrap_or(0)).unwrap_or(0),
        })
    }
}

/// The limits of a session: how long the server waits for us, for a lock, and for a statement. `lock_wait_timeout` is in
/// whole seconds and 86,400 by default; `max_statement_time` ends also a wait for a lock, to the millisecond.
pub(super) fn limits(idle: Duration, statement: Duration) -> String {
    format!(
        "SET SESSION wait_timeout = {}, lock_wait_timeout = {}, max_statement_time = {:.3}",
        idle.as_secs().max(1),
        statement.as_secs() + 1,
        statement.as_secs_f64().max(0.001),
    )
}

/// A status variable among the rows of an answer.
fn status(rows: &[MySqlRow], name: &str) -> Option<i64> {
    let named = |row: &&MySqlRow| row.len() == 2 && text(row, 0).is_some_and(|found| found.eq_ignore_ascii_case(name));
    rows.iter().find(named).and_then(|row| text(row, 1)).and_then(|value| value.parse().ok())
}

/// It takes no writes, or follows another.
fn is_replica(read_only: Option<String>, rows: &[MySqlRow]) -> bool {
    read_only.is_some_and(|value| on(&value)) || status(rows, "Slaves_running").unwrap_or(0) > 0
}

fn on(value: &str) -> bool {
    matches!(value, "1" | "ON")
}

/// The text of a column, or nothing for NULL. The text protocol carries every type as text.
pub(super) fn text(row: &MySqlRow, column: usize) -> Option<String> {
    row.try_get_unchecked::<Option<String>, _>(column).ok().flatten()
}

/// A text literal, whatever `sql_mode` says of backslashes: hexadecimal (MariaDB documentation, "Hexadecimal Literals").
pub(super) fn literal(value: &str) -> String {
    if value.is_empty() {
        return "''".to_owned();
    }
    value.bytes().fold("0x".to_owned(), |hex, byte| format!("{hex}{byte:02x}"))
}

/// `10.11.6-MariaDB-log` → (10, 11, 6).
fn numbers(version: &str) -> Option<(u32, u32, u32)> {
    let version = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut parts = version.split(['.', '-']).map(str::parse::<u32>);
    Some((parts.next()?.ok()?, parts.next()?.ok()?, parts.next()?.ok()?))
}

fn options(member: &Member) -> MySqlConnectOptions {
    let (user, password) =
        member.account.as_ref().map_or(("root", None), |account| (account.user.as_str(), account.password.as_deref()));
    let options = MySqlConnectOptions::new()
        .username(user)
        .pipes_as_concat(false)
        .no_engine_substitution(false)
        .timezone(None)
        .set_names(false)
        .statement_cache_capacity(0)
        .ssl_mode(match member.tls.mode {
            TlsMode::Disable => MySqlSslMode::Disabled,
            TlsMode::Require => MySqlSslMode::Required,
            TlsMode::VerifyCA => MySqlSslMode::VerifyCa,
            TlsMode::VerifyFull => MySqlSslMode::VerifyIdentity,
        })
        .disable_statement_logging();
    // An empty password is none: the server refuses a scrambled empty one.
    let options = match password.filter(|password| !password.is_empty()) {
        Some(password) => options.password(password),
        None => options,
    };
    let options = match &member.address {
        ConnectionAddress::Tcp { host, port } => options.host(host).port(*port),
        ConnectionAddress::Socket { path, .. } => options.socket(path),
    };
    let Some(roots) = &member.tls.roots else { return options };
    let options = match &roots.ca {
        Some(ca) => options.ssl_ca_from_pem(ca.as_bytes().to_vec()),
        None => options,
    };
    match &roots.identity {
        Some((certificate, key)) => {
            options.ssl_client_cert_from_pem(certificate.as_bytes()).ssl_client_key_from_pem(key.as_bytes())
        }
        None => options,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_are_read_as_servers_write_them() {
        assert_eq!(numbers("10.11.6-MariaDB-0+deb12u1-log"), Some((10, 11, 6)));
        assert_eq!(numbers("5.5.5-10.4.0-MariaDB"), Some((10, 4, 0)));
        assert_eq!(numbers("nonsense"), None);
    }

    proptest! {
        #[test]
        fn any_version_and_any_literal_is_read_without_a_panic(value in ".*") {
            numbers(&value);
            let quoted = literal(&value);
            let quoted_as_hex = quoted.strip_prefix("0x").is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()));
            prop_assert!(quoted == "''" || quoted_as_hex);
        }
    }
}
