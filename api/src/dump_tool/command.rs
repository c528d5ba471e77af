//! A DumpTool's commands: what may be filled in, and how. Pure.
//!
//! No value is ever read as anything but a value: a command is a list of arguments, and in a script that some shell reads nothing is
//! filled in. There, and everywhere else, the same values are in the environment.

use std::{collections::BTreeMap, fmt};

/// What may be filled in, beside settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variable {
    /// The server's host; of a socket its path.
    Host,
    Port,
    Username,
    /// A file with the password alone; empty where there is none.
    PasswordFile,
    /// A file with the certificates that the server's is checked against.
    CaFile,
    /// What the engine's own clients read: MariaDB's option file, with where the server is and whom to be; PostgreSQL's password file.
    ClientFile,
    /// The databases inside the server, if the Database names some: what has it comes once for each.
    Databases,
    /// An empty directory, or that with the files of the copy.
    Scratch,
}

/// A part of an argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Text(&'a str),
    Variable(Variable),
    Setting(&'a str),
}

/// What stands in `$(…)`, and is nothing that may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoVariable<'a>(pub &'a str);

/// What is filled in, in one run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    pub host: String,
    pub port: u16,
    pub username: String,
    pub password_file: String,
    /// None: the Database names no authority.
    pub ca_file: Option<String>,
    pub client_file: String,
    /// Empty: all.
    pub databases: Vec<String>,
    pub scratch: String,
    pub settings: BTreeMap<String, String>,
}

/// Why an argument cannot be what it is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfilled {
    /// What was validated before has none of these.
    Unknown(String),
    NoCa,
    /// An argument that would begin with a hyphen, by a value that is no option.
    LooksLikeAnOption(String),
}

/// What begins a setting's name.
const SETTING: &str = "settings.";
/// Programs that read an argument as a script.
const INTERPRETERS: [&str; 12] =
    ["sh", "bash", "dash", "ash", "ksh", "zsh", "busybox", "perl", "python", "python3", "ruby", "node"];

impl Variable {
    pub const ALL: [Self; 8] = [
        Self::Host,
        Self::Port,
        Self::Username,
        Self::PasswordFile,
        Self::CaFile,
        Self::ClientFile,
        Self::Databases,
        Self::Scratch,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Self::Host => "HOST",
            Self::Port => "PORT",
            Self::Username => "USERNAME",
            Self::PasswordFile => "PASSWORD_FILE",
            Self::CaFile => "CA_FILE",
            Self::ClientFile => "CLIENT_FILE",
            Self::Databases => "DATABASES",
            Self::Scratch => "SCRATCH",
        }
    }

    /// The variable of the environment that has it, too.
    pub fn environment(self) -> String {
        format!("STILLPOINT_{}", self.word())
    }
}

/// The variable of the environment that has a setting.
pub fn environment_of(setting: &str) -> String {
    format!("STILLPOINT_SETTING_{}", setting.to_uppercase().replace('-', "_"))
}

/// An argument by its parts: `$(NAME)` is filled in, `$$(` is `$(`, and every other `$` is itself.
pub fn pieces(argument: &str) -> Result<Vec<Piece<'_>>, NoVariable<'_>> {
    let mut pieces = Vec::new();
    let mut rest = argument;
    while let Some(at) = rest.find("$(") {
        let (before, from) = rest.split_at(at);
        if let Some(escaped) = before.strip_suffix('$') {
            pieces.extend([Piece::Text(escaped), Piece::Text("$(")]);
            rest = &from[2..];
            continue;
        }
        let inside = &from[2..];
        let end = inside.find(')').ok_or(NoVariable(inside))?;
        pieces.extend([Piece::Text(before), named(&inside[..end])?]);
        rest = &inside[end + 1..];
    }
    pieces.push(Piece::Text(rest));
    pieces.retain(|piece| *piece != Piece::Text(""));
    Ok(pieces)
}

fn named(name: &str) -> Result<Piece<'_>, NoVariable<'_>> {
    if let Some(setting) = name.strip_prefix(SETTING) {
        return Ok(Piece::Setting(setting));
    }
    let found = Variable::ALL.into_iter().find(|variable| variable.word() == name);
    found.map(Piece::Variable).ok_or(NoVariable(name))
}

/// Whether an argument is a script: what follows `-c` or `-e` of a program that reads it as one.
pub fn is_script(command: &[String], at: usize) -> bool {
    let Some((before, flag)) = at.checked_sub(1).and_then(|flag| Some((&command[..flag], command.get(flag)?))) else {
        return false;
    };
    let takes_one = flag.starts_with('-') && !flag.starts_with("--") && flag.ends_with(['c', 'e']);
    let is_interpreter = |argument: &String| INTERPRETERS.contains(&argument.rsplit('/').next().unwrap_or_default());
    takes_one && before.iter().any(is_interpreter)
}

/// Whether a command has it filled in, or reads it from its environment.
pub fn uses(command: &[String], variable: Variable) -> bool {
    let environment = variable.environment();
    command.iter().any(|argument| {
        argument.contains(&environment)
            || pieces(argument).is_ok_and(|pieces| pieces.contains(&Piece::Variable(variable)))
    })
}

impl Values {
    /// The program and its arguments.
    pub fn arguments(&self, command: &[String]) -> Result<Vec<String>, Unfilled> {
        let mut arguments = Vec::new();
        for argument in command {
            let pieces = pieces(argument).map_err(|NoVariable(name)| Unfilled::Unknown(name.to_owned()))?;
            if !pieces.contains(&Piece::Variable(Variable::Databases)) {
                arguments.push(self.argument(&pieces, "")?);
                continue;
            }
            for database in &self.databases {
                arguments.push(self.argument(&pieces, database)?);
            }
        }
        Ok(arguments)
    }

