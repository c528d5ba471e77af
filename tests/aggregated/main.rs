//! Stillpoint behind a real kube-apiserver: `make test-cluster`.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod crds;
mod freezes;
mod policies;
mod rights;
mod world;
