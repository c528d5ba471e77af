//! Processes in groups of their own, and what is left of such a group.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock,
        mpsc::{Sender, channel},
    },
    thread,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

/// How long a process is to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lifetime {
    /// It ends with us, also when we are killed.
    Ours,
    /// It goes on after us, in a session of its own.
    Its,
}

/// A process that leads its group.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
}

impl Process {
    /// Starts `program`; what it says is appended to `log`. It sees nothing of our environment: a proxy that is set there
    /// would come between the API server and what it dials.
    pub(crate) fn spawn(program: &Path, arguments: &[String], home: &Path, log: &Path, life: Lifetime) -> Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        let mut command = match life {
            Lifetime::Ours => {
                let mut command = Command::new("setpriv");
                command.arg("--pdeathsig=KILL").process_group(0);
                command
            }
            // Not with a process group: the leader of one cannot become the leader of a session, and setsid would fork.
            Lifetime::Its => Command::new("setsid"),
        };
        command.arg(program).args(arguments).current_dir(home);
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", home);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let spawned = match life {
            Lifetime::Ours => spawn_from_a_lasting_thread(command),
            Lifetime::Its => command.spawn(),
        };
        Ok(Self { child: spawned.with_context(|| format!("starting {}", program.display()))? })
    }

    pub(crate) fn group(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        signal_group(self.group(), signal)
    }

    /// As a crash: no goodbye. Gone when this returns.
    pub(crate) fn kill(mut self) {
        self.signal(Signal::SIGKILL).ok();
        // One that was only just started may not lead its group yet.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A parent-death signal comes when the *thread* that started the process ends (prctl(2)), and a test's does before a
/// cluster that tests share: this thread ends with the process only.
fn spawn_from_a_lasting_thread(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static SPAWNER: LazyLock<Sender<Order>> = LazyLock::new(|| {
        let (sender, orders) = channel::<Order>();
        thread::spawn(move || {
            for (mut command, answer) in orders {
                answer.send(command.spawn()).ok();
            }
        });
        sender
    });
    let (sender, answer) = channel();
    SPAWNER.send((command, sender)).map_err(io::Error::other)?;
    answer.recv().map_err(io::Error::other)?
}

pub(crate) fn signal_group(group: u32, signal: Signal) -> Result<()> {
    killpg(Pid::from_raw(i32::try_from(group)?), signal).with_context(|| format!("{signal} to process group {group}"))
}

/// The processes of a group that are there and not just waiting to be buried.
pub fn group_members(group: u32) -> Vec<u32> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| Stat::of(*id).is_some_and(|stat| stat.group == group && !stat.is_dead())).collect()
}

/// Whether it ended, also when nobody has asked how yet.
pub(crate) fn is_dead(process: u32) -> bool {
    Stat::of(process).is_none_or(|stat| stat.is_dead())
}

/// When the process was started, in clock ticks since the machine was: with its id, it is that of no other.
pub(crate) fn started(process: u32) -> Option<u64> {
    Stat::of(process).map(|stat| stat.started)
}

struct Stat {
    state: char,
    group: u32,
    started: u64,
}

impl Stat {
    /// Fields 3, 5 and 22 of /proc/PID/stat (proc(5)); the second, the name, may contain anything.
    fn of(process: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            group: fields.get(2)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }

    fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_process_survives_the_thread_that_asked_for_it_and_ends_with_its_whole_group() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().to_owned();
        let sleeps = || {
            let arguments = ["-c".to_owned(), "sleep 60 & sleep 60".to_owned()];
            Process::spawn(Path::new("/bin/sh"), &arguments, &path, &path.join("log"), Lifetime::Ours).unwrap()
        };
        let mut process = thread::scope(|scope| scope.spawn(sleeps).join().unwrap());
        assert!(process.ended().is_none());
        let group = process.group();
        assert!(group_members(group).contains(&group) && started(group).is_some());
        process.kill();
        // Only its leader is our child; the rest is dead as soon as the kernel comes to it.
        let end = Instant::now() + Duration::from_secs(10);
        while !group_members(group).is_empty() && Instant::now() < end {
            thread::park_timeout(Duration::from_millis(5));
        }
        assert_eq!(group_members(group), Vec::<u32>::new());
    }
}
