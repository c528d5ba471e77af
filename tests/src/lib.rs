//! The whole, from outside: the real server as a process, real databases, real cuts. What the integration tests, the demo,
//! the soak and the benchmarks share.

pub mod cuts;
mod stillpoint;

pub use stillpoint::{Refused, Stillpoint, binary};

/// Makes *ring* the process's crypto provider; harmless when it is there already.
pub fn use_ring() {
    rustls::crypto::ring::default_provider().install_default().ok();
}
