//! Repositories on real disks and a real S3 server, read by the real restic.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod damage;
mod round_trip;
mod what;
mod world;
