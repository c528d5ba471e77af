//! Repositories on real disks and a real S3 server, read by the real restic.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod damage;
mod outages;
mod round_trip;
mod store;
mod stores;
mod what;
mod world;
mod writers;
