//! Bearer tokens, by TokenReview (apiserver `plugin/pkg/authenticator/token/webhook`).

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use http::{
    HeaderMap,
    header::{AUTHORIZATION, CONNECTION, SEC_WEBSOCKET_PROTOCOL, UPGRADE},
};
use k8s_openapi::api::authentication::v1::{TokenReviewSpec, TokenReviewStatus, UserInfo};
use tracing::warn;

use super::{
    answers::{Answers, Key},
    reviews::{Patience, Reviews},
};
use crate::auth::User;

/// Whose token it is.
#[derive(Debug)]
pub(super) struct Tokens {
    reviews: Arc<dyn Reviews>,
    /// A token must be meant for one of them; empty: for the kube-apiserver.
    audiences: Vec<String>,
    known: Answers<Result<User, String>>,
    patience: Patience,
}

impl Tokens {
    pub(super) fn new(reviews: Arc<dyn Reviews>, audiences: Vec<String>) -> Self {
        Self { reviews, audiences, known: Answers::default(), patience: Patience::default() }
    }

    /// Who holds it; or why nobody is known to.
    pub(super) async fn user(&self, token: String) -> Result<User, String> {
        let (reviews, audiences, patience) = (Arc::clone(&self.reviews), self.audiences.clone(), self.patience.clone());
        let key = Key::of(token.as_bytes());
        let review = async move {
            let spec =
                TokenReviewSpec { token: Some(token), audiences: (!audiences.is_empty()).then(|| audiences.clone()) };
            let status = patience.ask(|| reviews.token_review(spec.clone())).await?;
            Ok(holder(status, &audiences))
        };
        self.known.get(key, review).await.unwrap_or_else(|error| {
            warn!(%error, "a token was not reviewed: its holder is refused");
            Err(error.to_string())
        })
    }

    #[cfg(test)]
    pub(super) fn known(&self) -> usize {
        self.known.len()
    }
}

/// Reads the answer. Without an audience in it, whoever reviewed knows of none, and the token is meant for the
/// kube-apiserver (API reference, `TokenReviewStatus.audiences`).
fn holder(status: TokenReviewStatus, audiences: &[String]) -> Result<User, String> {
    if status.authenticated != Some(true) {
        return Err(status.error.unwrap_or_else(|| "the token is nobody's".to_owned()));
    }
    let meant_for = status.audiences.unwrap_or_default();
    if !audiences.is_empty() && !audiences.iter().any(|audience| meant_for.contains(audience)) {
        return Err(format!("the token is meant for {meant_for:?}, not for {audiences:?}"));
    }
    let UserInfo { username, uid, groups, extra } = status.user.unwrap_or_default();
    let name = username.filter(|name| !name.is_empty()).ok_or("the token's holder has no name")?;
    Ok(User {
        name,
        uid: uid.filter(|uid| !uid.is_empty()),
        groups: groups.unwrap_or_default(),
        extra: extra.unwrap_or_default(),
    })
}

/// The token that a request brings; an error is one that brings something else instead.
pub(super) fn token(headers: &HeaderMap) -> Result<Option<String>, String> {
    let Some(header) = headers.get(AUTHORIZATION) else { return websocket_token(headers) };
    let text = header.to_str().map_err(|_| "the Authorization header is no text")?;
    let (scheme, token) = text.trim().split_once(' ').unwrap_or((text, ""));
    let token = token.trim();
    if !scheme.eq_ignore_ascii_case("bearer") || token.is_empty() || token.contains(' ') {
        return Err("the Authorization header must be: Bearer TOKEN".to_owned());
    }
    Ok(Some(token.to_owned()))
}

/// Browsers cannot set a header on a WebSocket; they bring the token as a protocol, beside the one that they want to speak
/// (apiserver `pkg/authentication/request/websocket`).
const PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";

fn websocket_token(headers: &HeaderMap) -> Result<Option<String>, String> {
    let says = |name, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|text| text.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
    };
    if !says(CONNECTION, "upgrade") || !says(UPGRADE, "websocket") {
        return Ok(None);
    }
    let (tokens, others): (Vec<&str>, Vec<&str>) = protocols(headers).partition(|part| part.starts_with(PROTOCOL));
    let [encoded] = tokens.as_slice() else {
        return if tokens.is_empty() { Ok(None) } else { Err("the WebSocket brings several tokens".to_owned()) };
    };
    if others.is_empty() {
        return Err("the WebSocket brings a token and no protocol to speak".to_owned());
    }
    let decoded =
        URL_SAFE_NO_PAD.decode(&encoded[PROTOCOL.len()..]).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    decoded.filter(|token| !token.is_empty()).map(Some).ok_or("the WebSocket's token is not base64url".to_owned())
}

/// Takes the token out of the protocols that a WebSocket offers.
pub(super) fn strip_websocket(headers: &mut HeaderMap) {
    if !protocols(headers).any(|part| part.starts_with(PROTOCOL)) {
        return;
    }
    let others: Vec<&str> = protocols(headers).filter(|part| !part.starts_with(PROTOCOL)).collect();
    let left = others.join(", ").parse().ok();
    headers.remove(SEC_WEBSOCKET_PROTOCOL);
    if let Some(left) = left {
        headers.insert(SEC_WEBSOCKET_PROTOCOL, left);
    }
}

fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let lines = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|part| !part.is_empty())
}
