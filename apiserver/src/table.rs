//! Objects as `kubectl get` prints them (`meta.k8s.io/v1` Table), and as metadata alone. Pure.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::resources::Resource;

/// What a row carries beside its cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    pub fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("" | "Metadata") => Some(Self::Metadata),
            Some("None") => Some(Self::None),
            Some("Object") => Some(Self::Object),
            Some(_) => None,
        }
    }
}

/// A Table of objects. `columns`: only the first of a watch has them.
pub fn table(
    resource: &Resource,
    objects: &[Value],
    list: Value,
    include: Include,
    columns: bool,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects.iter().map(|object| row(resource, object, include, now)).collect();
    let definitions: Vec<Value> = if columns { resource.columns.iter().map(definition).collect() } else { Vec::new() };
    let mut table = json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": list, "rows": rows});
    table["columnDefinitions"] = if columns { definitions.into() } else { Value::Null };
    table
}

/// The object's metadata alone.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

fn row(resource: &Resource, object: &Value, include: Include, now: Timestamp) -> Value {
    let cells: Vec<Value> = resource.columns.iter().map(|column| (column.cell)(object, now)).collect();
    match include {
        Include::None => json!({"cells": cells}),
        Include::Metadata => json!({"cells": cells, "object": partial(object)}),
        Include::Object => json!({"cells": cells, "object": object}),
    }
}

fn definition(column: &crate::resources::Column) -> Value {
    json!({
        "name": column.name, "type": column.kind, "format": if column.name == "Name" { "name" } else { "" },
        "description": column.description, "priority": column.priority,
    })
}
