//! An unmodified kubectl of the cluster's version.

use std::{path::PathBuf, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// Longer than kubectl waits by itself for anything that a test asks of it.
const LIMIT: Duration = Duration::from_secs(180);

#[derive(Clone, Debug)]
pub(crate) struct Kubectl {
    pub(crate) binary: PathBuf,
    /// Where it keeps what it has discovered: never where other clusters' is.
    pub(crate) home: PathBuf,
}

/// What a kubectl answered.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its exit code; -1 when a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    command: String,
}

impl Output {
    /// What it printed, if it succeeded.
    pub fn ok(self) -> Result<String> {
        ensure!(self.code == 0, "{} ({}): {}{}", self.command, self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }
}

impl Kubectl {
    /// What `kubectl edit` edits with: there is none until a test writes one.
    pub(crate) fn editor(&self) -> PathBuf {
        self.home.join("editor")
    }

    /// Asynchronous, so that a server in the same test can answer what kubectl asks.
    pub(crate) async fn run(&self, kubeconfig: &PathBuf, arguments: &[&str], input: &str) -> Result<Output> {
        let command = format!("kubectl {}", arguments.join(" "));
        let mut child = Command::new(&self.binary)
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .env("HOME", &self.home)
            .env("KUBE_EDITOR", self.editor())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| self.binary.display().to_string())?;
        let mut stdin = child.stdin.take().context("no stdin")?;
        let input = input.to_owned();
        // One that ends without reading breaks the pipe, and says better than that what is wrong. Dropping it closes it.
        let writing = tokio::spawn(async move { stdin.write_all(input.as_bytes()).await });
        let output = timeout(LIMIT, child.wait_with_output()).await;
        writing.abort();
        let output = output.with_context(|| format!("{command}: not within {} s", LIMIT.as_secs()))??;
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            command,
        })
    }
}
