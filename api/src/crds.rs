//! The stored kinds as CustomResourceDefinitions: what the Rust types say, the columns of `kubectl get`, the fields that may be
//! selected by, and the few rules that a schema cannot say (one of two, never changed), in CEL.
//!
//! [`crate::validate`] is the whole truth; the rules here are those of its causes that must hold also where nobody of ours
//! looks. One table of cases holds both to it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, JSONSchemaProps, SelectableField, ValidationRule,
};
use kube::CustomResourceExt;

use crate::{
    Database, DumpTool, Freeze, Repository, Restore, Snapshot,
    validate::{copies as said, tools},
};

/// A CEL rule at a place in the schema.
struct Rule {
    /// The properties that lead there, from the object's root.
    at: &'static [&'static str],
    cel: &'static str,
    message: &'static str,
}

/// A column: its name, its JSONPath, and whether it is shown only with `-o wide`.
struct Column {
    name: &'static str,
    path: &'static str,
    kind: &'static str,
    description: &'static str,
    wide: bool,
}

/// The annotation by which a server knows the CRDs that it was built with.
pub const ANNOTATION_SCHEMA: &str = "stillpoint.dev/schema";
/// Raised with every change of a stored kind that an older server's or an older CRD's side would lose something by.
pub const SCHEMA: u32 = 1;

/// All of them, in the order of their names.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        complete(Database::crd(), DATABASE_COLUMNS, &[".spec.engine"], DATABASE_RULES),
        complete(DumpTool::crd(), DUMP_TOOL_COLUMNS, &[], DUMP_TOOL_RULES),
        complete(Freeze::crd(), FREEZE_COLUMNS, &[".status.phase"], FREEZE_RULES),
        complete(Repository::crd(), REPOSITORY_COLUMNS, &[], &[]),
        complete(Restore::crd(), RESTORE_COLUMNS, &[".status.phase"], RESTORE_RULES),
        complete(Snapshot::crd(), SNAPSHOT_COLUMNS, &[".status.phase"], SNAPSHOT_RULES),
    ]
}

/// The schema version that a CRD of the cluster carries; 0 when it carries none.
pub fn schema_of(crd: &CustomResourceDefinition) -> u32 {
    let annotation = crd.metadata.annotations.as_ref().and_then(|all| all.get(ANNOTATION_SCHEMA));
    annotation.and_then(|version| version.parse().ok()).unwrap_or(0)
}

const DATABASE_RULES: &[Rule] = &[
    Rule {
        at: &["spec"],
        cel: "self.engine == oldSelf.engine",
        message: "engine is for good; make another Database for another engine",
    },
    Rule {
        at: &["spec"],
        cel: "has(self.endpoint) || has(self.podSelector)",
        message: "give an endpoint, or a podSelector",
    },
    Rule {
        at: &["spec"],
        cel: "has(self.endpoint) || (has(self.agent) && self.agent == 'Required')",
        message: "without an endpoint only agents reach it: agent must be Required",
    },
    Rule {
        at: &["spec", "podSelector"],
        cel: "(has(self.matchLabels) && size(self.matchLabels) > 0) \
              || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
        message: "say something: an empty selector means every Pod of the namespace",
    },
    Rule {
        at: &["spec", "endpoint"],
        cel: "has(self.host) != has(self.socket)",
        message: "give a host or a socket, and not both",
    },
];

const DUMP_TOOL_RULES: &[Rule] = &[
    Rule { at: &["spec", "dump"], cel: "!has(self.file) || self.output == 'Stdout'", message: tools::ONE_FILE },
    Rule {
        at: &["spec"],
        cel: "self.dump.output == 'Stdout' || !has(self.restore) || !has(self.restore.input) \
               || self.restore.input == 'Directory'",
        message: tools::NOT_ON_STDIN,
    },
    Rule {
        at: &["spec"],
        cel: "!has(self.settings) || self.settings.all(one, self.settings.exists_one(other, other.name == one.name))",
        message: "a setting is there twice",
    },
];

const FREEZE_RULES: &[Rule] = &[
    Rule {
        at: &["spec"],
        cel: "self.targets == oldSelf.targets && self.copy == oldSelf.copy \
               && has(self.level) == has(oldSelf.level) && (!has(self.level) || self.level == oldSelf.level) \
               && has(self.ttlSeconds) == has(oldSelf.ttlSeconds) \
               && (!has(self.ttlSeconds) || self.ttlSeconds == oldSelf.ttlSeconds) \
               && has(self.reason) == has(oldSelf.reason) && (!has(self.reason) || self.reason == oldSelf.reason)",
        message: "only desired may change; make another Freeze for anything else",
    },
    Rule {
        at: &["spec"],
        cel: "oldSelf.desired == 'Frozen' || self.desired == 'Thawed'",
        message: "a freeze that was thawed is never taken again; make another Freeze",
    },
    Rule {
        at: &["spec"],
        cel: "self.targets.all(one, self.targets.exists_one(other, other.database == one.database))",
        message: "a Database is named twice",
    },
];

