//! How programs are told where a server is and whom to be there: by files for us alone, gone with the run.

use std::{
    ffi::OsStr,
    io::{self, Write},
    path::{Path, PathBuf},
    process::Command,
};

use api::{ConnectionAddress, Engine, TlsMode};
use freeze::Member;
use tempfile::TempDir;

/// Files of one run. Removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> io::Result<Self> {
        tempfile::Builder::new().prefix("stillpoint-run-").tempdir().map(Self)
    }

    /// All at once: a program that was begun before may be reading it. For us alone, as temporary files are.
    pub(crate) fn write(&self, name: &str, content: &str) -> io::Result<PathBuf> {
        let path = self.0.path().join(name);
        let mut file = tempfile::NamedTempFile::new_in(self.0.path())?;
        file.write_all(content.as_bytes())?;
        file.persist(&path)?;
        Ok(path)
    }

    fn home(&self) -> &Path {
        self.0.path()
    }
}

/// A program of PostgreSQL's that knows its server (manual, 34.15 "Environment Variables", 34.16 "The Password File").
pub(crate) fn postgresql(program: &Path, member: &Member, files: &Files) -> io::Result<Command> {
    let mut command = quiet(program, files);
    let (host, port) = match &member.address {
        ConnectionAddress::Tcp { host, port } => (host, port),
        ConnectionAddress::Socket { path, port } => (path, port),
    };
    command
        .env("PGHOST", host)
        .env("PGPORT", port.to_string())
        .env("PGCONNECT_TIMEOUT", "10")
        .env("PGAPPNAME", "stillpoint/dump");
    command
        .env("PGUSER", user(Engine::PostgreSQL, member))
        .env("PGPASSFILE", client_file(Engine::PostgreSQL, member, files)?);
    let mode = match member.tls.mode {
        TlsMode::Disable => "disable",
        TlsMode::Require => "require",
        TlsMode::VerifyCA => "verify-ca",
        TlsMode::VerifyFull => "verify-full",
    };
    command.env("PGSSLMODE", mode);
    if let Some(roots) = &member.tls.roots {
        if let Some(ca) = &roots.ca {
            command.env("PGSSLROOTCERT", files.write("ca.crt", ca)?);
        }
        if let Some((certificate, key)) = &roots.identity {
            command
                .env("PGSSLCERT", files.write("tls.crt", certificate)?)
                .env("PGSSLKEY", files.write("tls.key", key)?);
        }
    }
    Ok(command)
}

/// A program of MariaDB's that knows its server. Its first argument must stay the first.
pub(crate) fn mariadb(program: &Path, member: &Member, files: &Files) -> io::Result<Command> {
    let mut command = quiet(program, files);
    let mut argument = OsStr::new("--defaults-file=").to_owned();
    argument.push(client_file(Engine::MariaDB, member, files)?);
    command.arg(argument);
    Ok(command)
}

/// Whom to be.
pub(crate) fn user(engine: Engine, member: &Member) -> &str {
    let nobody = match engine {
        Engine::PostgreSQL => "postgres",
        Engine::MariaDB => "root",
    };
    member.account.as_ref().map_or(nobody, |account| &account.user)
}

/// What the engine's own clients read: PostgreSQL's password file, MariaDB's option file.
pub(crate) fn client_file(engine: Engine, member: &Member, files: &Files) -> io::Result<PathBuf> {
    match engine {
        Engine::PostgreSQL => {
            let password = member.account.as_ref().and_then(|account| account.password.as_deref());
            files.write("pgpass", &pgpass(password.unwrap_or_default()))
        }
        Engine::MariaDB => mariadb_file(member, files),
    }
}

fn mariadb_file(member: &Member, files: &Files) -> io::Result<PathBuf> {
    let mut lines = vec!["[client]".to_owned()];
    let mut set = |name: &str, value: &str| lines.push(format!("{name}={}", quoted(value)));
    match &member.address {
        ConnectionAddress::Tcp { host, port } => {
            set("host", host);
            set("port", &port.to_string());
            set("protocol", "tcp");
        }
        ConnectionAddress::Socket { path, .. } => {
            set("socket", path);
            set("protocol", "socket");
        }
    }
    set("user", user(Engine::MariaDB, member));
    if let Some(password) = member.account.as_ref().and_then(|account| account.password.as_deref()) {
        set("password", password);
    }
    set("ssl", if member.tls.mode == TlsMode::Disable { "0" } else { "1" });
    let verified = matches!(member.tls.mode, TlsMode::VerifyCA | TlsMode::VerifyFull);
    set("ssl-verify-server-cert", if verified { "1" } else { "0" });
    if let Some(roots) = &member.tls.roots {
        if let Some(ca) = &roots.ca {
            set("ssl-ca", &text(&files.write("ca.crt", ca)?));
        }
        if let Some((certificate, key)) = &roots.identity {
            set("ssl-cert", &text(&files.write("tls.crt", certificate)?));
            set("ssl-key", &text(&files.write("tls.key", key)?));
        }
    }
    files.write("mariadb.cnf", &(lines.join("\n") + "\n"))
}

/// Nothing of whoever started us: no settings, no language, no home with files that programs read.
pub(crate) fn quiet(program: &Path, files: &Files) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("LC_ALL", "C").env("HOME", files.home()).env("TMPDIR", files.home());
    for kept in ["PATH", "LD_LIBRARY_PATH"] {
        if let Some(value) = std::env::var_os(kept) {
            command.env(kept, value);
        }
    }
    command
}

/// Whatever the server's name: it is the one that the environment names.
fn pgpass(password: &str) -> String {
    format!("*:*:*:*:{}\n", password.replace('\\', "\\\\").replace(':', "\\:"))
}

/// MariaDB documentation, "Configuring MariaDB with Option Files": backslash escapes, inside double quotes.
fn quoted(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n").replace('\t', "\\t");
    format!("\"{escaped}\"")
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whoever_reads_a_file_that_is_written_again_has_all_of_it_and_nobody_else_may() {
        let files = Files::new().unwrap();
        let path = files.write("mariadb.cnf", "first").unwrap();
        let read = fs::File::open(&path).unwrap();
        files.write("mariadb.cnf", "second").unwrap();
        assert_eq!(
            (io::read_to_string(read).unwrap(), fs::read_to_string(&path).unwrap()),
            ("first".into(), "second".into())
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    proptest! {
        #[test]
        fn no_password_breaks_out_of_its_field(password in "[^\n\0]*") {
            let line = pgpass(&password);
            let mut fields = vec![String::new()];
            let mut characters = line.trim_end_matches('\n').chars();
            while let Some(c) = characters.next() {
                match c {
                    '\\' => fields.last_mut().unwrap().extend(characters.next()),
                    ':' => fields.push(String::new()),
                    other => fields.last_mut().unwrap().push(other),
                }
            }
            prop_assert_eq!(fields.len(), 5);
            prop_assert_eq!(&fields[4], &password);
        }

        #[test]
        fn no_value_ends_its_quotes(value in ".*") {
            let quoted = quoted(&value);
            let inside = quoted[1..quoted.len() - 1].replace("\\\\", "").replace("\\\"", "");
            prop_assert!(!inside.contains('"') && !inside.contains('\n'));
        }
    }
}
