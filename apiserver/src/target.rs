//! From the request line to what is asked for. Parsed once, here; nothing later reads the URI. Pure, and never panics.

use http::Method;

use crate::error::ApiError;

/// What a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Health(Health),
    Metrics,
    Version,
    /// `/`, `/api`, `/apis`, `/apis/GROUP`, `/api/v1`, `/apis/GROUP/VERSION`.
    Discovery(Document),
    OpenApiV2,
    /// The list of documents, or the one of a group and version.
    OpenApiV3(Option<(String, String)>),
    Resource(ResourceTarget),
}

/// `/healthz`, `/livez`, `/readyz`, and one check of theirs, if only one is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    pub probe: &'static str,
    pub check: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    Root,
    CoreVersions,
    Groups,
    Group(String),
    Resources { group: String, version: String },
}

/// What a request for a resource is for, in RBAC's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResourceTarget {
    pub verb: Verb,
    pub group: String,
    pub version: String,
    pub namespace: Option<String>,
    pub resource: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl ResourceTarget {
    /// A verb of a live Database, such as `quiesce`: what it is to call it.
    pub fn verb_of(namespace: &str, database: &str, verb: &str) -> Self {
        Self {
            verb: Verb::Create,
            group: api::LIVE_GROUP.to_owned(),
            version: api::VERSION.to_owned(),
            namespace: Some(namespace.to_owned()),
            resource: "databases".to_owned(),
            name: Some(database.to_owned()),
            subresource: Some(verb.to_owned()),
        }
    }
}

impl Target {
    /// The path that what is no resource is found at, and permitted by; in one spelling, whatever the request's was. A resource
    /// is permitted by what it is, and has none.
    pub fn path(&self) -> String {
        match self {
            Self::Health(health) => format!("/{}", health.probe),
            Self::Metrics => "/metrics".to_owned(),
            Self::Version => "/version".to_owned(),
            Self::Discovery(Document::Root) => "/".to_owned(),
            Self::Discovery(Document::CoreVersions) => "/api".to_owned(),
            Self::Discovery(Document::Groups) => "/apis".to_owned(),
            Self::Discovery(Document::Group(group)) => format!("/apis/{group}"),
            Self::Discovery(Document::Resources { group, version }) => {
                if group.is_empty() {
                    format!("/api/{version}")
                } else {
                    format!("/apis/{group}/{version}")
                }
            }
            Self::OpenApiV2 => "/openapi/v2".to_owned(),
            Self::OpenApiV3(None) => "/openapi/v3".to_owned(),
            Self::OpenApiV3(Some((group, version))) => {
                let prefix = if group.is_empty() { "api".to_owned() } else { format!("apis/{group}") };
                format!("/openapi/v3/{prefix}/{version}")
            }
            Self::Resource(_) => String::new(),
        }
    }
}

