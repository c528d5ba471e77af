//! Stillpoint where it belongs: in Pods of a real node, with a database in another, and real snapshots: `make test-node`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agents;
mod copies;
mod dumps;
mod gates;
mod installed;
mod members;
mod restarts;
mod series;
mod snapshots;
mod velero;
