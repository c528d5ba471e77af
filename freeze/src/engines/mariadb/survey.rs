//! What whoever dumps a server by SQL has to know of it before: what is in it, and what one transaction does not hold still.

use std::time::Duration;

use tokio::time::Instant;

use super::connect::{Link, text};
use crate::{
    driver::{Member, ServerInfo},
    error::Error,
};

/// A look at a server.
#[derive(Clone, Debug)]
pub struct Survey {
    pub server: ServerInfo,
    /// Whether it writes a binary log, so that a transaction knows its position.
    pub log_bin: bool,
    /// Those that the member names, or all but the server's own.
    pub databases: Vec<String>,
    /// `database.table (ENGINE)` of tables that are not transactional: what is written to them meanwhile is seen.
    pub not_transactional: Vec<String>,
    /// What the tables take, bytes: about what a dump reads.
    pub bytes: u64,
}

/// The server's own (MariaDB documentation, "System Databases").
const SYSTEM: &str = "'information_schema', 'mysql', 'performance_schema', 'sys'";
const IDLE: Duration = Duration::from_secs(10);

/// Reads it; nothing is touched.
pub async fn survey(member: &Member, deadline: Instant) -> Result<Survey, Error> {
    let mut link = Link::open(member, IDLE, deadline).await?;
    link.hello.supported()?;
    let doing = "looking at its databases";
    let names = match member.databases.as_slice() {
        [] => {
            let sql = format!(
                "SELECT schema_name FROM information_schema.schemata WHERE schema_name NOT IN ({SYSTEM}) ORDER BY 1"
            );
            link.run(deadline, doing, &sql).await?.iter().filter_map(|row| text(row, 0)).collect()
        }
        names => names.to_vec(),
    };
    let listed: Vec<String> = names.iter().map(|name| super::connect::literal(name)).collect();
    let listed = if listed.is_empty() { "NULL".to_owned() } else { listed.join(", ") };
    let tables = format!(
        "SELECT CONCAT(t.table_schema, '.', t.table_name, ' (', t.engine, ')') FROM information_schema.tables t \
         JOIN information_schema.engines e ON e.engine = t.engine \
         WHERE t.table_schema IN ({listed}) AND t.table_type = 'BASE TABLE' AND e.transactions <> 'YES' ORDER BY 1"
    );
    let rows = link.run(deadline, doing, &tables).await?;
    let not_transactional = rows.iter().filter_map(|row| text(row, 0)).collect();
    let size =
        format!("SELECT COALESCE(SUM(data_length), 0) FROM information_schema.tables WHERE table_schema IN ({listed})");
    let rows = link.run(deadline, doing, &size).await?;
    let bytes = rows.first().and_then(|row| text(row, 0)).and_then(|bytes| bytes.parse().ok()).unwrap_or(0);
    let survey =
        Survey { server: link.hello.server(), log_bin: link.hello.log_bin, databases: names, not_transactional, bytes };
    link.close(deadline).await;
    Ok(survey)
}
