//! What a run says: one JSON document a line, on standard output, whole lines only.

use std::io::Write;

use api::runner::{LONGEST_LINE, Report};

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

    pub(crate) fn log(self, text: impl Into<String>) {
        self.say(&Report::Log(text.into()));
    }
}
