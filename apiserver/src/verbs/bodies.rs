//! The verbs' bodies: how they are read, and how they go back.

use api::{Copy, QuiesceStatus, UnquiesceStatus};
use freeze::{Ended, Granted};
use http::StatusCode;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Serialize, de::DeserializeOwned};

use super::call::{Answered, Call};
use crate::{
    body::{self, Body},
    error::ApiError,
    query::FieldValidation,
};

/// Decodes a verb's body; what it does not know refuses, or is warned of.
pub(crate) fn read<T: DeserializeOwned + Default>(
    call: &Call<'_>,
    body: Body,
    kind: &str,
) -> Result<(T, Vec<String>), ApiError> {
    for (field, wanted) in [("apiVersion", api::LIVE_API_VERSION), ("kind", kind)] {
        let found = body.value[field].as_str().unwrap_or_default();
        if !found.is_empty() && found != wanted {
            return Err(ApiError::bad_request(format!("the {field} of the body is {found:?}; it must be {wanted:?}")));
        }
    }
    let (typed, unknown) = body::typed::<T>(body.value, kind)?;
    let strange = unknown.iter().map(|path| format!("unknown field {path:?}"));
    let strange: Vec<String> =
        strange.chain(body.duplicates.iter().map(|path| format!("duplicate field {path:?}"))).collect();
    match call.validation {
        FieldValidation::Strict if !strange.is_empty() => Err(ApiError::bad_request(format!(
            "{kind} in version \"v1alpha1\" cannot be handled as a {kind}: strict decoding error: {}",
            strange.join(", ")
        ))),
        FieldValidation::Ignore => Ok((typed, Vec::new())),
        _ => Ok((typed, strange)),
    }
}

/// A body may name the object again, and no other.
pub(crate) fn named(call: &Call<'_>, metadata: &ObjectMeta) -> Result<(), ApiError> {
    for (what, said, wanted) in
        [("name", &metadata.name, call.name), ("namespace", &metadata.namespace, call.namespace)]
    {
        if let Some(said) = said.as_deref().filter(|said| !said.is_empty() && *said != wanted) {
            let message = format!("the {what} of the body ({said}) does not match the {what} on the URL ({wanted})");
            return Err(ApiError::bad_request(message));
        }
    }
    Ok(())
}

/// The body that came, with its status, under the names that it goes by.
pub(crate) fn answer<T: Serialize>(
    code: StatusCode,
    call: &Call<'_>,
    mut typed: T,
    kind: &str,
    warnings: Vec<String>,
    name: impl FnOnce(&mut T, String, String, ObjectMeta),
) -> Result<Answered, ApiError> {
    let metadata = ObjectMeta {
        name: Some(call.name.to_owned()),
        namespace: Some(call.namespace.to_owned()),
        ..ObjectMeta::default()
    };
    name(&mut typed, api::LIVE_API_VERSION.to_owned(), kind.to_owned(), metadata);
    let body = serde_json::to_value(typed).map_err(ApiError::internal)?;
    Ok(Answered { code, body, warnings })
}

/// What a claim that holds is answered.
pub(super) fn holds(database: &str, copy: Copy, granted: Granted) -> QuiesceStatus {
    let target = granted.status.targets.iter().find(|target| target.database == database);
    QuiesceStatus {
        freeze: Some(granted.freeze.name),
        uid: Some(granted.claim.uid),
        phase: granted.status.phase,
        level: granted.status.level,
        copy: Some(copy),
        position: target.and_then(|target| target.position.clone()),
        targets: granted.status.targets.clone(),
        frozen_at: granted.claim.frozen_at,
        expires_at: Some(granted.claim.until),
        checks: granted.warnings,
        warnings: Vec::new(),
    }
}

/// What the end of a claim is answered.
pub(super) fn ends(database: &str, ended: Ended) -> UnquiesceStatus {
    let Ended { freeze, status, still_claimed_by } = ended;
    let target = status.targets.iter().find(|target| target.database == database);
    UnquiesceStatus {
        freeze: Some(freeze.name),
        phase: Some(status.phase),
        frozen_at: status.frozen_at.clone(),
        thawed_at: status.thawed_at.clone(),
        frozen_milliseconds: status.frozen_milliseconds,
        artifacts: target.map(|target| target.artifacts.clone()).unwrap_or_default(),
        proof: target.and_then(|target| target.proof.clone()),
        targets: status.targets.clone(),
        still_claimed_by,
        message: status.message.clone(),
    }
}
