//! The two ways to the server, and who one can be on each: through kube-apiserver, which says for whom it asks, and directly
//! at the server's own port.

use std::fmt;

use anyhow::Result;
use bytes::Bytes;
use certs::KeyPairPem;
use http::{Method, Request};

use crate::{
    keys::{self, Keys},
    wire::{Answer, Body, Server, whole},
    world::World,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Through,
    Direct,
}

/// Who asks.
#[derive(Clone, Debug)]
pub(crate) enum Who {
    /// Shows nothing.
    Nobody,
    /// Whom kube-apiserver knows: by impersonation, or as its front proxy would name them.
    User {
        name: String,
        groups: Vec<String>,
        extra: Vec<(String, String)>,
    },
    /// By a certificate of the cluster's authority for people.
    Person(String),
    Token(String),
    /// By whatever this certificate is.
    Shown(KeyPairPem),
}

/// A request. In its texts `{group}` is the path of the group's version, `{here}` that of the namespace's databases, and
/// `{ns}` the namespace.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Bytes,
    pub(crate) who: Who,
}

/// What is shown, and the headers.
type Credentials = (Option<KeyPairPem>, Vec<(String, String)>);

impl Way {
    pub(crate) const BOTH: [Self; 2] = [Self::Through, Self::Direct];
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Through => "through kube-apiserver",
            Self::Direct => "directly",
        })
    }
}

impl Who {
    pub(crate) fn user(name: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|&group| group.to_owned()).collect();
        Self::User { name: name.to_owned(), groups, extra: Vec::new() }
    }
}

impl Ask {
    pub(crate) fn new(method: Method, path: &str) -> Self {
        let who = Who::user("alice", &["system:authenticated"]);
        Self { method, path: path.to_owned(), headers: Vec::new(), body: Bytes::new(), who }
    }

    pub(crate) fn get(path: &str) -> Self {
        Self::new(Method::GET, path)
    }

    pub(crate) fn post(path: &str, body: impl Into<Bytes>) -> Self {
        Self { body: body.into(), ..Self::new(Method::POST, path) }
    }

    pub(crate) fn by(self, who: Who) -> Self {
        Self { who, ..self }
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn accept(self, value: &str) -> Self {
        self.header("accept", value)
    }
}

/// Puts the namespace into a text; see [`Ask`].
pub(crate) fn fill(text: &str, namespace: &str) -> String {
    let group = format!("/apis/{}/{}", api::LIVE_GROUP, api::VERSION);
    let here = format!("{group}/namespaces/{namespace}/databases");
    text.replace("{here}", &here).replace("{group}", &group).replace("{ns}", namespace)
}

impl World {
    pub(crate) fn server(&self, way: Way) -> Result<Server> {
        match way {
            Way::Through => keys::kube(&self.cluster),
            Way::Direct => self.first(|replica| replica.server.clone()),
        }
    }

    pub(crate) fn keys(&self) -> Result<Keys> {
        Keys::read(&self.cluster)
    }

    /// Sends it, and hears what comes.
    pub(crate) async fn send(&self, way: Way, namespace: &str, ask: &Ask) -> Result<Answer> {
        self.send_to(&self.server(way)?, way, namespace, ask).await
    }

    pub(crate) async fn send_to(&self, server: &Server, way: Way, namespace: &str, ask: &Ask) -> Result<Answer> {
        let (shown, headers) = self.credentials(way, &ask.who)?;
        let uri = format!("https://{}{}", server.address, fill(&ask.path, namespace));
        let mut request = Request::builder().method(&ask.method).uri(uri);
        for (name, value) in headers.iter().chain(&ask.headers) {
            request = request.header(name, fill(value, namespace));
        }
        let request: Request<Body> = request.body(whole(ask.body.clone()))?;
        server.ask(shown.as_ref(), request).await
    }

    /// What somebody shows and says, to be who they are.
    pub(crate) fn credentials(&self, way: Way, who: &Who) -> Result<Credentials> {
        let (name, groups, extra) = match who {
            Who::Nobody => return Ok((None, Vec::new())),
            Who::Person(name) => return Ok((Some(self.keys()?.person(name)?), Vec::new())),
            Who::Shown(pair) => return Ok((Some(pair.clone()), Vec::new())),
            Who::Token(token) => return Ok((None, vec![("authorization".to_owned(), format!("Bearer {token}"))])),
            Who::User { name, groups, extra } => (name, groups, extra),
        };
        let (shown, prefix) = match way {
            Way::Through => (self.keys()?.admin, "impersonate"),
            Way::Direct => (self.keys()?.front_proxy, "x-remote"),
        };
        let mut headers = vec![(format!("{prefix}-user"), name.clone())];
        headers.extend(groups.iter().map(|group| (format!("{prefix}-group"), group.clone())));
        headers.extend(extra.iter().map(|(key, value)| (format!("{prefix}-extra-{key}"), value.clone())));
        Ok((Some(shown), headers))
    }
}
