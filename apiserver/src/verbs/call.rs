//! One call of a verb, and its answer.

use http::StatusCode;
use serde_json::Value;

use crate::{auth::User, query::FieldValidation};

/// How a verb was called.
#[derive(Debug)]
pub struct Call<'a> {
    pub user: &'a User,
    pub namespace: &'a str,
    pub name: &'a str,
    pub dry_run: bool,
    pub validation: FieldValidation,
}

/// What a verb answers: the body it was given, with its status.
#[derive(Debug)]
pub struct Answered {
    pub code: StatusCode,
    pub body: Value,
    pub warnings: Vec<String>,
}
