//! What is written back on the Pod: what was done with it, and why.

use serde_json::{Map, Value};

use super::{HASH, INJECTED, LONGEST_MESSAGE, MESSAGE, SKIPPED, STATUS, VERSION};

/// All annotations of an object together, in bytes (apimachinery `pkg/api/validation`, TotalAnnotationSizeLimitB): with one more it is
/// refused.
const MOST: usize = 256 * 1024;

/// The annotations of a Pod that was injected.
pub(super) fn injected(hash: &str, message: &str) -> [(&'static str, Option<String>); 4] {
    let message = (!message.is_empty()).then(|| super::settings::cut(message, LONGEST_MESSAGE));
    [(STATUS, Some(INJECTED.to_owned())), (HASH, Some(hash.to_owned())), (VERSION, Some(version())), (MESSAGE, message)]
}

/// Of one that was not; what it may have been before, as a template that was copied from a Pod says it, is no longer true.
pub(super) fn skipped(message: &str) -> [(&'static str, Option<String>); 4] {
    let message = super::settings::cut(message, LONGEST_MESSAGE);
    [(HASH, None), (STATUS, Some(SKIPPED.to_owned())), (MESSAGE, Some(message)), (VERSION, Some(version()))]
}

/// Writes those that there is room for, the first first: a word of ours must not be what stops a Pod.
pub(super) fn write<K: Into<String>>(pod: &mut Value, annotations: impl IntoIterator<Item = (K, Option<String>)>) {
    let Some(all) = map(pod, "metadata").and_then(|metadata| entry(metadata, "annotations")) else { return };
    let size = |key: &str, value: &Value| key.len() + value.as_str().map_or(0, str::len);
    let mut taken: usize = all.iter().map(|(key, value)| size(key, value)).sum();
    for (key, value) in annotations {
        let key: String = key.into();
        taken -= all.remove(&key).map_or(0, |old| size(&key, &old));
        let Some(value) = value.map(Value::from) else { continue };
        if taken + size(&key, &value) <= MOST {
            taken += size(&key, &value);
            all.insert(key, value);
        }
    }
    if all.is_empty()
        && let Some(metadata) = map(pod, "metadata")
    {
        metadata.remove("annotations");
    }
}

fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

fn map<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Map<String, Value>> {
    entry(value.as_object_mut()?, key)
}

/// The object at a key, made if there is none.
fn entry<'a>(map: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    let value = map.entry(key.to_owned()).or_insert(Value::Null);
    if value.is_null() {
        *value = Value::Object(Map::new());
    }
    value.as_object_mut()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_does_not_fit_is_left_out_and_what_is_no_longer_true_is_taken_off() {
        let mut pod = json!({"metadata": {"annotations": {"big": "x".repeat(MOST - 80), HASH: "old"}}});
        write(&mut pod, skipped("why"));
        let annotations = pod["metadata"]["annotations"].as_object().unwrap();
        let total: usize = annotations.iter().map(|(key, value)| key.len() + value.as_str().unwrap().len()).sum();
        assert!(total <= MOST);
        assert_eq!((&annotations[STATUS], annotations.get(HASH)), (&json!(SKIPPED), None));
        assert_eq!(annotations.get(VERSION), None, "there was no room");
        let mut full = json!({"metadata": {"annotations": {"big": "x".repeat(MOST)}}});
        let before = full.clone();
        write(&mut full, injected("h", "m"));
        assert_eq!(full, before);
    }

    #[test]
    fn annotations_are_made_where_there_were_none() {
        for mut pod in [json!({}), json!({"metadata": null}), json!({"metadata": {"annotations": null}})] {
            write(&mut pod, injected("h", ""));
            assert_eq!(pod["metadata"]["annotations"][HASH], "h");
            assert_eq!(pod["metadata"]["annotations"].get(MESSAGE), None);
        }
    }
}
