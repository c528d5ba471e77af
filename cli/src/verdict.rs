//! What a run around a freeze comes to: pure.

use crate::failure::{LOST, NOT_HELD};

/// How the held part of a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The commands ended by themselves, the last with this code.
    Command(u8),
    /// We were told to stop.
    Signal(i32),
    /// The freeze ended before the command did.
    Lost(String),
}

/// The exit code. A copy that cannot be trusted is never reported as made, whatever the command said.
pub fn exit_code(ending: &Ending, proved: bool) -> u8 {
    match ending {
        Ending::Lost(_) => LOST,
        Ending::Signal(signal) => u8::try_from(128 + signal).unwrap_or(u8::MAX),
        Ending::Command(code) if *code != 0 => *code,
        Ending::Command(_) if !proved => NOT_HELD,
        Ending::Command(_) => 0,
    }
}

/// One word for the result file.
pub fn outcome(ending: &Ending, proved: bool) -> &'static str {
    match ending {
        Ending::Lost(_) => "Lost",
        Ending::Signal(_) => "Interrupted",
        Ending::Command(0) if proved => "Proved",
        Ending::Command(0) => "NotProved",
        Ending::Command(_) => "CommandFailed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_proved_run_of_a_command_that_succeeded_is_a_success() {
        for (ending, proved, code) in [
            (Ending::Command(0), true, 0),
            (Ending::Command(0), false, NOT_HELD),
            (Ending::Command(3), true, 3),
            (Ending::Command(3), false, 3),
            (Ending::Signal(2), true, 130),
            (Ending::Lost(String::new()), true, LOST),
            (Ending::Lost(String::new()), false, LOST),
        ] {
            assert_eq!(exit_code(&ending, proved), code, "{ending:?} {proved}");
            assert_eq!(code == 0, outcome(&ending, proved) == "Proved");
        }
    }
}
