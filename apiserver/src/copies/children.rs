//! Runs as child processes of a standalone server: this very program, told to be a runner.
//!
//! A run ends with us, however we end: its standard input is a pipe of ours. What it needs of Secrets lies in a directory for it
//! alone, which is removed when it ends, and at our next start.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use api::runner::{ALLOCATION, LONGEST_LINE, Report, SECRETS, TASK, WITH_PARENT};
use async_trait::async_trait;
use k8s_openapi::api::batch::v1::Job;
use nix::{sys::signal::Signal, unistd::Pid};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader},
    process::{Child, Command},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, warn};

use super::{
    depot::{Depot, Values},
    runs::{NotBegun, Order, Running, Runs, named},
};
use crate::error::ApiError;

#[derive(Debug)]
pub(crate) struct Children {
    /// Of the data directory; one directory for each run.
    home: PathBuf,
    /// Reads Secrets.
    depot: Depot,
}

/// The argument by which this program is a runner.
pub const RUNNER: &str = "runner";
/// How long a run may take to end when it is told to.
const GRACE: Duration = Duration::from_secs(20);
/// Reports that nobody has heard yet.
const REPORTS: usize = 64;

impl Children {
    /// Removes what runs of before have left.
    pub(crate) fn new(home: PathBuf, depot: Depot) -> io::Result<Self> {
        match fs::remove_dir_all(&home) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        private_directory(&home)?;
        Ok(Self { home, depot })
    }

    fn spawn(directory: &Path, order: &Order, secrets: &Values) -> anyhow::Result<Child> {
        private_directory(directory)?;
        for (secret, values) in secrets {
            let below = directory.join(secret);
            private_directory(&below)?;
            for (key, value) in values {
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(below.join(key))?;
                file.write_all(value)?;
            }
        }
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg(RUNNER)
            .env(TASK, serde_json::to_string(&order.task)?)
            .env(SECRETS, directory)
            .env(WITH_PARENT, "1")
            .envs(ALLOCATION);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        Ok(command.spawn()?)
    }
}

#[async_trait]
impl Runs for Children {
    async fn job(&self, _: &Order) -> Result<Job, ApiError> {
        Err(ApiError::bad_request("there are no Jobs here: without a cluster a run is a child process of this server"))
    }

    async fn begin(&self, order: Order) -> Result<Running, NotBegun> {
        let directory = self.home.join(&order.name);
        let secrets = self.depot.values(&order.place.namespace, named(&order.secrets)).await;
        let secrets = secrets.map_err(NotBegun::Refused)?;
        let child = Self::spawn(&directory, &order, &secrets).map_err(|error| {
            // Secrets are in it.
            fs::remove_dir_all(&directory).ok();
            NotBegun::Refused(ApiError::internal(format!("{error:#}")))
        })?;
        let (tell, reports) = mpsc::channel(REPORTS);
        let (end, told) = oneshot::channel::<()>();
        let (left, gone) = oneshot::channel();
        tokio::spawn(async move {
            watch(order.name, child, directory, tell, told).await;
            drop(left);
        });
        Ok(Running { reports, end, gone })
    }

    /// They end with whoever began them.
    async fn resume(&self, _: &str, _: &str) -> Result<Option<Running>, ApiError> {
        Ok(None)
    }
}

/// Until the process is gone, and its directory with it.
async fn watch(
    name: String,
    mut child: Child,
    directory: PathBuf,
    tell: mpsc::Sender<Report>,
    told: oneshot::Receiver<()>,
) {
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let pid = child.id();
    let hearing = async {
        tokio::join!(hear(output, &tell), complain(&name, errors));
        child.wait().await
    };
    tokio::pin!(hearing);
    let ended = tokio::select! {
        ended = &mut hearing => Some(ended),
        // Also when nobody is there any more who could.
        _ = told => {
            signal(pid, Signal::SIGTERM);
            timeout(GRACE, &mut hearing).await.ok()
        }
    };
    if ended.is_none() {
        warn!(run = name, "a run does not end; it is killed");
        signal(pid, Signal::SIGKILL);
        hearing.await.ok();
    }
    debug!(run = name, ?ended, "a run has ended");
    if let Err(error) = fs::remove_dir_all(&directory) {
        warn!(%error, directory = %directory.display(), "a run's directory was not removed");
    }
}

/// Whole lines, none longer than [`LONGEST_LINE`].
async fn hear(output: Option<impl AsyncRead + Unpin>, tell: &mpsc::Sender<Report>) {
    let Some(output) = output else { return };
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut output).take(LONGEST_LINE as u64);
        match bounded.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        match serde_json::from_slice(&line) {
            // Nobody hears it any more; the process is heard to its end all the same.
            Ok(report) => drop(tell.send(report).await),
            Err(error) => debug!(%error, "a line of a run is no report"),
        }
    }
}

async fn complain(name: &str, errors: Option<impl AsyncRead + Unpin>) {
    let Some(errors) = errors else { return };
    let mut lines = BufReader::new(errors.take(LONGEST_LINE as u64)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        warn!(run = name, line, "a run says");
    }
}

fn signal(pid: Option<u32>, signal: Signal) {
    if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
        nix::sys::signal::kill(Pid::from_raw(pid), signal).ok();
    }
}

fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
