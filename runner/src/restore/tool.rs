//! By a DumpTool. What is in the target, and what becomes of it, only the tool knows: so who asks for it says `existing: Replace`, which is
//! looked at before a run begins, and all that is known of a failure is how far the command was.

use std::{fs, io, io::Write, process::ChildStdin, thread};

use api::{
    DumpFile, DumpFormat, ToolInput,
    conditions::reasons,
    runner::{Restored, TaskTool},
};

use super::Work;
use crate::{
    child::{Ender, Fed},
    failure::Failure,
    report::Reports,
    tool::{Commanded, Scratch, command, failed, hear, heard, is_there},
};

pub(super) fn restore(work: &Work, tool: &TaskTool) -> Result<Restored, Failure> {
    let ready = ready(work, tool).map_err(Failure::untouched)?;
    let bytes = ready.run(work, tool).map_err(|failure| match failure.target {
        Some(_) => failure,
        None => failure.leaves(format!(
            "unknown: the command of DumpTool {} had begun, and did not end well; see what is in it before you restore again",
            tool.name
        )),
    })?;
    let databases = ready.databases;
    let warnings =
        vec![format!("the command of DumpTool {} ended well; what it has restored was not looked at", tool.name)];
    Ok(Restored { databases, bytes, warnings })
}

/// A command that is about to begin.
struct Ready<'w> {
    scratch: Scratch,
    /// What its standard input is.
    file: Option<&'w DumpFile>,
    command: &'w [String],
    databases: Vec<String>,
}

/// Everything that can be done before the target is touched.
fn ready<'w>(work: &'w Work, tool: &'w TaskTool) -> Result<Ready<'w>, Failure> {
    let no = |reason, message: &str| Failure::new(reason, format!("DumpTool {} {message}", tool.name));
    let restore = tool.spec.restore.as_ref();
    let restore = restore.ok_or_else(|| no(reasons::UNSUPPORTED, "only dumps: download the copy"))?;
    is_there(&tool.name, &restore.command)?;
    let scratch = Scratch::new()?;
    let files: Vec<&DumpFile> = work.copy.files.iter().filter(|file| file.format == DumpFormat::Tool).collect();
    let file = match (tool.spec.input(restore), files.as_slice()) {
        (_, []) => return Err(no(reasons::NOT_FOUND, "has no files in this copy")),
        (ToolInput::Stdin, [one]) => Some(*one),
        (ToolInput::Stdin, _) => {
            return Err(no(reasons::UNSUPPORTED, "reads one file from its standard input, and the copy has several"));
        }
        (ToolInput::Directory, all) => {
            work.told.step("writing its files");
            all.iter().try_for_each(|file| place(work, file, &scratch))?;
            None
        }
    };
    let wanted = if work.databases.is_empty() { &work.member.databases } else { &work.databases };
    Ok(Ready { scratch, file, command: &restore.command, databases: wanted.clone() })
}

/// A file of the copy, where the command finds it.
fn place(work: &Work, file: &DumpFile, scratch: &Scratch) -> Result<(), Failure> {
    work.go_on()?;
    let inside = file.path.strip_prefix(&format!("{}/", work.copy.database)).unwrap_or(&file.path);
    // It comes from a repository that others may write to.
    if inside.split('/').any(|part| matches!(part, "" | "." | "..")) {
        return Err(Failure::new(reasons::DAMAGED, format!("{} is no path of a file", file.path)));
    }
    let path = scratch.path().join(inside);
    let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::File::create_new(&path));
    let no_room =
        |error: io::Error| Failure::new(reasons::SERVER_ERROR, format!("{} was not written: {error}", path.display()));
    work.copy(&file.path, &mut made.map_err(no_room)?)?;
    Ok(())
}

impl Ready<'_> {
    /// To its end: what it was fed.
    fn run(&self, work: &Work, tool: &TaskTool) -> Result<u64, Failure> {
        let command = command(&Commanded {
            tool,
            command: self.command,
            engine: work.copy.engine,
            member: &work.member,
            databases: &self.databases,
            scratch: &self.scratch,
            files: &work.files,
        });
        let command = command.and_then(|command| work.go_on().map(|()| command)).map_err(Failure::untouched)?;
        work.told.step("restoring");
        let reports = Reports::default();
        let fed = Fed::spawn(command, heard(reports)).map_err(|error| failed(&tool.name, &error).untouched())?;
        let (input, stream) = fed.split();
        let ender = stream.ender();
        // Whoever told all to end until now did not know of it.
        if work.stop.is_set() {
            ender.kill();
        }
        let (fed, ended) = thread::scope(|scope| {
            let feeding = scope.spawn(|| self.feed(work, input, ender));
            let ended = hear(stream, heard(reports));
            (feeding.join(), ended)
        });
        let fed = fed.unwrap_or_else(|_| Meal::Broke(Failure::bug("what feeds it broke")));
        match (fed, ended) {
            // We have ended it.
            (Meal::Broke(failure), _) => Err(failure),
            (_, Err(error)) => Err(failed(&tool.name, &error)),
            (Meal::Whole(bytes), Ok(())) => Ok(bytes),
            (Meal::Refused, Ok(())) => {
                let error = io::Error::other("it ended well before it had read all of the copy");
                Err(failed(&tool.name, &error))
            }
        }
    }

    /// All of the file; or the command is ended, for it must not take a part for the whole.
    fn feed(&self, work: &Work, input: Option<ChildStdin>, ender: Ender) -> Meal {
        let (Some(file), Some(input)) = (self.file, input) else {
            return Meal::Whole(work.copy.files.iter().map(|file| file.size).sum());
        };
        let mut mouth = Mouth { input, is_shut: false };
        match work.copy(&file.path, &mut mouth) {
            Ok(bytes) => Meal::Whole(bytes),
            // Why, is what it says at its end.
            Err(_) if mouth.is_shut => Meal::Refused,
            Err(failure) => {
                ender.kill();
                Meal::Broke(failure)
            }
        }
    }
}

/// What became of the copy that a command was fed.
enum Meal {
    Whole(u64),
    /// It reads no more.
    Refused,
    /// It was not to have it, or could not.
    Broke(Failure),
}

/// A standard input that knows whether it was the command that would have no more.
struct Mouth {
    input: ChildStdin,
    is_shut: bool,
}

impl Write for Mouth {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.input.write(bytes).inspect_err(|error| self.is_shut = error.kind() == io::ErrorKind::BrokenPipe)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
