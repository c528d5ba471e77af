//! What a DumpTool's settings are, for one run.

use std::{collections::BTreeMap, fmt};

use regex::{Regex, RegexBuilder};

use super::{DumpToolSpec, ToolSetting};

/// The longest value.
pub const MOST_VALUE: usize = 1024;
/// Of a pattern, when it is compiled: anybody's is a line or two.
const MOST_COMPILED: usize = 256 << 10;
/// Nothing of it means anything to a shell, or looks like an option.
const WORD: &str = "[A-Za-z0-9._,:=@%+/][A-Za-z0-9._,:=@%+/-]*";

/// Why a tool cannot be set so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unset {
    /// There is no such setting; which there are.
    Unknown { name: String, known: Vec<String> },
    /// It has no default, and was not said.
    Missing { name: String },
    /// A value that does not match.
    Wrong { name: String, why: String },
}

impl DumpToolSpec {
    /// All of its settings: what was said, and else their defaults.
    pub fn set(&self, said: &BTreeMap<String, String>) -> Result<BTreeMap<String, String>, Unset> {
        if let Some(name) = said.keys().find(|name| self.settings.iter().all(|setting| setting.name != **name)) {
            let known = self.settings.iter().map(|setting| setting.name.clone()).collect();
            return Err(Unset::Unknown { name: name.clone(), known });
        }
        let one = |setting: &ToolSetting| {
            let name = setting.name.clone();
            let Some(value) = said.get(&name).or(setting.default.as_ref()) else {
                return Err(Unset::Missing { name });
            };
            match setting.check(value) {
                Ok(()) => Ok((name, value.clone())),
                Err(why) => Err(Unset::Wrong { name, why }),
            }
        };
        self.settings.iter().map(one).collect()
    }
}

impl ToolSetting {
    /// What it matches, whole values only.
    pub(crate) fn pattern(&self) -> Result<Regex, regex::Error> {
        let pattern = self.pattern.as_deref().unwrap_or(WORD);
        RegexBuilder::new(&format!("^(?:{pattern})$")).size_limit(MOST_COMPILED).build()
    }

    /// Whether it may have this value.
    pub(crate) fn check(&self, value: &str) -> Result<(), String> {
        if value.len() > MOST_VALUE || value.contains(char::is_control) {
            return Err(format!("must be at most {MOST_VALUE} bytes, all of one line"));
        }
        let pattern = self.pattern().map_err(|error| error.to_string())?;
        if pattern.is_match(value) {
            return Ok(());
        }
        Err(match &self.pattern {
            Some(pattern) => format!("{value:?} must match {pattern}"),
            None => format!("{value:?} must be of letters, digits and ._,:=@%+/- with no hyphen first"),
        })
    }
}

impl fmt::Display for Unset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { name, known } if known.is_empty() => write!(f, "there is no setting {name}: it has none"),
            Self::Unknown { name, known } => {
                write!(f, "there is no setting {name}; there are {}", known.join(", "))
            }
            Self::Missing { name } => write!(f, "setting {name} has no default: say it"),
            Self::Wrong { name, why } => write!(f, "setting {name}: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tool() -> DumpToolSpec {
        serde_json::from_value(json!({
            "dump": {"command": ["mydumper"]},
            "settings": [{"name": "threads", "default": "4", "pattern": "[1-9][0-9]?"}, {"name": "compress"}],
        }))
        .unwrap()
    }

    fn set(said: &[(&str, &str)]) -> Result<BTreeMap<String, String>, String> {
        let said = said.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        tool().set(&said).map_err(|unset| unset.to_string())
    }

    #[test]
    fn what_is_not_said_has_its_default_and_what_has_none_must_be_said() {
        let all = set(&[("compress", "zstd")]).unwrap();
        assert_eq!(all, [("compress".into(), "zstd".into()), ("threads".into(), "4".into())].into());
        assert_eq!(set(&[]), Err("setting compress has no default: say it".into()));
    }

    #[test]
    fn only_what_is_there_is_set_and_only_to_what_it_may_be() {
        let why = set(&[("compress", "zstd"), ("tables", "x")]).unwrap_err();
        assert_eq!(why, "there is no setting tables; there are threads, compress");
        for value in ["0", "444", "4; rm", "", "4\n"] {
            assert!(set(&[("compress", "zstd"), ("threads", value)]).is_err(), "{value:?}");
        }
        // Without a pattern: nothing that a shell would read as more than a word, and no option.
        for value in ["-x", "a b", "$(id)", "`id`", "a;b", "a&b", "a|b", "\"", "'", "a\\b", "", "*"] {
            assert!(set(&[("compress", value)]).is_err(), "{value:?}");
        }
        for value in ["zstd", "gzip:9", "s3://bucket/a-b", "50%", "a=b,c"] {
            assert!(set(&[("compress", value)]).is_ok(), "{value:?}");
        }
    }
}