const SNAPSHOT_RULES: &[Rule] = &[
    Rule {
        at: &["spec"],
        cel: "self.databases == oldSelf.databases && self.method == oldSelf.method \
               && has(self.repository) == has(oldSelf.repository) \
               && (!has(self.repository) || self.repository == oldSelf.repository) \
               && has(self.tool) == has(oldSelf.tool) && (!has(self.tool) || self.tool == oldSelf.tool) \
               && has(self.volumeSnapshotClassName) == has(oldSelf.volumeSnapshotClassName) \
               && (!has(self.volumeSnapshotClassName) \
                   || self.volumeSnapshotClassName == oldSelf.volumeSnapshotClassName) \
               && has(self.volumeGroupSnapshotClassName) == has(oldSelf.volumeGroupSnapshotClassName) \
               && (!has(self.volumeGroupSnapshotClassName) \
                   || self.volumeGroupSnapshotClassName == oldSelf.volumeGroupSnapshotClassName) \
               && has(self.onMissed) == has(oldSelf.onMissed) \
               && (!has(self.onMissed) || self.onMissed == oldSelf.onMissed) \
               && has(self.deadlineSeconds) == has(oldSelf.deadlineSeconds) \
               && (!has(self.deadlineSeconds) || self.deadlineSeconds == oldSelf.deadlineSeconds) \
               && has(self.runner) == has(oldSelf.runner) && (!has(self.runner) || self.runner == oldSelf.runner)",
        message: "only deletionPolicy may change; make another Snapshot for anything else",
    },
    Rule {
        at: &["spec"],
        cel: "self.databases.all(one, self.databases.exists_one(other, other == one))",
        message: "a Database is named twice",
    },
    Rule { at: &["spec"], cel: "self.method != 'Dump' || has(self.repository)", message: said::DUMP_WHERE },
    Rule { at: &["spec"], cel: "self.method == 'Dump' || !has(self.repository)", message: said::VOLUMES_WHERE },
    Rule {
        at: &["spec"],
        cel: "self.method != 'Dump' || !(has(self.volumeSnapshotClassName) || has(self.volumeGroupSnapshotClassName) \
              || has(self.onMissed))",
        message: "volumeSnapshotClassName, volumeGroupSnapshotClassName and onMissed are for method: VolumeSnapshot",
    },
    Rule { at: &["spec"], cel: "self.method == 'Dump' || !has(self.tool)", message: said::TOOLS_DUMP },
];

const RESTORE_RULES: &[Rule] = &[
    Rule { at: &["spec"], cel: "self == oldSelf", message: "a Restore is for good; make another" },
    Rule {
        at: &["spec", "source"],
        cel: "[has(self.snapshot), has(self.latest) && self.latest, has(self.asOf)].filter(said, said).size() == 1",
        message: "say exactly one of snapshot, latest: true, asOf",
    },
    Rule {
        at: &["spec", "source"],
        cel: "has(self.snapshot) || has(self.repository)",
        message: "say in which Repository to look",
    },
    Rule { at: &["spec"], cel: "!(has(self.database) && has(self.volumes))", message: said::INTO_A_SERVER },
    Rule { at: &["spec"], cel: "has(self.database) || !has(self.tool)", message: said::TOOLS_RESTORE_INTO },
    Rule {
        at: &["spec"],
        cel: "has(self.database) || (has(self.source.snapshot) && self.existing == 'Never' && !has(self.databases))",
        message: said::OF_NO_DUMP,
    },
    Rule {
        at: &["spec"],
        cel: "!has(self.volumes) || self.volumes.all(one, self.volumes.exists_one(other, other.name == one.name))",
        message: "a claim is named twice",
    },
];

const DATABASE_COLUMNS: &[Column] = &[
    shown("Engine", ".spec.engine", "The kind of server."),
    shown("Ready", ".status.conditions[?(@.type==\"Ready\")].status", "Whether a freeze at its level would be tried."),
    shown("Reason", ".status.conditions[?(@.type==\"Ready\")].reason", "Why it is not ready."),
    shown("Level", ".spec.freeze.level", "What its freezes promise unless told otherwise."),
    shown("Last-Freeze", ".status.lastFreeze.phase", "How its newest freeze ended."),
    AGE,
    wide("Endpoint", ".spec.endpoint.host", "Where the server listens."),
    wide("Version", ".status.members[0].version", "The server's version."),
];

const DUMP_TOOL_COLUMNS: &[Column] = &[
    shown("Engines", ".spec.engines", "Whose Databases it dumps; none: any."),
    shown("Program", ".spec.dump.command[0]", "What dumps."),
    shown("Output", ".spec.dump.output", "Where it writes."),
    shown("Restores-By", ".spec.restore.command[0]", "What restores; none: its copies are restored by hand."),
    AGE,
    wide("Image", ".spec.image", "What its commands run in."),
];

const FREEZE_COLUMNS: &[Column] = &[
    shown("Databases", ".status.databases", "What it holds."),
    shown("Phase", ".status.phase", "Where it stands."),
    shown("Level", ".status.level", "What it promises."),
    Column { kind: "boolean", ..shown("Proved", ".status.proved", "Whether it is proved that the hold lasted.") },
    Column { kind: "integer", ..shown("Held-ms", ".status.frozenMilliseconds", "How long it held, in milliseconds.") },
    AGE,
    wide("Message", ".status.message", "How it ended, and what to do."),
];

