//! What an operator may decide. In the objects it stands as a mark; plain YAML has the default there, the chart a template.

use serde_json::Value;

/// The namespace of the installation.
pub(crate) const NAMESPACE: &str = "((set:namespace))";

/// An object with the defaults in the places of the marks.
pub(crate) fn plain(object: &Value) -> Value {
    match object {
        Value::String(text) => text.replace(NAMESPACE, api::install::NAMESPACE).into(),
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect(),
        other => other.clone(),
    }
}
