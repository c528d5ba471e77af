//! Label and field selectors (Kubernetes documentation, "Labels and Selectors"; apimachinery `labels/selector.go`). Pure.

use serde_json::Value;

/// All requirements must hold. Empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

/// `path=value` and `path!=value`. Empty selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<(String, bool, String)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(String, Vec<String>),
    /// Also true when the label is absent.
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl LabelSelector {
    /// The error says what is wrong, for a 400.
    pub fn parse(text: &str) -> Result<Self, String> {
        split(text).into_iter().map(|part| requirement(part.trim())).collect::<Result<_, _>>().map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Key, operator and values of each requirement, as `metav1.LabelSelectorRequirement` has them.
    pub fn requirements(&self) -> impl Iterator<Item = (&str, &'static str, &[String])> {
        self.0.iter().map(|requirement| match requirement {
            Requirement::In(key, values) => (key.as_str(), "In", values.as_slice()),
            Requirement::NotIn(key, values) => (key.as_str(), "NotIn", values.as_slice()),
            Requirement::Exists(key) => (key.as_str(), "Exists", &[][..]),
            Requirement::Absent(key) => (key.as_str(), "DoesNotExist", &[][..]),
        })
    }

    pub fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"].get(key).and_then(Value::as_str);
        self.0.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => label(key).is_some_and(|label| values.iter().any(|value| value == label)),
            Requirement::NotIn(key, values) => label(key).is_none_or(|label| values.iter().all(|value| value != label)),
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::Absent(key) => label(key).is_none(),
        })
    }
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts
            .map(|part| match (part.split_once("!="), part.split_once("=="), part.split_once('=')) {
                (Some((path, value)), ..) => Ok((path.to_owned(), false, value.to_owned())),
                (None, Some((path, value)), _) | (None, None, Some((path, value))) => {
                    Ok((path.to_owned(), true, value.to_owned()))
                }
                _ => Err(format!("invalid field selector {part:?}: want path=value or path!=value")),
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Path, whether equal or not, and value of each requirement.
    pub fn requirements(&self) -> impl Iterator<Item = (&str, bool, &str)> {
        self.0.iter().map(|(path, equal, value)| (path.as_str(), *equal, value.as_str()))
    }

    /// The value that `path` must have, if it must have one.
    pub fn exactly(&self, path: &str) -> Option<&str> {
        let exact = self.0.iter().find(|(found, equal, _)| *equal && found == path);
        exact.map(|(.., value)| value.as_str())
    }

    /// The first path that is not among `known`.
    pub fn unknown<'a>(&'a self, known: &[&str]) -> Option<&'a str> {
        self.0.iter().map(|(path, ..)| path.as_str()).find(|path| !known.contains(path))
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(path, equal, wanted)| {
            let found = path.split('.').fold(object, |value, key| &value[key]);
            let found = match found {
                Value::String(text) => text.clone(),
                Value::Null => String::new(),
                other => other.to_string(),
            };
            (found == *wanted) == *equal
        })
    }
}

/// Splits at commas that are not inside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut from) = (Vec::new(), 0_i32, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[from..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let unable = || format!("unable to parse requirement: {text:?}");
    if let Some(key) = text.strip_prefix('!') {
        return Ok(Requirement::Absent(key_of(key).ok_or_else(unable)?));
    }
    if let Some((head, list)) = text.split_once('(') {
        let list = list.strip_suffix(')').ok_or_else(unable)?;
        let values: Vec<String> = list.split(',').map(|value| value.trim().to_owned()).collect();
        let mut words = head.split_whitespace();
        let (key, operator) = (words.next().and_then(key_of).ok_or_else(unable)?, words.next());
        return match (operator, words.next()) {
            (Some("in"), None) => Ok(Requirement::In(key, values)),
            (Some("notin"), None) => Ok(Requirement::NotIn(key, values)),
            _ => Err(unable()),
        };
    }
    for (operator, equal) in [("!=", false), ("==", true), ("=", true)] {
        if let Some((key, value)) = text.split_once(operator) {
            let (key, value) = (key_of(key).ok_or_else(unable)?, value.trim().to_owned());
            if value.contains(['=', '!', '(', ')', ' ']) {
                return Err(unable());
            }
            return Ok(if equal { Requirement::In(key, vec![value]) } else { Requirement::NotIn(key, vec![value]) });
        }
    }
    key_of(text).map(Requirement::Exists).ok_or_else(unable)
}

/// A label key: an optional DNS prefix, a slash, and letters, digits, `-`, `_`, `.`.
fn key_of(text: &str) -> Option<String> {
    let text = text.trim();
    let good = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    (!text.is_empty() && text.len() <= 317 && text.chars().all(good)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_whole_grammar_selects_as_documented() {
        let object = json!({"metadata": {"name": "a", "labels": {"app": "shop", "tier": "db"}}});
        for (selector, expected) in [
            ("", true),
            ("app=shop", true),
            ("app==shop,tier!=web", true),
            ("app in (x, shop),!gone", true),
            ("app notin (shop)", false),
            ("missing notin (x)", true),
            ("tier", true),
            ("!tier", false),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap().matches(&object), expected, "{selector}");
        }
        assert!(LabelSelector::parse("a=(").is_err());
        assert!(FieldSelector::parse("metadata.name=a,metadata.name!=b").unwrap().matches(&object));
    }

    proptest! {
        #[test]
        fn no_selector_panics(text in ".*") {
            drop(LabelSelector::parse(&text));
            drop(FieldSelector::parse(&text));
        }
    }
}
