//! What is served, from the table of resources and nothing else: aggregated (version 2) and legacy documents. Pure.

use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use crate::{
    error::ApiError,
    resources::{Resource, Served},
    target::{Document, Verb},
};

/// The content type of the aggregated document; its parameters are part of the contract.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// A legacy document.
pub fn document(served: Served, document: &Document) -> Result<Value, ApiError> {
    match document {
        Document::Root => Ok(json!({"paths": paths(served)})),
        Document::CoreVersions if served.groups().iter().all(|(group, _)| !group.is_empty()) => {
            Err(ApiError::no_such_path())
        }
        Document::CoreVersions => Ok(json!({
            "kind": "APIVersions", "apiVersion": "v1", "versions": ["v1"], "serverAddressByClientCIDRs": [],
        })),
        Document::Groups => {
            let groups: Vec<Value> = served.groups().iter().filter(|(group, _)| !group.is_empty()).map(group).collect();
            Ok(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        Document::Group(name) => {
            let found = served.groups().into_iter().find(|(group, _)| group == name && !group.is_empty());
            let mut value = group(&found.ok_or_else(ApiError::no_such_path)?);
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            Ok(value)
        }
        Document::Resources { group, version } => resources(served, group, version),
    }
}

/// `APIGroupDiscoveryList` of `/api` (core) or `/apis` (the rest).
pub fn aggregated(served: Served, core: bool) -> Value {
    let items: Vec<Value> = served
        .groups()
        .into_iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, version)| {
            let resources: Vec<Value> = served.of(group, version).map(aggregated_resource).collect();
            let metadata = if core { json!({"creationTimestamp": null}) } else { json!({"name": group, "creationTimestamp": null}) };
            json!({"metadata": metadata, "versions": [{"version": version, "freshness": "Current", "resources": resources}]})
        })
        .collect();
    json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items})
}

/// `"SHA-512 in upper-case hexadecimal"`, quotes included (apiserver `discovery/aggregated/etag.go`).
pub fn etag(bytes: &[u8]) -> String {
    let hex = Sha512::digest(bytes).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02X}"));
    format!("\"{hex}\"")
}

fn paths(served: Served) -> Vec<String> {
    let mut paths = vec!["/apis".to_owned()];
    for (group, version) in served.groups() {
        if group.is_empty() {
            paths.extend(["/api".to_owned(), format!("/api/{version}")]);
            continue;
        }
        paths.push(format!("/apis/{group}"));
        paths.push(format!("/apis/{group}/{version}"));
    }
    paths.extend(
        ["/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(str::to_owned),
    );
    paths
}

fn group((group, version): &(&str, &str)) -> Value {
    let version = json!({"groupVersion": format!("{group}/{version}"), "version": version});
    json!({"name": group, "versions": [version], "preferredVersion": version})
}

fn resources(served: Served, group: &str, version: &str) -> Result<Value, ApiError> {
    let mut documents = Vec::new();
    for resource in served.of(group, version) {
        // One that is there for its subresources alone is no resource of its own; only the newer document has to name it.
        if !resource.verbs.is_empty() {
            documents.push(json!({
                "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
                "kind": resource.kind, "verbs": words(resource.verbs), "shortNames": resource.short_names,
                "categories": resource.categories,
            }));
        }
        documents.extend(resource.subresources.iter().map(|subresource| {
            json!({
                "name": format!("{}/{}", resource.plural, subresource.name), "singularName": "",
                "namespaced": resource.namespaced, "kind": subresource.kind, "verbs": words(subresource.verbs),
            })
        }));
    }
    if documents.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Ok(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": documents}))
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = |kind: &str| json!({"group": resource.group, "version": resource.version, "kind": kind});
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|sub| json!({"subresource": sub.name, "responseKind": kind(sub.kind), "verbs": words(sub.verbs)}))
        .collect();
    json!({
        "resource": resource.plural, "responseKind": kind(resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular, "shortNames": resource.short_names, "categories": resource.categories,
        "verbs": words(resource.verbs), "subresources": subresources,
    })
}

fn words(verbs: &[Verb]) -> Vec<&'static str> {
    verbs.iter().map(|verb| verb.word()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_documents_tell_the_same() {
        for served in [Served::Standalone, Served::Aggregated] {
            for (group, version) in served.groups() {
                let legacy = resources(served, group, version).unwrap();
                let legacy = legacy["resources"].as_array().unwrap();
                for resource in legacy {
                    assert!(resource["kind"].as_str().is_some_and(|kind| !kind.is_empty()));
                    assert!(resource["verbs"].as_array().is_some_and(|verbs| !verbs.is_empty()));
                }
                let new = aggregated(served, group.is_empty());
                let item = new["items"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|item| item["metadata"]["name"].as_str().unwrap_or("") == group);
                let new = item.unwrap()["versions"][0]["resources"].as_array().unwrap();
                let length = |value: &Value| value.as_array().unwrap().len();
                let of = |resource: &Value| length(&resource["verbs"]).min(1) + length(&resource["subresources"]);
                assert_eq!(new.iter().map(of).sum::<usize>(), legacy.len(), "{group}");
            }
        }
    }
}
