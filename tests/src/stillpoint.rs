//! A standalone server as a process of its own, and its API.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use fixtures::{Engine, PASSWORD, Server, USER};
use kube::{Client, Config, config::Kubeconfig};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A running `stillpoint-apiserver --standalone`. Killed when it is dropped.
pub struct Stillpoint {
    pub client: Client,
    pub kubeconfig: PathBuf,
    pub pid: u32,
    child: Option<Child>,
    directory: TempDir,
    variables: Vec<(String, String)>,
}

/// What the server refused with.
#[derive(Debug)]
pub struct Refused {
    pub code: u16,
    pub message: String,
}

/// The data directory, and its log beside it, within a directory that goes with its owner.
const DATA: &str = "data";

/// A binary of ours, beside the one that runs.
pub fn binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let directory = own.parent().context("no directory")?;
    let directory = if directory.ends_with("deps") { directory.parent().context("no directory")? } else { directory };
    let path = directory.join(name);
    if !path.exists() {
        bail!("{} is not built: run `cargo build -p apiserver -p cli` first", path.display());
    }
    Ok(path)
}

impl Stillpoint {
    /// Starts one with an empty data directory.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// The same, with variables in its environment.
    pub async fn start_with(variables: &[(&str, &str)]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("stillpoint-data-").tempdir()?;
        let variables: Vec<_> =
            variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let (child, client, kubeconfig) = run(&directory.path().join(DATA), &variables).await?;
        Ok(Self { client, kubeconfig, pid: child.id(), child: Some(child), directory, variables })
    }

    /// As a crash: no goodbye.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Asks it to stop, as a service manager would, and waits until it has.
    pub async fn terminate(&mut self) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        Command::new("kill").arg(child.id().to_string()).status()?;
        let ended = tokio::task::spawn_blocking(move || child.wait());
        let status = tokio::time::timeout(Duration::from_secs(60), ended).await.context("it did not stop")???;
        anyhow::ensure!(status.success(), "{status}");
        Ok(())
    }

    /// Kills it and starts it again on the same data.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill9();
        let (child, client, kubeconfig) = run(&self.data_dir(), &self.variables).await?;
        (self.pid, self.client, self.kubeconfig, self.child) = (child.id(), client, kubeconfig, Some(child));
        Ok(())
    }

    pub fn data_dir(&self) -> PathBuf {
        self.directory.path().join(DATA)
    }

    /// What every run of it wrote to stderr.
    pub fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.data_dir().with_extension("log"))?)
    }

    /// Registers a real server as a Database, with the administrator's account.
    pub async fn register(&self, name: &str, server: &Server, freeze: Value) -> Result<()> {
        self.register_at(name, server.kind.engine, server.port, freeze).await
    }

    pub async fn register_at(&self, name: &str, engine: Engine, port: u16, freeze: Value) -> Result<()> {
        let secret = json!({
            "metadata": {"name": format!("{name}-account")}, "stringData": {"username": USER, "password": PASSWORD},
        });
        self.post("/api/v1/namespaces/default/secrets", &secret).await.map_err(anyhow::Error::msg)?;
        let engine = match engine {
            Engine::PostgreSQL => "PostgreSQL",
            Engine::MariaDB => "MariaDB",
        };
        let database = json!({
            "metadata": {"name": name},
            "spec": {
                "engine": engine, "endpoint": {"host": "127.0.0.1", "port": port},
                "credentials": {"secretRef": {"name": format!("{name}-account")}}, "freeze": freeze,
            },
        });
        let path = "/apis/stillpoint.dev/v1alpha1/namespaces/default/databases";
        self.post(path, &database).await.map_err(anyhow::Error::msg)?;
        Ok(())
    }

    /// `quiesce`; the answer's status.
    pub async fn quiesce(&self, database: &str, spec: Value) -> Result<Value, Refused> {
        self.verb(database, "quiesce", spec).await
    }

    /// `unquiesce`; the answer's status.
    pub async fn unquiesce(&self, database: &str, spec: Value) -> Result<Value, Refused> {
        self.verb(database, "unquiesce", spec).await
    }

    pub async fn verb(&self, database: &str, verb: &str, spec: Value) -> Result<Value, Refused> {
        let path = format!("/apis/live.stillpoint.dev/v1alpha1/namespaces/default/databases/{database}/{verb}");
        let answer = self.post(&path, &json!({"spec": spec})).await?;
        Ok(answer["status"].clone())
    }

    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Refused> {
        let request =
            http::Request::post(path).header("content-type", "application/json").body(body.to_string().into_bytes());
        self.send(request.map_err(|error| Refused { code: 0, message: error.to_string() })?).await
    }

    pub async fn get(&self, path: &str) -> Result<Value, Refused> {
        let request = http::Request::get(path).body(Vec::new());
        self.send(request.map_err(|error| Refused { code: 0, message: error.to_string() })?).await
    }

    pub async fn delete(&self, path: &str) -> Result<Value, Refused> {
        let request = http::Request::delete(path).body(Vec::new());
        self.send(request.map_err(|error| Refused { code: 0, message: error.to_string() })?).await
    }

    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<Value, Refused> {
        self.client.request::<Value>(request).await.map_err(|error| match error {
            kube::Error::Api(status) => Refused { code: status.code, message: status.message.clone() },
            other => Refused { code: 0, message: format!("{other:?}") },
        })
    }

    /// Waits until a Freeze has a finished phase, and answers its status.
    pub async fn finished(&self, freeze: &str, limit: Duration) -> Result<Value> {
        self.reaches(freeze, &["Thawed", "Failed", "Expired", "Lost"], limit).await
    }

    /// Waits until a Freeze has one of these phases, and answers its status.
    pub async fn reaches(&self, freeze: &str, phases: &[&str], limit: Duration) -> Result<Value> {
        let end = std::time::Instant::now() + limit;
        loop {
            let path = format!("/apis/stillpoint.dev/v1alpha1/namespaces/default/freezes/{freeze}");
            let object = self.get(&path).await.map_err(anyhow::Error::msg)?;
            let phase = object["status"]["phase"].as_str().unwrap_or_default();
            if phases.contains(&phase) {
                return Ok(object["status"].clone());
            }
            if std::time::Instant::now() > end {
                bail!("Freeze {freeze} is still {phase}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Stillpoint {
    fn drop(&mut self) {
        self.kill9();
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.code, self.message)
    }
}

async fn run(data: &Path, variables: &[(String, String)]) -> Result<(Child, Client, PathBuf)> {
    crate::use_ring();
    let log = std::fs::OpenOptions::new().create(true).append(true).open(data.with_extension("log"))?;
    let mut child = Command::new(binary("stillpoint-apiserver")?)
        .args(["--standalone", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()?;
    let stdout = child.stdout.take().context("no stdout")?;
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map(|_| line)
    });
    let line = tokio::time::timeout(Duration::from_secs(20), line).await.context("no ready line")???;
    let kubeconfig = line.trim().split_once("KUBECONFIG=").map(|(_, path)| PathBuf::from(path));
    let Some(kubeconfig) = kubeconfig else {
        child.kill().ok();
        bail!("the server did not start: {}", std::fs::read_to_string(data.with_extension("log")).unwrap_or_default());
    };
    let options = kube::config::KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(&kubeconfig)?, &options).await?;
    Ok((child, Client::try_from(config)?, kubeconfig))
}
