//! Stillpoint behind a real kube-apiserver: `make test-cluster`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agents;
mod certificate_files;
mod chaos;
mod chart;
mod configuration;
mod conformance;
mod copies;
mod coverage;
mod crds;
mod doctor;
mod doors;
mod forwarder;
mod freezes;
mod install;
mod installation;
mod keys;
mod numbers;
mod pods;
mod policies;
mod replica;
mod replicas;
mod restarts;
mod rights;

mod wire;
mod world;
