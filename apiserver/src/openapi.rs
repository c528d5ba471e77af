//! OpenAPI documents, from the Rust types: version 3 per group, version 2 of everything. Made once, at the first request.

use std::sync::OnceLock;

use bytes::Bytes;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use crate::{
    discovery,
    resources::{Resource, Served, Subresource},
    target::Verb,
};

/// One document, with the hash that its URL carries.
#[derive(Debug)]
pub struct Document {
    pub group: &'static str,
    pub version: &'static str,
    pub bytes: Bytes,
    /// Upper-case hexadecimal SHA-512, without quotes.
    pub hash: String,
}

/// The version 3 documents, one per group and version.
pub fn v3(served: Served) -> &'static [Document] {
    static DOCUMENTS: [OnceLock<Vec<Document>>; 2] = [const { OnceLock::new() }; 2];
    DOCUMENTS[served as usize].get_or_init(|| {
        let groups = served.groups().into_iter();
        groups
            .map(|(group, version)| {
                let bytes = Bytes::from(document(served, group, version).to_string());
                let hash = discovery::etag(&bytes).trim_matches('"').to_owned();
                Document { group, version, bytes, hash }
            })
            .collect()
    })
}

/// The list of version 3 documents.
pub fn index(served: Served) -> Value {
    let paths: Map<String, Value> = v3(served)
        .iter()
        .map(|document| {
            let path = path_of(document.group, document.version);
            let url = format!("/openapi/v3/{path}?hash={}", document.hash);
            (path, json!({"serverRelativeURL": url}))
        })
        .collect();
    json!({"paths": paths})
}

/// The version 2 document, and its `ETag`.
pub fn v2(served: Served) -> &'static (Bytes, String) {
    static DOCUMENTS: [OnceLock<(Bytes, String)>; 2] = [const { OnceLock::new() }; 2];
    DOCUMENTS[served as usize].get_or_init(|| {
        let (mut paths, mut definitions) = (Map::new(), Map::new());
        for (group, version) in served.groups() {
            let mut document = document(served, group, version);
            if let Value::Object(schemas) = document["components"]["schemas"].take() {
                definitions.extend(schemas.into_iter().map(|(name, schema)| (name, downgrade(schema))));
            }
            if let Value::Object(of_group) = document["paths"].take() {
                paths.extend(of_group.into_iter().map(|(path, item)| (path, downgrade_operations(item))));
            }
        }
        let document = json!({
            "swagger": "2.0", "info": info(), "paths": paths, "definitions": definitions,
        });
        let bytes = Bytes::from(document.to_string());
        let etag = discovery::etag(&bytes);
        (bytes, etag)
    })
}

fn info() -> Value {
    json!({"title": "Stillpoint", "version": env!("CARGO_PKG_VERSION")})
}

fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn document(served: Served, group: &str, version: &str) -> Value {
    let mut generator = SchemaSettings::openapi3().into_generator();
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for resource in served.of(group, version) {
        let mut schema = (resource.schema)(&mut generator).to_value();
        // core/v1 types are definitions of their own already.
        if let Some(name) = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()) {
            let name = name.to_owned();
            let definition = generator.definitions_mut().remove(&name).unwrap_or_default();
            schema = definition;
        }
        schema["x-kubernetes-group-version-kind"] = json!([kind(resource, resource.kind)]);
        let name = schema_name(resource, resource.kind);
        schemas.insert(format!("{name}List"), list_schema(resource, &name));
        schemas.insert(name, schema);
        for subresource in resource.subresources {
            if let Some(schema) = subresource.schema {
                let mut schema = schema(&mut generator).to_value();
                schema["x-kubernetes-group-version-kind"] = json!([kind(resource, subresource.kind)]);
                schemas.insert(schema_name(resource, subresource.kind), schema);
            }
        }
        add_paths(resource, &mut paths);
    }
    for (name, schema) in generator.take_definitions(true) {
        schemas.insert(dotted(&name), schema);
    }
    let mut document = json!({"openapi": "3.0.0", "info": info(), "paths": paths, "components": {"schemas": schemas}});
    rename_references(&mut document);
    document
}

