//! What a run says: one JSON document a line, on standard output, whole lines only.

use std::{io::Write, time::Duration};

use api::runner::{LONGEST_LINE, Report};
use tokio::{task::JoinHandle, time::interval};

use crate::failure::Failure;

const EVERY: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reports {}

impl Reports {
    /// Nobody may hear it; the run goes on.
    #[expect(clippy::unused_self, reason = "whoever is given this may speak")]
    pub(crate) fn say(self, report: &Report) {
        let Ok(mut line) = serde_json::to_string(report) else { return };
        if line.len() >= LONGEST_LINE {
            return;
        }
        line.push('\n');
        let mut output = std::io::stdout().lock();
        output.write_all(line.as_bytes()).and_then(|()| output.flush()).ok();
    }

    /// Says how it goes, once a second, until the work is done.
    pub(crate) async fn during<T>(
        self,
        mut work: JoinHandle<Result<T, Failure>>,
        how: impl Fn() -> Report,
    ) -> Result<T, Failure> {
        let mut tick = interval(EVERY);
        loop {
            tokio::select! {
                done = &mut work => return done.map_err(|error| Failure::bug(format!("the run broke: {error}")))?,
                _ = tick.tick() => self.say(&how()),
            }
        }
    }

    pub(crate) fn log(self, text: impl Into<String>) {
        self.say(&Report::Log(text.into()));
    }
}
