//! What a dead freezer left: its sessions are gone with it, its undo lists are not.
//!
//! Nothing is taken again. A freeze that held is `Lost`, one that was on its way is `Failed`, and what the journal lists
//! is undone before anybody may freeze these members again.

use std::{sync::Arc, time::Duration};

use api::{FreezeStatus, Phase, conditions::reasons};
use jiff::Timestamp;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};
use tracing::info;

use super::{
    COMMANDS, Freezer, Handle, Member, Vitals,
    recorder::{Recorder, write_until_done},
    undo::Undoing,
};
use crate::{directory::Whereabouts, driver::Observed, journal::FreezeName, lease::LONGEST_SERVER_TTL};

/// An unfinished freeze of a dead freezer, as the journal has it; or a finished one that has something to undo.
#[derive(Clone, Debug)]
pub struct Remains {
    pub freeze: FreezeName,
    pub status: FreezeStatus,
}

/// How long the server may take to notice that a session's client is gone, and one try's share of that.
const NOTICE: Duration = Duration::from_secs(LONGEST_SERVER_TTL.as_secs() + 1);
const LOOK: Duration = Duration::from_millis(500);

impl Freezer {
    /// Takes care of what dead freezers left. Returns at once; the members stay taken until all is undone.
    ///
    /// Call it before anything else is frozen.
    pub fn recover(&self, remains: Vec<Remains>) {
        for Remains { freeze, status } in remains {
            // One that no freezer ever began held nothing, nor does one that joined another: that one has its members.
            let held = status.targets.iter().filter(|_| status.freezer.is_some());
            let members: Arc<[Member]> =
                held.map(|target| (freeze.namespace.clone(), target.database.clone())).collect();
            let was_finished = status.phase.is_finished();
            let recorder = Recorder::new(freeze.clone(), Arc::clone(&self.0.journal), status);
            let (commands, _) = mpsc::channel(COMMANDS);
            let vitals = Vitals::new();
            let handle = Handle {
                freeze: freeze.clone(),
                members: Arc::clone(&members),
                copy: api::Copy::default(),
                commands,
                shown: recorder.watch(),
                vitals: Arc::clone(&vitals),
            };
            self.table().take(&handle);
            let inner = Arc::clone(&self.0);
            self.0.tasks.spawn(async move {
                lay_to_rest(&recorder).await;
                inner.table().remember(&freeze, &recorder.shown());
                let directory = inner.directory.as_ref();
                let undoing = Undoing { freeze: &freeze, directory, known: &[], recorder: &recorder };
                let undone = async {
                    look_until_nothing(&undoing, &members).await;
                    undoing.until_done().await;
                };
                let written = async {
                    if !was_finished {
                        write_until_done(&freeze, || recorder.write(|_| ())).await;
                    }
                };
                // Neither waits for the other: a journal that cannot be written is no reason to leave settings raised.
                tokio::join!(written, undone);
                inner.table().forget(&vitals, &members);
            });
        }
    }
}

/// How it ended, in memory; the journal follows.
async fn lay_to_rest(recorder: &Recorder) {
    let at = Timestamp::now();
    let change = |status: &mut FreezeStatus| {
        let held = matches!(status.phase, Phase::Frozen | Phase::Thawing);
        if status.phase.is_finished() {
            return;
        }
        status.phase = if held { Phase::Lost } else { Phase::Failed };
        let message = "its freezer died; the database let go by itself, and what the freezer had changed is undone";
        status.message = Some(message.to_owned());
        for claim in status.claims.iter_mut().filter(|claim| claim.ended_at.is_none()) {
            claim.ended_at = Some(api::micro_time(at));
        }
        api::conditions::set_condition(
            &mut status.conditions,
            api::conditions::types::FROZEN,
            false,
            reasons::FREEZER_DIED,
            message,
            None,
            at,
        );
    };
    recorder.show(change).await;
}

/// Waits until the servers show nothing of it any more, or must have let go by their idle timeout.
async fn look_until_nothing(undoing: &Undoing<'_>, members: &[Member]) {
    let (freeze, give_up) = (undoing.freeze, Instant::now() + NOTICE);
    let Some(mark) = undoing.recorder.shown().mark.clone() else { return };
    for (_, database) in members {
        while Instant::now() < give_up {
            let deadline = (Instant::now() + Duration::from_secs(2)).min(give_up);
            match undoing.find(database).await {
                Whereabouts::Gone => break,
                Whereabouts::NotNow(why) => info!(%freeze, database, why, "cannot be asked yet"),
                Whereabouts::At(driver, member) => match driver.observe(&member, &mark, deadline).await {
                    Ok(Observed::Nothing) => break,
                    Ok(Observed::Holds(what)) => info!(%freeze, database, what, "not let go yet"),
                    Err(error) => info!(%freeze, database, %error, "cannot be asked yet"),
                },
            }
            sleep(LOOK).await;
        }
    }
}
