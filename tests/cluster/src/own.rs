//! A control plane that we started: its processes, and how each comes and goes.

use std::{
    collections::BTreeMap,
    fs::OpenOptions,
    io::Write,
    os::unix::net::UnixStream,
    path::Path,
    process::ExitStatus,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::{Api, Client};
use nix::sys::signal::Signal;
use tokio::{net::TcpStream, process::Command};

use crate::{
    binaries::image,
    components::{Component, Layout},
    identity,
    kubectl::Kubectl,
    process::{Lifetime, Process, started},
    wait::{tail, until},
};

/// A start takes seconds on an idle machine, and many when it also compiles.
const READY: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) layout: Layout,
    life: Lifetime,
    processes: Mutex<BTreeMap<Component, Process>>,
}

impl Own {
    /// Starts all of it, and waits until what a client takes for granted is there. `machine` is the process of the layout's.
    pub(crate) async fn start(layout: Layout, machine: Option<Process>, life: Lifetime) -> Result<Self> {
        let own = Self { layout, life, processes: Mutex::default() };
        if let Some(machine) = machine {
            own.add(Component::Machine, machine)?;
        }
        own.layout.prepare()?;
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
        if let Some(node) = own.layout.options.node {
            own.start_node(node, image(&["pause"]).await?, READY).await?;
        }
        Ok(own)
    }

    /// Starts one that does not run, and waits until it serves.
    pub(crate) async fn run(&self, component: Component) -> Result<()> {
        self.run_with(component, &[]).await
    }

    /// With further arguments: of a flag that is given twice the last counts.
    pub(crate) async fn run_with(&self, component: Component, further: &[&str]) -> Result<()> {
        let runs = self.processes().get_mut(&component).is_some_and(|process| process.ended().is_none());
        ensure!(!runs, "{component} runs already");
        let (mut binary, mut arguments) = (self.layout.binaries.of(component), self.layout.arguments(component)?);
        arguments.extend(further.iter().map(|&argument| argument.to_owned()));
        if !Component::CONTROL_PLANE.contains(&component) {
            (binary, arguments) = self.layout.machine()?.enter(&binary, arguments);
        }
        let log = self.layout.log(component);
        self.add(component, Process::spawn(&binary, &arguments, &self.layout.root, &log, self.life)?)?;
        self.wait_for_what_is_made(component, "an answer", READY, || self.answers(component)).await
    }

    fn add(&self, component: Component, process: Process) -> Result<()> {
        let group = process.group();
        self.processes().insert(component, process);
        record(&self.layout.root, component, group)
    }

    pub(crate) fn stop(&self, component: Component) -> Result<()> {
        let process = self.processes().remove(&component);
        self.bury(component, process.with_context(|| format!("{component} does not run"))?);
        Ok(())
    }

    fn bury(&self, component: Component, process: Process) {
        let group = process.group();
        process.kill();
        if let Some(machine) = self.layout.machine.as_ref().filter(|_| component == Component::Machine) {
            machine.went_down(group);
        }
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

    pub(crate) async fn client(&self) -> Result<Client> {
        identity::client(&self.layout.file("admin.kubeconfig")).await
    }

    /// As the administrator, with manifests if there are any.
    pub(crate) async fn kubectl(&self, arguments: &[&str], manifests: &str) -> Result<String> {
        let kubectl = Kubectl { binary: self.layout.binaries.kubectl(), home: self.layout.file("home") };
        kubectl.run(&self.layout.file("admin.kubeconfig"), arguments, manifests).await?.ok()
    }

    /// Runs a program of the host's in the node's machine, to its end.
    pub(crate) async fn in_machine(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let (enter, arguments) = self.layout.machine()?.enter(Path::new(program), arguments);
        let output = Command::new(enter).args(arguments).kill_on_drop(true).output().await?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} ({}): {}", output.status, error.trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    async fn answers(&self, component: Component) -> Result<()> {
        match component {
            Component::Apiserver => {
                let request = http::Request::get("/readyz").body(Vec::new())?;
                self.client().await?.request_text(request).await?;
            }
            Component::Containerd => self.containerd_answers().await?,
            Component::CsiDriver => drop(UnixStream::connect(self.layout.csi().endpoint())?),
            _ => {
                let listens = self.layout.listens(component).context("it does not listen")?;
                TcpStream::connect(listens).await?;
            }
        }
        Ok(())
    }

    /// Waits for something that `component` makes. One that ended will not make it, and has said why in its log.
    pub(crate) async fn wait_for_what_is_made<F>(
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
        loop {
            let last = self.processes().pop_last();
            let Some((component, process)) = last else { break };
            self.bury(component, process);
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
