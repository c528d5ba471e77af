//! The markers that this process wrote, by run of a server: commits of ours, which no proof counts as escaped.
//!
//! Two Databases may be on one server, in one group or in two freezes at once, and each has a marker of its own.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::Incarnation;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

/// More markers of one run of a server than this are not remembered: the oldest is forgotten, and may fail a proof.
const MOST: usize = 10_000;

/// The markers of every run of a server that this process holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Markers(Arc<Table>);

#[derive(Debug, Default)]
struct Table {
    runs: Mutex<HashMap<Run, Written>>,
    settled: Notify,
}

/// The system identifier and the start: a copy of a server has its identifier too, and transaction ids of its own.
type Run = (String, String);

#[derive(Debug, Default)]
struct Written {
    holds: usize,
    /// Markers whose transaction ids are not known yet.
    under_way: usize,
    /// Transaction ids, the oldest first.
    xids: VecDeque<u64>,
}

/// One hold of a run. Markers are kept until the last of them is gone: what a hold that is over wrote, another's proof meets.
#[derive(Debug)]
pub(super) struct Present {
    markers: Markers,
    run: Run,
}

/// A marker that is being written.
#[derive(Debug)]
pub(super) struct Writing {
    markers: Markers,
    run: Run,
}

impl Markers {
    pub(super) fn present(&self, incarnation: &Incarnation) -> Present {
        let run = (incarnation.server.clone(), incarnation.started_at.clone());
        self.table().entry(run.clone()).or_default().holds += 1;
        Present { markers: self.clone(), run }
    }

    fn table(&self) -> MutexGuard<'_, HashMap<Run, Written>> {
        self.0.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Present {
    /// To be said before the marker is: its transaction may be seen committed before we hear of it.
    pub(super) fn writing(&self) -> Writing {
        self.markers.table().entry(self.run.clone()).or_default().under_way += 1;
        Writing { markers: self.markers.clone(), run: self.run.clone() }
    }

    /// The markers from transaction id `first` on.
    pub(super) fn known(&self, first: u64) -> Vec<u64> {
        let table = self.markers.table();
        let xids = table.get(&self.run).map(|written| written.xids.iter().copied());
        xids.into_iter().flatten().filter(|xid| *xid >= first).collect()
    }

    /// Waits until no marker is being written, or for `deadline`.
    pub(super) async fn settled(&self, deadline: Instant) {
        let settled = async {
            loop {
                // Listening begins before the look, so that no end of writing is missed.
                let mut changed = std::pin::pin!(self.markers.0.settled.notified());
                changed.as_mut().enable();
                if self.markers.table().get(&self.run).is_none_or(|written| written.under_way == 0) {
                    return;
                }
                changed.await;
            }
        };
        timeout_at(deadline, settled).await.ok();
    }
}

impl Writing {
    pub(super) fn wrote(self, xid: u64) {
        if let Some(written) = self.markers.table().get_mut(&self.run) {
            if written.xids.len() >= MOST {
                written.xids.pop_front();
            }
            written.xids.push_back(xid);
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(written) = self.markers.table().get_mut(&self.run) {
            written.under_way = written.under_way.saturating_sub(1);
        }
        self.markers.0.settled.notify_waiters();
    }
}

impl Drop for Present {
    fn drop(&mut self) {
        let mut table = self.markers.table();
        if let Some(written) = table.get_mut(&self.run) {
            written.holds = written.holds.saturating_sub(1);
            if written.holds == 0 {
                table.remove(&self.run);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;

    use super::*;

    fn run(server: &str, started_at: &str) -> Incarnation {
        Incarnation { server: server.into(), host: None, started_at: started_at.into(), timeline: None, replica: false }
    }

    #[test]
    fn a_marker_is_known_to_every_hold_of_its_run_until_the_last_is_gone() {
        let markers = Markers::default();
        let (a, b) = (markers.present(&run("7", "1")), markers.present(&run("7", "1")));
        let restarted = markers.present(&run("7", "2"));
        a.writing().wrote(100);
        b.writing().wrote(101);
        drop(b.writing());
        assert_eq!((a.known(0), a.known(101)), (vec![100, 101], vec![101]));
        drop(a);
        assert_eq!(b.known(0), [100, 101], "also when its hold is over");
        assert_eq!(restarted.known(0), [0_u64; 0], "another run has ids of its own");
        drop((b, restarted));
        assert!(markers.table().is_empty());
    }

    #[test]
    fn of_too_many_the_oldest_is_forgotten() {
        let held = Markers::default().present(&run("7", "1"));
        for xid in 0..=MOST as u64 {
            held.writing().wrote(xid);
        }
        assert_eq!((held.known(0).len(), held.known(0).first()), (MOST, Some(&1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_marker_that_is_under_way_is_waited_for_but_not_for_ever() {
        let held = Markers::default().present(&run("7", "1"));
        let far = Instant::now() + Duration::from_secs(60);
        held.settled(far).now_or_never().expect("nothing is being written");
        let writing = held.writing();
        let mut waiting = std::pin::pin!(held.settled(far));
        assert!(waiting.as_mut().now_or_never().is_none());
        writing.wrote(100);
        waiting.now_or_never().expect("it is written");
        let _lost = held.writing();
        held.settled(Instant::now() + Duration::from_secs(1)).await;
    }
}
