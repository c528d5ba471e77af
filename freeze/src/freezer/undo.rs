//! What outlived the sessions of a freeze, undone by the journal until it is undone.

use std::{sync::Arc, time::Duration};

use api::FreezeStatus;
use tokio::time::{Instant, sleep};
use tracing::{error, warn};

use super::recorder::Recorder;
use crate::{
    group::Target,
    journal::{FreezeName, JournalError},
};

/// First and longest pause between tries to undo what outlived the sessions.
const UNDO_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Writes how it ended, until that is written or the object is gone.
pub(super) async fn write_until_done(freeze: &FreezeName, recorder: &Recorder) {
    let mut pause = UNDO_PAUSE.0;
    loop {
        match recorder.write(|_| ()).await {
            Ok(()) | Err(JournalError::Gone) => return,
            Err(error) => warn!(%freeze, %error, "how it ended is still not written"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(UNDO_PAUSE.1);
    }
}

/// Undoes, by the journal, what outlived the sessions. Retried for ever, with a pause that grows to 30 s.
pub(super) async fn undo_until_done(freeze: &FreezeName, targets: &[Option<Target>], recorder: &Arc<Recorder>) {
    let mut pause = UNDO_PAUSE.0;
    loop {
        let left = undo_once(freeze, targets, recorder).await;
        if left == 0 {
            return;
        }
        sleep(pause).await;
        pause = (pause * 2).min(UNDO_PAUSE.1);
    }
}

/// One try at everything; answers how much is left that a further try could undo.
async fn undo_once(freeze: &FreezeName, targets: &[Option<Target>], recorder: &Arc<Recorder>) -> usize {
    let mut left = 0;
    for (at, target) in targets.iter().enumerate() {
        // A Database that is gone has no address to undo anything at; the journal keeps saying so.
        let Some(target) = target else { continue };
        let undo = recorder.shown().targets.get(at).map(|status| status.undo.clone()).unwrap_or_default();
        for item in undo {
            let deadline = Instant::now() + target.prepare_timeout.min(Duration::from_secs(10));
            match target.driver.recover(&target.member, &item, deadline).await {
                Ok(true) => {
                    let settle = |status: &mut FreezeStatus| status.targets[at].undo.retain(|other| *other != item);
                    if recorder.write(settle).await.is_err() {
                        left += 1;
                    }
                }
                Ok(false) => {
                    warn!(%freeze, database = %target.database, kind = %item.kind, "cannot be undone: unknown kind");
                }
                Err(error) => {
                    error!(%freeze, database = %target.database, kind = %item.kind, %error, "not undone yet; trying again");
                    left += 1;
                }
            }
        }
    }
    left
}
