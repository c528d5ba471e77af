//! Objects read one by one: a list in which one cannot be read has the others all the same.
//!
//! A schema lets pass what a type does not hold (a field that it leaves open, a time that no calendar has), and nobody of ours need have
//! been asked. So whoever may write one such object must not hide all others.

use std::borrow::Cow;

use jiff::Timestamp;
use k8s_openapi::{
    api::core::v1::{Event, ObjectReference},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, Resource, api::PostParams};
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error};
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::debug;

use crate::controllers::events::event_about;

/// An object as an API server has it.
#[derive(Clone, Debug)]
pub(crate) struct Readable<K>(pub(crate) Result<K, Box<Unread>>);

/// One that is not what its kind says.
#[derive(Clone, Debug)]
pub(crate) struct Unread {
    pub(crate) metadata: ObjectMeta,
    pub(crate) why: String,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Readable<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        match api::read(&value) {
            Ok(object) => Ok(Self(Ok(object))),
            Err(wrong) => {
                let metadata = serde_json::from_value(value["metadata"].take()).map_err(D::Error::custom)?;
                Ok(Self(Err(Box::new(Unread { metadata, why: wrong.to_string() }))))
            }
        }
    }
}

impl<K: Resource> Resource for Readable<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(of: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(of)
    }

    fn group(of: &Self::DynamicType) -> Cow<'_, str> {
        K::group(of)
    }

    fn version(of: &Self::DynamicType) -> Cow<'_, str> {
        K::version(of)
    }

    fn plural(of: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(of)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.as_ref().map_or_else(|unread| &unread.metadata, K::meta)
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.as_mut().map_or_else(|unread| &mut unread.metadata, K::meta_mut)
    }
}

impl Unread {
    /// For whoever looks at the object. Of every replica and every list it is the same, so that it is stored once.
    fn event<K: Resource<DynamicType = ()>>(&self, now: Timestamp) -> Event {
        let ObjectMeta { name, namespace, uid, resource_version, .. } = &self.metadata;
        let about = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            name: name.clone(),
            namespace: namespace.clone(),
            uid: uid.clone(),
            resource_version: resource_version.clone(),
            field_path: None,
        };
        let message =
            format!("it is not there for Stillpoint until it is written otherwise, or made anew: {}", self.why);
        let mut event = event_about(about, false, api::conditions::reasons::UNREADABLE, &message, now);
        let text = |part: &Option<String>| part.clone().unwrap_or_default();
        event.metadata.name = Some(format!("{}.{}", text(name), text(resource_version)));
        event
    }
}

/// Writes an Event about each that cannot be read; what is there already another replica has written.
pub(super) async fn tell_of<K: Resource<DynamicType = ()>>(client: Client, mut told: mpsc::Receiver<Box<Unread>>) {
    while let Some(unread) = told.recv().await {
        let event = unread.event::<K>(Timestamp::now());
        let events: Api<Event> =
            Api::namespaced(client.clone(), event.metadata.namespace.as_deref().unwrap_or_default());
        if let Err(error) = events.create(&PostParams::default(), &event).await {
            debug!(%error, "an Event was not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use api::Snapshot;
    use kube::core::ObjectList;
    use serde_json::json;

    use super::*;

    #[test]
    fn one_that_cannot_be_read_hides_no_other_and_says_where_it_is_wrong() {
        let of = |name: &str, value: Value| {
            json!({
                "apiVersion": api::API_VERSION, "kind": "Snapshot",
                "metadata": {"name": name, "namespace": "shop", "uid": "u", "resourceVersion": "7"},
                "spec": {"databases": ["orders"], "repository": "r", "runner": {"env": [{"name": "P", "value": value}]}},
            })
        };
        let list = json!({
            "apiVersion": api::API_VERSION, "kind": "SnapshotList", "metadata": {"resourceVersion": "9"},
            "items": [of("bad", json!(8080)), of("good", json!("8080"))],
        });
        let read: ObjectList<Readable<Snapshot>> = serde_json::from_value(list.clone()).unwrap();
        let [bad, good] = read.items.as_slice() else { panic!("{read:?}") };
        assert_eq!(good.0.as_ref().unwrap().metadata.name.as_deref(), Some("good"));
        let event = bad.0.as_ref().unwrap_err().event::<Snapshot>(Timestamp::UNIX_EPOCH);
        assert_eq!((event.metadata.name.as_deref(), event.reason.as_deref()), (Some("bad.7"), Some("Unreadable")));
        assert!(event.message.unwrap().contains("spec.runner.env[0].value"));
        // The control.
        assert!(serde_json::from_value::<ObjectList<Snapshot>>(list).is_err());
    }
}
