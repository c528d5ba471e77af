//! The kinds of CSI snapshots as this cluster serves them. Of groups of snapshots there were several versions, and clusters without any.

use std::sync::{Arc, PoisonError, RwLock};

use api::gate::{GROUP_SNAPSHOTS, Group, SNAPSHOTS};
use k8s_openapi::{api::core::v1::PersistentVolumeClaim, apimachinery::pkg::apis::meta::v1::APIGroup};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
};

/// What is known of them. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Kinds {
    client: Client,
    /// Of groups of snapshots, as it was found last.
    version: Arc<RwLock<Option<String>>>,
}

/// What a kind is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Snapshot,
    Content,
    Class,
}

impl Kinds {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, version: Arc::default() }
    }

    /// The same, by another client.
    pub(crate) fn with(&self, client: Client) -> Self {
        Self { client, version: Arc::clone(&self.version) }
    }

    /// All objects of a kind, whatever their namespace.
    pub(crate) fn all(&self, kind: Kind, group: Group) -> Api<DynamicObject> {
        Api::all_with(self.client.clone(), &self.resource(kind, group))
    }

    pub(crate) fn snapshots(&self, group: Group, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &self.resource(Kind::Snapshot, group))
    }

    pub(crate) fn claims(&self, namespace: &str) -> Api<PersistentVolumeClaim> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) fn resource(&self, kind: Kind, group: Group) -> ApiResource {
        let version = match group {
            Group::Single => "v1".to_owned(),
            Group::Group => {
                let known = self.version.read().unwrap_or_else(PoisonError::into_inner).clone();
                known.unwrap_or_else(|| "v1".to_owned())
            }
        };
        named(kind, group, version)
    }

    /// Whether the cluster serves them, and in which version from now on. Asks the API server.
    pub(crate) async fn are_served(&self, group: Group) -> Result<bool, kube::Error> {
        let request = http::Request::get(format!("/apis/{}", api_group(group))).body(Vec::new());
        let request = request.map_err(kube::Error::HttpError)?;
        let served: APIGroup = match self.client.request(request).await {
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(false),
            served => served?,
        };
        let preferred = served.preferred_version.or_else(|| served.versions.into_iter().next());
        if group == Group::Group {
            *self.version.write().unwrap_or_else(PoisonError::into_inner) =
                preferred.map(|preferred| preferred.version);
        }
        Ok(true)
    }
}

fn api_group(group: Group) -> &'static str {
    match group {
        Group::Single => SNAPSHOTS,
        Group::Group => GROUP_SNAPSHOTS,
    }
}

fn named(kind: Kind, group: Group, version: String) -> ApiResource {
    let (name, plural) = match (kind, group) {
        (Kind::Snapshot, Group::Single) => ("VolumeSnapshot", "volumesnapshots"),
        (Kind::Content, Group::Single) => ("VolumeSnapshotContent", "volumesnapshotcontents"),
        (Kind::Class, Group::Single) => ("VolumeSnapshotClass", "volumesnapshotclasses"),
        (Kind::Snapshot, Group::Group) => ("VolumeGroupSnapshot", "volumegroupsnapshots"),
        (Kind::Content, Group::Group) => ("VolumeGroupSnapshotContent", "volumegroupsnapshotcontents"),
        (Kind::Class, Group::Group) => ("VolumeGroupSnapshotClass", "volumegroupsnapshotclasses"),
    };
    let of = api_group(group);
    ApiResource {
        group: of.to_owned(),
        api_version: format!("{of}/{version}"),
        version,
        kind: name.to_owned(),
        plural: plural.to_owned(),
    }
}
