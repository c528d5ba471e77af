//! A standalone server with a repository in a directory, and servers with programs of their own.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use fixtures::{Server, ServerKind, clients};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::Stillpoint;
use tokio::time::sleep;

pub(super) struct World {
    pub(super) stillpoint: Stillpoint,
    home: TempDir,
}

pub(super) const REPOSITORY: &str = "nightly";
pub(super) const REPOSITORY_PASSWORD: &str = "correct horse battery staple";
pub(super) const LIMIT: Duration = Duration::from_secs(120);

impl World {
    /// Its runs find the programs of these servers.
    pub(super) async fn with_programs_of(kinds: &[ServerKind]) -> Self {
        let tools: Vec<PathBuf> = kinds.iter().map(|kind| clients(*kind).unwrap()).collect();
        let tools = std::env::join_paths(tools).unwrap();
        let stillpoint = Stillpoint::start_with(&[("STILLPOINT_TOOLS", &tools.to_string_lossy())]).await.unwrap();
        Self { stillpoint, home: tempfile::tempdir().unwrap() }
    }

    /// Makes a Repository of directories, and waits until it is ready.
    pub(super) async fn repository(&self, locations: &[&str]) -> Vec<PathBuf> {
        let secret = json!({"metadata": {"name": "repository-key"}, "stringData": {"password": REPOSITORY_PASSWORD}});
        self.stillpoint.post("/api/v1/namespaces/default/secrets", &secret).await.unwrap();
        let paths: Vec<PathBuf> = locations.iter().map(|name| self.home.path().join(name)).collect();
        let places =
            locations.iter().zip(&paths).map(|(name, path)| json!({"name": name, "directory": {"path": path}}));
        let spec = json!({
            "locations": places.collect::<Vec<_>>(),
            "encryption": {"passwordSecretRef": {"name": "repository-key"}},
        });
        self.make("repositories", REPOSITORY, spec).await;
        self.until("repositories", REPOSITORY, |status| condition(status, "Ready") == "True").await;
        paths
    }

    pub(super) async fn make(&self, plural: &str, name: &str, spec: Value) -> Value {
        let path = format!("/apis/stillpoint.dev/v1alpha1/namespaces/default/{plural}");
        self.stillpoint.post(&path, &json!({"metadata": {"name": name}, "spec": spec})).await.unwrap()
    }

    pub(super) async fn status(&self, plural: &str, name: &str) -> Value {
        let path = format!("/apis/stillpoint.dev/v1alpha1/namespaces/default/{plural}/{name}");
        self.stillpoint.get(&path).await.unwrap()["status"].clone()
    }

    /// Waits until the status is as wanted; it is failed when it never will be.
    pub(super) async fn until(&self, plural: &str, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + LIMIT;
        loop {
            let status = self.status(plural, name).await;
            if wanted(&status) {
                return status;
            }
            assert!(
                Instant::now() < end && status["phase"] != "Failed",
                "{plural}/{name}: {status:#}\n{}",
                self.stillpoint.log().unwrap()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Takes a Snapshot, and answers its status when it is ready.
    pub(super) async fn snapshot(&self, name: &str, databases: &[&str]) -> Value {
        self.make("snapshots", name, json!({"databases": databases, "repository": REPOSITORY})).await;
        self.until("snapshots", name, |status| status["phase"] == "Ready").await
    }

    pub(super) async fn register(&self, name: &str, server: &Server) {
        self.stillpoint.register(name, server, json!({})).await.unwrap();
    }
}

pub(super) fn condition<'s>(status: &'s Value, kind: &str) -> &'s str {
    let conditions = status["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions
        .iter()
        .find(|condition| condition["type"] == kind)
        .and_then(|found| found["status"].as_str())
        .unwrap_or("Unknown")
}
