//! What goes wrong, as a client sees it: a `metav1.Status` (Kubernetes API conventions, "Response Status Kind").
//!
//! One constructor per meaning. What a client must not learn goes into `internal` and into the log.

use api::validate::{Cause, CauseKind};
use http::StatusCode;
use serde_json::{Value, json};

/// An error with its status code, its reason, and what to do.
#[derive(Clone, Debug)]
pub struct ApiError {
    pub code: StatusCode,
    pub reason: &'static str,
    pub message: String,
    pub details: Value,
    /// For the log only.
    pub internal: Option<String>,
}

/// What an error is about: `details.name`, `.group`, `.kind` (the plural, as upstream has it).
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    pub group: &'a str,
    pub plural: &'a str,
    pub name: &'a str,
}

/// Of `details`, in seconds; a header says it too.
const RETRY: &str = "retryAfterSeconds";

impl ApiError {
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "BadRequest", message)
    }

    pub fn unauthorized(why: impl Into<String>) -> Self {
        Self { internal: Some(why.into()), ..Self::new(StatusCode::UNAUTHORIZED, "Unauthorized", "Unauthorized") }
    }

    pub fn forbidden(about: About<'_>, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message).about(about)
    }

    /// Of what is no resource; there is nothing to say of it beside its path.
    pub fn forbidden_path(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "Forbidden", message)
    }

    pub fn not_found(about: About<'_>) -> Self {
        let message = format!("{} {:?} not found", qualified(about), about.name);
        Self::new(StatusCode::NOT_FOUND, "NotFound", message).about(about)
    }

    /// A path that names nothing we serve.
    pub fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NotFound", "the server could not find the requested resource")
    }

    pub fn method_not_allowed(verb: &str, about: About<'_>) -> Self {
        let message = format!("{verb} is not supported on resources of kind {:?}", qualified(about));
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", message).about(about)
    }

    pub fn not_acceptable(accepted: &str) -> Self {
        let message = format!("only the following media types are accepted: {accepted}");
        Self::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", message)
    }

    pub fn unsupported_media_type(accepted: &str) -> Self {
        let message =
            format!("the body of the request was in an unknown format - accepted media types include: {accepted}");
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType", message)
    }

    pub fn already_exists(about: About<'_>) -> Self {
        let message = format!("{} {:?} already exists", qualified(about), about.name);
        Self::new(StatusCode::CONFLICT, "AlreadyExists", message).about(about)
    }

    pub fn modified(about: About<'_>) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} {:?}: the object has been modified; please apply your changes to the \
             latest version and try again",
            qualified(about),
            about.name
        );
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(about)
    }

    pub fn conflict(about: About<'_>, message: impl Into<String>) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {:?}: {}", qualified(about), about.name, message.into());
        Self::new(StatusCode::CONFLICT, "Conflict", message).about(about)
    }

    /// A conflict with what an object is now, in our own words.
    pub fn conflict_message(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "Conflict", message)
    }

    pub fn gone(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Gone", message)
    }

    /// A watch or list from a revision that is no longer known.
    pub fn expired(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GONE, "Expired", message)
    }

    pub fn too_large(limit: usize) -> Self {
        let message = format!("Request entity too large: limit is {limit}");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", message)
    }

    /// An object that cannot be: `details.kind` is the Kind here, as upstream has it.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: &[Cause]) -> Self {
        let said: Vec<String> = causes.iter().map(said).collect();
        let list = match said.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let qualified = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let message = format!("{qualified} {name:?} is invalid: {list}");
        let causes: Vec<Value> = causes
            .iter()
            .zip(&said)
            .map(|(cause, said)| {
                let message = said.split_once(": ").map_or(said.as_str(), |(_, message)| message);
                json!({"reason": reason(cause.kind), "message": message, "field": cause.field})
            })
            .collect();
        let details = json!({"name": name, "group": group, "kind": kind, "causes": causes});
        Self { details, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message) }
    }

    pub fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "Timeout", message)
    }

    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable", message)
    }

    /// Replicas come and go just now: nothing was done, and in a moment it may be. Clients of Kubernetes try again by themselves
    /// when they are told to (client-go `rest/with_retry.go`).
    pub fn in_motion(message: impl Into<String>) -> Self {
        Self { details: json!({RETRY: 1}), ..Self::unavailable(message) }
    }

    pub fn is_in_motion(&self) -> bool {
        self.code == StatusCode::SERVICE_UNAVAILABLE && self.retry_after().is_some()
    }

    /// Ours to mend: the client learns that, the log why.
    pub fn internal(why: impl std::fmt::Display) -> Self {
        let message = "Internal error occurred: see the server's log";
        let error = Self::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message);
        Self { internal: Some(why.to_string()), ..error }
    }

    /// The same, and whoever asked is told this of it.
    #[must_use]
    pub fn told(self, message: impl Into<String>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// Adds a named cause.
    #[must_use]
    pub fn because(mut self, reason: &str, field: &str, message: impl Into<String>) -> Self {
        let cause = json!({"reason": reason, "field": field, "message": message.into()});
        match self.details.get_mut("causes").and_then(Value::as_array_mut) {
            Some(causes) => causes.push(cause),
            None => {
                if !self.details.is_object() {
                    self.details = json!({});
                }
                self.details["causes"] = json!([cause]);
            }
        }
        self
    }

    /// The Status object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code.as_u16(),
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }

    /// What `Retry-After` says.
    pub fn retry_after(&self) -> Option<u64> {
        self.details[RETRY].as_u64()
    }

    /// The same, of a `Status` that another server wrote.
    pub fn retry_after_of(status: &[u8]) -> Option<u64> {
        serde_json::from_slice::<Value>(status).ok()?["details"][RETRY].as_u64()
    }

    fn new(code: StatusCode, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null, internal: None }
    }

    fn about(mut self, about: About<'_>) -> Self {
        self.details = json!({"name": about.name, "group": about.group, "kind": about.plural});
        self
    }
}

