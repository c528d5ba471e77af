//! A driver in another process: the agent beside the database executes, a freezer elsewhere decides.
//!
//! ```text
//! Freezer ─► Remote (a Driver) ─► Link ══ one stream of frames ══ Host ─► Driver ─► the server, over loopback or a socket
//!                ▲ answers, entries for the journal ◄───────────────┘
//! ```
//! Promises: what is held through a link is let go when the link ends, when nobody asked for it to be kept as long as it was told, by
//! a clock that also runs while the machine sleeps, or when a freezer of a higher epoch comes; and whoever sent the order learns that
//! the hold is lost at his next word. Nothing is taken again silently.

mod clock;
mod driver;
mod frames;
mod host;
mod link;
mod wire;

pub use driver::{Remote, probe};
pub use frames::{read, write};
pub use host::Host;
pub use link::{Link, Outcome, Told};
pub use wire::{Down, Term};
