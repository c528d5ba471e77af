//! Stillpoint behind a real kube-apiserver: `make test-cluster`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod chaos;
mod crds;
mod freezes;
mod policies;
mod replicas;
mod rights;
mod world;
