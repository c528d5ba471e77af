//! One restore at a time into a server. Two of them would take each other's databases for those of a dead one.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use api::{Engine, conditions::reasons};
use freeze::{
    Error, Member,
    engines::{mariadb, postgresql, turn::Turn},
};
use tokio::{runtime::Handle, sync::oneshot, task::JoinHandle, time::Instant};

use crate::{dump::LOOK, failure::Failure};

/// The server is ours, until this is dropped or the session that says so is lost.
#[derive(Debug)]
pub(crate) struct Alone {
    lost: Arc<AtomicBool>,
    kept: Mutex<Option<Kept>>,
    runtime: Handle,
}

/// In a database of the server, where those can be renamed.
#[derive(Debug)]
struct Kept {
    database: Option<String>,
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Keeps a session until it is lost, or ends it in order.
type Keeping = Pin<Box<dyn Future<Output = Option<Error>> + Send>>;

/// Takes it, if nobody has it.
pub(super) async fn alone(to: &str, engine: Engine, member: &Member) -> Result<Alone, Failure> {
    let deadline = Instant::now() + LOOK;
    let (end, until) = oneshot::channel();
    let (database, keeping): (_, Keeping) = match engine {
        Engine::PostgreSQL => {
            let held = ours(to, postgresql::turn(member, deadline).await)?;
            (Some(held.database.clone()), Box::pin(held.keep(until)))
        }
        Engine::MariaDB => (None, Box::pin(ours(to, mariadb::turn(member, deadline).await)?.keep(until))),
    };
    let lost = Arc::new(AtomicBool::new(false));
    let noted = Arc::clone(&lost);
    let task = tokio::spawn(async move {
        if let Some(error) = keeping.await {
            tracing::warn!(%error, "the session that keeps other restores out is lost");
            noted.store(true, Ordering::Relaxed);
        }
    });
    let kept = Mutex::new(Some(Kept { database, end, task }));
    Ok(Alone { lost, kept, runtime: Handle::current() })
}

fn ours<Held>(to: &str, turn: Result<Turn<Held>, Error>) -> Result<Held, Failure> {
    match turn.map_err(|error| Failure::about(to, &error))? {
        Turn::Ours(held) => Ok(held),
        Turn::Theirs(whose) => {
            let message = format!(
                "another restore into the server of Database {to} goes on ({whose}): restore again when it is over, one at a time"
            );
            Err(Failure { again: true, ..Failure::new(reasons::BLOCKED, message) })
        }
    }
}

impl Alone {
    /// Before what only one may do.
    pub(super) fn still(&self) -> Result<(), Failure> {
        if self.lost.load(Ordering::Relaxed) {
            let message = "the session that keeps other restores out was lost: another may have begun";
            return Err(Failure { again: true, ..Failure::new(reasons::SESSION_LOST, message) });
        }
        Ok(())
    }

    /// Gives it back, if its session is in that database, which is about to be renamed: no session may be in it then. Blocking.
    pub(super) fn leave(&self, database: &str) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Kept { end, task, .. }) = kept.take_if(|kept| kept.database.as_deref() == Some(database)) {
            end.send(()).ok();
            self.runtime.block_on(task).ok();
        }
    }
}
