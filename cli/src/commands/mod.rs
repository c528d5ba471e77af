//! One file per command.

pub mod coverage;
pub mod database;
pub mod doctor;
pub mod enable;
pub mod generate;
pub mod grants;
pub mod inject;
pub mod preflight;
pub mod quiesce;
pub mod repository;
pub mod restore;
pub mod restore_plan;
pub mod snapshot;
pub mod status;
pub mod thaw;
pub mod tool;
pub mod unquiesce;

use std::io::{self, IsTerminal, Write};

use api::{ConnectionAddress, Copy, Engine, Level, TlsMode};
use freeze::{Account, Drivers, Member, Tls, TlsRoots};

use crate::{failure::Failure, password::PasswordSource};

/// What is to be held, and how.
#[derive(Clone, Debug, clap::Args)]
pub struct WhatToHold {
    /// The Database.
    pub name: String,
    /// Another Database of the namespace, held as one group at `WriteBlocked`; repeat it.
    #[arg(long, value_name = "NAME")]
    pub with: Vec<String>,
    /// Recoverable, Durable or WriteBlocked; the Database's own when absent, WriteBlocked for a group.
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<Level>,
    /// How the copy is made: atomic (one instant), or files (one after the other; PostgreSQL).
    #[arg(long, value_name = "METHOD")]
    pub copy: Option<Copy>,
}

/// How to reach a server, on the command line.
#[derive(Clone, Debug, clap::Args)]
pub struct ServerArgs {
    /// The kind of server: postgresql or mariadb.
    #[arg(long, value_name = "ENGINE")]
    pub engine: Engine,
    /// Host name or address of the server itself, not of a pooler or load balancer.
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Its port; the engine's own when absent.
    #[arg(long, value_name = "PORT")]
    pub port: Option<u16>,
    /// Instead of a host: PostgreSQL's socket directory, MariaDB's socket file.
    #[arg(long, value_name = "PATH", conflicts_with = "host")]
    pub socket: Option<String>,
    /// The account to freeze with; see `kubectl still grants`.
    #[arg(long, value_name = "NAME", default_value = "stillpoint")]
    pub user: String,
    #[command(flatten)]
    pub password: PasswordSource,
    /// Disable, Require, VerifyCA or VerifyFull. Absent: VerifyFull with --ca-file, nothing on a loopback address or a
    /// socket, else Require.
    #[arg(long, value_name = "MODE", value_parser = tls_mode)]
    pub tls_mode: Option<TlsMode>,
    /// PEM file of the CA that the server's certificate is checked against.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<std::path::PathBuf>,
}

impl ServerArgs {
    pub fn address(&self) -> Result<ConnectionAddress, Failure> {
        let endpoint = api::Endpoint { host: self.host.clone(), port: self.port, socket: self.socket.clone() };
        endpoint.address(self.engine).ok_or_else(|| Failure::new("give --host or --socket"))
    }

    pub fn ca(&self) -> Result<Option<String>, Failure> {
        let Some(path) = &self.ca_file else { return Ok(None) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::new(format!("--ca-file {}: {error}", path.display())))?;
        if text.contains("BEGIN CERTIFICATE") {
            return Ok(Some(text));
        }
        Err(Failure::new(format!("--ca-file {} holds no PEM certificate", path.display())))
    }

    /// The server, for talking to it directly.
    pub fn member(&self) -> Result<Member, Failure> {
        let address = self.address()?;
        let ca = self.ca()?;
        let mode = match (self.tls_mode, &ca) {
            (Some(mode), _) => mode,
            (None, Some(_)) => TlsMode::VerifyFull,
            (None, None) if address.is_local() => TlsMode::Disable,
            (None, None) => TlsMode::Require,
        };
        let roots = ca.map(|ca| TlsRoots { ca: Some(ca.into()), identity: None });
        let account = Account { user: self.user.clone(), password: self.password.read(&self.user)? };
        Ok(Member { address, account: Some(account), tls: Tls { mode, roots }, databases: Vec::new() })
    }
}

/// Whether somebody is there to be asked.
pub fn is_asked() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Asks on a terminal; elsewhere whoever wrote the command has thought of it.
pub fn agreed(question: &str) -> io::Result<bool> {
    Ok(!is_asked() || matches!(answer(&format!("{question} [y/N] "))?.as_str(), "y" | "Y" | "yes"))
}

/// What a person writes.
pub fn answer(question: &str) -> io::Result<String> {
    eprint!("{question}");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// The driver of an engine.
pub fn driver(engine: Engine) -> Result<std::sync::Arc<dyn freeze::Driver>, Failure> {
    Drivers::real().of(engine).cloned().ok_or_else(|| Failure::new(format!("this build has no driver for {engine}")))
}

fn tls_mode(text: &str) -> Result<TlsMode, String> {
    let modes = [
        ("disable", TlsMode::Disable),
        ("require", TlsMode::Require),
        ("verifyca", TlsMode::VerifyCA),
        ("verifyfull", TlsMode::VerifyFull),
    ];
    let found = modes.iter().find(|(name, _)| text.replace('-', "").eq_ignore_ascii_case(name));
    found.map(|(_, mode)| *mode).ok_or_else(|| "want Disable, Require, VerifyCA or VerifyFull".to_owned())
}
