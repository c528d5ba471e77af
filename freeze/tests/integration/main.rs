//! The freezer and its engines, against the in-memory server and against real ones.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod book;
mod contract;
mod faults;
mod freezer;
mod groups;
mod mariadb_barrier;
mod mariadb_blockers;
mod memory;
mod one_server;
mod postgresql_blockers;
mod postgresql_settings;
mod real;
mod recovery;
mod refusals;
mod remote;
mod unanswered;
