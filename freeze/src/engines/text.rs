//! Small things that every engine says the same way.

use api::Check;

use crate::driver::Member;

/// The error and its sources, once each.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

/// The first check of every preflight.
pub(super) fn reachable(member: &Member) -> Check {
    Check::pass("reachable", format!("{} answers, and lets the account in", member.address))
}