fn add_paths(resource: &Resource, all: &mut Map<String, Value>) {
    let mut paths = Map::new();
    let base = format!("/{}", path_of(resource.group, resource.version));
    let collection = if resource.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", resource.plural)
    } else {
        format!("{base}/{}", resource.plural)
    };
    if resource.namespaced {
        let everywhere = format!("{base}/{}", resource.plural);
        paths.insert(everywhere, item(resource, &[Verb::List], None, &[]));
    }
    let namespace: &[&str] = if resource.namespaced { &["namespace"] } else { &[] };
    let named: Vec<&str> = namespace.iter().copied().chain(["name"]).collect();
    paths.insert(
        collection.clone(),
        item(resource, &[Verb::List, Verb::Create, Verb::DeleteCollection], None, namespace),
    );
    let object = format!("{collection}/{{name}}");
    paths.insert(object.clone(), item(resource, &[Verb::Get, Verb::Update, Verb::Patch, Verb::Delete], None, &named));
    for subresource in resource.subresources {
        let path = format!("{object}/{}", subresource.name);
        paths.insert(path, item(resource, subresource.verbs, Some(subresource), &named));
    }
    // One that is there for its subresources alone has nothing of its own to be asked for.
    paths.retain(|_, item| item.as_object().is_some_and(|item| item.keys().any(|key| key != "parameters")));
    all.extend(paths);
}

fn item(resource: &Resource, verbs: &[Verb], subresource: Option<&Subresource>, path_parameters: &[&str]) -> Value {
    let mut item = Map::new();
    let served = subresource.map_or(resource.verbs, |subresource| subresource.verbs);
    for verb in verbs.iter().filter(|verb| served.contains(verb)) {
        let (method, action) = match verb {
            Verb::Get => ("get", "get"),
            Verb::List | Verb::Watch => ("get", "list"),
            Verb::Create => ("post", "post"),
            Verb::Update => ("put", "put"),
            Verb::Patch => ("patch", "patch"),
            Verb::Delete => ("delete", "delete"),
            Verb::DeleteCollection => ("delete", "deletecollection"),
        };
        item.insert(method.to_owned(), operation(resource, *verb, action, subresource));
    }
    let parameters: Vec<Value> = path_parameters
        .iter()
        .map(|name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
        .collect();
    item.insert("parameters".to_owned(), parameters.into());
    item.into()
}

fn operation(resource: &Resource, verb: Verb, action: &str, subresource: Option<&Subresource>) -> Value {
    let kind_name = subresource.map_or(resource.kind, |subresource| subresource.kind);
    let schema = json!({"$ref": format!("#/components/schemas/{}", schema_name(resource, kind_name))});
    let list = json!({"$ref": format!("#/components/schemas/{}List", schema_name(resource, kind_name))});
    let answer = if verb == Verb::List { &list } else { &schema };
    let write = ["dryRun", "fieldManager", "fieldValidation", "pretty"];
    let query: &[&str] = match verb {
        Verb::Create | Verb::Update | Verb::Patch => &write,
        Verb::List | Verb::DeleteCollection | Verb::Watch => {
            &["continue", "fieldSelector", "labelSelector", "limit", "resourceVersion", "resourceVersionMatch", "watch"]
        }
        Verb::Get => &["pretty"],
        Verb::Delete => &["dryRun", "propagationPolicy"],
    };
    let parameters: Vec<Value> =
        query.iter().map(|name| json!({"name": name, "in": "query", "schema": {"type": "string"}})).collect();
    let mut operation = json!({
        "operationId": format!("{action}{}{}", resource.kind, subresource.map_or("", |subresource| subresource.name)),
        "parameters": parameters,
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": answer}}}},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind(resource, kind_name),
    });
    match verb {
        Verb::Create | Verb::Update => {
            operation["requestBody"] = json!({"content": {"application/json": {"schema": schema}}});
        }
        Verb::Patch => {
            let any = json!({"schema": {"type": "object"}});
            operation["requestBody"] =
                json!({"content": {"application/json-patch+json": any, "application/merge-patch+json": any}});
        }
        _ => {}
    }
    operation
}

fn list_schema(resource: &Resource, name: &str) -> Value {
    json!({
        "type": "object", "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"},
            "metadata": {"type": "object", "properties": {
                "resourceVersion": {"type": "string"}, "continue": {"type": "string"},
                "remainingItemCount": {"type": "integer", "format": "int64"}}},
            "items": {"type": "array", "items": {"$ref": format!("#/components/schemas/{name}")}},
        },
        "x-kubernetes-group-version-kind": [kind(resource, &format!("{}List", resource.kind))],
    })
}

fn kind(resource: &Resource, kind: &str) -> Value {
    json!({"group": resource.group, "version": resource.version, "kind": kind})
}

