//! A command of a DumpTool, with everything that is filled in. A password is in a file for it alone: in no argument, and in no variable.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use api::{
    ConnectionAddress, Engine,
    conditions::reasons,
    dump_tool::command::Values,
    runner::{SCRATCH, TaskTool},
};
use freeze::Member;
use tempfile::TempDir;

use crate::{
    failure::Failure,
    options::{self, Files},
    programs::TOOLS,
};

/// A directory for files of one command. Removed when it is dropped.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    /// Where there is room, if somebody said where.
    pub(crate) fn new() -> Result<Self, Failure> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("stillpoint-scratch-");
        let made = match std::env::var_os(SCRATCH) {
            Some(directory) => builder.tempdir_in(directory),
            None => builder.tempdir(),
        };
        made.map(Self).map_err(|error| Failure::bug(format!("no directory for the tool's files: {error}")))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
}

/// All that a command is made of.
pub(crate) struct Commanded<'c> {
    pub(crate) tool: &'c TaskTool,
    pub(crate) command: &'c [String],
    pub(crate) engine: Engine,
    pub(crate) member: &'c Member,
    /// Inside the server; empty: all.
    pub(crate) databases: &'c [String],
    pub(crate) scratch: &'c Scratch,
    pub(crate) files: &'c Files,
}

pub(crate) fn command(of: &Commanded<'_>) -> Result<Command, Failure> {
    let Commanded { tool, member, files, engine, .. } = of;
    let wrong = |why: String| Failure::new(reasons::TOOL_FAILED, format!("DumpTool {}: {why}", tool.name));
    let values = values(of).map_err(Failure::bug)?;
    let mut arguments = values.arguments(of.command).map_err(|why| wrong(why.to_string()))?.into_iter();
    let program = arguments.next().ok_or_else(|| wrong("its command is empty".to_owned()))?;
    let mut command = match engine {
        // What uses libpq knows its server as if a person had told it.
        Engine::PostgreSQL => options::postgresql(Path::new(&program), member, files).map_err(Failure::bug)?,
        Engine::MariaDB => options::quiet(Path::new(&program), files),
    };
    command.args(arguments).envs(values.environment()).env("PATH", path()).current_dir(of.scratch.path());
    Ok(command)
}

fn values(of: &Commanded<'_>) -> std::io::Result<Values> {
    let Commanded { member, files, engine, .. } = of;
    let (host, port) = match &member.address {
        ConnectionAddress::Tcp { host, port } => (host, port),
        ConnectionAddress::Socket { path, port } => (path, port),
    };
    let password = member.account.as_ref().and_then(|account| account.password.as_deref()).unwrap_or_default();
    let ca = member.tls.roots.as_ref().and_then(|roots| roots.ca.as_deref());
    let text = |path: PathBuf| path.display().to_string();
    Ok(Values {
        host: host.clone(),
        port: *port,
        username: options::user(*engine, member).to_owned(),
        password_file: text(files.write("password", password)?),
        ca_file: ca.map(|ca| files.write("ca.crt", ca)).transpose()?.map(text),
        client_file: text(options::client_file(*engine, member, files)?),
        databases: of.databases.to_vec(),
        scratch: text(of.scratch.path().to_owned()),
        settings: of.tool.settings.clone(),
    })
}

/// Whether its program is there: that it is not is told before anything is done.
pub(crate) fn is_there(tool: &str, command: &[String]) -> Result<(), Failure> {
    let Some(program) = command.first() else { return Ok(()) };
    let is_there = if program.contains('/') {
        Path::new(program).is_file()
    } else {
        std::env::split_paths(&path()).any(|directory| directory.join(program).is_file())
    };
    if is_there {
        return Ok(());
    }
    let message = format!(
        "DumpTool {tool}: {program} is not there: install it, or name its directory in {TOOLS}; in a cluster say an image that has it \
         (spec.image of the DumpTool)"
    );
    Err(Failure::new(reasons::TOOL_MISSING, message))
}

/// Where programs are looked for.
fn path() -> OsString {
    let (tools, path) = (std::env::var_os(TOOLS).unwrap_or_default(), std::env::var_os("PATH").unwrap_or_default());
    let mut seen = BTreeSet::new();
    let all = std::env::split_paths(&tools).chain(std::env::split_paths(&path));
    let all = all.filter(|directory| directory.is_absolute() && seen.insert(directory.clone()));
    std::env::join_paths(all).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use api::TlsMode;
    use freeze::{Account, Tls};
    use serde_json::json;

    use super::*;

    #[test]
    fn no_password_is_in_an_argument_or_a_variable() {
        let tool = TaskTool {
            name: "any".into(),
            spec: serde_json::from_value(json!({"dump": {"command": [
                "tool", "--host=$(HOST)", "--port=$(PORT)", "--user=$(USERNAME)", "--password-file=$(PASSWORD_FILE)",
                "--client=$(CLIENT_FILE)", "--to=$(SCRATCH)", "--db=$(DATABASES)",
            ]}}))
            .unwrap(),
            settings: [("threads".to_owned(), "4".to_owned())].into(),
        };
        for engine in [Engine::PostgreSQL, Engine::MariaDB] {
            let member = Member {
                address: ConnectionAddress::Tcp { host: "db".into(), port: 4711 },
                account: Some(Account { user: "dba".into(), password: Some("open sesame".into()) }),
                tls: Tls { mode: TlsMode::Disable, roots: None },
                databases: vec!["shop".into()],
            };
            let (scratch, files) = (Scratch::new().unwrap(), Files::new().unwrap());
            let command = command(&Commanded {
                tool: &tool,
                command: &tool.spec.dump.command,
                engine,
                member: &member,
                databases: &member.databases,
                scratch: &scratch,
                files: &files,
            })
            .unwrap();
            let arguments: Vec<String> = command.get_args().map(|it| it.to_string_lossy().into_owned()).collect();
            assert_eq!(arguments[..3], ["--host=db", "--port=4711", "--user=dba"]);
            assert_eq!(arguments.last().unwrap(), "--db=shop");
            let environment: Vec<String> =
                command.get_envs().filter_map(|(_, value)| Some(value?.to_string_lossy().into_owned())).collect();
            assert!(environment.contains(&"4".to_owned()), "{environment:?}");
            for said in arguments.iter().chain(&environment) {
                assert!(!said.contains("sesame"), "{said}");
            }
            for option in [&arguments[3], &arguments[4]] {
                let (_, path) = option.split_once('=').unwrap();
                assert!(std::fs::read_to_string(path).unwrap().contains("open sesame"), "{option}");
            }
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_told_before_anything_is_done() {
        assert!(is_there("any", &["sh".into()]).is_ok() && is_there("any", &["/bin/sh".into()]).is_ok());
        for program in ["no-such-program", "/nowhere/pg_dump"] {
            let failure = is_there("any", &[program.into()]).unwrap_err();
            assert_eq!((failure.reason, failure.again), (reasons::TOOL_MISSING, false));
        }
    }
}