    fn argument(&self, pieces: &[Piece<'_>], database: &str) -> Result<String, Unfilled> {
        let mut argument = String::new();
        for piece in pieces {
            let value = match piece {
                Piece::Text(text) => {
                    argument.push_str(text);
                    continue;
                }
                Piece::Variable(Variable::Databases) => database.to_owned(),
                Piece::Variable(variable) => self.value(*variable).ok_or(Unfilled::NoCa)?,
                Piece::Setting(name) => {
                    self.settings.get(*name).cloned().ok_or_else(|| Unfilled::Unknown(format!("{SETTING}{name}")))?
                }
            };
            if argument.is_empty() && value.starts_with('-') {
                return Err(Unfilled::LooksLikeAnOption(value));
            }
            argument.push_str(&value);
        }
        Ok(argument)
    }

    /// Of `$(DATABASES)` all, one a line.
    fn value(&self, variable: Variable) -> Option<String> {
        match variable {
            Variable::Host => Some(self.host.clone()),
            Variable::Port => Some(self.port.to_string()),
            Variable::Username => Some(self.username.clone()),
            Variable::PasswordFile => Some(self.password_file.clone()),
            Variable::CaFile => self.ca_file.clone(),
            Variable::ClientFile => Some(self.client_file.clone()),
            Variable::Databases => Some(self.databases.join("\n")),
            Variable::Scratch => Some(self.scratch.clone()),
        }
    }

    /// The same, for scripts.
    pub fn environment(&self) -> Vec<(String, String)> {
        let variables = Variable::ALL.into_iter().filter_map(|one| Some((one.environment(), self.value(one)?)));
        variables.chain(self.settings.iter().map(|(name, value)| (environment_of(name), value.clone()))).collect()
    }
}

impl fmt::Display for Unfilled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(name) => write!(f, "$({name}) is nothing that can be filled in"),
            Self::NoCa => f.write_str("$(CA_FILE) is wanted, and the Database names no spec.tls.caSecretRef"),
            Self::LooksLikeAnOption(value) => {
                write!(f, "{value:?} would be read as an option: write it behind one, as --option=$(…)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values() -> Values {
        Values {
            host: "db".into(),
            port: 5432,
            username: "dba".into(),
            databases: vec!["shop".into(), "-x".into()],
            scratch: "/scratch/1".into(),
            settings: [("threads".to_owned(), "4".to_owned())].into(),
            ..Values::default()
        }
    }

    fn filled(command: &[&str]) -> Result<Vec<String>, Unfilled> {
        values().arguments(&command.iter().map(|argument| (*argument).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn variables_are_filled_in_and_every_other_dollar_is_itself() {
        let command =
            ["tool", "$(HOST):$(PORT)", "--threads=$(settings.threads)", "$HOME $$ $$(date) $", "$(SCRATCH)/a"];
        assert_eq!(filled(&command).unwrap(), ["tool", "db:5432", "--threads=4", "$HOME $$ $(date) $", "/scratch/1/a"]);
    }

    #[test]
    fn what_is_none_is_named() {
        for (argument, name) in
            [("$(date)", "date"), ("x$(PASSWORD)", "PASSWORD"), ("$(", ""), ("$(HOST", "HOST"), ("$((1+2))", "(1+2")]
        {
            assert_eq!(pieces(argument), Err(NoVariable(name)), "{argument}");
        }
        assert_eq!(filled(&["$(settings.no)"]), Err(Unfilled::Unknown("settings.no".into())));
        assert_eq!(filled(&["--ca=$(CA_FILE)"]), Err(Unfilled::NoCa));
    }

    #[test]
    fn an_argument_comes_once_for_each_database_and_none_becomes_an_option() {
        assert_eq!(filled(&["t", "--database=$(DATABASES)"]).unwrap(), ["t", "--database=shop", "--database=-x"]);
        assert_eq!(filled(&["t", "$(DATABASES)"]), Err(Unfilled::LooksLikeAnOption("-x".into())));
        let all = Values { databases: Vec::new(), ..values() };
        assert_eq!(all.arguments(&["t".into(), "--database=$(DATABASES)".into()]).unwrap(), ["t"]);
    }

    #[test]
    fn a_script_is_told_from_other_arguments() {
        let at = |command: &[&str]| {
            let command: Vec<String> = command.iter().map(|it| (*it).to_owned()).collect();
            (0..command.len()).filter(|at| is_script(&command, *at)).collect::<Vec<_>>()
        };
        assert_eq!(at(&["sh", "-c", "x", "y"]), [2]);
        assert_eq!(at(&["env", "A=b", "/bin/bash", "-euc", "x"]), [4]);
        assert_eq!(at(&["perl", "-e", "x"]), [2]);
        assert_eq!(at(&["pg_dump", "-c", "x"]), [0; 0]);
        assert_eq!(at(&["sh", "script.sh"]), [0; 0]);
    }

    #[test]
    fn scripts_have_the_same_values_in_their_environment() {
        let environment: BTreeMap<String, String> = values().environment().into_iter().collect();
        assert_eq!(environment["STILLPOINT_HOST"], "db");
        assert_eq!(environment["STILLPOINT_DATABASES"], "shop\n-x");
        assert_eq!(environment["STILLPOINT_SETTING_THREADS"], "4");
        assert!(!environment.contains_key("STILLPOINT_CA_FILE"));
        let script = ["sh".to_owned(), "-c".to_owned(), "ls \"$STILLPOINT_SCRATCH\"".to_owned()];
        assert!(uses(&script, Variable::Scratch) && !uses(&script, Variable::Host));
    }
}
