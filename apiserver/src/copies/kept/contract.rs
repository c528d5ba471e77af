//! What every [`Kept`] promises, asked of the registry and of a cluster whose API server is a fake: one object, with versions.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use api::{Snapshot, SnapshotPhase, SnapshotStatus};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use jiff::Timestamp;
use kube::{Client, client::Body};
use serde_json::{Value, json};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{InCluster, Kept, Own};
use crate::{
    registry::{DeleteOptions, Registry},
    resources::{SNAPSHOTS, stored},
    store::Store,
};

const NAME: (&str, &str) = ("shop", "noon");

fn object() -> Value {
    json!({
        "apiVersion": "stillpoint.dev/v1alpha1", "kind": "Snapshot",
        "metadata": {
            "name": NAME.1, "namespace": NAME.0, "uid": "u", "resourceVersion": "1",
            "finalizers": ["another/one", api::FINALIZER_SNAPSHOT],
        },
        "spec": {"databases": ["orders"], "method": "VolumeSnapshot"},
    })
}

/// An API server that has one object, or none any more; `faster`: somebody else writes its status before the first who tries to.
#[derive(Clone)]
struct FakeApi(Arc<Mutex<State>>);

struct State {
    object: Value,
    faster: bool,
    writes: u32,
}

impl FakeApi {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(State { object: object(), faster: true, writes: 0 })))
    }

    fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let fake = fake.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await.unwrap().to_bytes();
                let (code, said) = fake.serve(&parts.method, parts.uri.path(), &body);
                let response = Response::builder().status(code).body(Full::new(Bytes::from(said.to_string())));
                Ok::<_, Infallible>(response.unwrap())
            }
        });
        Client::new(service, "default")
    }

    fn serve(&self, method: &Method, path: &str, body: &[u8]) -> (StatusCode, Value) {
        let mut state = self.0.lock().unwrap();
        if !path.contains("/namespaces/shop/snapshots/noon") {
            return status(StatusCode::NOT_FOUND, "NotFound");
        }
        let sent = || -> Value { serde_json::from_slice(body).unwrap() };
        match *method {
            Method::GET => {}
            Method::PUT => {
                assert!(path.ends_with("/status"), "{path}");
                if std::mem::take(&mut state.faster) {
                    state.object["status"]["message"] = "somebody else's".into();
                    state.written();
                }
                if !state.is_newest(&sent()) {
                    return status(StatusCode::CONFLICT, "Conflict");
                }
                state.object["status"] = sent()["status"].take();
                state.written();
            }
            Method::PATCH => {
                if !state.is_newest(&sent()) {
                    return status(StatusCode::CONFLICT, "Conflict");
                }
                state.object["metadata"]["finalizers"] = sent()["metadata"]["finalizers"].take();
                state.written();
            }
            _ => panic!("{method} {path}"),
        }
        (StatusCode::OK, state.object.clone())
    }
}

impl State {
    fn is_newest(&self, sent: &Value) -> bool {
        sent["metadata"]["resourceVersion"] == self.object["metadata"]["resourceVersion"]
    }

    fn written(&mut self) {
        self.writes += 1;
        self.object["metadata"]["resourceVersion"] = (self.writes + 1).to_string().into();
    }
}

fn status(code: StatusCode, reason: &str) -> (StatusCode, Value) {
    let said = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason, "code": code.as_u16(),
    });
    (code, said)
}

async fn holds(kept: &dyn Kept<Snapshot>, is_faster: bool) {
    assert_eq!(kept.get("shop", "none").await.unwrap_err().code, 404);
    let missing = kept.change("shop", "none", &|status| Some(status)).await;
    assert_eq!(missing.unwrap_err().code, 404);
    // What somebody else wrote meanwhile is not lost.
    let running = |status: SnapshotStatus| Some(SnapshotStatus { phase: SnapshotPhase::Running, ..status });
    kept.change(NAME.0, NAME.1, &running).await.unwrap();
    let now = kept.get(NAME.0, NAME.1).await.unwrap();
    let status = now.status.clone().unwrap();
    assert_eq!(status.phase, SnapshotPhase::Running);
    assert_eq!(status.message.is_some(), is_faster);
    // What is as it should be is not written.
    kept.change(NAME.0, NAME.1, &|_| None).await.unwrap();
    let version = kept.get(NAME.0, NAME.1).await.unwrap().metadata.resource_version.clone();
    assert_eq!(version, now.metadata.resource_version);
    // Of finalizers only its own goes.
    kept.keep(NAME.0, NAME.1, api::FINALIZER_SNAPSHOT).await.unwrap();
    kept.let_go(NAME.0, NAME.1, api::FINALIZER_SNAPSHOT).await.unwrap();
    kept.let_go(NAME.0, NAME.1, api::FINALIZER_SNAPSHOT).await.unwrap();
    let finalizers = kept.get(NAME.0, NAME.1).await.unwrap().metadata.finalizers.clone();
    assert_eq!(finalizers, Some(vec!["another/one".to_owned()]));
}

#[tokio::test]
async fn a_cluster_keeps_what_is_promised() {
    let fake = FakeApi::new();
    let (tasks, over) = (TaskTracker::new(), CancellationToken::new());
    over.cancel();
    let kept = InCluster::begin(fake.client(), fake.client(), &SNAPSHOTS, &tasks, &over);
    holds(kept.as_ref(), true).await;
    assert_eq!(fake.0.lock().unwrap().writes, 3, "another's status, ours, and a finalizer");
    kept.keep(NAME.0, NAME.1, api::FINALIZER_SNAPSHOT).await.unwrap();
    let finalizers = kept.get(NAME.0, NAME.1).await.unwrap().metadata.finalizers.clone().unwrap();
    assert_eq!(finalizers, ["another/one", api::FINALIZER_SNAPSHOT]);
}

#[tokio::test]
async fn a_registry_keeps_what_is_promised() {
    let directory = tempfile::tempdir().unwrap();
    let tasks = TaskTracker::new();
    let store = Store::open(&directory.path().join("objects.db"), &stored(), &tasks).unwrap();
    let registry = Registry::new(store);
    let mut new = object();
    for field in ["resourceVersion", "uid"] {
        new["metadata"].as_object_mut().unwrap().remove(field);
    }
    registry.create_with_status(&SNAPSHOTS, NAME.0, &new).await.unwrap();
    // Deleted, it is kept by its finalizers.
    let options = DeleteOptions::default();
    registry.delete(&SNAPSHOTS, Some(NAME.0), NAME.1, &options, Timestamp::now()).await.unwrap();
    holds(Own::shared(&registry, &SNAPSHOTS).as_ref(), false).await;
}