fn qualified(about: About<'_>) -> String {
    if about.group.is_empty() { about.plural.to_owned() } else { format!("{}.{}", about.plural, about.group) }
}

fn said(cause: &Cause) -> String {
    let word = match cause.kind {
        CauseKind::Required => "Required value",
        CauseKind::Invalid => "Invalid value",
        CauseKind::Forbidden => "Forbidden",
        CauseKind::Duplicate => "Duplicate value",
    };
    format!("{}: {word}: {}", cause.field, cause.message)
}

fn reason(kind: CauseKind) -> &'static str {
    match kind {
        CauseKind::Required => "FieldValueRequired",
        CauseKind::Invalid => "FieldValueInvalid",
        CauseKind::Forbidden => "FieldValueForbidden",
        CauseKind::Duplicate => "FieldValueDuplicate",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_read_as_kubectl_expects_them() {
        let about = About { group: "stillpoint.dev", plural: "databases", name: "orders" };
        insta::assert_json_snapshot!(ApiError::not_found(about).status(), @r#"
        {
          "apiVersion": "v1",
          "code": 404,
          "details": {
            "group": "stillpoint.dev",
            "kind": "databases",
            "name": "orders"
          },
          "kind": "Status",
          "message": "databases.stillpoint.dev \"orders\" not found",
          "metadata": {},
          "reason": "NotFound",
          "status": "Failure"
        }
        "#);
        let cause = Cause { field: "spec.engine".into(), kind: CauseKind::Forbidden, message: "is final".into() };
        let invalid = ApiError::invalid("stillpoint.dev", "Database", "orders", &[cause]);
        assert_eq!(invalid.message, "Database.stillpoint.dev \"orders\" is invalid: spec.engine: Forbidden: is final");
        assert_eq!(invalid.details["causes"][0]["message"], "Forbidden: is final");
    }

    #[test]
    fn what_is_internal_stays_out_of_the_answer() {
        let error = ApiError::internal("the disk is full of secrets");
        assert!(!error.status().to_string().contains("secrets"));
    }
}
