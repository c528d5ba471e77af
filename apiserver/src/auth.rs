//! Who asks, and whether they may. Two seams, [`Authenticator`] and [`Authorizer`]: [`standalone`] answers by itself,
//! [`delegated`] asks the kube-apiserver. Authorization yields a value that only this file can make: what follows cannot
//! forget to ask.

pub mod delegated;
pub mod standalone;

use std::collections::BTreeMap;

use async_trait::async_trait;
use certs::Peer;
use http::{HeaderMap, HeaderName, Method, header::AUTHORIZATION};
use jiff::Timestamp;

use crate::{
    error::{About, ApiError},
    query::{Query, Selection},
    target::{ResourceTarget, Target, Verb},
};

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// Of the user, where whoever knows the user gives one.
    pub uid: Option<String>,
    pub groups: Vec<String>,
    /// What else is known, for whoever authorizes.
    pub extra: BTreeMap<String, Vec<String>>,
}

/// A target that its user may reach. Only [`authorize`] makes one.
#[derive(Debug)]
pub struct Permitted<T>(T);

/// Knows who asks.
#[async_trait]
pub trait Authenticator: std::fmt::Debug + Send + Sync {
    /// The user, or 401. Credentials, and all else that speaks of who asks, are taken out of `headers`: what follows has
    /// the user and no secret.
    async fn authenticate(&self, peer: &Peer, headers: &mut HeaderMap, now: Timestamp) -> Result<User, ApiError>;

    /// Whether it knows whom to trust already; while it does not, why.
    fn ready(&self) -> Result<(), String>;
}

/// Decides whether a user may do something.
#[async_trait]
pub trait Authorizer: std::fmt::Debug + Send + Sync {
    /// Whether `user` may do what `question` asks for, or why not.
    async fn allowed(&self, user: &User, question: Question<'_>) -> Result<(), Refusal>;
}

/// What somebody wants to do, in RBAC's terms.
#[derive(Clone, Copy, Debug)]
pub enum Question<'a> {
    Resource {
        target: &'a ResourceTarget,
        /// What a list, a watch or a deletion of many is limited to.
        selection: Option<&'a Selection>,
    },
    /// What is no resource: `nonResourceURLs`.
    Path { path: &'a str, verb: &'a str },
}

/// Why a question was not answered with yes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No, and why; the user is told.
    Denied(String),
    /// Nobody could say. Neither yes nor no: the user is told that, the log why.
    Unanswered(String),
}

impl<'a> From<&'a ResourceTarget> for Question<'a> {
    fn from(target: &'a ResourceTarget) -> Self {
        Self::Resource { target, selection: None }
    }
}

impl Question<'_> {
    /// The one object that is asked for. A selection of one name is that name (apiserver `requestinfo.go`), so that a right
    /// to one object is enough to watch it.
    pub fn name(&self) -> &str {
        let Self::Resource { target, selection } = self else { return "" };
        let selected = || selection.and_then(|selection| selection.fields.exactly("metadata.name"));
        let a_name = |name: &&str| !name.contains(['/', '%']) && *name != "." && *name != "..";
        match &target.name {
            Some(name) => name,
            None if matches!(target.verb, Verb::List | Verb::Watch) => selected().filter(a_name).unwrap_or_default(),
            None => "",
        }
    }

    /// The 403 of a question that was denied, worded as upstream words it.
    fn forbidden(&self, user: &User, why: &str) -> ApiError {
        let why = if why.is_empty() { String::new() } else { format!(": {why}") };
        let target = match self {
            Self::Path { path, verb } => {
                let message = format!("forbidden: User {:?} cannot {verb} path {path:?}{why}", user.name);
                return ApiError::forbidden_path(message);
            }
            Self::Resource { target, .. } => target,
        };
        let name = self.name();
        let resource = match &target.subresource {
            Some(subresource) => format!("{}/{subresource}", target.resource),
            None => target.resource.clone(),
        };
        let scope = match &target.namespace {
            Some(namespace) => format!("in the namespace {namespace:?}"),
            None => "at the cluster scope".to_owned(),
        };
        let (group, plural) = (target.group.as_str(), target.resource.as_str());
        let qualified = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let named = if name.is_empty() { qualified } else { format!("{qualified} {name:?}") };
        let (verb, user) = (target.verb.word(), &user.name);
        let message = format!(
            "{named} is forbidden: User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {scope}{why}"
        );
        ApiError::forbidden(About { group, plural, name }, message)
    }
}

