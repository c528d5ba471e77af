//! The status of one freeze: shown to whoever watches, and written to the journal.
//!
//! Only the freeze's own task and its drivers' undo logs write. A write that fails leaves the status in memory as it was
//! before, so memory never claims what the journal does not know, except where the caller says that it must not wait
//! ([`Recorder::show`]).

use std::{sync::Arc, time::Duration};

use api::{FreezeSpec, FreezeStatus, Undo};
use async_trait::async_trait;
use tokio::{
    sync::{Mutex, MutexGuard, oneshot, watch},
    time::{sleep, timeout},
};
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::journal::{FreezeName, Journal, JournalError, UndoLog};

/// How long a write of the journal may take before it counts as failed (design section 2).
const WRITE: Duration = Duration::from_secs(1);
/// How long making the object may take: nobody is blocked yet, and a cluster's API server may be slow.
const OPEN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Recorder {
    freeze: FreezeName,
    journal: Arc<dyn Journal>,
    status: Mutex<FreezeStatus>,
    shown: watch::Sender<Arc<FreezeStatus>>,
}

/// One target's undo list within the status.
#[derive(Debug)]
pub(super) struct TargetUndo {
    recorder: Arc<Recorder>,
    target: usize,
}

/// Holds back every other write until the journal knows of the freeze, or did not hear of it in time.
pub(super) struct Opening<'a> {
    recorder: &'a Arc<Recorder>,
    status: MutexGuard<'a, FreezeStatus>,
}

impl Recorder {
    pub(super) fn new(freeze: FreezeName, journal: Arc<dyn Journal>, status: FreezeStatus) -> Arc<Self> {
        let (shown, _) = watch::channel(Arc::new(status.clone()));
        Arc::new(Self { freeze, journal, status: Mutex::new(status), shown })
    }

    pub(super) fn may_hold(&self, databases: &[&str]) -> Result<(), JournalError> {
        self.journal.may_hold(&self.freeze.namespace, databases)
    }

    pub(super) fn watch(&self) -> watch::Receiver<Arc<FreezeStatus>> {
        self.shown.subscribe()
    }

    pub(super) fn shown(&self) -> Arc<FreezeStatus> {
        self.shown.borrow().clone()
    }

    pub(super) async fn opening(self: &Arc<Self>) -> Opening<'_> {
        Opening { recorder: self, status: self.status.lock().await }
    }

    /// Changes the status in memory and lets it be seen; the next write carries it.
    pub(super) async fn show(&self, change: impl FnOnce(&mut FreezeStatus)) {
        let mut status = self.status.lock().await;
        change(&mut status);
        self.shown.send_replace(Arc::new(status.clone()));
    }

    /// Changes the status once the journal has it.
    pub(super) async fn write(&self, change: impl FnOnce(&mut FreezeStatus)) -> Result<(), JournalError> {
        let mut status = self.status.lock().await;
        let mut changed = status.clone();
        change(&mut changed);
        bounded(self.journal.write(&self.freeze, &changed)).await?;
        *status = changed;
        self.shown.send_replace(Arc::new(status.clone()));
        Ok(())
    }

    pub(super) fn undo_of(self: &Arc<Self>, target: usize) -> Arc<dyn UndoLog> {
        Arc::new(TargetUndo { recorder: Arc::clone(self), target })
    }
}

impl Opening<'_> {
    /// Makes the journal know of the freeze. If the caller stops waiting, a task of `tasks` goes on: an object that comes to be
    /// after its freeze gave it up is told how that ended.
    pub(super) async fn open(self, spec: Option<FreezeSpec>, tasks: &TaskTracker) -> Result<(), JournalError> {
        let Self { recorder, status } = self;
        let Some(spec) = spec else {
            return bounded(recorder.journal.write(&recorder.freeze, &status)).await;
        };
        let (answer, opened) = oneshot::channel();
        tasks.spawn({
            let (journal, freeze, status) = (Arc::clone(&recorder.journal), recorder.freeze.clone(), status.clone());
            // No recorder: whoever waits for the end of the freeze must not wait for this.
            let mut shown = recorder.watch();
            async move {
                let opened = journal.open(&freeze, &spec, &status).await;
                let made = opened.is_ok();
                if answer.send(opened).is_ok() || !made {
                    return;
                }
                while shown.changed().await.is_ok() {}
                let last = Arc::clone(&shown.borrow());
                write_until_done(&freeze, || journal.write(&freeze, &last)).await;
            }
        });
        let unheard = || JournalError::Unavailable("it was not told of the freeze".to_owned());
        within(OPEN, async { opened.await.unwrap_or_else(|_| Err(unheard())) }).await
    }
}

/// First and longest pause between writes of how a freeze ended.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Writes how it ended, until that is written or the object is gone.
pub(super) async fn write_until_done<W>(freeze: &FreezeName, mut write: impl FnMut() -> W)
where
    W: Future<Output = Result<(), JournalError>>,
{
    let mut pause = PAUSE.0;
    loop {
        match write().await {
            Ok(()) | Err(JournalError::Gone) => return,
            Err(error) => warn!(%freeze, %error, "how it ended is still not written"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

#[async_trait]
impl UndoLog for TargetUndo {
    async fn intend(&self, undo: Undo) -> Result<(), JournalError> {
        self.recorder.write(|status| status.targets[self.target].undo.push(undo)).await
    }

    /// Carried by the next write: undoing twice is harmless, a write more per freeze is not free.
    async fn settled(&self, kind: &str) -> Result<(), JournalError> {
        self.recorder.show(|status| status.targets[self.target].undo.retain(|undo| undo.kind != kind)).await;
        Ok(())
    }
}

async fn bounded(write: impl Future<Output = Result<(), JournalError>>) -> Result<(), JournalError> {
    within(WRITE, write).await
}

async fn within(limit: Duration, write: impl Future<Output = Result<(), JournalError>>) -> Result<(), JournalError> {
    let late = || JournalError::Unavailable(format!("not written within {} s", limit.as_secs()));
    timeout(limit, write).await.unwrap_or_else(|_| Err(late()))
}
