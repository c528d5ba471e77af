//! What all lists share: pages and where they go on, versions that may be asked for, and how many objects become bytes.

use api::validate::{Cause, CauseKind};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{BufMut, Bytes, BytesMut};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    answer::{Answer, json_answer},
    asked::Asked,
    error::ApiError,
    registry::Page,
    resources::Resource,
    store::{Key, Stored},
    table,
};

/// A page's place: what `continue` carries.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Continue {
    pub(super) revision: u64,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Continue {
    pub(super) fn encode(&self) -> String {
        URL_SAFE_NO_PAD
            .encode(json!({"v": 1, "rv": self.revision, "ns": self.namespace, "name": self.name}).to_string())
    }

    pub(super) fn decode(text: &str) -> Result<Self, ApiError> {
        let decoded = URL_SAFE_NO_PAD.decode(text).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let value = decoded.filter(|value| value["v"] == 1);
        let value = value.ok_or_else(|| ApiError::bad_request("continue key is not valid: list from the beginning"))?;
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        Ok(Self { revision: value["rv"].as_u64().unwrap_or_default(), namespace: text("ns"), name: text("name") })
    }

    pub(super) fn after(&self, resource: &Resource) -> Key {
        let key = resource.strategy().map_or("", |strategy| strategy.key);
        Key { resource: key, namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

/// `kubectl get --chunk-size`, unless told otherwise. kubectl allows itself five requests a second: 10,000 objects in such pages
/// would take it 4 s of waiting for itself. So a Table of that limit is answered whole, as a server may that does not support
/// the limit (API reference, `limit`), unless it is longer than [`MOST_ROWS`].
pub(super) const KUBECTL_CHUNK: usize = 500;
/// A row costs the server about what its object does, while it is made.
pub(super) const MOST_ROWS: usize = 10_000;

/// Their metadata alone.
pub(super) fn partial_list(objects: &[Value], list: &Value) -> Result<Answer, ApiError> {
    let items: Vec<Value> = objects.iter().map(table::partial).collect();
    let kind = "PartialObjectMetadataList";
    json_answer(&json!({"kind": kind, "apiVersion": "meta.k8s.io/v1", "metadata": list, "items": items}))
}

/// One object after the other: ten thousand of them as values would be most of what this process ever needs.
pub(super) fn streamed(
    resource: &Resource,
    list: &Value,
    objects: impl Iterator<Item = Result<Value, ApiError>>,
) -> Result<Answer, ApiError> {
    let head =
        json!({"kind": format!("{}List", resource.kind), "apiVersion": resource.api_version(), "metadata": list});
    let mut text = head.to_string();
    text.pop();
    text.push_str(",\"items\":[");
    for (at, object) in objects.enumerate() {
        if at > 0 {
            text.push(',');
        }
        text.push_str(&object?.to_string());
    }
    text.push_str("]}");
    Ok(Answer::Json { code: StatusCode::OK, bytes: text.into(), warnings: Vec::new() })
}

/// A list of objects that are encoded already.
pub(super) fn concatenate(resource: &Resource, page: &Page, list: &Value) -> Bytes {
    let size: usize = page.items.iter().map(|(_, stored): &(Key, Stored)| stored.bytes.len() + 1).sum();
    let mut bytes = BytesMut::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":\"{}List\",\"apiVersion\":\"{}\",\"metadata\":{list},\"items\":[",
        resource.kind,
        resource.api_version()
    );
    bytes.put_slice(head.as_bytes());
    for (at, (_, stored)) in page.items.iter().enumerate() {
        if at > 0 {
            bytes.put_u8(b',');
        }
        bytes.put_slice(&stored.bytes);
    }
    bytes.put_slice(b"]}");
    bytes.freeze()
}

/// apimachinery `apis/meta/internalversion/validation`, of a list that is not watched.
pub(super) fn check_list_version(asked: &Asked<'_>, current: u64) -> Result<(), ApiError> {
    let query = &asked.parts.query;
    let version = query.number("resourceVersion")?;
    let matching = query.get("resourceVersionMatch");
    let wrong = |message: &str| {
        let (field, kind) = ("resourceVersionMatch".to_owned(), CauseKind::Forbidden);
        Err(ApiError::invalid("meta.k8s.io", "ListOptions", "", &[Cause { field, kind, message: message.to_owned() }]))
    };
    if query.get("sendInitialEvents").is_some() {
        return wrong("sendInitialEvents is forbidden for list");
    }
    match (matching, version) {
        (Some(_), _) if query.get("continue").is_some() => {
            return wrong("resourceVersionMatch is forbidden when continue is provided");
        }
        (Some(_), None) => return wrong("resourceVersionMatch is forbidden unless resourceVersion is provided"),
        (Some("Exact"), Some(0)) => {
            return wrong("resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"");
        }
        (Some("Exact" | "NotOlderThan") | None, _) => {}
        (Some(_), _) => return wrong("resourceVersionMatch must be Exact or NotOlderThan"),
    }
    match version {
        Some(version) if version > current => {
            let message = format!("Too large resource version: {version}, current: {current}");
            Err(ApiError::timeout(message.clone()).because("ResourceVersionTooLarge", "", message))
        }
        Some(version) if matching == Some("Exact") && version != current => {
            Err(ApiError::expired("The resourceVersion for the provided list is too old: only the newest is kept"))
        }
        _ => Ok(()),
    }
}
