//! Without a cluster: client certificates of our own authority and tokens from a file; three roles as groups.

use std::{collections::HashMap, sync::Arc};

use async_trait::async_trait;
use certs::Peer;
use http::{HeaderMap, header::AUTHORIZATION};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::{Authenticator, Authorizer, Question, Refusal, User, impersonates, strip};
use crate::{
    error::ApiError,
    target::{ResourceTarget, Verb},
};

/// What a role may do. Ordered: each may what the one before may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Viewer,
    Freezer,
    Admin,
}

/// Who is known to a standalone server.
#[derive(Debug)]
pub struct Known {
    /// SHA-256 of the token: a lookup tells nothing of how much of a guess was right.
    tokens: HashMap<[u8; 32], User>,
    /// PEM of the authority that signs clients.
    authority: Arc<str>,
}

/// The roles of a standalone server, by group.
#[derive(Clone, Copy, Debug, Default)]
pub struct Roles;

impl Role {
    pub const ALL: &[Self] = &[Self::Viewer, Self::Freezer, Self::Admin];

    pub fn word(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Freezer => "freezer",
            Self::Admin => "admin",
        }
    }

    pub fn group(self) -> String {
        format!("stillpoint:{}", self.word())
    }
}

impl Known {
    pub fn new(authority: Arc<str>, tokens: impl IntoIterator<Item = (String, User)>) -> Self {
        let tokens = tokens.into_iter().map(|(token, user)| (digest(&token), user)).collect();
        Self { tokens, authority }
    }

    /// A bad token is not saved by a good certificate.
    fn user(&self, peer: &Peer, headers: &HeaderMap, now: Timestamp) -> Result<User, ApiError> {
        if headers.keys().any(impersonates) {
            return Err(ApiError::unauthorized("impersonation is not served"));
        }
        if let Some(header) = headers.get(AUTHORIZATION) {
            let token = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
            let user = token.and_then(|token| self.tokens.get(&digest(token.trim())));
            return user.cloned().ok_or_else(|| ApiError::unauthorized("unknown token"));
        }
        if peer.certificates.is_empty() {
            return Err(ApiError::unauthorized("neither token nor client certificate"));
        }
        certs::verify_client(&peer.certificates, &self.authority, now)
            .map(|identity| User { name: identity.name, groups: identity.groups, ..User::default() })
            .map_err(|error| ApiError::unauthorized(error.to_string()))
    }
}

#[async_trait]
impl Authenticator for Known {
    async fn authenticate(&self, peer: &Peer, headers: &mut HeaderMap, now: Timestamp) -> Result<User, ApiError> {
        let mut user = self.user(peer, headers, now)?;
        user.groups.push("system:authenticated".to_owned());
        strip(headers);
        Ok(user)
    }

    /// All of it was read before the server listened.
    fn ready(&self) -> Result<(), String> {
        Ok(())
    }
}

#[async_trait]
impl Authorizer for Roles {
    /// Discovery, metrics and the like are open to everybody who is known.
    async fn allowed(&self, user: &User, question: Question<'_>) -> Result<(), Refusal> {
        let Question::Resource { target, .. } = question else { return Ok(()) };
        let role = Role::ALL.iter().rev().find(|role| user.groups.contains(&role.group()));
        let Some(role) = role else {
            return Err(Refusal::Denied(
                "the user is in none of the groups stillpoint:viewer, stillpoint:freezer, stillpoint:admin".into(),
            ));
        };
        let needed = needed(target);
        if *role >= needed {
            return Ok(());
        }
        Err(Refusal::Denied(format!("this needs the role {}", needed.word())))
    }
}

/// The least role for a target.
fn needed(target: &ResourceTarget) -> Role {
    let reads = matches!(target.verb, Verb::Get | Verb::List | Verb::Watch);
    match (target.group.as_str(), target.resource.as_str(), target.subresource.as_deref()) {
        // The last is all that is in a database.
        ("", "secrets", _) | (api::LIVE_GROUP, "snapshots", Some("download")) => Role::Admin,
        (api::LIVE_GROUP, "databases", Some("quiesce" | "unquiesce" | "renew")) => Role::Freezer,
        _ if reads => Role::Viewer,
        _ => Role::Admin,
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(role: Role) -> User {
        User { name: role.word().into(), groups: vec![role.group()], ..User::default() }
    }

    fn asks(verb: Verb, group: &str, resource: &str, subresource: Option<&str>) -> ResourceTarget {
        ResourceTarget {
            verb,
            group: group.into(),
            version: "v1alpha1".into(),
            namespace: Some("shop".into()),
            resource: resource.into(),
            name: Some("orders".into()),
            subresource: subresource.map(str::to_owned),
        }
    }

    #[tokio::test]
    async fn each_role_may_what_its_name_says_and_no_more() {
        let table = [
            (asks(Verb::Get, api::GROUP, "databases", None), Role::Viewer),
            (asks(Verb::Watch, api::GROUP, "freezes", None), Role::Viewer),
            (asks(Verb::Create, api::LIVE_GROUP, "databases", Some("quiesce")), Role::Freezer),
            (asks(Verb::Create, api::LIVE_GROUP, "databases", Some("thaw")), Role::Admin),
            (asks(Verb::List, api::LIVE_GROUP, "snapshots", None), Role::Viewer),
            (asks(Verb::Get, api::LIVE_GROUP, "snapshots", Some("download")), Role::Admin),
            (asks(Verb::Create, api::LIVE_GROUP, "snapshots", Some("restore")), Role::Admin),
            (asks(Verb::Get, api::LIVE_GROUP, "snapshots", Some("generate")), Role::Viewer),
            (asks(Verb::Create, api::LIVE_GROUP, "snapshots", Some("generate")), Role::Admin),
            (asks(Verb::Create, api::LIVE_GROUP, "repositories", Some("check")), Role::Admin),
            (asks(Verb::Get, api::LIVE_GROUP, "restores", Some("log")), Role::Viewer),
            (asks(Verb::Get, "", "secrets", None), Role::Admin),
            (asks(Verb::List, "", "secrets", None), Role::Admin),
            (asks(Verb::Create, api::GROUP, "databases", None), Role::Admin),
            (asks(Verb::Delete, api::GROUP, "freezes", None), Role::Admin),
            (asks(Verb::List, api::GROUP, "dumptools", None), Role::Viewer),
            (asks(Verb::Create, api::GROUP, "dumptools", None), Role::Admin),
            (asks(Verb::Patch, api::GROUP, "dumptools", None), Role::Admin),
        ];
        for (target, least) in table {
            for role in Role::ALL {
                let allowed = Roles.allowed(&user(*role), (&target).into()).await;
                assert_eq!(allowed.is_ok(), *role >= least, "{role:?} {target:?}");
            }
        }
        let nobody = User { name: "nobody".into(), groups: vec!["system:masters".into()], ..User::default() };
        let target = asks(Verb::Get, api::GROUP, "databases", None);
        assert!(Roles.allowed(&nobody, (&target).into()).await.is_err());
    }
}
