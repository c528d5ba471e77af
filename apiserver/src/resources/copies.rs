//! The stored kinds of copies: where they are kept, what was taken, what was brought back.

use serde_json::Value;

use super::{
    Column, EVERY_VERB, Resource, Storage, Strategy, Subresource,
    cells::{AGE, NAME, bytes, condition, reason, text, time},
    decode,
    stillpoint::{STATUS_VERBS, object, typed},
};

pub static REPOSITORIES: Resource = Resource {
    group: api::GROUP,
    version: api::VERSION,
    plural: "repositories",
    singular: "repository",
    kind: "Repository",
    short_names: &["sprepo"],
    categories: &["stillpoint"],
    namespaced: true,
    storage: Storage::Kept(Strategy {
        key: "repositories.stillpoint.dev",
        decode: decode::<api::Repository>,
        validate: |new, old| typed(new, old, api::validate::repository, api::validate::repository_update),
        strategic_as_merge: false,
    }),
    verbs: EVERY_VERB,
    subresources: &[Subresource { name: "status", kind: "Repository", verbs: STATUS_VERBS, schema: None }],
    columns: &[
        NAME,
        Column {
            name: "Ready",
            kind: "string",
            description: "Whether all of its locations can be used.",
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
            name: "Locations",
            kind: "string",
            description: "How many of its locations can be used.",
            priority: 0,
            cell: |object, _| {
                let all = list(&object["status"]["locations"]);
                let ready = all.iter().filter(|location| location["ready"] == true).count();
                format!("{ready}/{}", list(&object["spec"]["locations"]).len()).into()
            },
        },
        Column {
            name: "Snapshots",
            kind: "string",
            description: "Copies in its catalogue.",
            priority: 0,
            cell: |object, _| text(object, &["status", "snapshots"]),
        },
        AGE,
        Column {
            name: "Id",
            kind: "string",
            description: "By which restic knows it.",
            priority: 1,
            cell: |object, _| text(object, &["status", "id"]),
        },
    ],
    fields: &[],
    schema: |generator| {
        object::<api::RepositorySpec, api::RepositoryStatus>(
            generator,
            "Where dumps are kept: one or several locations that hold the same, encrypted and deduplicated.",
        )
    },
};

pub static SNAPSHOTS: Resource = Resource {
    group: api::GROUP,
    version: api::VERSION,
    plural: "snapshots",
    singular: "snapshot",
    kind: "Snapshot",
    short_names: &["spsnap"],
    categories: &["stillpoint"],
    namespaced: true,
    storage: Storage::Kept(Strategy {
        key: "snapshots.stillpoint.dev",
        decode: decode::<api::Snapshot>,
        validate: |new, old| typed(new, old, api::validate::snapshot, api::validate::snapshot_update),
        strategic_as_merge: false,
    }),
    verbs: EVERY_VERB,
    subresources: &[Subresource { name: "status", kind: "Snapshot", verbs: STATUS_VERBS, schema: None }],
    columns: &[
        NAME,
        DATABASES,
        Column {
            name: "Phase",
            kind: "string",
            description: "Where it stands.",
            priority: 0,
            cell: |object, _| text(object, &["status", "phase"]),
        },
        CONSISTENCY,
        Column {
            name: "Progress",
            kind: "string",
            description: "How far it is.",
            priority: 0,
            cell: |object, _| progress(&object["status"]["progress"]),
        },
        Column {
            name: "Size",
            kind: "string",
            description: "What was dumped.",
            priority: 0,
            cell: |object, _| bytes(&object["status"]["size"]),
        },
        Column {
            name: "Stored",
            kind: "string",
            description: "What of it was not in the repository already.",
            priority: 0,
            cell: |object, _| bytes(&object["status"]["stored"]),
        },
        AGE,
        Column {
            name: "Repository",
            kind: "string",
            description: "Where it is kept.",
            priority: 1,
            cell: |object, _| text(object, &["spec", "repository"]),
        },
        Column {
            name: "Message",
            kind: "string",
            description: "Why it is where it is.",
            priority: 1,
            cell: |object, _| text(object, &["status", "message"]),
        },
    ],
    fields: &["status.phase", "spec.repository"],
    schema: |generator| {
        object::<api::SnapshotSpec, api::SnapshotStatus>(
            generator,
            "One restorable copy of one or several Databases, with its consistency and proof.",
        )
    },
};

pub static RESTORES: Resource = Resource {
    group: api::GROUP,
    version: api::VERSION,
    plural: "restores",
    singular: "restore",
    kind: "Restore",
    short_names: &["sprest"],
    categories: &["stillpoint"],
    namespaced: true,
    storage: Storage::Kept(Strategy {
        key: "restores.stillpoint.dev",
        decode: decode::<api::Restore>,
        validate: |new, old| typed(new, old, api::validate::restore, api::validate::restore_update),
        strategic_as_merge: false,
    }),
    verbs: EVERY_VERB,
    subresources: &[Subresource { name: "status", kind: "Restore", verbs: STATUS_VERBS, schema: None }],
    columns: &[
        NAME,
        Column {
            name: "Database",
            kind: "string",
            description: "What it is restored into.",
            priority: 0,
            cell: |object, _| text(object, &["spec", "database"]),
        },
        Column {
            name: "Snapshot",
            kind: "string",
            description: "The copy that was chosen.",
            priority: 0,
            cell: |object, _| text(object, &["status", "chosen", "snapshot"]),
        },
        Column {
            name: "Phase",
            kind: "string",
            description: "Where it stands.",
            priority: 0,
            cell: |object, _| text(object, &["status", "phase"]),
        },
        Column {
            name: "Progress",
            kind: "string",
            description: "How far it is.",
            priority: 0,
            cell: |object, _| progress(&object["status"]["progress"]),
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
    schema: |generator| object::<api::RestoreSpec, api::RestoreStatus>(generator, "A copy brought back into a server."),
};

pub(super) const DATABASES: Column = Column {
    name: "Databases",
    kind: "string",
    description: "What is copied.",
    priority: 0,
    cell: |object, _| {
        let names = list(&object["spec"]["databases"]);
        names.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",").into()
    },
};

pub(super) const CONSISTENCY: Column = Column {
    name: "Consistency",
    kind: "string",
    description: "What it is worth.",
    priority: 0,
    cell: |object, _| text(object, &["status", "consistency", "verdict"]),
};

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// `1.2 GiB, 85 %, 40 MiB/s, 12s left`, as far as it is known.
fn progress(progress: &Value) -> Value {
    let Some(done) = progress["bytes"].as_u64() else { return "".into() };
    let mut parts = vec![bytes(&progress["bytes"]).as_str().unwrap_or_default().to_owned()];
    if let Some(total) = progress["totalBytes"].as_u64().filter(|total| *total > 0) {
        // What was expected is no bound.
        parts.push(format!("{} %", (done.saturating_mul(100) / total).min(99)));
    }
    if let Some(rate) = progress["bytesPerSecond"].as_u64().filter(|rate| *rate > 0) {
        parts.push(format!("{}/s", bytes(&rate.into()).as_str().unwrap_or_default()));
    }
    if let Some(left) = progress["remainingSeconds"].as_u64() {
        parts.push(format!("{left}s left"));
    }
    parts.join(", ").into()
}

/// When a copy was cut: the column that lists of copies are read by.
pub(super) const TAKEN: Column = Column {
    name: "Taken",
    kind: "string",
    description: "When it was cut.",
    priority: 0,
    cell: |object, now| match time(&object["status"]["cutBetween"]["frozenAt"]) {
        Some(taken) => super::cells::age(taken, now).into(),
        None => "".into(),
    },
};
