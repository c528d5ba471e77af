//! Who asks, and whether they may. Standalone: client certificates of our own authority and tokens from a file; three
//! roles as groups. Authorization yields a value that only this file can make: what follows cannot forget to ask.

use std::{collections::HashMap, sync::Arc};

use certs::Peer;
use http::{HeaderMap, header::AUTHORIZATION};
use jiff::Timestamp;
use sha2::{Digest, Sha256};

use crate::{
    error::{About, ApiError},
    target::{ResourceTarget, Target, Verb},
};

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

/// A target that its user may reach. Only [`Authorizer::authorize`] makes one.
#[derive(Debug)]
pub struct Permitted<T>(T);

/// What a role may do. Ordered: each may what the one before may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Viewer,
    Freezer,
    Admin,
}

/// Who is known, and who may what.
#[derive(Debug)]
pub struct Authenticator {
    /// SHA-256 of the token: a lookup tells nothing of how much of a guess was right.
    tokens: HashMap<[u8; 32], User>,
    /// PEM of the authority that signs clients.
    authority: Arc<str>,
}

/// Decides whether a user may do something.
pub trait Authorizer: std::fmt::Debug + Send + Sync {
    /// Whether `user` may use `verb` on a resource, or why not.
    fn allowed(&self, user: &User, target: &ResourceTarget) -> Result<(), String>;
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

impl Authenticator {
    pub fn new(authority: Arc<str>, tokens: impl IntoIterator<Item = (String, User)>) -> Self {
        let tokens = tokens.into_iter().map(|(token, user)| (digest(&token), user)).collect();
        Self { tokens, authority }
    }

    /// The user, or 401. A bad token is not saved by a good certificate.
    pub fn authenticate(&self, peer: &Peer, headers: &HeaderMap, now: Timestamp) -> Result<User, ApiError> {
        if headers.keys().any(|name| name.as_str().starts_with("impersonate-")) {
            return Err(ApiError::unauthorized("impersonation is not served"));
        }
        if let Some(header) = headers.get(AUTHORIZATION) {
            let token = header.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
            let user = token.and_then(|token| self.tokens.get(&digest(token.trim())));
            return user.cloned().map(User::authenticated).ok_or_else(|| ApiError::unauthorized("unknown token"));
        }
        if peer.certificates.is_empty() {
            return Err(ApiError::unauthorized("neither token nor client certificate"));
        }
        certs::verify_client(&peer.certificates, &self.authority, now)
            .map(|identity| User { name: identity.name, groups: identity.groups }.authenticated())
            .map_err(|error| ApiError::unauthorized(error.to_string()))
    }
}

impl User {
    fn authenticated(mut self) -> Self {
        self.groups.push("system:authenticated".to_owned());
        self
    }
}

impl Authorizer for Roles {
    fn allowed(&self, user: &User, target: &ResourceTarget) -> Result<(), String> {
        let role = Role::ALL.iter().rev().find(|role| user.groups.contains(&role.group()));
        let Some(role) = role else {
            return Err(
                "the user is in none of the groups stillpoint:viewer, stillpoint:freezer, stillpoint:admin".into()
            );
        };
        let needed = needed(target);
        if *role >= needed { Ok(()) } else { Err(format!("this needs the role {}", needed.word())) }
    }
}

/// The least role for a target.
fn needed(target: &ResourceTarget) -> Role {
    let reads = matches!(target.verb, Verb::Get | Verb::List | Verb::Watch);
    match (target.group.as_str(), target.resource.as_str(), target.subresource.as_deref()) {
        ("", "secrets", _) => Role::Admin,
        (api::LIVE_GROUP, "databases", Some("quiesce" | "unquiesce" | "renew")) => Role::Freezer,
        _ if reads => Role::Viewer,
        _ => Role::Admin,
    }
}

/// Asks for a target; discovery, health and the like are open to everybody who is known.
pub fn authorize(authorizer: &dyn Authorizer, user: &User, target: Target) -> Result<Permitted<Target>, ApiError> {
    if let Target::Resource(resource) = &target {
        authorizer.allowed(user, resource).map_err(|why| forbidden(user, resource, &why))?;
    }
    Ok(Permitted(target))
}

/// The 403 of a denied target, worded as upstream words it.
pub fn forbidden(user: &User, target: &ResourceTarget, why: &str) -> ApiError {
    let name = target.name.as_deref().unwrap_or_default();
    let resource = match &target.subresource {
        Some(subresource) => format!("{}/{subresource}", target.resource),
        None => target.resource.clone(),
    };
    let scope = match &target.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let qualified =
        if target.group.is_empty() { target.resource.clone() } else { format!("{}.{}", target.resource, target.group) };
    let named = if name.is_empty() { qualified } else { format!("{qualified} {name:?}") };
    let message = format!(
        "{named} is forbidden: User {:?} cannot {} resource {resource:?} in API group {:?} {scope}: {why}",
        user.name,
        target.verb.word(),
        target.group
    );
    ApiError::forbidden(About { group: &target.group, plural: &target.resource, name }, message)
}

impl<T> Permitted<T> {
    pub fn into_inner(self) -> T {
        self.0
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(role: Role) -> User {
        User { name: role.word().into(), groups: vec![role.group()] }
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

    #[test]
    fn each_role_may_what_its_name_says_and_no_more() {
        let table = [
            (asks(Verb::Get, api::GROUP, "databases", None), Role::Viewer),
            (asks(Verb::Watch, api::GROUP, "freezes", None), Role::Viewer),
            (asks(Verb::Create, api::LIVE_GROUP, "databases", Some("quiesce")), Role::Freezer),
            (asks(Verb::Create, api::LIVE_GROUP, "databases", Some("thaw")), Role::Admin),
            (asks(Verb::Get, "", "secrets", None), Role::Admin),
            (asks(Verb::List, "", "secrets", None), Role::Admin),
            (asks(Verb::Create, api::GROUP, "databases", None), Role::Admin),
            (asks(Verb::Delete, api::GROUP, "freezes", None), Role::Admin),
        ];
        for (target, least) in table {
            for role in Role::ALL {
                assert_eq!(Roles.allowed(&user(*role), &target).is_ok(), *role >= least, "{role:?} {target:?}");
            }
        }
        let nobody = User { name: "nobody".into(), groups: vec!["system:masters".into()] };
        assert!(Roles.allowed(&nobody, &asks(Verb::Get, api::GROUP, "databases", None)).is_err());
    }
}
