//! One `stillpoint-apiserver`, as a process of this host.

use std::{
    fs,
    fs::{File, OpenOptions},
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use cluster::{Cluster, until};
use fixtures::Port;
use tokio::sync::oneshot;

use crate::{
    wire::Server,
    world::{NAMESPACE, SERVICE, SOON},
};

/// Killed when it is dropped.
pub(crate) struct Replica {
    pub(crate) name: String,
    pub(crate) server: Server,
    child: Child,
    port: Port,
    stopped: bool,
}

impl Replica {
    pub(crate) async fn start(cluster: &Cluster, kubeconfig: &Path, name: &str, arguments: &[String]) -> Result<Self> {
        Self::at(Port::reserve()?, cluster, kubeconfig, name, arguments).await
    }

    /// With the arguments of somebody else, who says who it is.
    pub(crate) async fn start_with(
        cluster: &Cluster,
        kubeconfig: &Path,
        name: &str,
        arguments: &[String],
    ) -> Result<Self> {
        Self::with(Port::reserve()?, cluster, kubeconfig, name, arguments).await
    }

    /// Another run of it, at the same address.
    pub(crate) async fn again(mut self, cluster: &Cluster, kubeconfig: &Path, arguments: &[String]) -> Result<Self> {
        self.kill();
        let port = std::mem::replace(&mut self.port, Port::reserve()?);
        Self::at(port, cluster, kubeconfig, &self.name, arguments).await
    }

    async fn at(port: Port, cluster: &Cluster, kubeconfig: &Path, name: &str, arguments: &[String]) -> Result<Self> {
        let arguments: Vec<String> =
            ["--identity", name].map(str::to_owned).into_iter().chain(arguments.iter().cloned()).collect();
        Self::with(port, cluster, kubeconfig, name, &arguments).await
    }

    async fn with(port: Port, cluster: &Cluster, kubeconfig: &Path, name: &str, arguments: &[String]) -> Result<Self> {
        let child = spawn(&cluster.root().join(format!("{name}.log")), kubeconfig, &port, arguments).await?;
        let bundle =
            ["get", "secret", "stillpoint-apiserver-ca", "--namespace", NAMESPACE, "-o", "jsonpath={.data.ca\\.crt}"];
        // The first that leads puts it there.
        let authority = until("our authority is there", SOON, async || cluster.kubectl(&bundle).await?.ok()).await?;
        let authority = STANDARD.decode(authority.trim())?;
        let server = Server {
            address: (cluster.address(), port.number).into(),
            name: format!("{SERVICE}.{NAMESPACE}.svc"),
            authority: String::from_utf8(authority)?,
        };
        Ok(Self { name: name.to_owned(), server, child, port, stopped: false })
    }

    /// Returns when its probe would say so.
    pub(crate) async fn ready(&self) -> Result<()> {
        until("it is ready", SOON, async || {
            let answer = self.server.get("/readyz?verbose").await?;
            ensure!(answer.code == 200, "{}", String::from_utf8_lossy(&answer.body));
            Ok(())
        })
        .await
    }

    /// `-TERM` asks it to stop, as a kubelet would; `-STOP` lets it hang, and `-CONT` go on.
    pub(crate) fn signal(&mut self, signal: &str) -> Result<()> {
        let status = Command::new("kill").args([signal, &self.child.id().to_string()]).status()?;
        ensure!(status.success(), "kill: {status}");
        self.stopped = match signal {
            "-STOP" => true,
            "-CONT" => false,
            _ => self.stopped,
        };
        Ok(())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn port(&self) -> u16 {
        self.port.number
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// As a crash: no goodbye.
    pub(crate) fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// What processor time it has had (proc(5), `/proc/pid/stat`, in ticks of 10 ms).
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).context("no such field")?.parse::<u64>().context("no number");
        Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
    }
}

/// What a process has in memory, in KiB.
pub(crate) fn resident(id: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Starts one, and waits until it listens.
async fn spawn(log: &Path, kubeconfig: &Path, port: &Port, arguments: &[String]) -> Result<Child> {
    let log: File = OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = Command::new("setpriv");
    command
        .arg("--pdeathsig=KILL")
        .arg(tests::binary("stillpoint-apiserver")?)
        .args(["--listen", &format!("0.0.0.0:{}", port.number), "--kubeconfig"])
        .arg(kubeconfig)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(log);
    let mut child = spawn_for_good(command).await?;
    let stdout = child.stdout.take().context("no stdout")?;
    let line = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).map(|_| line)
    });
    let line = tokio::time::timeout(SOON, line).await.context("no line")???;
    ensure!(line.starts_with("listening:"), "it did not start; see its log");
    Ok(child)
}

/// From a thread that never ends: the kernel kills a child when the thread that spawned it is gone, and a test's threads go
/// with the test.
async fn spawn_for_good(mut command: Command) -> Result<Child> {
    let (sender, spawned) = oneshot::channel();
    thread::spawn(move || {
        sender.send(command.spawn()).ok();
        loop {
            thread::park();
        }
    });
    Ok(spawned.await??)
}
