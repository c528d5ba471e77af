//! The whole: the real server as a process, real databases, real kubectl, our plugin.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod blockers;
mod copies;
mod kubectl;
mod layering;
mod plugin;
mod secrets;
mod server;
