//! Runs by an API server that is a fake: whose answers are lost, whose Pods are gone.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use kube::{Client, client::Body};
use serde_json::{Value, json};

use super::*;

/// One Job, and its Pod, which has ended, as long as that is there.
#[derive(Clone, Default)]
struct FakeApi(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    job: Option<Value>,
    /// Said to so many of the first that make one; the first of them is stored all the same.
    to_the_first: Vec<StatusCode>,
    made: usize,
    deleted: usize,
}

const NAME: &str = "u-1";

fn job(owner: &str) -> Job {
    let owners = json!([{"apiVersion": "stillpoint.dev/v1alpha1", "kind": "Snapshot", "name": "noon", "uid": owner}]);
    serde_json::from_value(json!({"metadata": {"name": NAME, "namespace": "shop", "ownerReferences": owners}})).unwrap()
}

impl FakeApi {
    fn run(&self) -> Run {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (code, said) = fake.serve(&parts.method, parts.uri.path(), &body);
                Ok::<_, Infallible>(Response::builder().status(code).body(Full::new(Bytes::from(said))).unwrap())
            }
        });
        let client = Client::new(service, "shop");
        let (jobs, pods) = (Api::namespaced(client.clone(), "shop"), Api::namespaced(client.clone(), "shop"));
        Run { jobs, pods, logs: Api::namespaced(client, "shop"), name: NAME.to_owned() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn serve(&self, method: &Method, path: &str, body: &[u8]) -> (StatusCode, String) {
        let mut state = self.state();
        let there = state.job.clone();
        let said = match (method, path) {
            (&Method::POST, "/apis/batch/v1/namespaces/shop/jobs") => {
                state.made += 1;
                let code = (state.made <= state.to_the_first.len()).then(|| state.to_the_first[state.made - 1]);
                match (there, code) {
                    (Some(_), _) => return status(StatusCode::CONFLICT, "AlreadyExists"),
                    (None, Some(code)) if code.is_client_error() => return status(code, "Forbidden"),
                    (None, code) => {
                        state.job = Some(serde_json::from_slice(body).unwrap());
                        if let Some(code) = code {
                            return status(code, "Timeout");
                        }
                        state.job.clone()
                    }
                }
            }
            (&Method::GET, "/apis/batch/v1/namespaces/shop/jobs/u-1") => there,
            (&Method::DELETE, "/apis/batch/v1/namespaces/shop/jobs/u-1") => {
                state.deleted += 1;
                state.job.take()
            }
            (&Method::GET, "/api/v1/namespaces/shop/pods") => {
                let ended = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
                let container = json!({"name": CONTAINER, "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": ended});
                let pod = json!({"metadata": {"name": "p"}, "status": {"containerStatuses": [container]}});
                Some(json!({"metadata": {}, "items": there.iter().map(|_| &pod).collect::<Vec<_>>()}))
            }
            (&Method::GET, "/api/v1/namespaces/shop/pods/p/log") => {
                let last = serde_json::to_string(&Report::Replicated(vec![("offsite".to_owned(), None)])).unwrap();
                return (StatusCode::OK, format!("{last}\n"));
            }
            _ => panic!("{method} {path}"),
        };
        said.map_or_else(|| status(StatusCode::NOT_FOUND, "NotFound"), |said| (StatusCode::OK, said.to_string()))
    }
}

fn status(code: StatusCode, reason: &str) -> (StatusCode, String) {
    let said =
        json!({"kind": "Status", "status": "Failure", "reason": reason, "message": reason, "code": code.as_u16()});
    (code, said.to_string())
}

#[tokio::test(start_paused = true)]
async fn a_job_whose_answer_was_lost_is_the_one_that_is_meant() {
    let api = FakeApi::default();
    api.state().to_the_first = vec![StatusCode::GATEWAY_TIMEOUT];
    api.run().made(&job("snapshot"), "shop").await.unwrap();
    assert_eq!(api.state().made, 2);
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_known_not_to_be_there_and_what_is_another_s_is_left_alone() {
    let api = FakeApi::default();
    api.state().to_the_first = vec![StatusCode::FORBIDDEN];
    let refused = api.run().made(&job("snapshot"), "shop").await;
    assert!(
        matches!(&refused, Err(NotBegun::Refused(error)) if error.message.contains("kubectl still enable")),
        "{refused:?}"
    );
    assert_eq!(api.state().made, 1);

    api.state().job = Some(serde_json::to_value(job("another")).unwrap());
    let refused = api.run().made(&job("snapshot"), "shop").await;
    assert!(matches!(&refused, Err(NotBegun::Refused(error)) if error.message.contains("none of ours")), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn what_a_run_has_said_stays_until_whoever_heard_it_says_that_it_is_written() {
    let api = FakeApi::default();
    api.run().made(&job("snapshot"), "shop").await.unwrap();
    let mut running = api.run().followed();
    assert!(matches!(running.reports.recv().await, Some(Report::Replicated(_))));
    assert_eq!(running.reports.recv().await, None);
    // Whoever heard it dies.
    drop(running);
    tokio::task::yield_now().await;
    assert_eq!(api.state().deleted, 0);

    let mut next = api.run().followed();
    assert!(matches!(next.reports.recv().await, Some(Report::Replicated(_))), "it is heard again");
    next.end().await;
    let state = api.state();
    assert!(state.deleted == 1 && state.job.is_none(), "and gone when that is over");
}
