//! Commands that must not outlive us.
//!
//! ```text
//! kubectl-still ─► kubectl-still __supervise (leads a process group) ─► COMMAND (in that group)
//! ```
//! The supervisor looks at its parent: when we are gone, by whatever signal, it ends the whole group. When the supervisor
//! itself is gone, we end the group. So COMMAND never copies a database that nobody holds any more.

use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    os::unix::process::{ExitStatusExt, parent_id},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::failure::{CANNOT_RUN, Failure, NOT_FOUND};

/// The hidden subcommand.
pub const SUPERVISE: &str = "__supervise";
/// How often the supervisor looks whether we are still there.
const LOOK: Duration = Duration::from_millis(100);
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// A running command with its supervisor.
#[derive(Debug)]
pub struct Supervised {
    child: Child,
    group: Pid,
}

impl Supervised {
    /// Starts `command`, in a process group of its own. A terminal is not given to it as stdin: in the background it
    /// could only be stopped by it.
    pub fn start(command: &[OsString], environment: &[(String, String)]) -> Result<Self, Failure> {
        let own = std::env::current_exe()?;
        let stdin = if io::stdin().is_terminal() { Stdio::null() } else { Stdio::inherit() };
        let child = Command::new(own)
            .arg(SUPERVISE)
            .arg(std::process::id().to_string())
            .arg("--")
            .args(command)
            .envs(environment.iter().map(|(key, value)| (key, value)))
            .stdin(stdin)
            .process_group(0)
            .spawn()?;
        let id = child
            .id()
            .and_then(|id| i32::try_from(id).ok())
            .ok_or_else(|| Failure::new("the command has no process id"))?;
        Ok(Self { child, group: Pid::from_raw(id) })
    }

    /// Its exit code, as a shell would say it. Safe to cancel.
    pub async fn wait(&mut self) -> io::Result<u8> {
        let code = code(self.child.wait().await?);
        // The supervisor is gone: whatever is left of the group must not go on.
        killpg(self.group, Signal::SIGKILL).ok();
        Ok(code)
    }

    /// Passes a signal on to the whole group.
    pub fn signal(&self, signal: Signal) {
        killpg(self.group, signal).ok();
    }

    /// SIGTERM, and SIGKILL after a grace.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGTERM);
        if timeout(GRACE, self.child.wait()).await.is_err() {
            self.signal(Signal::SIGKILL);
            self.child.wait().await.ok();
        }
        killpg(self.group, Signal::SIGKILL).ok();
    }
}

/// The supervisor: runs the command, and ends it when `parent` is gone.
pub async fn supervise(parent: u32, command: &[OsString]) -> u8 {
    let Some((program, arguments)) = command.split_first() else {
        return NOT_FOUND;
    };
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(error) => {
            eprintln!("error: {}: {error}", program.to_string_lossy());
            return if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
        }
    };
    // Signals to the group are for the command; we only tell how it ended.
    let mut term = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()).ok();
    let mut int = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()).ok();
    let mut hup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok();
    loop {
        tokio::select! {
            ended = child.wait() => return ended.map_or(CANNOT_RUN, code),
            () = orphaned(parent) => {
                killpg(Pid::from_raw(0), Signal::SIGKILL).ok();
                return CANNOT_RUN;
            }
            () = received(&mut term) => {}
            () = received(&mut int) => {}
            () = received(&mut hup) => {}
        }
    }
}

async fn received(signal: &mut Option<tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Until the parent is another: the kernel gives orphans to init.
async fn orphaned(parent: u32) {
    while parent_id() == parent {
        sleep(LOOK).await;
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(u8::MAX)
}
