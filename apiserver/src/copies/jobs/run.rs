//! One run that is a Job: made once, heard from the begin however often that is asked for, and removed when what it said is written.

use std::{pin::pin, time::Duration};

use api::{
    conditions::reasons,
    runner::{FailedRun, LONGEST_LINE, Report, UNTOUCHED, job::CONTAINER},
};
use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use kube::{
    Api,
    api::{DeleteParams, ListParams, LogParams, PostParams},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tracing::{debug, warn};

use super::pods::{self, State};
use crate::{
    copies::runs::{NotBegun, Running},
    error::ApiError,
};

/// One that was begun, by us or by whoever led before.
pub(super) struct Run {
    pub(super) jobs: Api<Job>,
    pub(super) pods: Api<Pod>,
    pub(super) logs: Api<Pod>,
    pub(super) name: String,
}

/// Reports that nobody has heard yet.
const REPORTS: usize = 64;
/// How often a Pod is looked at that says nothing yet.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is looked whether a Pod that is heard is there still.
const LOOK_AT_NODE: Duration = Duration::from_secs(10);
/// How long a Pod may take to end when its Job is deleted: its grace period, and then some.
pub(super) const GOODBYE: Duration = Duration::from_secs(60);
/// How long it is asked for a Job until it is known whether that is there.
const ANSWERED: Duration = Duration::from_secs(300);
/// How long a Pod may take until it runs: nodes are made, and images pulled.
const STARTED: Duration = Duration::from_secs(30 * 60);
/// How long a Job may be without a Pod, and a Pod that has ended without its log.
const LOST: Duration = Duration::from_secs(60);
/// Of a log that was rotated, its end has the last word.
const TAIL: i64 = 20;

impl Run {
    /// Asks until it is answered: a Job that was stored, and whose answer was lost, works.
    pub(super) async fn made(&self, job: &Job, namespace: &str) -> Result<(), NotBegun> {
        let late = Instant::now() + ANSWERED;
        loop {
            let Err(error) = self.jobs.create(&PostParams::default(), job).await else { return Ok(()) };
            match &error {
                kube::Error::Api(status) if status.code == 409 => match self.jobs.get_opt(&self.name).await {
                    Ok(Some(there)) if there.metadata.owner_references == job.metadata.owner_references => {
                        return Ok(());
                    }
                    Ok(Some(_)) => {
                        let message = format!("Job {} is there already, and is none of ours: delete it", self.name);
                        return Err(NotBegun::Refused(ApiError::conflict_message(message)));
                    }
                    Ok(None) | Err(_) => {}
                },
                kube::Error::Api(status) if (400..500).contains(&status.code) && !matches!(status.code, 408 | 429) => {
                    return Err(NotBegun::Refused(refused(namespace, &error)));
                }
                _ => debug!(run = self.name, %error, "whether a run's Job was made is not known"),
            }
            if Instant::now() > late {
                let refused = refused(namespace, &error);
                return Err(match self.jobs.get_opt(&self.name).await {
                    Ok(None) => NotBegun::Refused(refused),
                    _ => NotBegun::Unknown(refused),
                });
            }
            sleep(LOOK).await;
        }
    }

    pub(super) fn followed(self) -> Running {
        let (tell, reports) = mpsc::channel(REPORTS);
        let (end, mut told) = oneshot::channel();
        let (left, gone) = oneshot::channel();
        tokio::spawn(async move {
            let told_early = tokio::select! {
                () = self.hear(&tell) => None,
                told = &mut told => Some(told.is_ok()),
            };
            drop(tell);
            let is_told = match told_early {
                Some(is_told) => is_told,
                // What it has said is in its log only, until that is written.
                None => told.await.is_ok(),
            };
            // Else nobody waits for it any more, for we are ending: it is heard by whoever leads next.
            if is_told {
                self.remove().await;
            }
            drop(left);
        });
        Running { reports, end, gone }
    }

    /// Until its last word, or until it is gone.
    async fn hear(&self, tell: &mpsc::Sender<Report>) {
        let (mut heard, mut said, mut lost) = (0, String::new(), Instant::now() + LOST);
        let begun = Instant::now();
        loop {
            let state = match self.pod().await {
                Ok(Some(pod)) => pods::state(&pod, CONTAINER),
                Ok(None) => State::Waiting(pods::WAITING.to_owned()),
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
                    if begun.elapsed() > STARTED {
                        let message = format!("its Pod has not started within {} min: {said}", STARTED.as_secs() / 60);
                        return drop(tell.send(Report::Failed(not_started(message))).await);
                    }
                }
                State::Running(pod) => {
                    let is_over = tokio::select! {
                        is_over = self.follow(&pod, &mut heard, tell) => is_over,
                        // Whoever had its log says nothing any more, and does not hang up either.
                        () = self.is_lost() => {
                            let message = format!("Pod {pod} was lost with its node");
                            tell.send(Report::Failed(died(message))).await.ok();
                            true
                        }
                    };
                    if is_over {
                        return;
                    }
                    // Of one that runs, and cannot be heard now, more will be heard.
                    lost = Instant::now() + LOST;
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
                    return drop(tell.send(Report::Failed(died(message))).await);
                }
            }
            sleep(LOOK).await;
        }
    }

    /// Until its Pod is gone, or as good as that.
    async fn is_lost(&self) {
        let after = SignedDuration::try_from(LOST).unwrap_or(SignedDuration::MAX);
        let mut gone = None;
        loop {
            match self.pod().await {
                Ok(Some(pod)) if pods::is_lost(&pod, Timestamp::now(), after) => return,
                Ok(Some(_)) => gone = None,
                Ok(None) if gone.get_or_insert_with(Instant::now).elapsed() > LOST => return,
                Ok(None) => {}
                Err(error) => debug!(run = self.name, %error, "a run's Pod was not seen"),
            }
            sleep(LOOK_AT_NODE).await;
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

fn died(message: String) -> FailedRun {
    FailedRun { reason: reasons::RUNNER_DIED.to_owned(), message, again: true, target: None }
}

fn not_started(message: String) -> FailedRun {
    FailedRun { reason: reasons::NOT_STARTED.to_owned(), message, again: true, target: Some(UNTOUCHED.to_owned()) }
}

fn is_last(report: &Report) -> bool {
    !matches!(report, Report::Log(_) | Report::Progress { .. })
}

pub(super) fn refused(namespace: &str, error: &kube::Error) -> ApiError {
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

#[cfg(test)]
mod tests;
