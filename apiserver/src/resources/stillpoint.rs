//! The stored kinds of `stillpoint.dev/v1alpha1`.

use api::validate::{Cause, CauseKind};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Column, EVERY_VERB, Resource, Storage, Strategy, Subresource,
    cells::{AGE, NAME, condition, reason, text, time},
    decode,
};
use crate::target::Verb;

pub static DATABASES: Resource = Resource {
    group: api::GROUP,
    version: api::VERSION,
    plural: "databases",
    singular: "database",
    kind: "Database",
    short_names: &["spdb"],
    categories: &["stillpoint"],
    namespaced: true,
    storage: Storage::Kept(Strategy {
        key: "databases.stillpoint.dev",
        decode: decode::<api::Database>,
        validate: |new, old| typed(new, old, api::validate::database, api::validate::database_update),
        strategic_as_merge: false,
    }),
    verbs: EVERY_VERB,
    subresources: &[STATUS_OF_DATABASE],
    columns: &[
        NAME,
        Column {
            name: "Engine",
            kind: "string",
            description: "The kind of server.",
            priority: 0,
            cell: |object, _| text(object, &["spec", "engine"]),
        },
        Column {
            name: "Ready",
            kind: "string",
            description: "Whether a freeze at its level would be tried.",
            priority: 0,
            cell: |object, _| condition(object, "Ready"),
        },
        Column {
            name: "Reason",
            kind: "string",
            description: "Why it is not ready.",
            priority: 0,
            cell: |object, _| reason(object, "Ready"),
        },
        Column {
            name: "Level",
            kind: "string",
            description: "What its freezes promise unless told otherwise.",
            priority: 0,
            cell: |object, _| text(object, &["spec", "freeze", "level"]),
        },
        Column {
            name: "Last-Freeze",
            kind: "string",
            description: "How its newest freeze ended.",
            priority: 0,
            cell: |object, _| text(object, &["status", "lastFreeze", "phase"]),
        },
        AGE,
        Column {
            name: "Endpoint",
            kind: "string",
            description: "Where the server listens.",
            priority: 1,
            cell: |object, _| match &object["spec"]["endpoint"]["socket"] {
                Value::String(socket) => socket.as_str().into(),
                _ => text(object, &["spec", "endpoint", "host"]),
            },
        },
        Column {
            name: "Version",
            kind: "string",
            description: "The server's version.",
            priority: 1,
            cell: |object, _| text(&object["status"]["members"][0], &["version"]),
        },
    ],
    fields: &["spec.engine"],
    schema: |generator| {
        object::<api::DatabaseSpec, api::DatabaseStatus>(
            generator,
            "A database service that Stillpoint can hold still.",
        )
    },
};

pub static FREEZES: Resource = Resource {
    group: api::GROUP,
    version: api::VERSION,
    plural: "freezes",
    singular: "freeze",
    kind: "Freeze",
    short_names: &["spfz"],
    categories: &["stillpoint"],
    namespaced: true,
    storage: Storage::Kept(Strategy {
        key: "freezes.stillpoint.dev",
        decode: decode::<api::Freeze>,
        validate: |new, old| typed(new, old, api::validate::freeze, api::validate::freeze_update),
        strategic_as_merge: false,
    }),
    verbs: EVERY_VERB,
    subresources: &[STATUS_OF_FREEZE],
    columns: &[
        NAME,
        Column {
            name: "Databases",
            kind: "string",
            description: "What it holds.",
            priority: 0,
            cell: |object, _| {
                let targets = object["spec"]["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
                targets.iter().filter_map(|target| target["database"].as_str()).collect::<Vec<_>>().join(",").into()
            },
        },
        Column {
            name: "Phase",
            kind: "string",
            description: "Where it stands.",
            priority: 0,
            cell: |object, _| text(object, &["status", "phase"]),
        },
        Column {
            name: "Level",
            kind: "string",
            description: "What it promises.",
            priority: 0,
            cell: |object, _| text(object, &["status", "level"]),
        },
        Column {
            name: "Proved",
            kind: "string",
            description: "Whether it is proved that the hold lasted.",
            priority: 0,
            cell: |object, _| {
                let targets = object["status"]["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
                let proofs: Vec<_> = targets.iter().filter_map(|target| target["proof"]["held"].as_bool()).collect();
                match proofs.as_slice() {
                    [] => "".into(),
                    proofs => (proofs.len() == targets.len() && proofs.iter().all(|held| *held)).to_string().into(),
                }
            },
        },
        Column {
            name: "Held",
            kind: "string",
            description: "How long it held.",
            priority: 0,
            cell: |object, now| match (&object["status"]["frozenMilliseconds"], time(&object["status"]["frozenAt"])) {
                (Value::Number(milliseconds), _) => format!("{milliseconds}ms").into(),
                (_, Some(frozen)) => format!("{}s so far", now.duration_since(frozen).as_secs().max(0)).into(),
                _ => "".into(),
            },
        },
        AGE,
        Column {
            name: "Message",
            kind: "string",
            description: "How it ended, and what to do.",
            priority: 1,
            cell: |object, _| text(object, &["status", "message"]),
        },
    ],
    fields: &["status.phase"],
    schema: |generator| {
        object::<api::FreezeSpec, api::FreezeStatus>(
            generator,
            "A still point held on one member of each of one or several Databases.",
        )
    },
};

pub(super) const STATUS_VERBS: &[Verb] = &[Verb::Get, Verb::Patch, Verb::Update];
const STATUS_OF_DATABASE: Subresource =
    Subresource { name: "status", kind: "Database", verbs: STATUS_VERBS, schema: None };
const STATUS_OF_FREEZE: Subresource = Subresource { name: "status", kind: "Freeze", verbs: STATUS_VERBS, schema: None };

/// Validates the spec, or its change.
pub(super) fn typed<S: DeserializeOwned>(
    new: &Value,
    old: Option<&Value>,
    validate: fn(&S) -> Vec<Cause>,
    validate_update: fn(&S, &S) -> Vec<Cause>,
) -> Vec<Cause> {
    let spec = |object: &Value| serde_json::from_value::<S>(object["spec"].clone());
    match (spec(new), old.map(spec)) {
        (Ok(new), Some(Ok(old))) => validate_update(&new, &old),
        (Ok(new), _) => validate(&new),
        (Err(error), _) => {
            vec![Cause { field: "spec".to_owned(), kind: CauseKind::Invalid, message: error.to_string() }]
        }
    }
}

/// The schema of an object with spec and status.
pub(super) fn object<Spec: JsonSchema, Status: JsonSchema>(
    generator: &mut SchemaGenerator,
    description: &str,
) -> Schema {
    let metadata = generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>();
    let spec = generator.subschema_for::<Spec>();
    let status = generator.subschema_for::<Status>();
    json_schema!({
        "type": "object",
        "description": description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "description": "The version of this form of the object."},
            "kind": {"type": "string", "description": "What the object is."},
            "metadata": metadata,
            "spec": spec,
            "status": status,
        },
    })
}
