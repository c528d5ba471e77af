//! What happens to `metadata` (Kubernetes API conventions, "Metadata"; apiserver `registry/rest`, `registry/generic`). Pure.

use api::validate::{Cause, CauseKind};
use jiff::Timestamp;
use rand::Rng;
use serde_json::{Value, json};

use crate::{error::ApiError, resources::Resource};

/// What the system sets, and nobody else may.
const SYSTEM: &[&str] =
    &["uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"];
/// apiserver `names/generate.go`: no vowels, nothing that looks like something else.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
const SUFFIX: usize = 5;
const LONGEST_BASE: usize = 63 - SUFFIX;
/// apimachinery `validation/objectmeta.go`: all annotations together.
const MOST_ANNOTATIONS: usize = 256 * 1024;

/// Fits a body to the path it came by, and gives it what a new object gets.
pub fn prepare_for_create(
    resource: &Resource,
    object: &mut Value,
    namespace: Option<&str>,
    name: Option<&str>,
    now: Timestamp,
) -> Result<(), ApiError> {
    fit(resource, object, namespace, name)?;
    let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    if !version.is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| !SYSTEM.contains(&key.as_str()) && key != "resourceVersion" && key != "managedFields");
    }
    if resource.has_status()
        && let Some(object) = object.as_object_mut()
    {
        object.remove("status");
    }
    let metadata = &mut object["metadata"];
    metadata["uid"] = uuid::Uuid::new_v4().to_string().into();
    metadata["creationTimestamp"] = seconds(now);
    if resource.has_status() {
        metadata["generation"] = 1.into();
    }
    Ok(())
}

/// Whether the name is the server's to make.
pub fn wants_a_name(object: &Value) -> Option<&str> {
    let metadata = &object["metadata"];
    let named = metadata["name"].as_str().is_some_and(|name| !name.is_empty());
    metadata["generateName"].as_str().filter(|base| !named && !base.is_empty())
}

/// A name that begins with `base`.
pub fn generated(base: &str) -> String {
    let base: String = base.chars().take(LONGEST_BASE).collect();
    let mut random = rand::rng();
    let suffix = (0..SUFFIX).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]));
    base.chars().chain(suffix).collect()
}

/// Brings a new state of an object onto the old one. `status`: only the status is new; otherwise only the rest is.
pub fn prepare_for_update(resource: &Resource, new: &mut Value, old: &Value, status: bool) -> Result<(), ApiError> {
    let name = old["metadata"]["name"].as_str().unwrap_or_default();
    let wanted_uid = new["metadata"]["uid"].as_str().unwrap_or_default();
    if !wanted_uid.is_empty() && new["metadata"]["uid"] != old["metadata"]["uid"] {
        let message = format!(
            "Precondition failed: UID in precondition: {wanted_uid}, UID in object meta: {}",
            old["metadata"]["uid"].as_str().unwrap_or_default()
        );
        return Err(ApiError::conflict(resource.about(name), message));
    }
    if status {
        let fresh = new["status"].take();
        *new = old.clone();
        new["status"] = fresh;
        return Ok(());
    }
    for key in SYSTEM {
        match old["metadata"].get(*key) {
            Some(value) => new["metadata"][*key] = value.clone(),
            None => drop(new["metadata"].as_object_mut().and_then(|metadata| metadata.remove(*key))),
        }
    }
    if let Some(metadata) = new["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    if resource.has_status() {
        match old.get("status") {
            Some(status) => new["status"] = status.clone(),
            None => drop(new.as_object_mut().and_then(|object| object.remove("status"))),
        }
        if new["spec"] != old["spec"] {
            new["metadata"]["generation"] = (old["metadata"]["generation"].as_i64().unwrap_or(1) + 1).into();
        }
    }
    if !old["metadata"]["deletionTimestamp"].is_null() {
        let had = finalizers(old);
        if finalizers(new).iter().any(|finalizer| !had.contains(finalizer)) {
            let message = "no new finalizers can be added if the object is being deleted".to_owned();
            let cause = Cause { field: "metadata.finalizers".into(), kind: CauseKind::Forbidden, message };
            return Err(resource.invalid(name, &[cause]));
        }
    }
    Ok(())
}

