//! The query string, as values with meaning. Pure, and never panics.

use std::collections::HashMap;

use crate::{
    error::ApiError,
    selector::{FieldSelector, LabelSelector},
};

/// Query parameters by name; the first of a name counts, as in Go's `Values.Get`.
#[derive(Clone, Debug, Default)]
pub struct Query(HashMap<String, String>);

/// What to do about fields that the schema does not know, or that come twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// How a list or a watch is limited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub labels: LabelSelector,
    pub fields: FieldSelector,
}

impl Query {
    pub fn parse(query: Option<&str>) -> Self {
        let mut values = HashMap::new();
        for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if let (Some(name), Some(value)) = (decode(name), decode(value)) {
                values.entry(name).or_insert(value);
            }
        }
        Self(values)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether it is there, with a value or without.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Some of it as a query again, for whoever it is sent on to. Words only: nothing has to be escaped.
    pub fn encoded(&self, names: &[&str]) -> String {
        let word = |value: &&str| value.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let pairs = names.iter().filter_map(|name| Some(format!("{name}={}", self.get(name).filter(word)?)));
        let pairs: Vec<String> = pairs.collect();
        if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
    }

    pub fn is_true(&self, name: &str) -> bool {
        matches!(self.0.get(name).map(String::as_str), Some("true" | "1"))
    }

    /// `dryRun=All`, and nothing else.
    pub fn dry_run(&self) -> Result<bool, ApiError> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(invalid("dryRun", &format!("{other:?} is not supported; supported values: \"All\""))),
        }
    }

    pub fn field_validation(&self) -> Result<FieldValidation, ApiError> {
        match self.get("fieldValidation") {
            None | Some("Warn") => Ok(FieldValidation::Warn),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some(other) => {
                Err(invalid("fieldValidation", &format!("{other:?}; supported values: Ignore, Warn, Strict")))
            }
        }
    }

    pub fn selection(&self) -> Result<Selection, ApiError> {
        Ok(Selection {
            labels: LabelSelector::parse(self.get("labelSelector").unwrap_or_default())
                .map_err(ApiError::bad_request)?,
            fields: FieldSelector::parse(self.get("fieldSelector").unwrap_or_default())
                .map_err(ApiError::bad_request)?,
        })
    }

    /// A decimal without sign.
    pub fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ApiError::bad_request(format!("{name}: {text:?} is not a decimal number")))
    }
}

fn invalid(field: &str, message: &str) -> ApiError {
    let cause = api::validate::Cause {
        field: field.to_owned(),
        kind: api::validate::CauseKind::Invalid,
        message: message.to_owned(),
    };
    ApiError::invalid("meta.k8s.io", "Options", "", &[cause])
}

/// Form decoding: `+` is a space, `%XX` a byte.
fn decode(text: &str) -> Option<String> {
    percent_decode(&text.replace('+', " "))
}

/// `%XX` is a byte. Nothing when it is not two digits, or when the whole is no text.
pub fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                let (high, low) = (digit()?, digit()?);
                bytes.push(u8::try_from(high * 16 + low).ok()?);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_query_panics(query in ".*") {
            let query = Query::parse(Some(&query));
            drop(query.selection());
            drop(query.number("limit"));
        }
    }

    #[test]
    fn values_are_decoded_and_the_first_counts() {
        let query = Query::parse(Some("labelSelector=a%3Db,c+in+(d)&limit=5&limit=6&dryRun=Some"));
        assert_eq!(query.get("labelSelector"), Some("a=b,c in (d)"));
        assert_eq!(query.number("limit").unwrap(), Some(5));
        assert!(query.dry_run().is_err());
    }
}
