//! Runs as Jobs of a cluster, beside the Databases that they read: in their namespace, with its Secrets by reference.
//!
//! What a run says is read from the log of its Pod, from the begin, so that whoever leads after us hears all of it again. It goes on when
//! we end, and ends when it is told to: then its Job is deleted, and its Pod told by the kubelet.

mod pods;

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    time::Duration,
};

use api::{
    Database,
    runner::{
        FailedRun, LONGEST_LINE, Report, RunnerTemplate,
        job::{self, CONTAINER, JobOf},
    },
};
use async_trait::async_trait;
use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{LocalObjectReference, Pod},
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, LogParams, PostParams},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

use super::runs::{Order, Place, Running, Runs};
use crate::{error::ApiError, indexed::Watched};
use pods::State;

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

/// One that was begun, by us or by whoever led before.
struct Run {
    jobs: Api<Job>,
    pods: Api<Pod>,
    logs: Api<Pod>,
    name: String,
}

/// Reports that nobody has heard yet.
const REPORTS: usize = 64;
/// How often a Pod is looked at that says nothing yet.
const LOOK: Duration = Duration::from_secs(1);
/// How long a Pod may take to end when its Job is deleted: its grace period, and then some.
const GOODBYE: Duration = Duration::from_secs(60);
/// How long a Job may be without a Pod, and a Pod that has ended without its log.
const LOST: Duration = Duration::from_secs(60);
/// Of a log that was rotated, its end has the last word.
const TAIL: i64 = 20;

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
    async fn begin(&self, order: Order) -> Result<Running, ApiError> {
        let place = &order.place;
        let (programs, image_pull_secrets) = self.programs(place).await?;
        let template = RunnerTemplate { image_pull_secrets, ..RunnerTemplate::default() }.with(Some(&place.template));
        let secrets: BTreeMap<String, Vec<String>> =
            order.secrets.iter().map(|(name, values)| (name.clone(), values.keys().cloned().collect())).collect();
        let job = job::job(&JobOf {
            namespace: &place.namespace,
            name: &order.name,
            owner: place.owner.clone(),
            task: &order.task,
            secrets: &secrets,
            template: &template,
            ours: &self.ours,
            programs: &programs,
            deadline_seconds: i64::try_from((place.longest + GOODBYE).as_secs()).unwrap_or(i64::MAX),
        });
        let run = self.run(&place.namespace, &order.name);
        match run.jobs.create(&PostParams::default(), &job).await {
            Ok(_) => {}
            // Ours: its name is nobody else's, and the answer to an earlier request was lost.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(refused(&place.namespace, &error)),
        }
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

impl Run {
    fn followed(self) -> Running {
        let (tell, reports) = mpsc::channel(REPORTS);
        let (end, told) = oneshot::channel();
        tokio::spawn(async move {
            let is_told = tokio::select! {
                () = self.hear(&tell) => true,
                told = told => told.is_ok(),
            };
            // Nobody waits for it any more, for we are ending: it goes on, and is heard by whoever leads next.
            if is_told {
                self.remove().await;
            }
        });
        Running { reports, end }
    }

    /// Until its last word, or until it is gone.
    async fn hear(&self, tell: &mpsc::Sender<Report>) {
        let (mut heard, mut said, mut lost) = (0, String::new(), Instant::now() + LOST);
        loop {
            let state = match self.pod().await {
                Ok(Some(pod)) => pods::state(&pod, CONTAINER),
                Ok(None) => State::Waiting("waiting for its Pod".to_owned()),
                Err(error) => {
                    debug!(run = self.name, %error, "a run's Pod was not seen");
                    sleep(LOOK).await;
                    continue;
                }
            };
            match state {
                State::Waiting(why) => {
                    if why != said {
                        tell.send(Report::Progress { step: why.clone(), bytes: 0, total: None }).await.ok();
                        said = why;
                    }
                    match self.jobs.get_opt(&self.name).await {
                        Ok(Some(job)) if !pods::has_failed(&job) => lost = Instant::now() + LOST,
                        Ok(_) if Instant::now() > lost => return,
                        _ => {}
                    }
                }
                State::Running(pod) => {
                    lost = Instant::now() + LOST;
                    if self.follow(&pod, &mut heard, tell).await {
                        return;
                    }
                }
                State::Ended(pod, why) => {
                    if self.follow(&pod, &mut heard, tell).await {
                        return;
                    }
                    match self.last_word(&pod).await {
                        Ok(Some(last)) => return drop(tell.send(last).await),
                        // That it cannot be read now does not say that there is none.
                        Err(_) if Instant::now() < lost => {
                            sleep(LOOK).await;
                            continue;
                        }
                        Ok(None) | Err(_) => {}
                    }
                    let message = format!("the run ended without a word: {why}");
                    tell.send(Report::Failed(FailedRun {
                        reason: api::conditions::reasons::RUNNER_DIED.to_owned(),
                        message,
                        again: true,
                        target: None,
                    }))
                    .await
                    .ok();
                    return;
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Its log, but for what was heard already. Whether its last word was among it.
    async fn follow(&self, pod: &str, heard: &mut usize, tell: &mpsc::Sender<Report>) -> bool {
        let wanted = LogParams { container: Some(CONTAINER.to_owned()), follow: true, ..LogParams::default() };
        let log = match self.logs.log_stream(pod, &wanted).await {
            Ok(log) => log,
            Err(error) => {
                debug!(run = self.name, %error, "a run's log cannot be read");
                return false;
            }
        };
        let mut log = pin!(log);
        let (mut line, mut number) = (Vec::new(), 0);
        while read_line(&mut log, &mut line).await {
            number += 1;
            if number <= *heard {
                continue;
            }
            *heard = number;
            if let Some(report) = report(&line) {
                let is_last = is_last(&report);
                tell.send(report).await.ok();
                if is_last {
                    return true;
                }
            }
        }
        false
    }

    /// Of a log whose begin is gone, so that lines cannot be counted.
    async fn last_word(&self, pod: &str) -> Result<Option<Report>, kube::Error> {
        let wanted =
            LogParams { container: Some(CONTAINER.to_owned()), tail_lines: Some(TAIL), ..LogParams::default() };
        let text = self.pods.logs(pod, &wanted).await?;
        Ok(text.lines().filter_map(|line| report(line.as_bytes())).find(is_last))
    }

    async fn pod(&self) -> Result<Option<Pod>, kube::Error> {
        let of_job = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={}", self.name));
        Ok(self.pods.list(&of_job).await?.items.into_iter().next())
    }

    /// The Job, and then its Pod. Waits until that is gone, so that nothing of it writes any more.
    async fn remove(&self) {
        let gone = async {
            while let Err(error) = self.jobs.delete(&self.name, &DeleteParams::background()).await {
                if matches!(&error, kube::Error::Api(status) if status.code == 404) {
                    break;
                }
                warn!(run = self.name, %error, "a run's Job was not removed; trying again");
                sleep(LOOK).await;
            }
            while !matches!(self.pod().await, Ok(None)) {
                sleep(LOOK).await;
            }
        };
        if timeout(GOODBYE, gone).await.is_err() {
            warn!(
                run = self.name,
                "a run's Pod is still there; what it has locked may stay locked: `restic unlock`, when it is gone"
            );
        }
    }
}

/// One line, none longer than [`LONGEST_LINE`]. Whether there was one.
async fn read_line(log: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> bool {
    line.clear();
    matches!(log.take(LONGEST_LINE as u64).read_until(b'\n', line).await, Ok(length) if length > 0)
}

/// What is no report is for people: the last words of a program that broke.
fn report(line: &[u8]) -> Option<Report> {
    let text = String::from_utf8_lossy(line);
    match (serde_json::from_slice(line), text.trim()) {
        (Ok(report), _) => Some(report),
        (Err(_), "") => None,
        (Err(_), text) => Some(Report::Log(text.to_owned())),
    }
}

fn is_last(report: &Report) -> bool {
    !matches!(report, Report::Log(_) | Report::Progress { .. })
}

fn refused(namespace: &str, error: &kube::Error) -> ApiError {
    match error {
        kube::Error::Api(status) if status.code == 403 => ApiError::unavailable(format!(
            "no Job may be made in namespace {namespace}: {}; `kubectl still enable {namespace}` lets us",
            status.message
        )),
        kube::Error::Api(status) => {
            ApiError::unavailable(format!("kube-apiserver refused the Job: {}", status.message))
        }
        error => ApiError::unavailable(format!("kube-apiserver did not take the Job: {error}")),
    }
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").field("ours", &self.ours).finish_non_exhaustive()
    }
}
