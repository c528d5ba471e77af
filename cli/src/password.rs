//! A password, from where it is safe: a file, the environment, a prompt. Never from argv, where everybody reads it.

use std::{
    io::{self, IsTerminal, Read},
    path::{Path, PathBuf},
};

use crate::failure::Failure;

/// Names the variable in help texts and errors.
const VARIABLE: &str = "STILLPOINT_PASSWORD";

/// Where the password comes from: `--password-file`, else `STILLPOINT_PASSWORD`, else a prompt.
#[derive(Clone, Debug, clap::Args)]
pub struct PasswordSource {
    /// Read the password from a file (`-`: standard input); one newline at its end is dropped. Otherwise it comes from
    /// the environment variable `STILLPOINT_PASSWORD`, or is asked for.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// The account has no password.
    #[arg(long, conflicts_with = "password_file")]
    no_password: bool,
}

impl PasswordSource {
    pub fn read(&self, user: &str) -> Result<Option<String>, Failure> {
        if self.no_password {
            return Ok(None);
        }
        if let Some(path) = &self.password_file {
            return from_file(path).map(Some);
        }
        if let Ok(password) = std::env::var(VARIABLE) {
            return Ok(Some(password));
        }
        if !io::stdin().is_terminal() {
            return Err(Failure::new(format!(
                "there is no terminal to ask for the password of {user:?}: use --password-file, {VARIABLE}, or --no-password"
            )));
        }
        let password = rpassword::prompt_password(format!("Password of {user}: "))?;
        Ok(Some(password))
    }
}

fn from_file(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(path).map(|read| text = read)
    };
    read.map_err(|error| Failure::new(format!("--password-file {}: {error}", path.display())))?;
    let line = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    Ok(line.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn one_newline_at_the_end_is_not_part_of_the_password() {
        for (content, password) in
            [("sesame\n", "sesame"), ("sesame\r\n", "sesame"), ("se same\n\n", "se same\n"), ("x", "x")]
        {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(content.as_bytes()).unwrap();
            assert_eq!(from_file(file.path()).unwrap(), password);
        }
    }
}
