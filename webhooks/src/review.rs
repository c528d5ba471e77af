//! From any bytes to a review, and from an answer to the bytes of a review. Pure; never panics, whatever the bytes are.
//!
//! Objects stay JSON values: what this version does not know of them is neither lost nor in the way.

use serde_json::{Value, json};
use thiserror::Error;

use crate::answer::Answer;

/// The longest review that is read: two objects of what etcd takes (1.5 MiB each), and what is around them.
pub const LONGEST: usize = 3 * 1024 * 1024 + 128 * 1024;

/// One admission review that wants an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Review {
    /// How it is answered: its own version, and the request's uid.
    pub to: ReturnAddress,
    pub request: Request,
}

/// What an answer has to repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReturnAddress {
    pub api_version: String,
    pub uid: String,
}

/// What is admitted. What the review does not say is empty.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub operation: Operation,
    pub group: String,
    pub resource: String,
    pub sub_resource: String,
    pub namespace: String,
    pub user: String,
    pub dry_run: bool,
    /// As it will be stored.
    pub object: Value,
    /// As it is stored.
    pub old_object: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    /// Nothing that any of our rules names.
    Other,
}

/// Why bytes are no review. It goes to whoever sent them.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unreadable {
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    #[error("the body is not an AdmissionReview of admission.k8s.io; post one as kube-apiserver does")]
    NotAReview,
    #[error("the AdmissionReview has no request with a uid, so there is nothing to answer")]
    NoUid,
}

/// Reads a review. Values nested deeper than 128 are no JSON to us (serde_json's limit): nothing that Kubernetes stores is.
pub fn decode(bytes: &[u8]) -> Result<Review, Unreadable> {
    let mut value: Value = serde_json::from_slice(bytes).map_err(|error| Unreadable::NotJson(error.to_string()))?;
    let api_version = taken(&mut value, "/apiVersion");
    if value["kind"] != "AdmissionReview" || !api_version.starts_with("admission.k8s.io/") {
        return Err(Unreadable::NotAReview);
    }
    let uid = taken(&mut value, "/request/uid");
    if uid.is_empty() {
        return Err(Unreadable::NoUid);
    }
    let request = Request {
        operation: match value["request"]["operation"].as_str() {
            Some("CREATE") => Operation::Create,
            Some("UPDATE") => Operation::Update,
            _ => Operation::Other,
        },
        group: taken(&mut value, "/request/resource/group"),
        resource: taken(&mut value, "/request/resource/resource"),
        sub_resource: taken(&mut value, "/request/subResource"),
        namespace: taken(&mut value, "/request/namespace"),
        user: taken(&mut value, "/request/userInfo/username"),
        dry_run: value["request"]["dryRun"] == true,
        object: value.pointer_mut("/request/object").map(Value::take).unwrap_or_default(),
        old_object: value.pointer_mut("/request/oldObject").map(Value::take).unwrap_or_default(),
    };
    Ok(Review { to: ReturnAddress { api_version, uid }, request })
}

/// No less than what a JSON text takes in memory as values. A map of one key takes a node of eleven (`BTreeMap`), so that some
/// bytes of text may take a hundred times as much.
pub fn weight(bytes: &[u8]) -> usize {
    const MAP: usize = 704;
    const VALUE: usize = 192;
    let (mut weight, mut in_text, mut is_escaped) = (bytes.len(), false, false);
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => in_text = !in_text,
            b'{' if !in_text => weight += MAP,
            b'[' | b',' if !in_text => weight += VALUE,
            _ => {}
        }
    }
    weight
}

/// The bytes of an answered review.
pub fn encode(to: &ReturnAddress, answer: &Answer) -> Vec<u8> {
    let review = json!({
        "apiVersion": to.api_version, "kind": "AdmissionReview", "response": answer.response(&to.uid),
    });
    review.to_string().into_bytes()
}

/// A text, taken out; empty if there is none.
fn taken(value: &mut Value, pointer: &str) -> String {
    match value.pointer_mut(pointer).map(Value::take) {
        Some(Value::String(text)) => text,
        _ => String::new(),
    }
}

impl Request {
    /// A text of the object: `/spec/driver`. An empty one is none.
    pub fn text(&self, pointer: &str) -> Option<&str> {
        text(&self.object, pointer)
    }

    /// An annotation of the object.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        annotation(&self.object, key)
    }

    /// Whether this update adds the annotation.
    pub fn adds(&self, key: &str) -> bool {
        self.annotation(key).is_some() && annotation(&self.old_object, key).is_none()
    }

    /// The namespace that the object is in; empty for those that are in none.
    pub fn namespace(&self) -> &str {
        if self.namespace.is_empty() { self.text("/metadata/namespace").unwrap_or_default() } else { &self.namespace }
    }
}

fn text<'a>(object: &'a Value, pointer: &str) -> Option<&'a str> {
    object.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// Not by a pointer: in those a `/` of the key would have to be escaped.
fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.pointer("/metadata/annotations")?.get(key)?.as_str()
}
