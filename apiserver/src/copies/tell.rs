//! Events about copies.

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};

use super::{Copies, kept::who};
use crate::{meta, resources::Resource};

impl Copies {
    /// That it cannot be written is no reason to stop.
    pub(super) async fn tell<K: serde::Serialize>(
        &self,
        resource: &Resource,
        about: &K,
        good: bool,
        reason: &str,
        message: &str,
    ) {
        let (namespace, name, uid) = who(about);
        let at = Time(Timestamp::now());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(meta::generated(&format!("{name}."))),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(resource.api_version()),
                kind: Some(resource.kind.to_owned()),
                name: Some(name),
                namespace: Some(namespace),
                uid: Some(uid),
                ..ObjectReference::default()
            },
            type_: Some(if good { "Normal" } else { "Warning" }.to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message.chars().take(1024).collect()),
            source: Some(EventSource { component: Some("stillpoint-apiserver".to_owned()), host: None }),
            first_timestamp: Some(at.clone()),
            last_timestamp: Some(at),
            count: Some(1),
            ..Event::default()
        };
        self.records.tell(vec![event]).await;
    }
}
