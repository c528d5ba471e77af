//! Patches of objects: RFC 6902 and RFC 7386. Pure.

use serde_json::Value;

use crate::{error::ApiError, resources::Resource};

/// A patch, decoded.
#[derive(Debug)]
pub enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
}

/// apiserver `patch.go`: more operations than this are refused.
const MOST_OPERATIONS: usize = 10_000;
const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json";

impl Patch {
    pub fn decode(content_type: Option<&str>, bytes: &[u8], strategic_as_merge: bool) -> Result<Self, ApiError> {
        let media = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        let malformed = |error: serde_json::Error| ApiError::bad_request(format!("the patch cannot be read: {error}"));
        match media {
            "application/json-patch+json" => {
                let patch: json_patch::Patch = serde_json::from_slice(bytes).map_err(malformed)?;
                if patch.0.len() > MOST_OPERATIONS {
                    return Err(ApiError::too_large(MOST_OPERATIONS));
                }
                Ok(Self::Json(patch))
            }
            "application/merge-patch+json" => serde_json::from_slice(bytes).map(Self::Merge).map_err(malformed),
            "application/strategic-merge-patch+json" if strategic_as_merge => {
                serde_json::from_slice(bytes).map(strategic).map(Self::Merge).map_err(malformed)
            }
            "application/apply-patch+yaml" => {
                let mut error = ApiError::unsupported_media_type(ACCEPTED);
                "server-side apply is not served without a cluster: use kubectl apply without \
                                 --server-side"
                    .clone_into(&mut error.message);
                Err(error)
            }
            _ => Err(ApiError::unsupported_media_type(ACCEPTED)),
        }
    }

    /// The object after the patch.
    pub fn apply(&self, resource: &Resource, object: &Value) -> Result<Value, ApiError> {
        let mut patched = object.clone();
        match self {
            Self::Merge(patch) => json_patch::merge(&mut patched, patch),
            Self::Json(patch) => json_patch::patch(&mut patched, patch).map_err(|error| {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                let cause = api::validate::Cause {
                    field: error.path.to_string(),
                    kind: api::validate::CauseKind::Invalid,
                    message: error.kind.to_string(),
                };
                resource.invalid(name, &[cause])
            })?,
        }
        Ok(patched)
    }
}

/// What strategic merge says beside a merge is left out: its directives begin with `$`.
fn strategic(mut patch: Value) -> Value {
    match &mut patch {
        Value::Object(map) => {
            map.retain(|key, _| !key.starts_with('$'));
            for value in map.values_mut() {
                *value = strategic(value.take());
            }
        }
        Value::Array(items) => items.retain(|item| item.get("$patch").is_none()),
        _ => {}
    }
    patch
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::resources::DATABASES;

    #[test]
    fn patches_do_what_their_rfcs_say() {
        let object = json!({"metadata": {"name": "a", "labels": {"x": "1", "y": "2"}}});
        let merge =
            Patch::decode(Some("application/merge-patch+json"), br#"{"metadata":{"labels":{"x":null}}}"#, false);
        assert_eq!(merge.unwrap().apply(&DATABASES, &object).unwrap()["metadata"]["labels"], json!({"y": "2"}));
        let failing = br#"[{"op":"test","path":"/metadata/name","value":"b"}]"#;
        let failing = Patch::decode(Some("application/json-patch+json"), failing, false).unwrap();
        assert_eq!(failing.apply(&DATABASES, &object).unwrap_err().code, 422);
        assert_eq!(Patch::decode(Some("application/strategic-merge-patch+json"), b"{}", false).unwrap_err().code, 415);
        assert_eq!(Patch::decode(Some("application/apply-patch+yaml"), b"{}", true).unwrap_err().code, 415);
    }

    proptest! {
        #[test]
        fn no_patch_panics(bytes in ".*") {
            for media in ["application/json-patch+json", "application/merge-patch+json"] {
                if let Ok(patch) = Patch::decode(Some(media), bytes.as_bytes(), false) {
                    drop(patch.apply(&DATABASES, &json!({"metadata": {"name": "a"}, "list": [1, 2]})));
                }
            }
        }
    }
}
