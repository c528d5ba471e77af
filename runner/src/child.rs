//! A program whose output is a stream. The stream ends well only if the program did: that its output ended says nothing.
//!
//! Dropped, the program is killed, and its sessions end with it. Programs that run can be told to end together: `pg_dump` then cancels
//! what it waits for at the server, where one that is killed leaves a session that waits on. Each has a process group of its own: what it
//! starts ends with it.

use std::{
    collections::{BTreeSet, VecDeque},
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};

use crate::said::Said;

/// A running program.
pub(crate) struct Stream {
    name: String,
    child: Child,
    output: ChildStdout,
    errors: Option<JoinHandle<()>>,
    last: LastLines,
    ended: bool,
}

/// Hears each line that the program writes to standard error.
pub(crate) type OnLine = Box<dyn FnMut(&str) + Send>;
/// The last lines that it wrote there, as they may be told.
type LastLines = Arc<Mutex<VecDeque<String>>>;

/// The programs that run. A runner does one task: they are all of it.
static RUNNING: Mutex<Running> = Mutex::new(Running { pids: BTreeSet::new(), is_over: false, is_settling: false });

struct Running {
    pids: BTreeSet<i32>,
    /// They were told to end.
    is_over: bool,
    /// What is done now is not given up in the middle.
    is_settling: bool,
}

/// Of standard error, for the message.
const LINES: usize = 12;

impl Stream {
    /// None is begun once all were told to end: of a dump nothing has to be cleaned up.
    pub(crate) fn spawn(mut command: Command, on_line: OnLine) -> io::Result<Self> {
        command.stdin(Stdio::null());
        let stream = Self::begin(command, on_line)?;
        // Whoever told the others until now may not have known of it.
        if running().is_over { Err(io::Error::other("told to end")) } else { Ok(stream) }
    }

    fn begin(mut command: Command, mut on_line: OnLine) -> io::Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let name = name.rsplit('/').next().unwrap_or_default().to_owned();
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("{name}: {error}")))?;
        running().pids.insert(pid_of(&child).as_raw());
        let (Some(output), Some(errors)) = (child.stdout.take(), child.stderr.take()) else {
            gone(&mut child)?;
            return Err(io::Error::other(format!("{name} has no output")));
        };
        let last = LastLines::default();
        let heard = Arc::clone(&last);
        let errors = thread::spawn(move || {
            let mut said = Said::default();
            for line in BufReader::new(errors).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                on_line(&line);
                let Some(told) = said.line(&line) else { continue };
                let mut last = heard.lock().unwrap_or_else(PoisonError::into_inner);
                if last.len() == LINES {
                    last.pop_front();
                }
                last.push_back(told);
            }
        });
        Ok(Self { name, child, output, errors: Some(errors), last, ended: false })
    }

    pub(crate) fn ender(&self) -> Ender {
        Ender(pid_of(&self.child))
    }

    /// All of its output, however it ends.
    pub(crate) fn whatever(command: Command, most: u64) -> io::Result<Vec<u8>> {
        let mut stream = Self::spawn(command, Box::new(|_| {}))?;
        let mut output = Vec::new();
        (&mut stream.output).take(most).read_to_end(&mut output)?;
        stream.end().ok();
        Ok(output)
    }

    /// All of its output, if it ends well and has no more than `most` bytes.
    pub(crate) fn all(command: Command, most: u64) -> io::Result<Vec<u8>> {
        let mut stream = Self::spawn(command, Box::new(|_| {}))?;
        let mut output = Vec::new();
        (&mut stream).take(most + 1).read_to_end(&mut output)?;
        if output.len() as u64 > most {
            return Err(io::Error::other(format!("{} wrote more than {most} bytes", stream.name)));
        }
        Ok(output)
    }

    /// How it ended, when its output has.
    fn end(&mut self) -> io::Result<()> {
        self.ended = true;
        let status = gone(&mut self.child)?;
        if let Some(errors) = self.errors.take() {
            errors.join().ok();
        }
        if status.success() {
            return Ok(());
        }
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let told: Vec<&str> = last.iter().map(String::as_str).collect();
        Err(io::Error::other(format!("{} ended with {status}: {}", self.name, told.join("; "))))
    }
}

/// A program that is fed a stream. Its output is heard, too: what it says is part of how it ends.
pub(crate) struct Fed {
    stream: Stream,
    input: Option<ChildStdin>,
}

impl Fed {
    /// Whoever feeds it must not be made to wait for its output: that has to be little.
    pub(crate) fn spawn(mut command: Command, on_line: OnLine) -> io::Result<Self> {
        command.stdin(Stdio::piped());
        let mut stream = Stream::begin(command, on_line)?;
        let input = stream.child.stdin.take();
        Ok(Self { stream, input })
    }

