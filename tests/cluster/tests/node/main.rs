//! A cluster with a node: real Pods, a real database on a volume of the CSI driver's, snapshots of it, and what is left when
//! the cluster is gone, which is nothing. `make test-node` runs them; they need root.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod ending;
mod faults;
mod groups;
mod pods;
mod world;
