//! A DumpTool: a program that somebody else has written, run as whoever administers the cluster says. What it does is not known; how it
//! ends is, and when it ran.

mod command;
mod files;

use std::{
    io::{self, BufRead, BufReader, Read},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use api::{
    DatabaseCopy, DumpFile, DumpFormat, Engine, ToolOutput, ToolUse, Verdict,
    conditions::reasons,
    runner::{Report, TaskDatabase, TaskTool},
};
use freeze::{Drivers, Member};
use jiff::Timestamp;
use repository::{Source, StoredFile};
use tokio::time::{Duration, Instant};

use crate::{
    child::{OnLine, Stream},
    dump::{Described, Ready},
    failure::Failure,
    options::Files,
    report::Reports,
};
pub(crate) use command::{Commanded, Scratch, command, is_there};

/// How long the server may take to say which it is. That it does not is no reason not to try.
const LOOK: Duration = Duration::from_secs(10);
/// Of what a program says, lines.
const MOST_LINES: usize = 1000;
const LONGEST_LINE: usize = 400;

/// When it ran.
#[derive(Clone, Copy, Debug, Default)]
struct Ran {
    begun: Option<Timestamp>,
    ended: Option<Timestamp>,
}

type Watched = Arc<Mutex<Ran>>;

/// Of a command that writes files, it is run to its end here.
pub(crate) async fn ready(
    database: &TaskDatabase,
    member: Member,
    tool: &TaskTool,
    files: &Arc<Files>,
    reports: &Reports,
) -> Result<Ready, Failure> {
    let (name, engine) = (database.name.clone(), database.spec.engine);
    is_there(&tool.name, &tool.spec.dump.command)?;
    let (version, warning) = match version(engine, &member).await {
        Ok(version) => (version, None),
        Err(why) => (String::new(), Some(format!("its server did not say which it is: {why}"))),
    };
    reports.log(format!("{name}: {engine} {version} by DumpTool {}", tool.name));
    let scratch = Arc::new(Scratch::new()?);
    let watched = Watched::default();
    let running = Running {
        database: name.clone(),
        engine,
        member,
        tool: tool.clone(),
        files: Arc::clone(files),
        scratch: Arc::clone(&scratch),
        watched: Arc::clone(&watched),
        reports: *reports,
    };
    let sources = match tool.spec.dump.output {
        ToolOutput::Stdout => vec![running.streamed()],
        ToolOutput::Directory => {
            let step = format!("running {}", tool.name);
            let working = tokio::task::spawn_blocking(move || running.into_files());
            let how = || Report::Progress { step: step.clone(), bytes: 0, total: None };
            let found = reports.during(working, how).await?;
            found.into_iter().map(|(path, file)| kept(&name, path, file, &scratch)).collect()
        }
    };
    let made_by = ToolUse { name: tool.name.clone(), settings: tool.settings.clone() };
    let describe = move |stored: &[StoredFile]| {
        let (ran, now) = (*lock(&watched), Timestamp::now());
        let below = format!("{name}/");
        let files = stored.iter().filter(|file| file.path.starts_with(&below)).map(described).collect();
        Described {
            frozen_at: ran.begun.unwrap_or(now),
            thawed_at: ran.ended.unwrap_or(now),
            verdict: Verdict::Unknown,
            level: None,
            reason: format!(
                "DumpTool {} ended well, and nobody knows whether what it read was held still meanwhile",
                made_by.name
            ),
            warnings: warning.into_iter().collect(),
            copy: DatabaseCopy {
                database: name,
                engine,
                version,
                tool: format!("DumpTool {}", made_by.name),
                dump_tool: Some(made_by),
                position: None,
                files,
            },
        }
    };
    Ok(Ready { sources, describe: Box::new(describe) })
}

/// As the server says it.
async fn version(engine: Engine, member: &Member) -> Result<String, String> {
    let drivers = Drivers::real();
    let driver = drivers.of(engine).ok_or("no driver")?;
    let server = driver.probe(member, Instant::now() + LOOK).await.map_err(|error| error.to_string())?;
    Ok(server.version)
}

fn described(file: &StoredFile) -> DumpFile {
    let (path, sha256) = (file.path.clone(), file.sha256.clone());
    DumpFile { path, format: DumpFormat::Tool, database: None, size: file.size, sha256 }
}

/// One Database's run.
struct Running {
    database: String,
    engine: Engine,
    member: Member,
    tool: TaskTool,
    files: Arc<Files>,
    scratch: Arc<Scratch>,
    watched: Watched,
    reports: Reports,
}

impl Running {
    fn begin(&self) -> Result<Stream, Failure> {
        let command = command(&Commanded {
            tool: &self.tool,
            command: &self.tool.spec.dump.command,
            engine: self.engine,
            member: &self.member,
            databases: &self.member.databases,
            scratch: &self.scratch,
            files: &self.files,
        })?;
        lock(&self.watched).begun = Some(Timestamp::now());
        Stream::spawn(command, heard(self.reports)).map_err(|error| failed(&self.tool.name, &error))
    }

    /// Its standard output, as a file.
    fn streamed(self) -> Source {
        let path = format!("{}/{}", self.database, self.tool.spec.dump.file());
        let open = move || {
            let stream = self.begin().map_err(|failure| io::Error::other(failure.message))?;
            Ok(Box::new(Output { stream, running: self, has_any: false }) as Box<dyn Read + Send>)
        };
        Source { path, open: Box::new(open) }
    }

    /// To its end, and what it has left there then.
    fn into_files(self) -> Result<Vec<(String, PathBuf)>, Failure> {
        let stream = self.begin()?;
        hear(stream, heard(self.reports)).map_err(|error| failed(&self.tool.name, &error))?;
        lock(&self.watched).ended = Some(Timestamp::now());
        let found = files::below(self.scratch.path()).map_err(|error| failed(&self.tool.name, &error))?;
        if found.is_empty() {
            return Err(failed(&self.tool.name, &io::Error::other("it ended well, and left no file in $(SCRATCH)")));
        }
        Ok(found)
    }
}

/// A file that a command has left. Its directory goes when all of them are read.
fn kept(database: &str, path: String, file: PathBuf, scratch: &Arc<Scratch>) -> Source {
    let scratch = Arc::clone(scratch);
    let open = move || {
        let file = std::fs::File::open(&file)?;
        Ok(Box::new(Kept { file, _scratch: scratch }) as Box<dyn Read + Send>)
    };
    Source { path: format!("{database}/{path}"), open: Box::new(open) }
}

struct Kept {
    file: std::fs::File,
    _scratch: Arc<Scratch>,
}

impl Read for Kept {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

/// What a command writes. That it wrote nothing is no copy, however it ended.
struct Output {
    stream: Stream,
    running: Running,
    has_any: bool,
}

impl Read for Output {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(buffer).map_err(|error| named(&self.running.tool.name, &error))?;
        self.has_any |= length > 0;
        if length == 0 && !buffer.is_empty() {
            if !self.has_any {
                let error = io::Error::other("it ended well, and wrote nothing to its standard output");
                return Err(named(&self.running.tool.name, &error));
            }
            lock(&self.running.watched).ended.get_or_insert_with(Timestamp::now);
        }
        Ok(length)
    }
}

/// What it says, to its end.
pub(crate) fn hear(stream: Stream, mut on_line: OnLine) -> io::Result<()> {
    let mut lines = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        // A longer one comes in parts.
        if (&mut lines).take(LONGEST_LINE as u64).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        on_line(String::from_utf8_lossy(&line).trim_end());
    }
}

/// Into the run's log: so much of it as anybody reads.
pub(crate) fn heard(reports: Reports) -> OnLine {
    let mut left = MOST_LINES;
    Box::new(move |line| {
        match left {
            0 => return,
            1 => reports.log("it says more than is kept"),
            _ => reports.log(line.chars().take(LONGEST_LINE).collect::<String>()),
        }
        left -= 1;
    })
}

pub(crate) fn failed(tool: &str, error: &io::Error) -> Failure {
    Failure { again: true, ..Failure::new(reasons::TOOL_FAILED, named(tool, error)) }
}

fn named(tool: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("DumpTool {tool}: {error}"))
}

fn lock(watched: &Watched) -> MutexGuard<'_, Ran> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}
