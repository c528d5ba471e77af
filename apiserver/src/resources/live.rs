//! `live.stillpoint.dev/v1alpha1`: the same names as stored objects, what is true of them now, and what can be done with them.
//! Never stored; Databases are read from the freezer's memory, without dialling any server.

use std::sync::Arc;

use api::{
    Database, Freeze, LiveDatabase, LiveDatabaseStatus, LiveSnapshotSpec, LiveSnapshotStatus, Quiesce, Renew,
    RepositoryCheck, RestoreSpec, SnapshotSpec, Unquiesce,
};
use freeze::{FreezeName, FreezeView};
use jiff::Timestamp;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use super::{
    Column, Resource, Storage, Subresource,
    cells::{AGE, NAME, bytes, text},
};
use crate::target::Verb;

pub static DATABASES: Resource = Resource {
    group: api::LIVE_GROUP,
    version: api::VERSION,
    plural: "databases",
    singular: "database",
    kind: "LiveDatabase",
    short_names: &["splive"],
    categories: &[],
    namespaced: true,
    storage: Storage::Live,
    verbs: &[Verb::Get, Verb::List],
    subresources: &[
        Subresource { name: "quiesce", kind: "Quiesce", verbs: &[Verb::Create], schema: Some(Quiesce::json_schema) },
        Subresource {
            name: "unquiesce",
            kind: "Unquiesce",
            verbs: &[Verb::Create],
            schema: Some(Unquiesce::json_schema),
        },
        Subresource { name: "renew", kind: "Renew", verbs: &[Verb::Create], schema: Some(Renew::json_schema) },
    ],
    columns: &[
        NAME,
        Column {
            name: "Engine",
            kind: "string",
            description: "The kind of server.",
            priority: 0,
            cell: |object, _| text(object, &["status", "engine"]),
        },
        Column {
            name: "State",
            kind: "string",
            description: "Idle, or the phase of the freeze that covers it.",
            priority: 0,
            cell: |object, _| text(object, &["status", "state"]),
        },
        Column {
            name: "Level",
            kind: "string",
            description: "What the freeze promises.",
            priority: 0,
            cell: |object, _| text(object, &["status", "level"]),
        },
        Column {
            name: "Claims",
            kind: "integer",
            description: "How many want it held.",
            priority: 0,
            cell: |object, _| object["status"]["claims"].as_array().map_or(0, Vec::len).into(),
        },
        Column {
            name: "Left",
            kind: "string",
            description: "Until it ends by itself.",
            priority: 0,
            cell: |object, _| match object["status"]["remainingMilliseconds"].as_u64() {
                Some(left) => format!("{}.{}s", left / 1000, left % 1000 / 100).into(),
                None => "".into(),
            },
        },
        Column {
            name: "Freeze",
            kind: "string",
            description: "The Freeze that covers it.",
            priority: 0,
            cell: |object, _| text(object, &["status", "freeze"]),
        },
        Column {
            name: "Stalled",
            kind: "string",
            description: "Sessions that wait for it.",
            priority: 1,
            cell: |object, _| text(object, &["status", "stalledSessions"]),
        },
        AGE,
    ],
    fields: &[],
    schema: |generator| {
        let metadata = generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>();
        let status = generator.subschema_for::<LiveDatabaseStatus>();
        json_schema!({
            "type": "object",
            "description": "A Database as the freezer knows it now.",
            "properties": {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": metadata, "status": status},
        })
    },
};

/// What a stored Freeze says of the Databases that it holds now, for whoever does not hold them himself.
pub fn views(freeze: &Freeze, now: Timestamp) -> Vec<((String, String), FreezeView)> {
    let (Some(status), Some(namespace), Some(name)) =
        (&freeze.status, &freeze.metadata.namespace, &freeze.metadata.name)
    else {
        return Vec::new();
    };
    if status.phase.is_finished() || status.freezer.is_none() {
        return Vec::new();
    }
    let left = status.expires_at.as_ref().map(|end| end.0.duration_since(now));
    let view = FreezeView {
        freeze: FreezeName { namespace: namespace.clone(), name: name.clone() },
        status: Arc::new(status.clone()),
        copy: freeze.spec.copy,
        remaining: left.map(|left| left.try_into().unwrap_or_default()),
        held_for: None,
        stalled_sessions: None,
        claimants: status.claims.iter().map(|claim| (claim.uid.clone(), claim.user.clone())).collect(),
    };
    let of = |target: &api::TargetStatus| ((namespace.clone(), target.database.clone()), view.clone());
    status.targets.iter().map(of).collect()
}

pub static SNAPSHOTS: Resource = Resource {
    group: api::LIVE_GROUP,
    version: api::VERSION,
    plural: "snapshots",
    singular: "snapshot",
    kind: "LiveSnapshot",
    short_names: &["splivesnap"],
    categories: &[],
    namespaced: true,
    storage: Storage::Live,
    verbs: &[Verb::Create, Verb::Get, Verb::List],
    subresources: &[
        Subresource { name: "restore", kind: "Restore", verbs: &[Verb::Create], schema: Some(restore) },
        Subresource {
            name: "generate",
            kind: "Snapshot",
            verbs: &[Verb::Create, Verb::Get],
            schema: Some(|generator| sent::<SnapshotSpec>(generator, "A Snapshot that is not stored.")),
        },
        Subresource { name: "download", kind: "LiveSnapshot", verbs: &[Verb::Get], schema: None },
        Subresource { name: "log", kind: "LiveSnapshot", verbs: &[Verb::Get], schema: None },
    ],
    columns: &[
        NAME,
        super::copies::DATABASES,
        super::copies::TAKEN,
        Column {
            name: "Phase",
            kind: "string",
            description: "Where it stands.",
            priority: 0,
            cell: |object, _| text(object, &["status", "phase"]),
        },
        super::copies::CONSISTENCY,
        Column {
            name: "Size",
            kind: "string",
            description: "What was dumped.",
            priority: 0,
            cell: |object, _| bytes(&object["status"]["size"]),
        },
        Column {
            name: "Repository",
            kind: "string",
            description: "Where it is kept.",
            priority: 0,
            cell: |object, _| text(object, &["spec", "repository"]),
        },
        Column {
            name: "Known-By",
            kind: "string",
            description: "Snapshot, Repository (no object here), or Foreign.",
            priority: 0,
            cell: |object, _| text(object, &["status", "known"]),
        },
        Column {
            name: "Locations",
            kind: "string",
            description: "Where it can be read.",
            priority: 1,
            cell: |object, _| {
                let names = super::copies::list(&object["status"]["locations"]);
                names.iter().filter_map(serde_json::Value::as_str).collect::<Vec<_>>().join(",").into()
            },
        },
        Column {
            name: "Taken-As",
            kind: "string",
            description: "The Snapshot that asked for it, wherever that was.",
            priority: 1,
            cell: |object, _| text(object, &["status", "takenAs"]),
        },
    ],
    fields: &["spec.repository", "status.known", "status.phase"],
    schema: |generator| {
        let metadata = generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>();
        let (spec, status) =
            (generator.subschema_for::<LiveSnapshotSpec>(), generator.subschema_for::<LiveSnapshotStatus>());
        json_schema!({
            "type": "object",
            "description": "A copy that is there, or that is being made.",
            "properties": {
                "apiVersion": {"type": "string", "description": "The version of this form of the object."},
                "kind": {"type": "string", "description": "What the object is."},
                "metadata": metadata,
                "spec": spec,
                "status": status,
            },
        })
    },
};

/// Nothing of its own: what can be done with the stored ones.
pub static REPOSITORIES: Resource = Resource {
    group: api::LIVE_GROUP,
    version: api::VERSION,
    plural: "repositories",
    singular: "repository",
    kind: "LiveRepository",
    short_names: &[],
    categories: &[],
    namespaced: true,
    storage: Storage::Live,
    verbs: &[],
    subresources: &[Subresource {
        name: "check",
        kind: "RepositoryCheck",
        verbs: &[Verb::Create],
        schema: Some(RepositoryCheck::json_schema),
    }],
    columns: &[NAME],
    fields: &[],
    schema: |_| bare("What can be done with a Repository."),
};

/// Nothing of its own: what can be asked of the stored ones.
pub static RESTORES: Resource = Resource {
    group: api::LIVE_GROUP,
    version: api::VERSION,
    plural: "restores",
    singular: "restore",
    kind: "LiveRestore",
    short_names: &[],
    categories: &[],
    namespaced: true,
    storage: Storage::Live,
    verbs: &[],
    subresources: &[
        Subresource { name: "generate", kind: "Restore", verbs: &[Verb::Create, Verb::Get], schema: Some(restore) },
        Subresource { name: "log", kind: "LiveRestore", verbs: &[Verb::Get], schema: None },
    ],
    columns: &[NAME],
    fields: &[],
    schema: |_| bare("What can be asked of a Restore."),
};

fn restore(generator: &mut SchemaGenerator) -> Schema {
    sent::<RestoreSpec>(generator, "A Restore that is asked for.")
}

/// Of the body of a verb that has the form of a stored kind.
fn sent<S: JsonSchema>(generator: &mut SchemaGenerator, description: &str) -> Schema {
    let metadata = generator.subschema_for::<k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta>();
    let spec = generator.subschema_for::<S>();
    let mut schema = bare(description);
    if let Some(properties) = schema.ensure_object()["properties"].as_object_mut() {
        properties.insert("metadata".to_owned(), metadata.to_value());
        properties.insert("spec".to_owned(), spec.to_value());
    }
    schema
}

/// Of what is never answered as an object.
fn bare(description: &str) -> Schema {
    json_schema!({
        "type": "object",
        "description": description,
        "properties": {
            "apiVersion": {"type": "string", "description": "The version of this form of the object."},
            "kind": {"type": "string", "description": "What the object is."},
        },
    })
}

/// What is true of a Database now.
pub fn show(database: &Database, view: Option<FreezeView>) -> LiveDatabase {
    let name = database.metadata.name.clone().unwrap_or_default();
    let engine = database.spec.engine;
    let endpoint = database.spec.place();
    let mut status = LiveDatabaseStatus {
        engine,
        endpoint,
        state: "Idle".to_owned(),
        freeze: None,
        level: None,
        copy: None,
        position: None,
        claims: Vec::new(),
        frozen_at: None,
        expires_at: None,
        remaining_milliseconds: None,
        stalled_sessions: None,
    };
    if let Some(view) = view {
        let target = view.status.targets.iter().find(|target| target.database == name);
        status = LiveDatabaseStatus {
            state: view.status.phase.to_string(),
            freeze: Some(view.freeze.name),
            level: view.status.level,
            copy: Some(view.copy),
            position: target.and_then(|target| target.position.clone()),
            claims: view.status.claims.iter().filter(|claim| claim.ended_at.is_none()).cloned().collect(),
            frozen_at: view.status.frozen_at.clone(),
            expires_at: view.status.expires_at.clone(),
            remaining_milliseconds: view.remaining.and_then(|left| u64::try_from(left.as_millis()).ok()),
            stalled_sessions: view.stalled_sessions,
            ..status
        };
    }
    let mut metadata = database.metadata.clone();
    metadata.managed_fields = None;
    metadata.annotations = None;
    LiveDatabase { api_version: api::LIVE_API_VERSION.to_owned(), kind: DATABASES.kind.to_owned(), metadata, status }
}
