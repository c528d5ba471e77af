//! Runs as Jobs of a cluster, beside the Databases that they read: in their namespace, with its Secrets by reference.
//!
//! What a run says is read from the log of its Pod, from the begin, so that whoever leads after us hears all of it again. It goes on when
//! we end, and ends when it is told to: then its Job is deleted, and its Pod told by the kubelet.

mod pods;
mod run;

use std::collections::BTreeSet;

use api::{
    Database,
    runner::{
        RunnerTemplate,
        job::{self, JobOf},
    },
};
use async_trait::async_trait;
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{LocalObjectReference, Pod},
};
use kube::{Api, Client};

use super::runs::{NotBegun, Order, Place, Running, Runs};
use crate::{error::ApiError, indexed::Watched};
use run::{GOODBYE, Run, refused};

/// Who makes them.
#[derive(Clone)]
pub(crate) struct Jobs {
    client: Client,
    /// Its requests may be silent for long: logs are followed.
    following: Client,
    /// The image of this installation.
    ours: String,
    watched: Watched,
}

impl Jobs {
    pub(crate) fn new(client: Client, following: Client, ours: String, watched: Watched) -> Self {
        Self { client, following, ours, watched }
    }

    /// The image with the programs of the servers: the one that is named, or that the Databases' own Pods run; and by what these pull it.
    async fn programs(&self, place: &Place) -> Result<(String, Vec<LocalObjectReference>), ApiError> {
        if let Some(image) = &place.template.image {
            return Ok((image.clone(), Vec::new()));
        }
        let (mut images, mut pulls) = (BTreeSet::new(), BTreeSet::new());
        for database in &place.databases {
            let name = database.metadata.name.as_deref().unwrap_or_default();
            let (image, by) = self.image_of(&place.namespace, database).await.ok_or_else(|| {
                ApiError::conflict_message(format!(
                    "no Pod of Database {name} is known whose image could be used: name one with its server's programs (spec.runner.image)"
                ))
            })?;
            images.insert(image);
            pulls.extend(by);
        }
        let pulls = pulls.into_iter().map(|name| LocalObjectReference { name }).collect();
        match images.len() {
            // Nothing but ours is needed.
            0 => Ok((self.ours.clone(), pulls)),
            1 => Ok((images.pop_first().unwrap_or_default(), pulls)),
            _ => Err(ApiError::conflict_message(format!(
                "its Databases run several images ({}): name one with the programs of all (spec.runner.image), or take a Snapshot of each",
                images.into_iter().collect::<Vec<_>>().join(", ")
            ))),
        }
    }

    async fn image_of(&self, namespace: &str, database: &Database) -> Option<(String, Vec<String>)> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        for member in self.watched.members(namespace, database) {
            if let Ok(pod) = pods.get(&member).await
                && let Ok(value) = serde_json::to_value(&pod)
                && let Some(image) = api::inject::image_of(&value, database.spec.engine)
            {
                let pulls = pod.spec.and_then(|spec| spec.image_pull_secrets).into_iter().flatten();
                return Some((image, pulls.map(|secret| secret.name).collect()));
            }
        }
        None
    }

    fn run(&self, namespace: &str, name: &str) -> Run {
        Run {
            jobs: Api::namespaced(self.client.clone(), namespace),
            pods: Api::namespaced(self.client.clone(), namespace),
            logs: Api::namespaced(self.following.clone(), namespace),
            name: name.to_owned(),
        }
    }
}

#[async_trait]
impl Runs for Jobs {
    async fn job(&self, order: &Order) -> Result<Job, ApiError> {
        let place = &order.place;
        let (programs, image_pull_secrets) = self.programs(place).await?;
        let template = RunnerTemplate { image_pull_secrets, ..RunnerTemplate::default() }.with(Some(&place.template));
        Ok(job::job(&JobOf {
            namespace: &place.namespace,
            name: &order.name,
            owner: place.owner.clone(),
            task: &order.task,
            secrets: &order.secrets,
            template: &template,
            ours: &self.ours,
            programs: &programs,
            deadline_seconds: i64::try_from((place.longest + GOODBYE).as_secs()).unwrap_or(i64::MAX),
        }))
    }

    async fn begin(&self, order: Order) -> Result<Running, NotBegun> {
        let job = self.job(&order).await.map_err(NotBegun::Refused)?;
        let namespace = &order.place.namespace;
        let run = self.run(namespace, &order.name);
        run.made(&job, namespace).await?;
        Ok(run.followed())
    }

    async fn resume(&self, namespace: &str, name: &str) -> Result<Option<Running>, ApiError> {
        let run = self.run(namespace, name);
        match run.jobs.get_opt(name).await {
            Ok(found) => Ok(found.map(|_| run.followed())),
            Err(error) => Err(refused(namespace, &error)),
        }
    }
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").field("ours", &self.ours).finish_non_exhaustive()
    }
}
