//! Where a database stood: what a point-in-time restore or a new replica starts from, and what the proof compares.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Where a member stood, in its engine's own terms. On the wire one key, the engine's: `{"postgresql": {…}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Position {
    Postgresql(PostgresqlPosition),
    Mariadb(MariadbPosition),
}

/// PostgreSQL: a place in the write-ahead log. LSNs are written as the server writes them, `16/B374D848`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PostgresqlPosition {
    /// The end of WAL when the freeze took hold: the marker's end at Durable, the insert position otherwise.
    pub lsn: String,
    /// The timeline that `lsn` is on.
    pub timeline: u32,
    /// The WAL segment file that holds `lsn`, where the server can tell (not on a standby).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wal_file: Option<String>,
    /// `copy: Files`: where the backup starts; WAL is needed from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_lsn: Option<String>,
    /// `copy: Files`, after `stage: Stop`: WAL is needed up to here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_lsn: Option<String>,
}

/// MariaDB: a place in the binary log, and InnoDB's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MariadbPosition {
    /// Binary log file and offset (`SHOW MASTER STATUS`), when the binary log is on and may be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binlog_file: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binlog_position: Option<u64>,
    /// `@@gtid_binlog_pos`: empty before the first binlogged transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gtid_binlog_pos: Option<String>,
    /// `Innodb_lsn_current`. Moves also while commits are blocked (purge, page cleaning): never part of a proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub innodb_lsn: Option<u64>,
}

impl Position {
    /// One line for a column, a log line or an environment variable.
    pub fn summary(&self) -> String {
        match self {
            Self::Postgresql(p) => match &p.stop_lsn {
                Some(stop) => format!("{}..{stop} (timeline {})", p.start_lsn.as_deref().unwrap_or(&p.lsn), p.timeline),
                None => format!("{} (timeline {})", p.lsn, p.timeline),
            },
            Self::Mariadb(p) => {
                let binlog = p.binlog_file.as_ref().zip(p.binlog_position).map(|(file, at)| format!("{file}:{at}"));
                let gtid =
                    p.gtid_binlog_pos.as_ref().filter(|gtid| !gtid.is_empty()).map(|gtid| format!("gtid {gtid}"));
                let lsn = p.innodb_lsn.map(|lsn| format!("innodb {lsn}"));
                match [binlog, gtid, lsn].into_iter().flatten().take(2).collect::<Vec<_>>() {
                    parts if parts.is_empty() => "unknown".to_owned(),
                    parts => parts.join(", "),
                }
            }
        }
    }
}