impl Verb {
    /// RBAC's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// Reads a path and a query; `watching`: the query says `watch=true`.
pub fn target(method: &Method, path: &str, watching: bool) -> Result<Target, ApiError> {
    // `/apis/` is `/apis`. A segment that is empty elsewhere is no way to spell anything: others would read another path.
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let parts: Vec<&str> = if path.is_empty() { Vec::new() } else { path.split('/').collect() };
    if parts.contains(&"") {
        return Err(ApiError::no_such_path());
    }
    let document = |document| Ok(Target::Discovery(document));
    match parts.as_slice() {
        [] => document(Document::Root),
        ["healthz", rest @ ..] => health("healthz", rest),
        ["livez", rest @ ..] => health("livez", rest),
        ["readyz", rest @ ..] => health("readyz", rest),
        ["metrics"] => Ok(Target::Metrics),
        ["version"] => Ok(Target::Version),
        ["openapi", "v2"] => Ok(Target::OpenApiV2),
        ["openapi", "v3"] => Ok(Target::OpenApiV3(None)),
        ["openapi", "v3", "api", version] => Ok(Target::OpenApiV3(Some((String::new(), (*version).to_owned())))),
        ["openapi", "v3", "apis", group, version] => {
            Ok(Target::OpenApiV3(Some(((*group).to_owned(), (*version).to_owned()))))
        }
        ["api"] => document(Document::CoreVersions),
        ["apis"] => document(Document::Groups),
        ["apis", group] => document(Document::Group((*group).to_owned())),
        ["api", version] => document(Document::Resources { group: String::new(), version: (*version).to_owned() }),
        ["apis", group, version] => {
            document(Document::Resources { group: (*group).to_owned(), version: (*version).to_owned() })
        }
        ["api", version, rest @ ..] => resource(method, "", version, rest, watching).map(Target::Resource),
        ["apis", group, version, rest @ ..] => resource(method, group, version, rest, watching).map(Target::Resource),
        _ => Err(ApiError::no_such_path()),
    }
}

fn health(probe: &'static str, rest: &[&str]) -> Result<Target, ApiError> {
    match rest {
        [] => Ok(Target::Health(Health { probe, check: None })),
        [check] => Ok(Target::Health(Health { probe, check: Some((*check).to_owned()) })),
        _ => Err(ApiError::no_such_path()),
    }
}

/// The path grammar of apiserver's `requestinfo.go`: `[namespaces/NS/]RESOURCE[/NAME[/SUBRESOURCE]]`.
fn resource(
    method: &Method,
    group: &str,
    version: &str,
    rest: &[&str],
    watching: bool,
) -> Result<ResourceTarget, ApiError> {
    let (namespace, rest) = match rest {
        // `namespaces/x` and its status are a Namespace; anything below is a resource in it.
        ["namespaces", namespace, rest @ ..] if !(rest.is_empty() || group.is_empty() && *rest == ["status"]) => {
            (Some(*namespace), rest)
        }
        _ => (None, rest),
    };
    let (resource, name, subresource) = match rest {
        [resource] => (*resource, None, None),
        [resource, name] => (*resource, Some(*name), None),
        [resource, name, subresource] => (*resource, Some(*name), Some(*subresource)),
        _ => return Err(ApiError::no_such_path()),
    };
    let verb = match (method.as_str(), name) {
        ("GET" | "HEAD", _) if watching => Verb::Watch,
        ("GET" | "HEAD", Some(_)) => Verb::Get,
        ("GET" | "HEAD", None) => Verb::List,
        ("POST", _) => Verb::Create,
        ("PUT", _) => Verb::Update,
        ("PATCH", _) => Verb::Patch,
        ("DELETE", Some(_)) => Verb::Delete,
        ("DELETE", None) => Verb::DeleteCollection,
        _ => return Err(ApiError::no_such_path()),
    };
    let own = |text: &str| decoded(text);
    Ok(ResourceTarget {
        verb,
        group: own(group)?,
        version: own(version)?,
        namespace: namespace.map(own).transpose()?,
        resource: own(resource)?,
        name: name.map(own).transpose()?,
        subresource: subresource.map(own).transpose()?,
    })
}

/// What a name can be made of. Whatever else a segment decodes to names nothing; and some of it would be read as something else
/// where the name becomes part of another request's path.
fn nameable(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~:".contains(c)
}

/// Percent-decodes one path segment.
fn decoded(segment: &str) -> Result<String, ApiError> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        match (digit(rest.next()), digit(rest.next())) {
            (Some(high), Some(low)) => bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'/')),
            _ => return Err(ApiError::bad_request("the path holds a broken percent-encoding")),
        }
    }
    match String::from_utf8(bytes) {
        Ok(text) if text.chars().all(nameable) && text != "." && text != ".." => Ok(text),
        _ => Err(ApiError::no_such_path()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(method: &str, path: &str, watching: bool) -> ResourceTarget {
        match target(&method.parse().unwrap(), path, watching).unwrap() {
            Target::Resource(target) => target,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        let quiesce = of("POST", "/apis/live.stillpoint.dev/v1alpha1/namespaces/shop/databases/orders/quiesce", false);
        assert_eq!(quiesce.verb, Verb::Create);
        assert_eq!(quiesce.namespace.as_deref(), Some("shop"));
        assert_eq!(quiesce.subresource.as_deref(), Some("quiesce"));
        let namespace = of("GET", "/api/v1/namespaces/shop", false);
        assert_eq!((namespace.resource.as_str(), namespace.name.as_deref()), ("namespaces", Some("shop")));
        assert_eq!(of("GET", "/api/v1/namespaces", true).verb, Verb::Watch);
        assert_eq!(of("DELETE", "/api/v1/namespaces/shop/secrets", false).verb, Verb::DeleteCollection);
        assert_eq!(of("GET", "/api/v1/namespaces/shop/secrets/a%2Db", false).name.as_deref(), Some("a-b"));
        for smuggled in ["a%2Fb", "%2e%2e", "..", "a%", "%ff", "a//b", "/a", "a%00", "a%3Fwatch", "a%23", "a%25"] {
            let path = format!("/api/v1/namespaces/shop/secrets/{smuggled}");
            assert!(target(&Method::GET, &path, false).is_err(), "{smuggled}");
        }
        for (path, wanted) in [("/", Document::Root), ("", Document::Root), ("/apis/", Document::Groups)] {
            assert_eq!(target(&Method::GET, path, false).unwrap(), Target::Discovery(wanted));
        }
    }

    proptest! {
        #[test]
        fn no_path_panics(path in ".*", method in "[A-Z]{1,8}", watching: bool) {
            if let Ok(method) = method.parse() {
                drop(target(&method, &path, watching));
            }
        }
    }
}
