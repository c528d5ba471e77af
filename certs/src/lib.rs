//! How Stillpoint is trusted: a certificate authority and what it signs, hot reload, and the HTTPS accept loop.
//!
//! Knows neither Kubernetes nor anything else of ours. Promises that a handshake never fails because of the client's
//! certificate: trust in it is judged per request ([`verify_client`]), so that a CA can change under open connections and
//! a probe with a foreign certificate still gets its answer. Keys are written 0600 and never printed.

mod authority;
mod connections;
mod https;
mod resolver;
mod streams;
mod verifier;

pub use authority::{Authority, AuthorityError, Identity, KeyPairPem, Names};
pub use connections::Limits;
pub use https::{BindError, Bound, Peer};
pub use resolver::{ByName, Leaf, LeafError};
pub use verifier::{Authorities, Untrusted, client_config, identity, server_config, validity, verify_client};

/// Makes *ring* the process's crypto provider. Call it first in every `main`; calling it again does nothing.
pub fn use_ring() {
    // An error says that a provider is there already; ours is the only one that is linked.
    rustls::crypto::ring::default_provider().install_default().ok();
}
