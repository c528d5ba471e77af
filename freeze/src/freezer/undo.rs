//! What outlived the sessions of a freeze, undone by the journal until it is undone.

use std::{sync::Arc, time::Duration};

use api::{TargetStatus, Undo};
use futures::future::join_all;
use tokio::time::{Instant, sleep};
use tracing::{error, info, warn};

use super::recorder::Recorder;
use crate::{
    directory::{Directory, Then, Whereabouts},
    driver::{Driver, Member, Recovered},
    group::Target,
    journal::{FreezeName, JournalError},
};

/// First and longest pause between tries to undo what outlived the sessions.
const UNDO_PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// How long one try may last.
const TRY: Duration = Duration::from_secs(10);

/// What is to be undone, and how its servers are found.
#[derive(Debug)]
pub(super) struct Undoing<'a> {
    pub(super) freeze: &'a FreezeName,
    pub(super) directory: &'a dyn Directory,
    /// As they were when they were held: for a Database that was deleted meanwhile.
    pub(super) known: &'a [Target],
    pub(super) recorder: &'a Arc<Recorder>,
}

/// What one try came to.
enum Tried {
    /// Nothing of it is left.
    Settled,
    /// No further try can do better; the journal keeps it.
    Hopeless,
    Later,
}

impl Undoing<'_> {
    /// Undoes, by the journal, what outlived the sessions. Retried for ever, with a pause that grows to 30 s.
    pub(super) async fn until_done(&self) {
        let mut pause = UNDO_PAUSE.0;
        while self.once().await > 0 {
            sleep(pause).await;
            pause = (pause * 2).min(UNDO_PAUSE.1);
        }
    }

    /// The server of a Database: where it is now, else where it was.
    pub(super) async fn find(&self, database: &str) -> Whereabouts {
        let shown = self.recorder.shown();
        let since = shown.frozen_at.as_ref().or(shown.requested_at.as_ref()).map(|at| at.0);
        let held = shown.targets.iter().find(|target| target.database == database);
        let held = held.map(|target| Then { target, since });
        let found = self.directory.find(&self.freeze.namespace, database, held).await;
        let known = self.known.iter().find(|target| target.database == database);
        match (found, known) {
            (found @ Whereabouts::At(..), _) | (found, None) => found,
            (_, Some(target)) => Whereabouts::At(Arc::clone(&target.driver), target.member.clone()),
        }
    }

    /// One try at everything, all targets side by side; answers how much is left that a further try could undo.
    async fn once(&self) -> usize {
        let shown = self.recorder.shown();
        let left = shown.targets.iter().enumerate().map(|(at, target)| self.once_at(at, target));
        join_all(left).await.into_iter().sum()
    }

    async fn once_at(&self, at: usize, target: &TargetStatus) -> usize {
        let mut left = 0;
        for item in &target.undo {
            match self.one(target, item).await {
                Tried::Hopeless => {}
                Tried::Later => left += 1,
                Tried::Settled => {
                    let settle = self.recorder.write(|status| status.targets[at].undo.retain(|other| other != item));
                    left += usize::from(settle.await.is_err_and(|error| !matches!(error, JournalError::Gone)));
                }
            }
        }
        left
    }

    async fn one(&self, target: &TargetStatus, item: &Undo) -> Tried {
        let (freeze, database, kind) = (self.freeze, target.database.as_str(), item.kind.as_str());
        match self.find(database).await {
            Whereabouts::At(driver, member) => self.at(driver.as_ref(), &member, target, item).await,
            Whereabouts::NotNow(why) => {
                warn!(%freeze, database, kind, why, "cannot be undone yet; trying again");
                Tried::Later
            }
            Whereabouts::Gone => {
                warn!(%freeze, database, kind, "its Database is gone: what it lists to undo there cannot be undone");
                Tried::Hopeless
            }
        }
    }

    /// The Database may lead elsewhere while the server that was held still runs where it was. Once: it need not be there.
    async fn where_it_was(&self, now: &Member, target: &TargetStatus, item: &Undo) {
        let known = self.known.iter().find(|known| known.database == target.database);
        let Some(known) = known.filter(|known| known.member.address != now.address) else { return };
        let of = target.incarnation.as_ref();
        match known.driver.recover(&known.member, item, of, Instant::now() + TRY).await {
            Ok(Recovered::Undone) => {
                info!(freeze = %self.freeze, database = target.database, "undone where it was held");
            }
            other => {
                warn!(freeze = %self.freeze, database = target.database, ?other, "not undone where it was held");
            }
        }
    }

    async fn at(&self, driver: &dyn Driver, member: &Member, target: &TargetStatus, item: &Undo) -> Tried {
        let (freeze, database, kind) = (self.freeze, target.database.as_str(), item.kind.as_str());
        match driver.recover(member, item, target.incarnation.as_ref(), Instant::now() + TRY).await {
            Ok(Recovered::Undone) => Tried::Settled,
            Ok(Recovered::Elsewhere(found)) => {
                warn!(%freeze, database, kind, found, "another server is at its address now, and is left alone");
                self.where_it_was(member, target, item).await;
                Tried::Settled
            }
            Ok(Recovered::Unknown) => {
                warn!(%freeze, database, kind, "cannot be undone: unknown kind");
                Tried::Hopeless
            }
            Err(error) => {
                error!(%freeze, database, kind, %error, "not undone yet; trying again");
                Tried::Later
            }
        }
    }
}
