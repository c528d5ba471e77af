//! Events about copies.

use jiff::Timestamp;

use super::Copies;
use crate::{controllers::events::event_about, resources::Resource};

impl Copies {
    /// That it cannot be written is no reason to stop.
    pub(super) async fn tell<K: kube::Resource>(
        &self,
        resource: &Resource,
        about: &K,
        good: bool,
        reason: &str,
        message: &str,
    ) {
        let event = event_about(resource.reference(about.meta()), good, reason, message, Timestamp::now());
        self.records.tell(vec![event]).await;
    }
}