/// Checks a body against the path it came by, and fills in what the path says.
pub fn fit(
    resource: &Resource,
    object: &mut Value,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Result<(), ApiError> {
    if !object.is_object() {
        return Err(ApiError::bad_request(format!("the body must be a {} object", resource.kind)));
    }
    let (api_version, kind) = (resource.api_version(), resource.kind);
    for (field, wanted, what) in [("apiVersion", api_version.as_str(), "API version"), ("kind", kind, "kind")] {
        match object[field].as_str().unwrap_or_default() {
            "" => object[field] = wanted.into(),
            found if found != wanted => {
                return Err(ApiError::bad_request(format!(
                    "the {what} in the data ({found}) does not match the expected {what} ({wanted})"
                )));
            }
            _ => {}
        }
    }
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    let said = object["metadata"]["namespace"].as_str().unwrap_or_default();
    match (namespace, said) {
        (Some(namespace), "") => object["metadata"]["namespace"] = namespace.into(),
        (Some(namespace), said) if said != namespace => {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        _ => {}
    }
    let said = object["metadata"]["name"].as_str().unwrap_or_default();
    match (name, said) {
        (Some(name), "") => object["metadata"]["name"] = name.into(),
        (Some(name), said) if said != name => {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({said}) does not match the name on the URL ({name})"
            )));
        }
        _ => {}
    }
    Ok(())
}

/// What is wrong with the metadata of a complete object.
pub fn validate(object: &Value) -> Vec<Cause> {
    let metadata = &object["metadata"];
    let mut causes = Vec::new();
    let mut wrong = |field: &str, kind, message: &str| {
        causes.push(Cause { field: field.to_owned(), kind, message: message.to_owned() });
    };
    match metadata["name"].as_str().unwrap_or_default() {
        "" => wrong("metadata.name", CauseKind::Required, "name or generateName is required"),
        name if !is_subdomain(name) => wrong(
            "metadata.name",
            CauseKind::Invalid,
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
             start and end with an alphanumeric character",
        ),
        _ => {}
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        if !is_qualified(key) || !value.as_str().is_some_and(is_label_value) {
            let message = format!("{key:?} is no label: keys are [prefix/]name, values at most 63 characters");
            wrong("metadata.labels", CauseKind::Invalid, &message);
        }
    }
    let annotations = metadata["annotations"].as_object();
    for key in annotations.into_iter().flatten().map(|(key, _)| key).filter(|key| !is_qualified(&key.to_lowercase())) {
        wrong("metadata.annotations", CauseKind::Invalid, &format!("{key:?} is no qualified name"));
    }
    let size: usize =
        annotations.into_iter().flatten().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
    if size > MOST_ANNOTATIONS {
        wrong("metadata.annotations", CauseKind::Invalid, "must have at most 262144 bytes");
    }
    causes
}

pub fn finalizers(object: &Value) -> Vec<&str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// `metav1.Time`: whole seconds, UTC.
pub fn seconds(at: Timestamp) -> Value {
    let whole = Timestamp::from_second(at.as_second()).unwrap_or(at);
    whole.to_string().into()
}

fn is_subdomain(name: &str) -> bool {
    let part = |part: &str| {
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(part.chars().next())
            && edge(part.chars().last())
            && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
    };
    name.len() <= 253 && name.split('.').all(part)
}

fn is_qualified(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name)
}

fn is_label_value(value: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    value.len() <= 63
        && edge(value.chars().next())
        && edge(value.chars().last())
        && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::DATABASES;

    #[test]
    fn a_new_object_gets_what_the_system_gives_and_keeps_nothing_that_it_made_up() {
        let mut object =
            json!({"metadata": {"name": "a", "uid": "mine", "generation": 7}, "status": {"x": 1}, "spec": {}});
        prepare_for_create(&DATABASES, &mut object, Some("ns"), None, Timestamp::UNIX_EPOCH).unwrap();
        assert_ne!(object["metadata"]["uid"], "mine");
        assert_eq!(object["metadata"]["generation"], 1);
        assert_eq!(object["metadata"]["namespace"], "ns");
        assert_eq!(object["metadata"]["creationTimestamp"], "1970-01-01T00:00:00Z");
        assert!(object.get("status").is_none());
    }

    #[test]
    fn generated_names_are_names() {
        for _ in 0..100 {
            let name = generated(&"x".repeat(80));
            assert!(name.len() == 63 && is_subdomain(&name), "{name}");
        }
    }

    #[test]
    fn generation_moves_with_the_spec_only() {
        let old = json!({"metadata": {"name": "a", "generation": 1}, "spec": {"a": 1}, "status": {"s": 1}});
        let mut labelled =
            json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"a": 1}, "status": {"s": 2}});
        prepare_for_update(&DATABASES, &mut labelled, &old, false).unwrap();
        assert_eq!((&labelled["metadata"]["generation"], &labelled["status"]["s"]), (&json!(1), &json!(1)));
        let mut changed = json!({"metadata": {"name": "a"}, "spec": {"a": 2}});
        prepare_for_update(&DATABASES, &mut changed, &old, false).unwrap();
        assert_eq!(changed["metadata"]["generation"], 2);
        let mut status = json!({"metadata": {"name": "a"}, "spec": {"a": 3}, "status": {"s": 2}});
        prepare_for_update(&DATABASES, &mut status, &old, true).unwrap();
        assert_eq!((&status["spec"]["a"], &status["status"]["s"]), (&json!(1), &json!(2)));
    }
}
