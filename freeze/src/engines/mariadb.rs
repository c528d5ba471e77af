//! MariaDB 10.4.1 and later.
//!
//! ```text
//! copy: Atomic  Recoverable   one session; the preconditions of crash recovery are checked
//!               Durable       + a barrier that flushes redo and binary log to disk; blocks nobody
//!               WriteBlocked  + BACKUP STAGE … BLOCK_COMMIT, then the barrier while no commit can pass
//! copy: Files   refused: under every lock InnoDB goes on writing pages and redo, so a file-by-file copy is torn
//! ```
//! Locks are bound to one session that the server ends after a few seconds of silence (`wait_timeout`). Only the global
//! settings that the barrier may have to raise outlive it: they are in the undo log before they are touched. Facts are
//! from the MariaDB documentation ("BACKUP STAGE", "FLUSH", "InnoDB System Variables") unless said otherwise.

mod barrier;
mod blockers;
mod checks;
mod connect;
mod errors;
mod hold;
mod survey;
mod turn;

use std::sync::Arc;

use api::{Artifact, Copy, Engine, Incarnation, Level, Position, Undo};
use async_trait::async_trait;
use tokio::time::Instant;

use crate::{
    driver::{Driver, Grant, Member, Observed, Plan, Preflight, Prepared, Recovered, ServerInfo},
    error::Error,
    journal::UndoLog,
    lease::LONGEST_SERVER_TTL,
};
use connect::{Link, MARK, literal, text};
pub use survey::{Survey, survey};
pub use turn::{Held, turn};

/// The MariaDB engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mariadb;

#[async_trait]
impl Driver for Mariadb {
    fn engine(&self) -> Engine {
        Engine::MariaDB
    }

    async fn probe(&self, member: &Member, deadline: Instant) -> Result<ServerInfo, Error> {
        let link = Link::open(member, LONGEST_SERVER_TTL, deadline).await?;
        link.hello.supported()?;
        let server = link.hello.server();
        link.close(deadline).await;
        Ok(server)
    }

    async fn preflight(&self, member: &Member, plan: &Plan, deadline: Instant) -> Preflight {
        checks::preflight(member, plan, deadline).await
    }

    async fn prepare(
        &self,
        member: &Member,
        plan: &Plan,
        undo: Arc<dyn UndoLog>,
        deadline: Instant,
    ) -> Result<Box<dyn Prepared>, Error> {
        self.supports(plan.level, plan.copy)?;
        Ok(Box::new(Box::pin(hold::prepare(member, plan, undo, deadline)).await?))
    }

    /// A global setting goes with the run of the server (MariaDB documentation, "SET"): another run has nothing to undo.
    async fn recover(
        &self,
        member: &Member,
        undo: &Undo,
        of: Option<&Incarnation>,
        deadline: Instant,
    ) -> Result<Recovered, Error> {
        let Some(settings) = barrier::Settings::from_undo(undo) else {
            return Ok(Recovered::Unknown);
        };
        let mut link = Link::open(member, LONGEST_SERVER_TTL, deadline).await?;
        if let Some(of) = of.filter(|of| !link.hello.is_same_run(of)) {
            let found = format!("{:?}", link.hello.incarnation);
            let same_server = link.hello.incarnation.server == of.server;
            link.close(deadline).await;
            return Ok(if same_server { Recovered::Undone } else { Recovered::Elsewhere(found) });
        }
        // Under the mark: never in the middle of another freeze's barrier, nor before our own old session is gone.
        let wait = format!("SELECT GET_LOCK({}, 5)", literal(MARK));
        let rows = link.run(deadline, "waiting for other freezes", &wait).await?;
        if rows.first().and_then(|row| text(row, 0)).as_deref() != Some("1") {
            return Err(Error::ForeignFreeze { holder: "another session of Stillpoint".to_owned() });
        }
        settings.restore(&mut link, deadline).await?;
        link.run(deadline, "letting the mark go", "DO RELEASE_ALL_LOCKS()").await?;
        link.close(deadline).await;
        Ok(Recovered::Undone)
    }

    /// A session of ours holds the user lock `stillpoint/<uid>`; anybody may ask whose it is.
    async fn observe(&self, member: &Member, freeze_uid: &str, deadline: Instant) -> Result<Observed, Error> {
        let mut link = Link::open(member, LONGEST_SERVER_TTL, deadline).await?;
        let sql = format!("SELECT IS_USED_LOCK({})", literal(&format!("{MARK}/{freeze_uid}")));
        let rows = link.run(deadline, "looking for what is held", &sql).await?;
        link.close(deadline).await;
        Ok(match rows.first().and_then(|row| text(row, 0)) {
            Some(id) => Observed::Holds(format!("session {id}")),
            None => Observed::Nothing,
        })
    }

    async fn thaw_all(&self, member: &Member, deadline: Instant) -> Result<Vec<String>, Error> {
        let mut link = Link::open(member, LONGEST_SERVER_TTL, deadline).await?;
        let sql = format!("SELECT IS_USED_LOCK({})", literal(MARK));
        let rows = link.run(deadline, "looking for what is held", &sql).await?;
        let mut ended = Vec::new();
        if let Some(id) = rows.first().and_then(|row| text(row, 0)).and_then(|id| id.parse::<u64>().ok()) {
            link.run(deadline, "ending what is held", &format!("KILL CONNECTION {id}")).await?;
            ended.push(format!("session {id}"));
        }
        link.close(deadline).await;
        Ok(ended)
    }

    fn grants(&self, user: &str, level: Level, _copy: Copy) -> Vec<Grant> {
        checks::grants(user, level)
    }

    fn supports(&self, _level: Level, copy: Copy) -> Result<(), Error> {
        match copy {
            Copy::Atomic => Ok(()),
            Copy::Files => Err(Error::Unsupported {
                what: "MariaDB cannot be held for copy: Files: under every lock InnoDB goes on writing pages and redo, so \
                       files that are copied one after the other do not fit together"
                    .to_owned(),
                instead: "take an atomic copy (a volume snapshot, LVM, ZFS, btrfs), or use mariadb-backup or mariadb-dump"
                    .to_owned(),
            }),
        }
    }

    fn restore_recipe(&self, _copy: Copy, position: Option<&Position>, _artifacts: &[Artifact]) -> String {
        let stood = position.map_or_else(|| "not recorded".to_owned(), Position::summary);
        format!(
            "Position: {stood}\n\n\
             1. Mount the copy; remove the pid file from the data directory.\n\
             2. Start the same major version on it with the original's `--log-bin` setting (without it, transactions that \
             were prepared at the cut cannot be resolved, and the server refuses to start), isolated first: \
             `--skip-slave-start --event-scheduler=OFF --skip-networking`. InnoDB recovers as after a power cut.\n\
             3. Check it: `mariadb-check --all-databases --extended`. Delete what is left of temporary tables (`#sql*`).\n\
             4. A replica of the original starts from the position above.\n"
        )
    }
}
