//! Whether a run is to end before its time: by a signal, or because whoever started it is gone. The programs that run then are told to
//! end, too; those that clean up after them begin later, and are not.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use api::runner::WITH_PARENT;
use tokio::signal::unix::{SignalKind, signal};

use crate::child::end_all;

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(pub(crate) Arc<AtomicBool>);

/// How long a program may take to end: less than the run itself is given.
const GRACE: Duration = Duration::from_secs(5);

impl Stop {
    /// Listens from now on.
    pub(crate) fn begin() -> Self {
        let stop = Self::default();
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let stop = stop.clone();
            tokio::spawn(async move {
                if let Ok(mut signals) = signal(kind) {
                    signals.recv().await;
                    stop.set();
                }
            });
        }
        if std::env::var_os(WITH_PARENT).is_some() {
            let stop = stop.clone();
            // A thread that nobody waits for: a read of standard input cannot be given up.
            thread::spawn(move || {
                let mut byte = [0; 1];
                while std::io::stdin().read(&mut byte).is_ok_and(|length| length > 0) {}
                stop.set();
            });
        }
        stop
    }

    fn set(&self) {
        if self.0.swap(true, Ordering::Relaxed) {
            return;
        }
        // Nobody waits for it: it is gone with the run.
        thread::spawn(|| end_all(GRACE));
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