/// Asks; whatever is no yes is an error for the client.
pub async fn ask(authorizer: &dyn Authorizer, user: &User, question: Question<'_>) -> Result<(), ApiError> {
    authorizer.allowed(user, question).await.map_err(|refusal| match refusal {
        Refusal::Denied(why) => question.forbidden(user, &why),
        Refusal::Unanswered(why) => ApiError::internal(why),
    })
}

/// Asks for what a request is for.
pub async fn authorize(
    authorizer: &dyn Authorizer,
    user: &User,
    target: Target,
    method: &Method,
    query: &Query,
) -> Result<Permitted<Target>, ApiError> {
    match &target {
        Target::Resource(resource) => {
            let many = matches!(resource.verb, Verb::List | Verb::Watch | Verb::DeleteCollection);
            // One that cannot be read limits nothing; the request will be told so.
            let selection = if many { query.selection().ok() } else { None };
            let question = Question::Resource { target: resource, selection: selection.as_ref() };
            ask(authorizer, user, question).await?;
        }
        other => {
            let (path, verb) = (other.path(), method.as_str().to_ascii_lowercase());
            ask(authorizer, user, Question::Path { path: &path, verb: &verb }).await?;
        }
    }
    Ok(Permitted(target))
}

impl<T> Permitted<T> {
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// Takes out what speaks of who asks, by the names that Kubernetes uses.
fn strip(headers: &mut HeaderMap) {
    strip_where(headers, |name| name == AUTHORIZATION || name.as_str().starts_with("x-remote-") || impersonates(name));
}

fn strip_where(headers: &mut HeaderMap, speaks: impl Fn(&HeaderName) -> bool) {
    let names: Vec<HeaderName> = headers.keys().filter(|name| speaks(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

fn impersonates(name: &HeaderName) -> bool {
    name.as_str().starts_with("impersonate-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(path: &str) -> Target {
        crate::target::target(&Method::GET, path, false).unwrap()
    }

    fn denied(target: &Target, query: &str) -> ApiError {
        let bob = User { name: "bob".into(), ..User::default() };
        let query = Query::parse(Some(query));
        let selection = query.selection().unwrap();
        let Target::Resource(target) = target else { panic!("{target:?} is no resource") };
        Question::Resource { target, selection: Some(&selection) }.forbidden(&bob, "no RBAC policy matched")
    }

    #[test]
    fn a_denial_reads_as_upstream_words_it() {
        let one = question("/apis/live.stillpoint.dev/v1alpha1/namespaces/shop/databases/orders");
        let all = question("/apis/live.stillpoint.dev/v1alpha1/databases");
        let said = [
            (
                denied(&one, "").message,
                "databases.live.stillpoint.dev \"orders\" is forbidden: User \"bob\" cannot get resource \
              \"databases\" in API group \"live.stillpoint.dev\" in the namespace \"shop\": no RBAC policy matched",
            ),
            (
                denied(&all, "").message,
                "databases.live.stillpoint.dev is forbidden: User \"bob\" cannot list resource \
              \"databases\" in API group \"live.stillpoint.dev\" at the cluster scope: no RBAC policy matched",
            ),
            (denied(&all, "fieldSelector=metadata.name%3Dorders").details["name"].to_string(), "\"orders\""),
            (denied(&all, "fieldSelector=metadata.name%3D%252e%252e").details["name"].to_string(), "\"\""),
            (denied(&all, "fieldSelector=metadata.name!%3Dorders").details["name"].to_string(), "\"\""),
        ];
        for (said, wanted) in said {
            assert_eq!(said, wanted);
        }
        let bob = User { name: "bob".into(), ..User::default() };
        let path = Question::Path { path: "/metrics", verb: "get" }.forbidden(&bob, "");
        assert_eq!(
            (path.code.as_u16(), path.message.as_str()),
            (403, "forbidden: User \"bob\" cannot get path \"/metrics\"")
        );
    }

    #[test]
    fn what_speaks_of_who_asks_is_taken_out() {
        let mut headers = HeaderMap::new();
        let secret = ["authorization", "x-remote-user", "x-remote-extra-scopes", "impersonate-user"];
        for name in secret.into_iter().chain(["accept", "x-remotely"]) {
            headers.append(HeaderName::from_static(name), "one".parse().unwrap());
            headers.append(HeaderName::from_static(name), "two".parse().unwrap());
        }
        strip(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "x-remotely"]);
    }
}
