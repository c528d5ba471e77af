//! One request for a resource, taken apart: what it selects, what it writes, and the form of its answer.

use http::{StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    answer::{Answer, Parts, coded, json_answer},
    auth::User,
    error::ApiError,
    negotiate::Form,
    query::Selection,
    registry::{Admit, Write},
    resources::Resource,
    table::{self, Include},
    target::ResourceTarget,
};

/// One request, taken apart.
pub(crate) struct Asked<'a> {
    pub(crate) user: &'a User,
    pub(crate) resource: &'static Resource,
    pub(crate) target: &'a ResourceTarget,
    pub(crate) parts: &'a Parts<'a>,
    pub(crate) now: Timestamp,
}

impl Asked<'_> {
    pub(crate) fn selection(&self) -> Result<Selection, ApiError> {
        let selection = self.parts.query.selection()?;
        let known: Vec<&str> =
            ["metadata.name", "metadata.namespace"].iter().chain(self.resource.fields).copied().collect();
        match selection.fields.unknown(&known) {
            None => Ok(selection),
            Some(path) => {
                let known = known.iter().map(|path| format!("{path:?}")).collect::<Vec<_>>().join(", ");
                Err(ApiError::bad_request(format!("{path:?} is not a known field selector: only {known}")))
            }
        }
    }

    pub(crate) fn include(&self) -> Result<Include, ApiError> {
        Include::parse(self.parts.query.get("includeObject"))
            .ok_or_else(|| ApiError::bad_request("includeObject must be None, Metadata or Object"))
    }

    pub(crate) fn name(&self) -> &str {
        self.target.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn status(&self) -> bool {
        self.target.subresource.as_deref() == Some("status")
    }

    pub(crate) fn content_type(&self) -> Option<&str> {
        self.parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok())
    }

    pub(crate) fn write<'w>(&self, admit: &'w dyn Admit) -> Result<Write<'w>, ApiError> {
        Ok(Write { dry_run: self.parts.query.dry_run()?, validation: self.parts.query.field_validation()?, admit })
    }

    pub(crate) fn one(&self, object: &Value) -> Result<Answer, ApiError> {
        self.written(object, StatusCode::OK, Vec::new())
    }

    pub(crate) fn written(&self, object: &Value, code: StatusCode, warnings: Vec<String>) -> Result<Answer, ApiError> {
        match self.parts.form {
            Form::Table => {
                let list = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
                let table =
                    table::table(self.resource, std::slice::from_ref(object), list, self.include()?, true, self.now);
                coded(code, &table, warnings)
            }
            Form::PartialObjectMetadata => coded(code, &table::partial(object), warnings),
            Form::Object | Form::AggregatedDiscovery => coded(code, object, warnings),
        }
    }

    pub(crate) fn table(&self, objects: &[Value], list: Value) -> Result<Answer, ApiError> {
        json_answer(&table::table(self.resource, objects, list, self.include()?, true, self.now))
    }
}
