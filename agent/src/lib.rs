//! `stillpoint-agent`: beside a database, it does what freezers order, and lets go by itself.
//!
//! ```text
//! settings ─► member (loopback, or a socket) ─► freeze::remote::Host ◄═ one stream each ═► replicas of stillpoint-apiserver
//!                                                     ▲
//! stillpoint-agent freeze | thaw | status ─► local ───┘ a wish, up the stream: a claim like any other
//! ```
//! What it promises: whatever it holds is let go when the stream ends, when nobody asks for it to be kept, and before it ends itself.
//! Nobody reaches it from outside of its Pod: it dials, and shows a token that is good for nothing else.

mod args;
mod local;
mod replicas;
mod run;
mod settings;
mod trust;

pub use args::Args;
