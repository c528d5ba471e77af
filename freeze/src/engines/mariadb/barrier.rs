//! The durability barrier: every commit acknowledged before it is on disk after it.
//!
//! A commit is acknowledged when InnoDB has its commit record in the redo log buffer. Whether that buffer is on disk
//! depends on `innodb_flush_log_at_trx_commit` (0: once a second, 2: written but not synced) and, with a binary log, on
//! `sync_binlog` too: at 1/0 the record's own sync is left to the binary log. So the redo log is flushed up to here, which
//! covers every acknowledged commit whatever the settings. `FLUSH ENGINE LOGS` syncs only while the setting is 1
//! (storage/innobase/handler/ha_innodb.cc, `innobase_flush_logs`), so the setting is raised for that moment; who may not
//! raise it waits for InnoDB's own flush, once a second (`innodb_flush_log_at_timeout`).
//!
//! A binary log that is not synced at each commit is rotated, which syncs it: the position that is recorded is then in
//! the copy.

use std::time::Duration;

use api::Undo;
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use super::connect::{Link, limits, text};
use crate::{error::Error, journal::UndoLog};

/// The two settings as they were before us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    flush_log_at_trx_commit: u32,
    sync_binlog: u32,
}

/// How a barrier is made on this server by this account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The settings are 1: flushing is enough.
    Flush,
    /// They have to be raised for the moment.
    Raise(Settings),
    /// They cannot be raised: InnoDB's own flush is waited for.
    Wait,
}

/// The undo item, and the form of its data.
const KIND: &str = "mariadbGlobals";
const VERSION: u32 = 1;
/// How long InnoDB's own flush may take: once a second, and the sync itself.
const OWN_FLUSH: Duration = Duration::from_millis(2500);
const LOOK: Duration = Duration::from_millis(20);
/// How long a statement of a session that holds may take at the server.
pub(super) const STATEMENT: Duration = Duration::from_secs(5);

impl Settings {
    /// As they are now. Under the mark of a freeze they are not another freeze's.
    async fn now(link: &mut Link, deadline: Instant) -> Result<Self, Error> {
        let doing = "reading durability settings";
        let sql = "SELECT @@global.innodb_flush_log_at_trx_commit, @@global.sync_binlog";
        let rows = link.run(deadline, doing, sql).await?;
        let number = |at| rows.first().and_then(|row| text(row, at)).and_then(|value| value.parse().ok());
        let (Some(flush_log_at_trx_commit), Some(sync_binlog)) = (number(0), number(1)) else {
            return Err(Error::Server { doing: doing.into(), detail: "no settings".into() });
        };
        Ok(Self { flush_log_at_trx_commit, sync_binlog })
    }

    pub(super) fn to_undo(self) -> Undo {
        let mut data = Map::new();
        data.insert("innodbFlushLogAtTrxCommit".to_owned(), Value::from(self.flush_log_at_trx_commit));
        data.insert("syncBinlog".to_owned(), Value::from(self.sync_binlog));
        Undo { version: VERSION, kind: KIND.to_owned(), data }
    }

    /// Nothing for an item of another engine, or of a later form.
    pub(super) fn from_undo(undo: &Undo) -> Option<Self> {
        let number = |key: &str| undo.data.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        if undo.kind != KIND || undo.version != VERSION {
            return None;
        }
        Some(Self {
            flush_log_at_trx_commit: number("innodbFlushLogAtTrxCommit").filter(|value| *value <= 3)?,
            sync_binlog: number("syncBinlog")?,
        })
    }

    fn raise() -> &'static str {
        "SET GLOBAL innodb_flush_log_at_trx_commit = 1, GLOBAL sync_binlog = 1"
    }

    /// Puts back what was there. Harmless when it is there already.
    pub(super) async fn restore(self, link: &mut Link, deadline: Instant) -> Result<(), Error> {
        let Self { flush_log_at_trx_commit, sync_binlog } = self;
        let sql = format!(
            "SET GLOBAL innodb_flush_log_at_trx_commit = {flush_log_at_trx_commit}, GLOBAL sync_binlog = {sync_binlog}"
        );
        link.run(deadline, "restoring settings", &sql).await.map(drop)
    }
}

/// How the barrier would be made, by what can be read alone: a preflight touches nothing.
pub(super) async fn foresee(link: &mut Link, deadline: Instant) -> Result<Way, Error> {
    let settings = Settings::now(link, deadline).await?;
    let may_raise = link.privileges(deadline).await?.iter().any(|privilege| privilege == "SUPER");
    Ok(match settings.flush_log_at_trx_commit {
        1 if settings.sync_binlog == 1 || !link.hello.log_bin || !may_raise => Way::Flush,
        _ if may_raise => Way::Raise(settings),
        _ => Way::Wait,
    })
}

