//! Behind a kube-apiserver: who asks is what its front proxy, its authorities and its TokenReviews say, and what they may do
//! is what its SubjectAccessReviews say.
//!
//! ```text
//! ConfigMap ─► Trust ─► front proxy's headers ┐
//!                   └─► client certificate    ├─► User ─► SubjectAccessReviews
//!              Reviews ─► bearer token        ┘                 │
//!                 └─────────────────────────────────────────────┘
//! ```
//! Promises that headers which name a user are believed only beside a front proxy's certificate that holds now, and that
//! whoever shows something which does not hold is nobody, not anonymous. The order is upstream's
//! (apiserver `pkg/authentication/authenticatorfactory/delegating.go`).

mod access;
mod answers;
mod bearer;
mod config;
mod front_proxy;
mod reviews;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trust;

use std::sync::Arc;

use async_trait::async_trait;
use certs::Peer;
use http::HeaderMap;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use self::bearer::{Tokens, strip_websocket, token};
pub use self::{
    access::SubjectAccessReviews,
    config::{ConfigError, FrontProxy, RequestHeaderConfig},
    reviews::{KubeReviews, ReviewError, Reviews},
    trust::Trust,
};
use super::{Authenticator, User, impersonates, strip};
use crate::error::{About, ApiError};

/// Knows who asks by what the kube-apiserver knows.
#[derive(Debug)]
pub struct Delegated {
    trust: Arc<Trust>,
    tokens: Tokens,
    anonymous: bool,
}

const AUTHENTICATED: &str = "system:authenticated";
const UNAUTHENTICATED: &str = "system:unauthenticated";
const ANONYMOUS: &str = "system:anonymous";
/// What a certificate's holder can be told by, beside the name (apiserver `pkg/authentication/user`).
const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";

impl Delegated {
    /// `audiences`: what a token must be meant for; empty: for the kube-apiserver. `anonymous`: whoever shows nothing at all
    /// is `system:anonymous`, and may what the cluster lets that user do; otherwise nobody.
    pub fn new(trust: Arc<Trust>, reviews: Arc<dyn Reviews>, audiences: Vec<String>, anonymous: bool) -> Self {
        Self { trust, tokens: Tokens::new(reviews, audiences), anonymous }
    }

    /// The first who is found. What was shown and does not hold is remembered: it makes the difference between anonymous
    /// and refused.
    async fn user(&self, peer: &Peer, headers: &HeaderMap, now: Timestamp) -> Result<User, String> {
        let mut refused = Vec::new();
        if !peer.certificates.is_empty() {
            match self.by_certificate(&peer.certificates, headers, now) {
                Ok(user) => return Ok(user),
                Err(why) => refused.push(why),
            }
        }
        match token(headers) {
            Ok(Some(token)) => match self.tokens.user(token).await {
                Ok(user) => return Ok(user),
                Err(why) => refused.push(why),
            },
            Ok(None) => {}
            Err(why) => refused.push(why),
        }
        if !refused.is_empty() {
            return Err(refused.join("; "));
        }
        if self.anonymous {
            return Ok(User {
                name: ANONYMOUS.to_owned(),
                groups: vec![UNAUTHENTICATED.to_owned()],
                ..User::default()
            });
        }
        Err("neither a front proxy, nor a client certificate, nor a token".to_owned())
    }

    fn by_certificate(
        &self,
        chain: &[CertificateDer<'_>],
        headers: &HeaderMap,
        now: Timestamp,
    ) -> Result<User, String> {
        let config = self.trust.current().ok_or("it is not known yet whose certificates are to be trusted")?;
        let why = match config.front_proxy.user(chain, headers, now) {
            Ok(user) => return Ok(user),
            Err(why) => why,
        };
        let Some(clients) = &config.clients else { return Err(why) };
        let identity = clients.verify(chain, now).and_then(|()| certs::identity(chain));
        let identity = identity.map_err(|error| format!("{why}; as a client: {error}"))?;
        let id = chain.first().map(|leaf| format!("X509SHA256={}", hex(&Sha256::digest(leaf))));
        let extra = [(CREDENTIAL_ID.to_owned(), id.into_iter().collect())].into();
        Ok(User { name: identity.name, uid: None, groups: identity.groups, extra })
    }

    fn strip(&self, headers: &mut HeaderMap) {
        strip(headers);
        strip_websocket(headers);
        if let Some(config) = self.trust.current() {
            config.front_proxy.strip(headers);
        }
    }
}

#[async_trait]
impl Authenticator for Delegated {
    async fn authenticate(&self, peer: &Peer, headers: &mut HeaderMap, now: Timestamp) -> Result<User, ApiError> {
        let mut user = self.user(peer, headers, now).await.map_err(ApiError::unauthorized)?;
        complete(&mut user);
        // The kube-apiserver has done it before it asks us; whoever asks us directly must not find it ignored.
        if headers.keys().any(impersonates) {
            let about = About { group: "", plural: "users", name: "" };
            let message = format!(
                "users is forbidden: User {:?} cannot impersonate here; ask through the kube-apiserver, which \
                 impersonates for whoever may",
                user.name
            );
            return Err(ApiError::forbidden(about, message));
        }
        self.strip(headers);
        Ok(user)
    }

    fn ready(&self) -> Result<(), String> {
        self.trust.ready()
    }
}

/// Whoever is known is in `system:authenticated`, also where a front proxy does not say so: the aggregator's own requests
/// come without groups. Whom the front proxy did not know either stays outside.
fn complete(user: &mut User) {
    let told = |user: &User, group: &str| user.groups.iter().any(|told| told == group);
    if user.name != ANONYMOUS && !told(user, AUTHENTICATED) && !told(user, UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String does not fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}
