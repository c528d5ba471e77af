//! Whom to trust, kept live: a cluster replaces its authorities while connections are open, some of them daily.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tracing::{info, warn};

use super::config::RequestHeaderConfig;

/// What the ConfigMap said last. Until it says something, nobody is trusted.
#[derive(Debug)]
pub struct Trust(ArcSwap<State>);

#[derive(Debug)]
enum State {
    /// And why.
    Unknown(String),
    Known(Arc<RequestHeaderConfig>),
}

const NAMESPACE: &str = "kube-system";
const NAME: &str = "extension-apiserver-authentication";

impl Default for Trust {
    fn default() -> Self {
        Self(ArcSwap::from_pointee(State::Unknown("it was not read yet".to_owned())))
    }
}

impl Trust {
    /// What is known now.
    pub fn current(&self) -> Option<Arc<RequestHeaderConfig>> {
        match &**self.0.load() {
            State::Known(config) => Some(Arc::clone(config)),
            State::Unknown(_) => None,
        }
    }

    /// Whether anything is known; if not, why.
    pub fn ready(&self) -> Result<(), String> {
        match &**self.0.load() {
            State::Known(_) => Ok(()),
            State::Unknown(why) => Err(format!("ConfigMap {NAMESPACE}/{NAME}: {why}")),
        }
    }

    /// Reads the ConfigMap's data.
    pub fn learn(&self, data: &BTreeMap<String, String>) {
        match RequestHeaderConfig::parse(data) {
            Ok(config) => {
                info!("ConfigMap {NAMESPACE}/{NAME} was read: it says whom to trust from now on");
                self.0.store(Arc::new(State::Known(Arc::new(config))));
            }
            Err(error) => self.unread(error.to_string()),
        }
    }

    /// Follows the ConfigMap, for ever.
    pub async fn follow(self: Arc<Self>, client: Client) {
        let maps = Api::<ConfigMap>::namespaced(client, NAMESPACE);
        let one = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
        let events = watcher(maps, one).default_backoff();
        pin_mut!(events);
        let mut there = false;
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => there = false,
                Ok(Event::InitApply(map) | Event::Apply(map)) => {
                    there = true;
                    self.learn(&map.data.unwrap_or_default());
                }
                Ok(Event::InitDone) if there => {}
                Ok(Event::InitDone | Event::Delete(_)) => self
                    .unread("it is not there; the kube-apiserver makes it, and makes it again: see its log".to_owned()),
                Err(error) => self.unread(format!(
                    "it cannot be read ({error}); bind the Role extension-apiserver-authentication-reader in \
                     {NAMESPACE} to this server's ServiceAccount"
                )),
            }
        }
    }

    /// What was known stays known, as upstream has it: a slip of somebody's hand must not shut everybody out, and what is
    /// to be trusted no longer is told by a ConfigMap that can be read.
    fn unread(&self, why: String) {
        match &**self.0.load() {
            State::Known(_) => warn!(why, "ConfigMap {NAMESPACE}/{NAME} is not followed; what it said last holds"),
            State::Unknown(_) => {
                warn!(why, "ConfigMap {NAMESPACE}/{NAME} was not read: nobody can be authenticated by it yet");
                self.0.store(Arc::new(State::Unknown(why)));
            }
        }
    }
}
