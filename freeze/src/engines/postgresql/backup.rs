//! `copy: Files`: backup mode and a temporary slot in one session (manual, 26.3.3 "Making a Base Backup Using the Low
//! Level API"). The slot keeps the WAL from start on until the thaw, so WAL can be copied after stop.

use api::{Artifact, ArtifactKind, PostgresqlPosition};
use tokio::time::Instant;

use super::connect::{ASKING, Link, literal, text};
use crate::{engines::deadline::left, error::Error};

/// Where the backup began, and what it gave when it was stopped.
#[derive(Clone, Debug)]
pub(super) struct Backup {
    slot: String,
    start_lsn: String,
    first_segment: String,
    stopped: Option<Vec<Artifact>>,
}

/// The longest name of a slot. Lower-case letters, digits and underscores may be in it (manual, 26.2.6).
const LONGEST_NAME: usize = 63;
/// Room for the number of a session, and what sets it apart.
const NUMBER: usize = "_2147483647".len();

/// How the names of a freeze's slots begin.
pub(super) fn slot_prefix(freeze_uid: &str) -> String {
    let safe = freeze_uid.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' });
    "stillpoint_".chars().chain(safe).take(LONGEST_NAME - NUMBER).chain(['_']).collect()
}

/// One slot per session: two Databases of a group may be on one server.
fn slot_name(freeze_uid: &str, backend_pid: i32) -> String {
    format!("{}{backend_pid}", slot_prefix(freeze_uid))
}

impl Backup {
    /// Slow (it waits for a checkpoint) and blocks nobody.
    pub(super) async fn start(link: &mut Link, freeze_uid: &str, deadline: Instant) -> Result<Self, Error> {
        let slot = slot_name(freeze_uid, link.hello.backend_pid);
        let sql = format!(
            "SELECT slot_name FROM pg_create_physical_replication_slot({slot}, immediately_reserve => true, \
             temporary => true); SELECT lsn, pg_walfile_name(lsn + 1) FROM pg_backup_start({label}, fast => true) AS lsn",
            slot = literal(&slot),
            label = literal(&format!("stillpoint {freeze_uid}")),
        );
        let rows = link.run(deadline, "starting backup mode", &sql).await?;
        let row = rows.last().filter(|row| text(row, 1).is_some());
        let row = row.ok_or(Error::Server { doing: "starting backup mode".into(), detail: "no position".into() })?;
        Ok(Self {
            slot,
            start_lsn: text(row, 0).unwrap_or_default(),
            first_segment: text(row, 1).unwrap_or_default(),
            stopped: None,
        })
    }

    /// Ends the data phase. The last segment is that of the byte before the end, which is the last one written: on a boundary the
    /// next may not exist (the server's own backup history file says the same, xlog.c, `do_pg_backup_stop`).
    pub(super) async fn stop(
        &mut self,
        link: &mut Link,
        position: &mut PostgresqlPosition,
        deadline: Instant,
    ) -> Result<Vec<Artifact>, Error> {
        if let Some(artifacts) = &self.stopped {
            return Ok(artifacts.clone());
        }
        let sql = format!(
            "SET statement_timeout = {}; SELECT lsn, labelfile, spcmapfile, pg_walfile_name(lsn - 1) \
             FROM pg_backup_stop(wait_for_archive => false)",
            left(deadline).as_millis()
        );
        let rows = link.run(deadline, "ending backup mode", &sql).await?;
        let row = rows.last().ok_or(Error::Server { doing: "ending backup mode".into(), detail: "no label".into() })?;
        let column = |at| text(row, at).unwrap_or_default();
        position.start_lsn = Some(self.start_lsn.clone());
        position.stop_lsn = Some(column(0));
        let artifact = |kind, name: &str, content| Artifact { kind, name: name.to_owned(), content };
        let mut artifacts = vec![artifact(ArtifactKind::BackupLabel, "backup_label", column(1))];
        if !column(2).is_empty() {
            artifacts.push(artifact(ArtifactKind::TablespaceMap, "tablespace_map", column(2)));
        }
        let range = format!("{} {}", self.first_segment, column(3));
        artifacts.push(artifact(ArtifactKind::WalRange, "pg_wal", range));
        self.stopped = Some(artifacts.clone());
        Ok(artifacts)
    }

    /// Takes our marks off the server: slot and name would go with the session, but only a while after it is closed, and until
    /// then another freeze would find them.
    pub(super) async fn unmark(&self, link: &mut Link, deadline: Instant) -> Result<(), Error> {
        let slot = literal(&self.slot);
        let sql = format!("SELECT pg_drop_replication_slot({slot}); SET application_name = {}", literal(ASKING));
        link.run(deadline, "dropping the slot", &sql).await.map(drop)
    }

    pub(super) fn start_lsn(&self) -> &str {
        &self.start_lsn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_are_what_the_server_takes() {
        let name = slot_name("3F2504E0-4F89-11D3-9A0C-0305E82C3301/with/much/more/than/fits/into/it", i32::MAX);
        assert!(name.len() <= LONGEST_NAME && name.ends_with("_2147483647"), "{name}");
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'));
    }
}
