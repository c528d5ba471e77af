//! Whether a snapshot is waited for before it is cut, as far as whoever asks may see it.

use api::install::{self, webhooks::left_alone};
use k8s_openapi::{
    api::admissionregistration::v1::MutatingWebhookConfiguration,
    kube_aggregator::pkg::apis::apiregistration::v1::APIService,
};
use kube::{Api, Client};

use crate::commands::doctor::{Configurations, home, ready};

/// What was seen of the installation; what may not be read is `None`.
#[derive(Clone, Debug)]
pub(super) struct Waits {
    /// The namespace that it is in.
    home: String,
    /// Whether its API answers.
    available: Option<bool>,
    configurations: Option<Configurations>,
    /// Whether there is a webhook that is ready.
    ready: Option<bool>,
}

impl Waits {
    pub(super) async fn read(client: &Client) -> Self {
        let services: Api<APIService> = Api::all(client.clone());
        let service = services.get_opt(&install::api_service()).await.ok();
        let home = home(service.as_ref().and_then(Option::as_ref));
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
        let mutating = configurations.get_opt(install::webhooks::NAME).await.ok();
        Self {
            available: service.map(|service| service.is_some_and(|service| is_available(&service))),
            configurations: mutating.map(|mutating| Configurations { validating: None, mutating }),
            ready: ready(client, &home).await.ok().map(|ready| ready > 0),
            home,
        }
    }

    /// Nothing there is ever held.
    pub(super) fn leaves_alone(&self, namespace: &str) -> bool {
        left_alone(&self.home).contains(&namespace)
    }

    /// Why snapshots of a namespace are not waited for.
    pub(super) fn refusal(&self, namespace: &str) -> Option<&'static str> {
        let cuts = self.configurations.as_ref().map(|all| all.cuts(namespace, &["Ignore", "Fail"]));
        [
            (self.available, "Stillpoint does not answer"),
            (cuts, "kube-apiserver was not told to ask before snapshots of this namespace are cut"),
            (self.ready, "no webhook is ready to be asked before a snapshot is cut"),
        ]
        .into_iter()
        .find_map(|(is_so, why)| (is_so == Some(false)).then_some(why))
    }

    /// Whether something could not be seen.
    pub(super) fn is_in_the_dark(&self) -> bool {
        self.available.is_none() || self.configurations.is_none() || self.ready.is_none()
    }

    #[cfg(test)]
    pub(super) fn of(configurations: Option<MutatingWebhookConfiguration>, ready: Option<bool>) -> Self {
        let configurations = configurations.map(|all| Configurations { validating: None, mutating: Some(all) });
        Self { home: "stillpoint".to_owned(), available: Some(true), configurations, ready }
    }
}

fn is_available(service: &APIService) -> bool {
    let conditions = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Available" && condition.status == "True")
}
