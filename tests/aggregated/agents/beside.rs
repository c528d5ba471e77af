//! A database, and its agent beside it: processes of this host, in a Pod that no node runs.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use api::agent::AUDIENCE;
use cluster::until;
use fixtures::{Engine, Options, PASSWORD, Server, ServerKind, USER};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::world::{SOON, Space};

/// What an agent and its Pod are made of.
pub(super) struct Beside<'s> {
    pub(super) space: &'s Space<'s>,
    pub(super) pod: &'static str,
    pub(super) server: Server,
    /// Its credentials, its token and its socket.
    directory: TempDir,
    replicas: String,
    /// Of its agent's, beside what every agent is told.
    environment: Vec<(&'static str, String)>,
    child: Child,
}

/// A Pod that is at 127.0.0.1, as far as anybody is told.
pub(crate) async fn pod(space: &Space<'_>, name: &str) -> Result<()> {
    space.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "db"}})).await?;
    space
        .apply(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"serviceAccountName": "db", "containers": [{"name": "db", "image": "none"}]},
        }))
        .await?;
    let status = json!({"status": {"phase": "Running", "podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}});
    space.kubectl(&["patch", "pod", name, "--subresource=status", "-p", &status.to_string()]).await.map(drop)
}

/// A token that is bound to a Pod.
pub(crate) async fn token(space: &Space<'_>, pod: &str, audience: &str) -> Result<String> {
    let bound =
        ["create", "token", "db", "--bound-object-kind=Pod", "--bound-object-name", pod, "--audience", audience];
    Ok(space.kubectl(&bound).await?.trim().to_owned())
}

pub(crate) async fn uid(space: &Space<'_>, pod: &str) -> Result<String> {
    space.kubectl(&["get", "pod", pod, "-o", "jsonpath={.metadata.uid}"]).await
}

impl<'s> Beside<'s> {
    /// With a Database that names no Secret, and is frozen by its agent or not at all.
    pub(super) async fn start(
        space: &'s Space<'s>,
        pod: &'static str,
        kind: ServerKind,
        replicas: &str,
    ) -> Result<Self> {
        Self::start_in(space, pod, kind, replicas, Vec::new()).await
    }

    /// Its agent in this environment.
    pub(super) async fn start_in(
        space: &'s Space<'s>,
        pod: &'static str,
        kind: ServerKind,
        replicas: &str,
        environment: Vec<(&'static str, String)>,
    ) -> Result<Self> {
        let server = Server::start(kind, Options::default()).await?;
        self::pod(space, pod).await?;
        let directory = tempfile::tempdir()?;
        std::fs::write(directory.path().join("username"), USER)?;
        std::fs::write(directory.path().join("password"), PASSWORD)?;
        std::fs::write(directory.path().join("token"), token(space, pod, AUDIENCE).await?)?;
        let uid = uid(space, pod).await?;
        let mut command = agent(space, pod, &uid, &server, directory.path().to_owned(), replicas).await?;
        let child = command.envs(environment.clone()).spawn()?;
        let beside = Self { space, pod, server, directory, replicas: replicas.to_owned(), environment, child };
        space
            .apply(json!({
                "apiVersion": api::API_VERSION, "kind": "Database", "metadata": {"name": pod},
                "spec": {
                    "engine": beside.engine(), "endpoint": {"host": "127.0.0.1", "port": beside.server.port},
                    "agent": "Required",
                },
            }))
            .await?;
        beside.is_ready().await?;
        Ok(beside)
    }

    pub(super) fn engine(&self) -> &'static str {
        match self.server.kind.engine {
            Engine::PostgreSQL => "PostgreSQL",
            Engine::MariaDB => "MariaDB",
        }
    }

    pub(super) async fn is_ready(&self) -> Result<()> {
        // Looks are a minute apart, and one that found nobody is not made again for an agent that comes.
        until("its agent is asked", SOON, async || {
            let dry = format!("{}?dryRun=All", self.space.verb(self.pod, "quiesce"));
            let said = self.space.kubectl(&["create", "--raw", &dry, "-f", "/dev/null"]).await?;
            let said: Value = serde_json::from_str(&said)?;
            let failed =
                said["status"]["checks"].as_array().context("no checks")?.iter().any(|check| check["result"] == "Fail");
            ensure!(!failed, "{said}");
            Ok(())
        })
        .await
    }

    /// Runs a command of the agent's, as a hook would: whether it went well, and what it said.
    pub(super) fn command(&self, arguments: &[&str]) -> Result<(bool, String)> {
        let output = Command::new(tests::binary("stillpoint-agent")?)
            .args(arguments)
            .env("STILLPOINT_RUN", self.directory.path())
            .output()?;
        let said = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
    }

    pub(super) async fn hold(&self, level: &str, seconds: u32) -> Result<Value> {
        let body = self.space.file("hold", &json!({"spec": {"level": level, "ttlSeconds": seconds}}))?;
        let answer =
            self.space.kubectl(&["create", "--raw", &self.space.verb(self.pod, "quiesce"), "-f", &body]).await?;
        Ok(serde_json::from_str::<Value>(&answer)?["status"].take())
    }

    /// A commit is acknowledged within so long.
    pub(super) async fn is_writable(&self, within: Duration) -> bool {
        let write = match self.server.kind.engine {
            Engine::PostgreSQL => "INSERT INTO t VALUES (1)",
            Engine::MariaDB => "INSERT INTO shop.t VALUES (1)",
        };
        tokio::time::timeout(within, self.server.execute("postgres", write)).await.is_ok_and(|done| done.is_ok())
    }

    pub(super) async fn freeze(&self, name: &Value, phases: &[&str]) -> Result<Value> {
        let name = name.as_str().context("no name")?;
        self.space
            .until_json(&format!("{phases:?}"), &["get", "freezes", name, "-o", "json"], |freeze| {
                phases.iter().any(|phase| freeze["status"]["phase"] == *phase)
            })
            .await
    }

    pub(super) fn signal(&self, signal: &str) -> Result<()> {
        let sent = Command::new("kill").args([signal, &self.child.id().to_string()]).status()?;
        ensure!(sent.success(), "kill {signal}");
        Ok(())
    }

    pub(super) async fn again(&mut self) -> Result<()> {
        self.child.kill().ok();
        self.child.wait().ok();
        let uid = uid(self.space, self.pod).await?;
        let directory = self.directory.path().to_owned();
        let mut command = agent(self.space, self.pod, &uid, &self.server, directory, &self.replicas).await?;
        self.child = command.envs(self.environment.clone()).spawn()?;
        self.is_ready().await
    }
}

impl Drop for Beside<'_> {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The agent of a Pod, to be started.
pub(crate) async fn agent(
    space: &Space<'_>,
    pod: &str,
    uid: &str,
    server: &Server,
    directory: PathBuf,
    replicas: &str,
) -> Result<Command> {
    let engine = match server.kind.engine {
        Engine::PostgreSQL => "PostgreSQL",
        Engine::MariaDB => "MariaDB",
    };
    let log = std::fs::File::create(space.world.cluster.root().join(format!("{}-{pod}-agent.log", space.name)))?;
    let mut command = Command::new(tests::binary("stillpoint-agent")?);
    command
        .arg("run")
        .env_clear()
        .env("STILLPOINT_ENGINE", engine)
        .env("STILLPOINT_ADDRESS", format!("127.0.0.1:{}", server.port))
        .env("STILLPOINT_APISERVER", replicas)
        .env("STILLPOINT_CA", space.world.authority().await?)
        .env("STILLPOINT_CREDENTIALS", &directory)
        .env("STILLPOINT_TOKEN_FILE", directory.join("token"))
        .env("STILLPOINT_RUN", &directory)
        .env("POD_NAMESPACE", &space.name)
        .env("POD_NAME", pod)
        .env("POD_UID", uid)
        .stdout(Stdio::null())
        .stderr(log);
    Ok(command)
}
