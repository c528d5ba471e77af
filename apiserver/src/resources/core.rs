//! The little of core/v1 that kubectl wants beside our own kinds, where there is no cluster.

use api::validate::{Cause, CauseKind};
use k8s_openapi::api::core::v1::{Event, Namespace, Secret};
use serde_json::{Map, Value};

use super::{
    Column, EVERY_VERB, Resource, Storage, Strategy,
    cells::{AGE, NAME, text},
    decode,
};

pub static NAMESPACES: Resource = Resource {
    group: "",
    version: "v1",
    plural: "namespaces",
    singular: "namespace",
    kind: "Namespace",
    short_names: &["ns"],
    categories: &[],
    namespaced: false,
    storage: Storage::Kept(Strategy {
        key: "namespaces",
        decode: |mut value| {
            value["status"] = serde_json::json!({"phase": "Active"});
            decode::<Namespace>(value)
        },
        validate: |_, _| Vec::new(),
        strategic_as_merge: true,
    }),
    verbs: EVERY_VERB,
    subresources: &[],
    columns: &[
        NAME,
        Column {
            name: "Status",
            kind: "string",
            description: "The status of the namespace",
            priority: 0,
            cell: |object, _| match object["metadata"]["deletionTimestamp"] {
                Value::Null => text(object, &["status", "phase"]),
                _ => "Terminating".into(),
            },
        },
        AGE,
    ],
    fields: &["status.phase"],
    schema: |generator| generator.subschema_for::<Namespace>(),
};

pub static SECRETS: Resource = Resource {
    group: "",
    version: "v1",
    plural: "secrets",
    singular: "secret",
    kind: "Secret",
    short_names: &[],
    categories: &[],
    namespaced: true,
    storage: Storage::Kept(Strategy {
        key: "secrets",
        decode: decode_secret,
        validate: validate_secret,
        strategic_as_merge: true,
    }),
    verbs: EVERY_VERB,
    subresources: &[],
    columns: &[
        NAME,
        Column {
            name: "Type",
            kind: "string",
            description: "Used to facilitate programmatic handling of secret data.",
            priority: 0,
            cell: |object, _| text(object, &["type"]),
        },
        Column {
            name: "Data",
            kind: "integer",
            description: "The number of keys.",
            priority: 0,
            cell: |object, _| object["data"].as_object().map_or(0, Map::len).into(),
        },
        AGE,
    ],
    fields: &["type"],
    schema: |generator| generator.subschema_for::<Secret>(),
};

pub static EVENTS: Resource = Resource {
    group: "",
    version: "v1",
    plural: "events",
    singular: "event",
    kind: "Event",
    short_names: &["ev"],
    categories: &[],
    namespaced: true,
    storage: Storage::Kept(Strategy {
        key: "events",
        decode: decode::<Event>,
        validate: |_, _| Vec::new(),
        strategic_as_merge: true,
    }),
    verbs: EVERY_VERB,
    subresources: &[],
    columns: &[
        Column {
            name: "Last Seen",
            kind: "string",
            description: "When it was last seen.",
            priority: 0,
            cell: |object, now| match super::cells::time(&object["lastTimestamp"]) {
                Some(seen) => super::cells::age(seen, now).into(),
                None => "<unknown>".into(),
            },
        },
        Column {
            name: "Type",
            kind: "string",
            description: "Normal or Warning.",
            priority: 0,
            cell: |o, _| text(o, &["type"]),
        },
        Column { name: "Reason", kind: "string", description: "Why.", priority: 0, cell: |o, _| text(o, &["reason"]) },
        Column {
            name: "Object",
            kind: "string",
            description: "What it is about.",
            priority: 0,
            cell: |object, _| {
                let involved = &object["involvedObject"];
                let kind = involved["kind"].as_str().unwrap_or_default().to_lowercase();
                format!("{kind}/{}", involved["name"].as_str().unwrap_or_default()).into()
            },
        },
        Column {
            name: "Message",
            kind: "string",
            description: "What happened.",
            priority: 0,
            cell: |o, _| text(o, &["message"]),
        },
        Column { name: "Name", ..NAME_WIDE },
    ],
    fields: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "type",
    ],
    schema: |generator| generator.subschema_for::<Event>(),
};

const NAME_WIDE: Column = Column { priority: 1, ..NAME };

/// The most that a Secret may hold (Kubernetes documentation, "Secrets": 1 MiB).
const MOST_SECRET: usize = 1024 * 1024;

/// `stringData` is merged into `data`, and `type` has a default (core/v1 conversion and defaults).
fn decode_secret(mut value: Value) -> Result<(Value, Vec<String>), String> {
    if let Some(Value::Object(plain)) = value.as_object_mut().and_then(|object| object.remove("stringData")) {
        if !value["data"].is_object() {
            value["data"] = Value::Object(Map::new());
        }
        for (key, text) in plain {
            let text = text.as_str().ok_or_else(|| format!("stringData.{key} must be a string"))?;
            let encoded =
                serde_json::to_value(k8s_openapi::ByteString(text.as_bytes().to_vec())).map_err(|e| e.to_string())?;
            value["data"][key.as_str()] = encoded;
        }
    }
    if value["type"].is_null() {
        value["type"] = "Opaque".into();
    }
    decode::<Secret>(value)
}

fn validate_secret(new: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let data = new["data"].as_object();
    let size: usize =
        data.into_iter().flatten().filter_map(|(_, value)| value.as_str()).map(|text| text.len() / 4 * 3).sum();
    let cause = |field: &str, kind, message: String| Cause { field: field.to_owned(), kind, message };
    if size > MOST_SECRET {
        causes.push(cause("data", CauseKind::Invalid, format!("holds {size} bytes; at most {MOST_SECRET}")));
    }
    if let Some(old) = old {
        if new["type"] != old["type"] {
            causes.push(cause("type", CauseKind::Invalid, "field is immutable".to_owned()));
        }
        if old["immutable"] == Value::Bool(true) && (new["data"] != old["data"] || new["immutable"] != old["immutable"])
        {
            causes.push(cause("data", CauseKind::Forbidden, "field is immutable when `immutable` is set".to_owned()));
        }
    }
    causes
}
