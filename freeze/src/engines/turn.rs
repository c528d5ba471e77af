//! Who restores into a server: one at a time. A lock of the server's, which is as old as the session that has it, so that nobody has to
//! take it from a dead one.

use std::time::Duration;

use tokio::time::sleep;

/// Whose turn it is.
#[derive(Debug)]
pub enum Turn<Held> {
    Ours(Held),
    /// As the server shows the session that has it.
    Theirs(String),
}

/// The server ends a session of ours after so long a silence.
pub(super) const IDLE: Duration = Duration::from_secs(60);
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Of one heartbeat.
pub(super) const ANSWER: Duration = Duration::from_secs(10);

/// Waits until the next heartbeat is due. `false`: the turn is not wanted any more.
pub(super) async fn is_due(until: &mut (impl Future + Unpin)) -> bool {
    tokio::select! {
        _ = until => false,
        () = sleep(HEARTBEAT) => true,
    }
}