const SNAPSHOT_COLUMNS: &[Column] = &[
    shown("Databases", ".spec.databases", "What is copied."),
    shown("Method", ".spec.method", "How the copy is made."),
    shown("Phase", ".status.phase", "Where it stands."),
    shown("Consistency", ".status.consistency.verdict", "What it is worth."),
    AGE,
    wide("Repository", ".spec.repository", "Where a dump is kept."),
    wide("Message", ".status.message", "Why it is where it is."),
];

const REPOSITORY_COLUMNS: &[Column] = &[
    shown("Ready", ".status.conditions[?(@.type==\"Ready\")].status", "Whether all of its locations can be used."),
    shown("Reason", ".status.conditions[?(@.type==\"Ready\")].reason", "Why it is not ready."),
    shown("Snapshots", ".status.snapshots", "Copies in its catalogue."),
    AGE,
    wide("Id", ".status.id", "By which restic knows it."),
];

const RESTORE_COLUMNS: &[Column] = &[
    shown("Database", ".spec.database", "What it is restored into; none: to new claims."),
    shown("Snapshot", ".status.chosen.snapshot", "The copy that was chosen."),
    shown("Phase", ".status.phase", "Where it stands."),
    AGE,
    wide("Message", ".status.message", "How it ended, and what to do."),
];

const AGE: Column =
    Column { name: "Age", path: ".metadata.creationTimestamp", kind: "date", description: "Since when.", wide: false };

const fn shown(name: &'static str, path: &'static str, description: &'static str) -> Column {
    Column { name, path, kind: "string", description, wide: false }
}

const fn wide(name: &'static str, path: &'static str, description: &'static str) -> Column {
    Column { name, path, kind: "string", description, wide: true }
}

fn complete(
    mut crd: CustomResourceDefinition,
    columns: &[Column],
    selectable: &[&str],
    rules: &[Rule],
) -> CustomResourceDefinition {
    crd.metadata.annotations.get_or_insert_default().insert(ANNOTATION_SCHEMA.to_owned(), SCHEMA.to_string());
    for version in &mut crd.spec.versions {
        version.additional_printer_columns = Some(columns.iter().map(Column::definition).collect());
        let field = |path: &&str| SelectableField { json_path: (*path).to_owned() };
        version.selectable_fields = Some(selectable.iter().map(field).collect());
        let schema = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut());
        if let Some(schema) = schema {
            // A rule whose place is not there would be missing, which the tests notice: they look for each.
            for rule in rules {
                rule.add_to(schema);
            }
        }
    }
    crd
}

impl Rule {
    fn add_to(&self, schema: &mut JSONSchemaProps) {
        let place = self.at.iter().try_fold(schema, |schema, name| schema.properties.as_mut()?.get_mut(*name));
        if let Some(place) = place {
            let rule = ValidationRule {
                rule: self.cel.to_owned(),
                message: Some(self.message.to_owned()),
                ..ValidationRule::default()
            };
            place.x_kubernetes_validations.get_or_insert_default().push(rule);
        }
    }
}

impl Column {
    fn definition(&self) -> CustomResourceColumnDefinition {
        CustomResourceColumnDefinition {
            name: self.name.to_owned(),
            type_: self.kind.to_owned(),
            json_path: self.path.to_owned(),
            description: Some(self.description.to_owned()),
            priority: self.wide.then_some(1),
            format: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn every_rule_is_in_its_place_and_every_column_leads_to_a_property() {
        for (crd, rules, columns) in [
            (&all()[0], DATABASE_RULES, DATABASE_COLUMNS),
            (&all()[1], DUMP_TOOL_RULES, DUMP_TOOL_COLUMNS),
            (&all()[2], FREEZE_RULES, FREEZE_COLUMNS),
            (&all()[3], &[], REPOSITORY_COLUMNS),
            (&all()[4], RESTORE_RULES, RESTORE_COLUMNS),
            (&all()[5], SNAPSHOT_RULES, SNAPSHOT_COLUMNS),
        ] {
            let schema = serde_json::to_value(&crd.spec.versions[0].schema).unwrap()["openAPIV3Schema"].take();
            let text = schema.to_string();
            let property =
                |path: &[&str]| path.iter().fold(&schema, |schema, name| &schema["properties"][name]).clone();
            for rule in rules {
                let there = &property(rule.at)["x-kubernetes-validations"];
                assert!(there.as_array().unwrap().iter().any(|found| found["rule"] == rule.cel), "{}", rule.cel);
            }
            for column in
                columns.iter().filter(|column| !column.path.contains('[') && !column.path.contains("metadata"))
            {
                let path: Vec<&str> = column.path.trim_start_matches('.').split('.').collect();
                assert_ne!(property(&path), Value::Null, "{}", column.path);
            }
            assert!(text.len() < 256 * 1024, "kubectl apply keeps the whole in an annotation of at most 256 KiB");
            assert_eq!(schema_of(crd), SCHEMA);
        }
    }
}
