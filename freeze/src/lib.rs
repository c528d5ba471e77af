//! How Stillpoint holds a database still. No HTTP, no Kubernetes client.
//!
//! ```text
//! Request ─► Freezer ─► one task per freeze, which owns everything that holds:
//!              │          Driver::prepare ─► Prepared::acquire ─► Held ─► prove ─► release
//!              │             one per member, in parallel; a group thaws none before the last cut
//!              ├─ claims   who wants it held, and until when (pure)
//!              ├─ lease    when it ends, and what the server is told of that (pure)
//!              └─ journal  what happened, written down; what would outlive us, written down before
//! ```
//!
//! What this crate promises: a freeze ends by its lease whatever happens to whoever asked for it; what a dead freezer
//! leaves is undone by the server (the sessions' idle timeout) or by recovery at start (the journal's undo list);
//! a lost hold is never taken again silently; nothing is called proved that was not.

mod blocker;
mod claims;
#[cfg(feature = "testing")]
pub mod contract;
mod directory;
mod driver;
pub mod engines;
mod error;
mod freezer;
mod group;
mod journal;
mod lease;
mod member;
pub mod remote;

pub use blocker::Blocker;
pub use directory::{Directory, Then, Whereabouts};
pub use driver::{
    Account, Acquired, Driver, Farewell, Grant, Held, Member, Moment, Observed, Plan, Preflight, Prepared, Pulse,
    Recovered, Released, ServerInfo, Tls, TlsRoots,
};
pub use engines::{Drivers, text::chain};
pub use error::Error;
pub use freezer::{
    AnsweredWhen, CannotJoin, Claimant, Ended, Ending, FreezeView, Freezer, Granted, Refused, Remains, Request, Target,
};
pub use journal::{FreezeName, Journal, JournalError, UndoLog};
pub use lease::LONGEST_SERVER_TTL;
pub use member::{NoMember, SecretValue};
