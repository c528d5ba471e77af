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
use tracing::{info, warn};

use super::{COMMANDS, Freezer, Handle, Member, Vitals, recorder::Recorder, undo::undo_until_done};
use crate::{driver::Observed, group::Target, journal::FreezeName, lease::LONGEST_SERVER_TTL};

/// An unfinished freeze of a dead freezer, as the journal has it. Targets whose Database is gone are left out: with the
/// server's address gone, nothing can be undone there, and the journal keeps saying so.
#[derive(Clone, Debug)]
pub struct Remains {
    pub freeze: FreezeName,
    pub status: FreezeStatus,
    pub targets: Vec<Target>,
}

/// How long the server may take to notice that a session's client is gone, and one try's share of that.
const NOTICE: Duration = Duration::from_secs(LONGEST_SERVER_TTL.as_secs() + 1);
const LOOK: Duration = Duration::from_millis(500);

impl Freezer {
    /// Takes care of what dead freezers left. Returns at once; the members stay taken until all is undone.
    ///
    /// Call it before anything else is frozen.
    pub fn recover(&self, remains: Vec<Remains>) {
        for Remains { freeze, status, targets } in remains {
            let members: Arc<[Member]> =
                targets.iter().map(|target| (freeze.namespace.clone(), target.database.clone())).collect();
            // The order of the status decides which undo list is whose.
            let targets = in_order_of(&status, targets);
            let recorder = Recorder::new(freeze.clone(), Arc::clone(&self.0.journal), status);
            let (commands, _) = mpsc::channel(COMMANDS);
            let handle = Handle {
                freeze: freeze.clone(),
                members: Arc::clone(&members),
                copy: api::Copy::default(),
                commands,
                shown: recorder.watch(),
                vitals: Vitals::new(),
            };
            self.table().by_member.extend(members.iter().map(|member| (member.clone(), handle.clone())));
            let inner = Arc::clone(&self.0);
            self.0.tasks.spawn(async move {
                lay_to_rest(&freeze, &recorder).await;
                inner.table().remember(&freeze, &recorder.shown());
                let present: Vec<Target> = targets.iter().flatten().cloned().collect();
                look_until_nothing(&freeze, &present).await;
                if present.len() < targets.len() {
                    warn!(%freeze, "a Database of it is gone: what it lists to undo there cannot be undone");
                }
                undo_until_done(&freeze, &targets, &recorder).await;
                inner.table().forget(&freeze, &members);
            });
        }
    }
}

/// Writes how it ended, until that is written.
async fn lay_to_rest(freeze: &FreezeName, recorder: &Recorder) {
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
    for pause in [0, 1, 5, 25] {
        sleep(Duration::from_secs(pause)).await;
        match recorder.write(change).await {
            Ok(()) => return,
            Err(error) => warn!(%freeze, %error, "how it ended is not written yet"),
        }
    }
    recorder.show(change).await;
}

/// Waits until the servers show nothing of it any more, or must have let go by their idle timeout.
async fn look_until_nothing(freeze: &FreezeName, targets: &[Target]) {
    let give_up = Instant::now() + NOTICE;
    for target in targets {
        while Instant::now() < give_up {
            let deadline = (Instant::now() + Duration::from_secs(2)).min(give_up);
            match target.driver.observe(&target.member, &target.plan.freeze_uid, deadline).await {
                Ok(Observed::Nothing) => break,
                Ok(Observed::Holds(what)) => info!(%freeze, database = %target.database, %what, "not let go yet"),
                Err(error) => info!(%freeze, database = %target.database, %error, "cannot be asked yet"),
            }
            sleep(LOOK).await;
        }
    }
}

fn in_order_of(status: &FreezeStatus, targets: Vec<Target>) -> Vec<Option<Target>> {
    status
        .targets
        .iter()
        .map(|wanted| targets.iter().find(|target| target.database == wanted.database).cloned())
        .collect()
}
