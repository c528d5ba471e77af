//! Every resource that is served, as data: one table that discovery, OpenAPI, the registry and authorization read.
//!
//! To add a kind: its types and `validate` function in crate `api`, a [`Resource`] here.

mod cells;
mod copies;
mod core;
pub mod live;
mod stillpoint;
mod tools;

use api::validate::Cause;
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use schemars::{Schema, SchemaGenerator};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    error::{About, ApiError},
    target::Verb,
};

/// One resource: its names, what it can do, and the pure half of its kind.
#[derive(Debug)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub kind: &'static str,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub namespaced: bool,
    pub storage: Storage,
    pub verbs: &'static [Verb],
    pub subresources: &'static [Subresource],
    pub columns: &'static [Column],
    /// Field selectors beside `metadata.name` and `metadata.namespace`.
    pub fields: &'static [&'static str],
    /// The schema of an object, its parts in the generator.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
}

/// How objects are kept.
#[derive(Debug)]
pub enum Storage {
    /// By the registry, with the kind's own rules.
    Kept(Strategy),
    /// Not at all: computed when asked.
    Live,
}

/// An object in its kind's own form, and the paths that the kind does not know; or what is wrong with it.
pub type Decoded = Result<(Value, Vec<String>), String>;

/// The pure half of a kind that is kept.
#[derive(Debug)]
pub struct Strategy {
    /// `PLURAL.GROUP`: the store's name for it.
    pub key: &'static str,
    /// Brings a body into the kind's own form; answers the paths that the kind does not know.
    pub decode: fn(Value) -> Decoded,
    /// What is wrong with an object, or with a change of one.
    pub validate: fn(&Value, Option<&Value>) -> Vec<Cause>,
    /// Whether strategic merge patches are answered as merge patches: only for Kubernetes' own kinds, whose clients send
    /// nothing else.
    pub strategic_as_merge: bool,
}

#[derive(Debug)]
pub struct Subresource {
    pub name: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [Verb],
    /// The body of a verb. `None`: the resource's own kind (`status`).
    pub schema: Option<fn(&mut SchemaGenerator) -> Schema>,
}

/// A column of `kubectl get`.
#[derive(Debug)]
pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date`.
    pub kind: &'static str,
    pub description: &'static str,
    /// Above 0: only with `-o wide`.
    pub priority: u8,
    pub cell: fn(&Value, Timestamp) -> Value,
}

/// Which resources a server serves: behind a kube-apiserver, what is stored is the cluster's to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    Standalone,
    Aggregated,
}

/// All of them, in the order of discovery.
static ALL: &[&Resource] = &[
    &NAMESPACES,
    &SECRETS,
    &EVENTS,
    &DATABASES,
    &FREEZES,
    &REPOSITORIES,
    &SNAPSHOTS,
    &RESTORES,
    &DUMP_TOOLS,
    &live::DATABASES,
    &live::SNAPSHOTS,
    &live::REPOSITORIES,
    &live::RESTORES,
];

pub use self::copies::{REPOSITORIES, RESTORES, SNAPSHOTS};
pub use self::core::{EVENTS, NAMESPACES, SECRETS};
pub use stillpoint::{DATABASES, FREEZES};
pub use tools::DUMP_TOOLS;

/// Verbs of a stored resource.
pub(crate) const EVERY_VERB: &[Verb] = &[
    Verb::Create,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Get,
    Verb::List,
    Verb::Patch,
    Verb::Update,
    Verb::Watch,
];

/// Those of a server that stands behind a kube-apiserver.
static LIVE: &[&Resource] = &[&live::DATABASES, &live::SNAPSHOTS, &live::REPOSITORIES, &live::RESTORES];

impl Served {
    /// In the order of discovery.
    pub fn resources(self) -> &'static [&'static Resource] {
        match self {
            Self::Standalone => ALL,
            Self::Aggregated => LIVE,
        }
    }

    /// Groups with their one version, in the order of the table.
    pub fn groups(self) -> Vec<(&'static str, &'static str)> {
        let mut groups: Vec<_> = self.resources().iter().map(|r| (r.group, r.version)).collect();
        groups.dedup();
        groups
    }

    /// The resources of a group and version.
    pub fn of(self, group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
        self.resources().iter().copied().filter(move |r| r.group == group && r.version == version)
    }

    /// The resource of a path.
    pub fn find(self, group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
        self.of(group, version).find(|r| r.plural == plural)
    }
}

impl Resource {
    /// `v1`, `stillpoint.dev/v1alpha1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    pub fn about<'a>(&self, name: &'a str) -> About<'a> {
        About { group: self.group, plural: self.plural, name }
    }

    /// An object of it, for an Event.
    pub(crate) fn reference(&self, about: &ObjectMeta) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.api_version()),
            kind: Some(self.kind.to_owned()),
            name: about.name.clone(),
            namespace: about.namespace.clone(),
            uid: about.uid.clone(),
            ..ObjectReference::default()
        }
    }

    pub fn invalid(&self, name: &str, causes: &[Cause]) -> ApiError {
        ApiError::invalid(self.group, self.kind, name, causes)
    }

    pub fn strategy(&self) -> Option<&Strategy> {
        match &self.storage {
            Storage::Kept(strategy) => Some(strategy),
            Storage::Live => None,
        }
    }

    pub fn has_status(&self) -> bool {
        self.subresources.iter().any(|subresource| subresource.name == "status")
    }
}

/// The store's names of everything that is kept.
pub fn stored() -> Vec<&'static str> {
    ALL.iter().filter_map(|resource| resource.strategy()).map(|strategy| strategy.key).collect()
}

/// Decodes into the kind's type and back: what the type does not know is left out, and named.
pub(crate) fn decode<T: DeserializeOwned + Serialize>(value: Value) -> Result<(Value, Vec<String>), String> {
    let mut unknown = Vec::new();
    let typed: T = serde_ignored::deserialize(value, |path| unknown.push(path_of(&path.to_string())))
        .map_err(|error| error.to_string())?;
    // Every object has them; kube's types know them without naming them.
    unknown.retain(|path| path != "apiVersion" && path != "kind");
    let value = serde_json::to_value(&typed).map_err(|error| error.to_string())?;
    Ok((value, unknown))
}

/// `spec.targets.0.database` → `spec.targets[0].database`; the `?` of optional values is serde's, not the client's.
fn path_of(path: &str) -> String {
    path.split('.').filter(|part| *part != "?").fold(String::new(), |path, part| match part.parse::<usize>() {
        Ok(index) => format!("{path}[{index}]"),
        Err(_) if path.is_empty() => part.to_owned(),
        Err(_) => format!("{path}.{part}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_are_named_by_their_paths() {
        let body = serde_json::json!({
            "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Freeze", "metadata": {"name": "f"},
            "spec": {"targets": [{"database": "a", "colour": "red"}], "ttl": 3}
        });
        let (value, mut unknown) = decode::<api::Freeze>(body).unwrap();
        unknown.sort();
        assert_eq!(unknown, ["spec.targets[0].colour", "spec.ttl"]);
        assert!(value["spec"].get("ttl").is_none());
    }

    #[test]
    fn no_two_resources_share_a_name_or_a_short_name() {
        let mut names: Vec<String> = ALL.iter().map(|r| format!("{}.{}", r.plural, r.group)).collect();
        names.extend(ALL.iter().flat_map(|r| r.short_names).map(|name| (*name).to_owned()));
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
