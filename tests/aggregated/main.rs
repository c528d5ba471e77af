//! Stillpoint behind a real kube-apiserver: `make test-cluster`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod chaos;
mod crds;
mod doctor;
mod freezes;
mod install;
mod installation;
mod policies;
mod replicas;
mod rights;
mod world;
