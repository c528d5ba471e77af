//! An object read into its type, and where one is wrong that cannot be.

use std::fmt;

use serde::de::DeserializeOwned;
use serde_json::Value;

/// A schema may let pass what a type cannot hold: a field that it leaves open, a time that no calendar has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    /// `runner.env[0].value`; empty: all of it.
    pub field: String,
    pub why: String,
}

/// Reads `value` as a `T`.
pub fn read<T: DeserializeOwned>(value: &Value) -> Result<T, Unreadable> {
    // To know where costs more than to read it, and hardly any is wrong.
    T::deserialize(value).or_else(|_| {
        serde_path_to_error::deserialize(value).map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
            let field = error.path().to_string();
            Unreadable { field: if field == "." { String::new() } else { field }, why: error.inner().to_string() }
        })
    })
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.why)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{RestoreSpec, SnapshotSpec};

    #[test]
    fn it_is_told_where_what_cannot_be_read_is_wrong() {
        let of = |env: Value| json!({"databases": ["orders"], "repository": "nightly", "runner": {"env": env}});
        let told = read::<SnapshotSpec>(&of(json!([{"name": "A", "value": "1"}, {"name": "P", "value": 8080}])));
        let told = told.unwrap_err().to_string();
        assert_eq!(told, "runner.env[1].value: invalid type: integer `8080`, expected a string");
        let told = read::<RestoreSpec>(&json!({"source": {"repository": "r", "asOf": "2026-11-29T03:00:00+99:99"}}));
        assert!(told.unwrap_err().to_string().starts_with("source.asOf: asOf: "));
        assert!(read::<SnapshotSpec>(&of(json!([{"name": "A", "value": "1"}]))).is_ok());
    }
}