/// How the barrier is made. Asked under the mark, each time anew: `SET GLOBAL … = itself` tells whether the account may.
pub(super) async fn way(link: &mut Link, deadline: Instant) -> Result<Way, Error> {
    let settings = Settings::now(link, deadline).await?;
    if settings.flush_log_at_trx_commit == 1 && (settings.sync_binlog == 1 || !link.hello.log_bin) {
        return Ok(Way::Flush);
    }
    match settings.restore(link, deadline).await {
        Ok(()) => Ok(Way::Raise(settings)),
        Err(Error::Privilege { .. }) if settings.flush_log_at_trx_commit == 1 => Ok(Way::Flush),
        Err(Error::Privilege { .. }) => Ok(Way::Wait),
        Err(error) => Err(error),
    }
}

impl Way {
    /// Before commits are blocked: what has to be slow, or written down, happens here.
    pub(super) async fn begin(self, link: &mut Link, undo: &dyn UndoLog, deadline: Instant) -> Result<(), Error> {
        let Self::Raise(settings) = self else { return Ok(()) };
        undo.intend(settings.to_undo()).await?;
        let rotate =
            if link.hello.log_bin && settings.sync_binlog != 1 { "; FLUSH NO_WRITE_TO_BINLOG BINARY LOGS" } else { "" };
        link.run(deadline, "raising durability settings", &format!("{}{rotate}", Settings::raise())).await.map(drop)
    }

    /// Everything acknowledged before this is on disk when it returns. The session's limits are those of a hold from here on.
    /// The settings are the server's, not ours: another session may lower them at any time, and the flush would sync nothing.
    pub(super) async fn flush(self, link: &mut Link, idle: Duration, deadline: Instant) -> Result<(), Error> {
        match self {
            Self::Flush | Self::Raise(_) => {
                let sql = format!(
                    "{}; FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS; SELECT @@global.innodb_flush_log_at_trx_commit",
                    limits(idle, STATEMENT)
                );
                let rows = link.run(deadline, "flushing the redo log", &sql).await?;
                synced(rows.last().and_then(|row| text(row, 0)).as_deref())
            }
            Self::Wait => wait_for_own_flush(link, deadline).await,
        }
    }

    /// Puts the settings back.
    pub(super) async fn end(self, link: &mut Link, undo: &dyn UndoLog, deadline: Instant) -> Result<(), Error> {
        let Self::Raise(settings) = self else { return Ok(()) };
        settings.restore(link, deadline).await?;
        undo.settled(KIND).await?;
        Ok(())
    }
}

/// Whether the flush synced, by `innodb_flush_log_at_trx_commit` after it: only at 1, and not at 3 either (tried on 10.11).
fn synced(setting: Option<&str>) -> Result<(), Error> {
    if setting == Some("1") {
        return Ok(());
    }
    Err(Error::UnsafeSettings {
        what: format!(
            "somebody set innodb_flush_log_at_trx_commit to {} while the redo log was flushed: it may not be on disk",
            setting.unwrap_or("an unknown value")
        ),
        fix: "freeze again, and leave the setting alone meanwhile".to_owned(),
    })
}

/// `Innodb_lsn_flushed` is what is on disk; it must reach where the log stands now.
async fn wait_for_own_flush(link: &mut Link, deadline: Instant) -> Result<(), Error> {
    let deadline = deadline.min(Instant::now() + OWN_FLUSH);
    let mut target = None;
    loop {
        let sql = "SHOW GLOBAL STATUS WHERE Variable_name IN ('Innodb_lsn_current', 'Innodb_lsn_flushed')";
        let rows = link.run(deadline, "waiting for InnoDB to flush its log", sql).await?;
        let value = |name: &str| {
            let row = rows.iter().find(|row| text(row, 0).is_some_and(|found| found.eq_ignore_ascii_case(name)));
            row.and_then(|row| text(row, 1)).and_then(|value| value.parse::<u64>().ok())
        };
        let (Some(current), Some(flushed)) = (value("Innodb_lsn_current"), value("Innodb_lsn_flushed")) else {
            return Err(Error::Server {
                doing: "waiting for InnoDB to flush its log".into(),
                detail: "no log position".into(),
            });
        };
        if flushed >= *target.get_or_insert(current) {
            return Ok(());
        }
        if Instant::now() + LOOK >= deadline {
            return Err(Error::Timeout { doing: "waiting for InnoDB to flush its log".into(), limit: OWN_FLUSH });
        }
        sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_round_trip_through_the_journal() {
        let settings = Settings { flush_log_at_trx_commit: 2, sync_binlog: 0 };
        assert_eq!(Settings::from_undo(&settings.to_undo()), Some(settings));
    }

    #[test]
    fn only_a_flush_at_one_is_taken_for_a_sync() {
        synced(Some("1")).unwrap();
        for setting in [Some("0"), Some("2"), Some("3"), Some(""), None] {
            assert!(matches!(synced(setting), Err(Error::UnsafeSettings { .. })), "{setting:?}");
        }
    }

    #[test]
    fn an_item_of_a_later_form_is_left_alone() {
        let mut undo = Settings { flush_log_at_trx_commit: 2, sync_binlog: 0 }.to_undo();
        undo.version += 1;
        assert_eq!(Settings::from_undo(&undo), None);
    }
}
