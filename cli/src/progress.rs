//! How far something is, on stderr: a bar where a person looks, else a line for each step.

use std::io::{self, IsTerminal};

use api::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::{print, times};

/// What is shown of one thing that is waited for.
#[derive(Debug)]
pub struct Shown {
    /// None: nobody looks.
    bar: Option<ProgressBar>,
    /// The last step that was written.
    last: String,
    /// The last line that stays.
    said: String,
    /// How sure it is how much there will be.
    of: &'static str,
}

const MEASURED: &str = "{msg} [{bar:24}] {percent:>3}%  {prefix}";
const UNMEASURED: &str = "{msg} {spinner} {prefix}";
/// What was expected is no bound: a bar is full when it is over.
const MOST_PERCENT: u64 = 99;

impl Shown {
    /// Of what may turn out to be more, or less.
    pub fn new() -> Self {
        let bar = io::stderr()
            .is_terminal()
            .then(|| ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style(UNMEASURED)));
        Self { bar, last: String::new(), said: String::new(), of: "of about" }
    }

    /// Of what is known to be so much.
    pub fn exact() -> Self {
        let mut shown = Self::new();
        shown.of = "of";
        shown
    }

    /// `what`: the phase or the step. Lines are written when it changes, not as bytes come.
    pub fn show(&mut self, what: &str, progress: Option<&Progress>) {
        let Some(bar) = &self.bar else {
            if self.last != what {
                eprintln!("{what}");
                what.clone_into(&mut self.last);
            }
            return;
        };
        let total = progress.and_then(|progress| progress.total_bytes).filter(|total| *total > 0);
        bar.set_style(style(if total.is_some() { MEASURED } else { UNMEASURED }));
        if let (Some(total), Some(progress)) = (total, progress) {
            let percent = (u128::from(progress.bytes) * 100 / u128::from(total)).min(u128::from(MOST_PERCENT));
            bar.set_length(100);
            bar.set_position(u64::try_from(percent).unwrap_or(MOST_PERCENT));
        }
        // Last: each is drawn, with what was said before.
        bar.set_prefix(progress.map(|progress| measured(progress, self.of)).unwrap_or_default());
        bar.set_message(what.to_owned());
        bar.tick();
    }

    /// A line of the result, which the bar gives way to.
    pub fn tell(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
    }

    /// A line that stays; not twice in a row.
    pub fn say(&mut self, line: &str) {
        if self.said == line {
            return;
        }
        line.clone_into(&mut self.said);
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// `1.2 GiB of about 3.0 GiB, 40.0 MiB/s, 46s left`, as far as it is known.
fn measured(progress: &Progress, of: &str) -> String {
    let mut parts = Vec::new();
    let total = progress.total_bytes.filter(|total| *total > 0);
    match (progress.bytes, total) {
        (0, None) => {}
        (bytes, None) => parts.push(print::bytes(bytes)),
        (bytes, Some(total)) => parts.push(format!("{} {of} {}", print::bytes(bytes), print::bytes(total))),
    }
    if progress.bytes_per_second > 0 {
        parts.push(format!("{}/s", print::bytes(progress.bytes_per_second)));
    }
    parts.extend(progress.remaining_seconds.map(|left| format!("{} left", times::seconds(left))));
    parts.join(", ")
}

/// A template of ours; were it wrong, the library's own would be shown.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_said_and_no_more() {
        let nothing = Progress::default();
        assert_eq!(measured(&nothing, "of"), "");
        assert_eq!(measured(&Progress { bytes: 1536, ..nothing.clone() }, "of"), "1.5 KiB");
        let all = Progress {
            bytes: 1 << 30,
            total_bytes: Some(3 << 30),
            bytes_per_second: 40 << 20,
            remaining_seconds: Some(46),
            ..nothing
        };
        assert_eq!(measured(&all, "of about"), "1.0 GiB of about 3.0 GiB, 40.0 MiB/s, 46s left");
    }

    #[test]
    fn templates_are_right() {
        for template in [MEASURED, UNMEASURED] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
