//! A control plane that we started: its processes, and how each comes and goes.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::{Api, Client};
use nix::sys::signal::Signal;
use tokio::{net::TcpStream, process::Command};

use crate::{
    components::{Component, Layout},
    identity,
    process::{Lifetime, Process, started},
    wait::{tail, until},
};

/// A start takes seconds on an idle machine, and many when it also compiles.
const READY: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) layout: Layout,
    binaries: PathBuf,
    life: Lifetime,
    processes: Mutex<BTreeMap<Component, Process>>,
}

impl Own {
    /// Starts all of it, and waits until what a client takes for granted is there.
    pub(crate) async fn start(layout: Layout, binaries: PathBuf, life: Lifetime) -> Result<Self> {
        layout.prepare()?;
        let own = Self { layout, binaries, life, processes: Mutex::default() };
        own.run(Component::Etcd).await?;
        own.run(Component::Apiserver).await?;
        tokio::try_join!(own.run(Component::ControllerManager), own.run(Component::Scheduler))?;
        own.wait_for_what_is_made(Component::Apiserver, "the front proxy's authority", READY, || async {
            let maps: Api<ConfigMap> = Api::namespaced(own.client().await?, "kube-system");
            let data = maps.get("extension-apiserver-authentication").await?.data.unwrap_or_default();
            ensure!(data.contains_key("requestheader-client-ca-file"), "there is no requestheader-client-ca-file yet");
            Ok(())
        })
        .await?;
        own.wait_for_what_is_made(Component::ControllerManager, "the default service account", READY, || async {
            let accounts: Api<ServiceAccount> = Api::namespaced(own.client().await?, "default");
            accounts.get("default").await?;
            Ok(())
        })
        .await?;
        Ok(own)
    }

    /// Starts one that does not run, and waits until it serves.
    pub(crate) async fn run(&self, component: Component) -> Result<()> {
        {
            let mut processes = self.processes();
            let runs = processes.get_mut(&component).is_some_and(|process| process.ended().is_none());
            ensure!(!runs, "{component} runs already");
            let (binary, log) = (self.binaries.join(component.name()), self.layout.log(component));
            let arguments = self.layout.arguments(component);
            let process = Process::spawn(&binary, &arguments, &self.layout.root, &log, self.life)?;
            let group = process.group();
            processes.insert(component, process);
            record(&self.layout.root, component, group)?;
        }
        self.wait_for_what_is_made(component, "an answer", READY, || self.answers(component)).await
    }

    pub(crate) fn stop(&self, component: Component) -> Result<()> {
        let process = self.processes().remove(&component);
        process.with_context(|| format!("{component} does not run"))?.kill();
        Ok(())
    }

    pub(crate) fn signal(&self, component: Component, signal: Signal) -> Result<()> {
        self.processes().get(&component).with_context(|| format!("{component} does not run"))?.signal(signal)
    }

    pub(crate) fn groups(&self) -> BTreeMap<Component, u32> {
        self.processes().iter().map(|(component, process)| (*component, process.group())).collect()
    }

    /// Lets the processes live on without us.
    pub(crate) fn leave(&self) {
        self.processes().clear();
    }

    async fn client(&self) -> Result<Client> {
        identity::client(&self.layout.file("admin.kubeconfig")).await
    }

    async fn answers(&self, component: Component) -> Result<()> {
        if component == Component::Apiserver {
            let request = http::Request::get("/readyz").body(Vec::new())?;
            self.client().await?.request_text(request).await?;
        } else {
            TcpStream::connect(("127.0.0.1", self.layout.port(component))).await?;
        }
        Ok(())
    }

    /// Waits for something that `component` makes. One that ended will not make it, and has said why in its log.
    async fn wait_for_what_is_made<F>(
        &self,
        component: Component,
        what: &str,
        limit: Duration,
        probe: impl FnMut() -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let made = tokio::select! {
            made = until(what, limit, probe) => made,
            status = self.ended(component) => Err(anyhow!("it ended: {status}")),
        };
        made.map_err(|error| anyhow!("{component}: {error:#}; {}", tail(&self.layout.log(component))))
    }

    async fn ended(&self, component: Component) -> ExitStatus {
        loop {
            if let Some(status) = self.processes().get_mut(&component).and_then(Process::ended) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A test that failed with the lock held must still be cleaned up after.
    fn processes(&self) -> MutexGuard<'_, BTreeMap<Component, Process>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        // The clients first: they would fill their logs with complaints.
        while let Some((_, process)) = self.processes().pop_last() {
            process.kill();
        }
    }
}

/// The name of the file that says which process groups belong to a cluster.
pub(crate) const PROCESSES: &str = "processes";

/// Written as each is started, so that nothing runs that `down` does not know, whenever we die.
fn record(root: &Path, component: Component, group: u32) -> Result<()> {
    let started = started(group).with_context(|| format!("{component} is gone again"))?;
    let mut file = OpenOptions::new().create(true).append(true).open(root.join(PROCESSES))?;
    writeln!(file, "{component} {group} {started}")?;
    Ok(())
}

/// Where a tool of `tests/tools` says that something is. It may have to build it first, and then says so on our stderr: that
/// takes minutes.
pub async fn tool(name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools").join(name);
    let output = Command::new(&tool).args(arguments).stderr(Stdio::inherit()).output().await;
    let output = output.with_context(|| tool.display().to_string())?;
    ensure!(output.status.success(), "tests/tools/{name} failed ({}); it said why", output.status);
    let text = String::from_utf8(output.stdout)?;
    Ok(PathBuf::from(text.lines().last().unwrap_or_default()))
}