    /// It has been fed all: how it ended, and what it wrote.
    pub(crate) fn finish(mut self, most: u64) -> io::Result<String> {
        self.input = None;
        let mut output = Vec::new();
        (&mut self.stream).take(most).read_to_end(&mut output)?;
        Ok(String::from_utf8_lossy(&output).into_owned())
    }

    /// What it reads, and what it writes, for threads of their own: it may write much before it has read all.
    pub(crate) fn split(self) -> (Option<ChildStdin>, Stream) {
        (self.input, self.stream)
    }

    /// Feeds it a text at once.
    pub(crate) fn told(command: Command, input: &str, most: u64) -> io::Result<String> {
        let mut fed = Self::spawn(command, Box::new(|_| {}))?;
        // A program that ends before it has read all says why.
        fed.write_all(input.as_bytes()).ok();
        fed.finish(most)
    }
}

impl Write for Fed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.input {
            Some(input) => input.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        match self.output.read(buffer)? {
            0 => self.end().map(|()| 0),
            length => Ok(length),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.ended {
            self.ender().kill();
            gone(&mut self.child).ok();
        }
    }
}

/// Ends one program, from wherever.
#[derive(Clone, Copy)]
pub(crate) struct Ender(Pid);

impl Ender {
    /// Nothing, when it is gone: its process id may be somebody else's then.
    pub(crate) fn kill(self) {
        let running = running();
        if running.pids.contains(&self.0.as_raw()) {
            killpg(self.0, Signal::SIGKILL).ok();
        }
    }
}

/// From now on nobody is told to end, unless all were already: whether what cannot be given up in the middle may begin.
pub(crate) fn settle() -> bool {
    let mut running = running();
    running.is_settling = !running.is_over;
    running.is_settling
}

/// Tells the programs that run now to end, and those that do not to be gone a while later.
pub(crate) fn end_all(grace: Duration) {
    let told = {
        let mut running = running();
        running.is_over = true;
        if running.is_settling { BTreeSet::new() } else { running.pids.clone() }
    };
    let tell = |signal: Signal| {
        for pid in running().pids.intersection(&told) {
            killpg(Pid::from_raw(*pid), signal).ok();
        }
    };
    tell(Signal::SIGTERM);
    let end = Instant::now() + grace;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::park_timeout(left);
    }
    tell(Signal::SIGKILL);
}

/// Waits for its end, and ends what it has left behind. While it has not been waited for, its process id is nobody else's: until then it
/// is among those that are told.
fn gone(child: &mut Child) -> io::Result<ExitStatus> {
    let pid = pid_of(child);
    waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).ok();
    killpg(pid, Signal::SIGKILL).ok();
    running().pids.remove(&pid.as_raw());
    child.wait()
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}

fn running() -> MutexGuard<'static, Running> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_ends_well_only_if_the_program_does() {
        assert_eq!(Stream::all(shell("printf abc"), 10).unwrap(), b"abc");
        let error = Stream::all(shell("printf abc; echo it broke >&2; exit 3"), 10).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("it broke"), "{error}");
        assert!(Stream::all(shell("printf abc; kill -9 $$"), 10).is_err(), "killed is not ended");
        assert!(Stream::all(shell("printf abcd"), 3).unwrap_err().to_string().contains("more than 3"));
        assert!(Stream::all(Command::new("/nowhere/pg_dump"), 3).unwrap_err().to_string().contains("pg_dump"));
    }

    #[test]
    fn of_rows_nothing_is_told() {
        let script = "echo 'ERROR 1062 (23000): Duplicate entry '\\''s3cr3t'\\'' for key' >&2; echo 'DETAIL:  Key (id)=(s3cr3t)' >&2; exit 1";
        let error = Stream::all(shell(script), 10).unwrap_err().to_string();
        assert!(
            !error.contains("s3cr3t") && error.contains("Duplicate entry") && error.contains("Key (id)"),
            "{error}"
        );
    }

    #[test]
    fn a_program_is_gone_with_its_stream() {
        let mut stream = Stream::spawn(shell("echo x; exec sleep 600"), Box::new(|_| {})).unwrap();
        let pid = stream.child.id();
        stream.read_exact(&mut [0; 2]).unwrap();
        drop(stream);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn what_a_program_has_started_is_gone_with_it() {
        let mut stream = Stream::spawn(shell("sleep 600 & echo $!; exec sleep 600"), Box::new(|_| {})).unwrap();
        let mut pid = [0; 16];
        let length = stream.read(&mut pid).unwrap();
        let pid = String::from_utf8_lossy(&pid[..length]).trim().to_owned();
        drop(stream);
        // Whoever adopted it may not have heard yet of its end.
        let ended = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        let end = Instant::now() + Duration::from_secs(10);
        while !ended() {
            assert!(Instant::now() < end, "{pid} goes on");
            thread::yield_now();
        }
    }
}
