//! What a handler is given of a request beside its target, and what it answers.

use std::convert::Infallible;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::Value;

use crate::{error::ApiError, negotiate::Form, query::Query};

/// What kube-apiserver knows a request by; told in every answer and log line.
pub(crate) const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// What a response's body is made of.
pub type AnswerBody = UnsyncBoxBody<Bytes, Infallible>;

/// A request without its body.
pub(crate) struct Parts<'a> {
    pub(crate) headers: &'a HeaderMap,
    pub(crate) query: Query,
    pub(crate) form: Form,
}

/// What a handler answers.
pub enum Answer {
    /// Bytes that are JSON already.
    Json {
        code: StatusCode,
        bytes: Bytes,
        warnings: Vec<String>,
    },
    Other {
        code: StatusCode,
        content_type: &'static str,
        bytes: Bytes,
        headers: Vec<(HeaderName, String)>,
    },
    /// A stream that ends when the server stops.
    Stream(AnswerBody),
}

/// An answer of one JSON value.
pub(crate) fn json_answer(value: &Value) -> Result<Answer, ApiError> {
    coded(StatusCode::OK, value, Vec::new())
}

pub(crate) fn coded(code: StatusCode, value: &Value, warnings: Vec<String>) -> Result<Answer, ApiError> {
    let bytes = serde_json::to_vec(value).map_err(ApiError::internal)?.into();
    Ok(Answer::Json { code, bytes, warnings })
}
