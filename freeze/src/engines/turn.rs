//! Who restores into a server: one at a time. A lock of the server's, which is as old as the session that has it, so that nobody has to
//! take it from a dead one.

use std::time::Duration;

/// Whose turn it is.
#[derive(Debug)]
pub enum Turn<Held> {
    Ours(Held),
    /// As the server shows the session that has it.
    Theirs(String),
}

/// The server ends a session of ours after so long a silence.
pub(super) const IDLE: Duration = Duration::from_secs(60);
pub(super) const HEARTBEAT: Duration = Duration::from_secs(10);
/// Of one heartbeat.
pub(super) const ANSWER: Duration = Duration::from_secs(10);
