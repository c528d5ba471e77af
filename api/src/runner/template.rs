//! How the Pods of runs are made in a cluster, where somebody wants them otherwise than they are made.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{
        Affinity, EnvVar, LocalObjectReference, PodSecurityContext, ResourceRequirements, Toleration, Volume,
        VolumeMount,
    },
    apimachinery::pkg::api::resource::Quantity,
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// The Pods of runs: what is not said is as it is made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RunnerTemplate {
    /// An image with the server's own programs (`pg_dump`, `pg_dumpall`, `psql` and `pg_restore`, or `mariadb-dump` and `mariadb`), of its
    /// version or a later one. Default: the image that the Database's own Pod runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
    /// For a store that knows Pods by it (workload identity). Its token is not mounted. Default: the namespace's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "kubernetes_object")]
    pub affinity: Option<Affinity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority_class_name: Option<String>,
    /// Default: 100m and 128Mi are asked for, and at most 512Mi are taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,
    /// In place of that which is made: user, group and `fsGroup` 65532, no root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "kubernetes_object")]
    pub security_context: Option<PodSecurityContext>,
    /// More variables for the container: a proxy, a region.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "kubernetes_objects")]
    pub env: Vec<EnvVar>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "kubernetes_objects")]
    pub volumes: Vec<Volume>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "kubernetes_objects")]
    pub volume_mounts: Vec<VolumeMount>,
    /// Room on a volume of its own, as `/scratch`, which goes with the Pod: for tools that write files first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scratch: Option<Scratch>,
}

/// A claim that is made for a Pod, and goes with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Scratch {
    pub size: Quantity,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage_class_name: Option<String>,
}

impl RunnerTemplate {
    /// What `over` says, and else what is said here.
    #[must_use]
    pub fn with(self, over: Option<&Self>) -> Self {
        let Some(over) = over.cloned() else { return self };
        Self {
            image: over.image.or(self.image),
            image_pull_secrets: list(over.image_pull_secrets, self.image_pull_secrets),
            service_account_name: over.service_account_name.or(self.service_account_name),
            labels: map(over.labels, self.labels),
            annotations: map(over.annotations, self.annotations),
            node_selector: map(over.node_selector, self.node_selector),
            tolerations: list(over.tolerations, self.tolerations),
            affinity: over.affinity.or(self.affinity),
            priority_class_name: over.priority_class_name.or(self.priority_class_name),
            resources: over.resources.or(self.resources),
            security_context: over.security_context.or(self.security_context),
            env: list(over.env, self.env),
            volumes: list(over.volumes, self.volumes),
            volume_mounts: list(over.volume_mounts, self.volume_mounts),
            scratch: over.scratch.or(self.scratch),
        }
    }
}

fn list<T>(over: Vec<T>, own: Vec<T>) -> Vec<T> {
    if over.is_empty() { own } else { over }
}

fn map(over: BTreeMap<String, String>, mut own: BTreeMap<String, String>) -> BTreeMap<String, String> {
    own.extend(over);
    own
}

/// What Kubernetes itself declares at length; it is read by that, wherever it is used.
fn kubernetes_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn kubernetes_objects(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "items": kubernetes_object(generator), "maxItems": 64})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_nearer_has_the_last_word() {
        let of = |json: serde_json::Value| serde_json::from_value::<RunnerTemplate>(json).unwrap();
        let far = of(serde_json::json!({"image": "a", "labels": {"x": "1", "y": "1"}, "priorityClassName": "low"}));
        let near = of(serde_json::json!({"image": "b", "labels": {"y": "2"}}));
        let both = of(serde_json::json!({"image": "b", "labels": {"x": "1", "y": "2"}, "priorityClassName": "low"}));
        assert_eq!(far.clone().with(Some(&near)), both);
        assert_eq!(far.clone().with(None), far);
    }
}
