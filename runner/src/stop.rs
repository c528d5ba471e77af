//! Whether a run is to end before its time: by a signal, or because whoever started it is gone.

use std::{
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use api::runner::WITH_PARENT;
use tokio::signal::unix::{SignalKind, signal};

/// Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(pub(crate) Arc<AtomicBool>);

impl Stop {
    /// Listens from now on.
    pub(crate) fn begin() -> Self {
        let stop = Self::default();
        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let stop = stop.clone();
            tokio::spawn(async move {
                if let Ok(mut signals) = signal(kind) {
                    signals.recv().await;
                    stop.0.store(true, Ordering::Relaxed);
                }
            });
        }
        if std::env::var_os(WITH_PARENT).is_some() {
            let stop = stop.clone();
            // A thread that nobody waits for: a read of standard input cannot be given up.
            std::thread::spawn(move || {
                let mut byte = [0; 1];
                while std::io::stdin().read(&mut byte).is_ok_and(|length| length > 0) {}
                stop.0.store(true, Ordering::Relaxed);
            });
        }
        stop
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
