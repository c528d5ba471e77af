//! A VolumeSnapshot, as far as a Snapshot needs it (external-snapshotter `client/v8/apis/volumesnapshot/v1`).

use std::borrow::Cow;

use api::gate::SNAPSHOTS;
use k8s_openapi::{
    NamespaceResourceScope,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct VolumeSnapshot {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(super) spec: VolumeSnapshotSpec,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<VolumeSnapshotStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct VolumeSnapshotSpec {
    #[serde(default)]
    pub(super) source: Source,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) volume_snapshot_class_name: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Source {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) persistent_volume_claim_name: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct VolumeSnapshotStatus {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) bound_volume_snapshot_content_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) ready_to_use: Option<bool>,
    /// A quantity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) restore_size: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<VolumeSnapshotError>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct VolumeSnapshotError {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) time: Option<Time>,
}

const VERSION: &str = "v1";
const KIND: &str = "VolumeSnapshot";

impl VolumeSnapshot {
    /// One to be made.
    pub(super) fn new(metadata: ObjectMeta, claim: &str, class: Option<&str>) -> Self {
        Self {
            api_version: format!("{SNAPSHOTS}/{VERSION}"),
            kind: KIND.to_owned(),
            metadata,
            spec: VolumeSnapshotSpec {
                source: Source { persistent_volume_claim_name: Some(claim.to_owned()) },
                volume_snapshot_class_name: class.map(str::to_owned),
            },
            status: None,
        }
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
    }

    pub(super) fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.as_ref()?.get(key).map(String::as_str)
    }
}

impl kube::Resource for VolumeSnapshot {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        SNAPSHOTS.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "volumesnapshots".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
