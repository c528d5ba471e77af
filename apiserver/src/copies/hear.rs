//! What is heard of a run while it goes on, for whoever writes that down.

use std::time::Duration;

use api::{Progress, runner::Report};
use jiff::Timestamp;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{
    Copies,
    kept::{Kept, Kind, is_unwanted, who},
    runs::Running,
    status::Pace,
};
use crate::error::ApiError;

/// How a run went, as far as it was heard.
pub(super) enum Heard {
    /// Its last word.
    Said(Report),
    /// It ended without one.
    Nothing,
    /// What it is for is gone, or goes.
    Unwanted,
    TooLate,
}

/// What is next of a run.
pub(super) enum Event {
    /// How far it is, to be written now.
    Progress(Progress),
    Over(Heard),
}

/// A run that is heard.
pub(super) struct Hearing<'r> {
    running: &'r mut Running,
    deadline: Timestamp,
    pace: Pace,
    wanted: Interval,
    last: Option<Report>,
}

/// How often it is looked whether what a run is for was deleted.
const STILL_WANTED: Duration = Duration::from_millis(500);

impl<'r> Hearing<'r> {
    pub(super) fn new(copies: &Copies, running: &'r mut Running, deadline: Timestamp) -> Self {
        let mut wanted = interval(STILL_WANTED);
        wanted.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { running, deadline, pace: copies.pace(), wanted, last: None }
    }

    /// Waits for it. An error: the run goes on, and is heard elsewhere.
    pub(super) async fn next<K: Kind + kube::Resource>(
        &mut self,
        copies: &Copies,
        kept: &dyn Kept<K>,
        object: &K,
    ) -> Result<Event, ApiError> {
        loop {
            tokio::select! {
                report = self.running.reports.recv() => match report {
                    None => return Ok(Event::Over(self.last.take().map_or(Heard::Nothing, Heard::Said))),
                    Some(Report::Log(line)) => copies.logs.say(&who(object).2, &line),
                    Some(Report::Progress { step, bytes, total }) => {
                        let now = Timestamp::now();
                        let progress = self.pace.progress(step, bytes, total, now);
                        if self.pace.is_due(&progress.step, now) {
                            return Ok(Event::Progress(progress));
                        }
                    }
                    Some(report) => self.last = Some(report),
                },
                _ = self.wanted.tick() => {
                    copies.still_leads()?;
                    if is_unwanted(kept, object).await {
                        return Ok(Event::Over(Heard::Unwanted));
                    }
                    if self.last.is_none() && Timestamp::now() > self.deadline {
                        return Ok(Event::Over(Heard::TooLate));
                    }
                }
            }
        }
    }

    /// What is not written is due again.
    pub(super) fn has_written(&mut self, progress: &Progress) {
        self.pace.has_written(&progress.step, Timestamp::now());
    }
}
