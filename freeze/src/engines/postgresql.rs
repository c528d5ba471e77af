//! PostgreSQL 15 and later.
//!
//! ```text
//! copy: Atomic  Recoverable   one session; the preconditions of crash recovery are checked
//!               Durable       + a marker in WAL, committed and flushed (`synchronous_commit = local`); blocks nobody
//!               WriteBlocked  + LOCK TABLE … IN SHARE MODE on every user table, one session per database
//! copy: Files   backup mode and a temporary slot in one session: start → copy → stop (label, map, WAL range) → WAL → thaw
//! ```
//! Everything is bound to sessions that the server ends after a few seconds of silence. Nothing outlives them, so the
//! undo log stays empty. Facts are from the PostgreSQL 15–18 manual, chapters 26.3 (low-level backup), 13.3 (locks),
//! 20.11 (timeouts), 9.27 (functions), unless said otherwise.

mod backup;
mod blockers;
mod checks;
mod connect;
mod errors;
mod escaped;
mod export;
mod hold;
mod locks;
mod markers;
mod recipe;
mod search;
mod turn;

use std::sync::Arc;

use api::{Artifact, Copy, Engine, Incarnation, Level, Position, Role, Undo};
use async_trait::async_trait;
use tokio::time::Instant;

use crate::{
    driver::{Driver, Grant, Member, Observed, Plan, Preflight, Prepared, Recovered, ServerInfo},
    error::Error,
    journal::UndoLog,
    lease::LONGEST_SERVER_TTL,
};
use connect::{Link, MARK, literal, text};
pub use export::{Export, Exported, export};
pub use turn::{Held, turn};

/// The PostgreSQL engine.
#[derive(Clone, Debug, Default)]
pub struct Postgresql {
    remembered: locks::Remembered,
    markers: markers::Markers,
}

#[async_trait]
impl Driver for Postgresql {
    fn engine(&self) -> Engine {
        Engine::PostgreSQL
    }

    async fn probe(&self, member: &Member, deadline: Instant) -> Result<ServerInfo, Error> {
        let link = Link::open(member, None, None, LONGEST_SERVER_TTL, deadline).await?;
        let server = link.hello.server();
        link.hello.supported()?;
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
        _undo: Arc<dyn UndoLog>,
        deadline: Instant,
    ) -> Result<Box<dyn Prepared>, Error> {
        self.supports(plan.level, plan.copy)?;
        Ok(Box::new(hold::prepare(member, plan, &self.remembered, &self.markers, deadline).await?))
    }

    /// Nothing of this engine outlives its sessions, so no undo item is ours.
    async fn recover(
        &self,
        _member: &Member,
        _undo: &Undo,
        _of: Option<&Incarnation>,
        _deadline: Instant,
    ) -> Result<Recovered, Error> {
        Ok(Recovered::Unknown)
    }

    async fn observe(&self, member: &Member, freeze_uid: &str, deadline: Instant) -> Result<Observed, Error> {
        let mut link = Link::open(member, None, None, LONGEST_SERVER_TTL, deadline).await?;
        let sql = format!(
            "SELECT 'session ' || pid FROM pg_stat_activity WHERE application_name = {} \
             UNION ALL SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE starts_with(slot_name, {})",
            literal(&format!("{MARK}{freeze_uid}")),
            literal(&backup::slot_prefix(freeze_uid)),
        );
        let rows = link.run(deadline, "looking for what is held", &sql).await?;
        link.close(deadline).await;
        let held: Vec<String> = rows.iter().filter_map(|row| text(row, 0)).collect();
        Ok(if held.is_empty() { Observed::Nothing } else { Observed::Holds(held.join(", ")) })
    }

    /// An account may end its own sessions without a further privilege (manual, 9.27.2). Conditions are tried in any order
    /// (manual, 4.2.14), so whom to end is settled before anybody is.
    async fn thaw_all(&self, member: &Member, deadline: Instant) -> Result<Vec<String>, Error> {
        let mut link = Link::open(member, None, None, LONGEST_SERVER_TTL, deadline).await?;
        let sql = format!(
            "WITH ours AS MATERIALIZED (SELECT pid, application_name FROM pg_stat_activity \
             WHERE application_name LIKE {} AND pid <> pg_backend_pid()) \
             SELECT 'session ' || pid || ' of freeze ' || substr(application_name, {}) FROM ours \
             WHERE pg_terminate_backend(pid)",
            literal(&format!("{MARK}%")),
            MARK.len() + 1,
        );
        let rows = link.run(deadline, "ending what is held", &sql).await?;
        link.close(deadline).await;
        Ok(rows.iter().filter_map(|row| text(row, 0)).collect())
    }

    fn grants(&self, user: &str, level: Level, copy: Copy) -> Vec<Grant> {
        checks::grants(user, level, copy)
    }

    fn supports(&self, level: Level, copy: Copy) -> Result<(), Error> {
        match (level, copy) {
            (Level::WriteBlocked, Copy::Files) => Err(Error::Unsupported {
                what: "copy: Files cannot be held at WriteBlocked: it takes as long as the copy takes".to_owned(),
                instead: "use level: Durable with copy: Files, or copy: Atomic".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn restore_recipe(&self, copy: Copy, position: Option<&Position>, artifacts: &[Artifact]) -> String {
        recipe::recipe(copy, position, artifacts)
    }
}

/// What a standby can be held at: a marker or a lock is a write, and it takes none.
fn allowed_on(role: Role, level: Level, copy: Copy) -> Result<(), Error> {
    match (role, level, copy) {
        (Role::Primary, ..) | (Role::Replica, Level::Recoverable, Copy::Atomic) => Ok(()),
        (Role::Replica, ..) => Err(Error::Unsupported {
            what: format!("a standby cannot be held at {level} with copy: {copy}: it takes no marker and no lock"),
            instead: "freeze the primary, or use level: Recoverable with copy: Atomic".to_owned(),
        }),
    }
}