/// `dev.stillpoint.v1alpha1.Database`: the group read backwards.
fn schema_name(resource: &Resource, kind: &str) -> String {
    let group = if resource.group.is_empty() { "io.k8s.api.core".to_owned() } else { backwards(resource.group) };
    format!("{group}.{}.{kind}", resource.version)
}

fn backwards(group: &str) -> String {
    group.split('.').rev().collect::<Vec<_>>().join(".")
}

/// Definition names may hold letters, digits, dots, dashes and underscores only.
fn dotted(name: &str) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '.' }
    };
    let name: String = name.chars().map(safe).collect();
    if name.contains('.') { name } else { format!("dev.stillpoint.types.{name}") }
}

fn rename_references(value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(name) = reference.strip_prefix("#/components/schemas/")
            {
                *reference = format!("#/components/schemas/{}", dotted(name));
            }
            map.values_mut().for_each(rename_references);
        }
        Value::Array(items) => items.iter_mut().for_each(rename_references),
        _ => {}
    }
}

/// What version 2 cannot say is left out: `nullable`, `oneOf`, `anyOf`, `allOf`, `const`.
fn downgrade(schema: Value) -> Value {
    match schema {
        Value::Object(map) => {
            if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                return json!({"$ref": reference.replace("#/components/schemas/", "#/definitions/")});
            }
            let unknown = ["nullable", "oneOf", "anyOf", "allOf", "not", "const", "writeOnly"];
            let kept = map.into_iter().filter(|(key, _)| !unknown.contains(&key.as_str()));
            kept.map(|(key, value)| (key, downgrade(value))).collect::<Map<_, _>>().into()
        }
        Value::Array(items) => items.into_iter().map(downgrade).collect::<Vec<_>>().into(),
        other => other,
    }
}

fn downgrade_operations(mut item: Value) -> Value {
    for (method, operation) in item.as_object_mut().into_iter().flatten() {
        if method == "parameters" {
            for parameter in operation.as_array_mut().into_iter().flatten() {
                flatten_parameter(parameter);
            }
            continue;
        }
        for parameter in operation["parameters"].as_array_mut().into_iter().flatten() {
            flatten_parameter(parameter);
        }
        let schema = downgrade(operation["responses"]["200"]["content"]["application/json"]["schema"].take());
        operation["responses"] = json!({"200": {"description": "OK", "schema": schema}});
        if let Some(Value::Object(body)) =
            operation.as_object_mut().and_then(|operation| operation.remove("requestBody"))
        {
            let content = body.get("content").and_then(Value::as_object);
            let first = content.and_then(|content| content.values().next()).cloned().unwrap_or_default();
            let body =
                json!({"name": "body", "in": "body", "required": true, "schema": downgrade(first["schema"].clone())});
            if let Some(parameters) = operation["parameters"].as_array_mut() {
                parameters.push(body);
            }
        }
    }
    item
}

fn flatten_parameter(parameter: &mut Value) {
    if let Some(parameter) = parameter.as_object_mut() {
        parameter.remove("schema");
        parameter.insert("type".to_owned(), "string".into());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(Value::String(reference)) = map.get("$ref") {
                    found.insert(reference.clone());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    fn check(document: &Value, definitions: &Value, prefix: &str) {
        let mut found = BTreeSet::new();
        references(document, &mut found);
        for reference in found {
            let name = reference.strip_prefix(prefix).unwrap_or_else(|| panic!("{reference}"));
            assert!(definitions.get(name).is_some(), "{reference} leads nowhere");
        }
        for name in definitions.as_object().unwrap().keys() {
            assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)), "{name}");
        }
    }

    #[test]
    fn every_reference_of_every_document_resolves() {
        for document in v3(Served::Standalone) {
            let document: Value = serde_json::from_slice(&document.bytes).unwrap();
            check(&document, &document["components"]["schemas"], "#/components/schemas/");
        }
        let document: Value = serde_json::from_slice(&v2(Served::Standalone).0).unwrap();
        check(&document, &document["definitions"], "#/definitions/");
        for (path, item) in document["paths"].as_object().unwrap() {
            assert!(item.as_object().unwrap().len() > 1, "{path} has no operation");
            for (method, operation) in item.as_object().unwrap().iter().filter(|(method, _)| *method != "parameters") {
                assert!(operation["responses"].is_object(), "{method} {path}");
            }
        }
    }
}
