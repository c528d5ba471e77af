//! The command line.

use std::ffi::OsString;

use clap::{Parser, Subcommand};

use crate::{client::Connection, commands, failure::Failure, print::Output, supervise};

/// Hold databases still while their copies are taken, and get the proof.
///
/// Examples:
///
///   kubectl still database create orders --engine postgresql --host 127.0.0.1 --user stillpoint
///
///   kubectl still quiesce orders --with billing -- zfs snapshot -r tank/db@now
///
///   kubectl still snapshot create orders --repository nightly
///
///   kubectl still restore fresh --latest --from orders
///
///   kubectl still quiesce orders --copy files --then 'rsync -a "$PGDATA"/pg_wal/ /copy/pg_wal/' -- rsync -a … /copy/
#[derive(Debug, Parser)]
#[command(name = "kubectl still", version, verbatim_doc_comment)]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    /// How results are printed.
    #[arg(long, short, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register databases, list them, forget them.
    #[command(subcommand)]
    Database(commands::database::Command),
    /// Check everything that a freeze needs, and touch nothing. Exits with 1 when a check fails.
    Preflight(commands::preflight::Command),
    /// Print the least privileges that freezing needs, as SQL for an administrator.
    Grants(commands::grants::Command),
    /// Hold databases still: around a command, or until you say unquiesce.
    Quiesce(commands::quiesce::Command),
    /// What is held now, by whom, until when.
    Status(commands::status::Command),
    /// Ask for a later end of your claim.
    Renew(commands::unquiesce::RenewCommand),
    /// End your claim, and get the proof.
    Unquiesce(commands::unquiesce::Command),
    /// In a cluster: check what is installed, whom it may read Secrets of, and every Database. Exits with 1 when a check fails.
    Doctor(commands::doctor::Command),
    /// In a cluster: what a snapshot of each claim that keeps a database's data would be worth now. Exits with 1 when one that could be
    /// protected is not.
    ///
    /// It lists Databases, Pods, Services and EndpointSlices; PersistentVolumes, VolumeSnapshotClasses and what is installed, if it may.
    Coverage(commands::coverage::Command),
    /// In a cluster: let Stillpoint read the Secrets that a namespace's Databases and Repositories name, and make Jobs, VolumeSnapshots and
    /// claims of copies there.
    Enable(commands::enable::Command),
    /// In a cluster: take that back.
    Disable(commands::enable::DisableCommand),
    /// Print Pods with the agent that the webhooks would put beside their databases; no cluster is asked. Exits with 1 when a
    /// database cannot have one.
    Inject(commands::inject::Command),
    /// Where copies are kept: make a Repository, check it, read what is in it.
    #[command(subcommand)]
    Repository(commands::repository::Command),
    /// Take copies, list them, download their files, delete them.
    #[command(subcommand)]
    Snapshot(commands::snapshot::Command),
    Restore(commands::restore::Command),
    RestorePlan(commands::restore_plan::Command),
    Generate(commands::generate::Command),
    /// Break-glass: end every claim, whoever holds it.
    Thaw(commands::thaw::Command),
    #[command(name = supervise::SUPERVISE, hide = true)]
    Supervise {
        parent: u32,
        #[arg(last = true)]
        command: Vec<OsString>,
    },
}

impl Args {
    /// Runs the command; its exit code, or what went wrong.
    pub async fn run(self) -> Result<u8, Failure> {
        let Self { connection, output, command } = self;
        match command {
            Command::Database(command) => command.run(connection, output).await,
            Command::Preflight(command) => command.run(connection, output).await,
            Command::Grants(command) => command.run(connection, output).await,
            Command::Quiesce(command) => command.run(connection, output).await,
            Command::Status(command) => command.run(connection, output).await,
            Command::Renew(command) => command.run(connection, output).await,
            Command::Unquiesce(command) => command.run(connection, output).await,
            Command::Doctor(command) => command.run(connection, output).await,
            Command::Coverage(command) => command.run(connection, output).await,
            Command::Enable(command) => command.run(connection, output).await,
            Command::Disable(command) => command.run(connection, output).await,
            Command::Inject(command) => command.run(connection, output),
            Command::Repository(command) => command.run(connection, output).await,
            Command::Snapshot(command) => command.run(connection, output).await,
            Command::Restore(command) => command.run(connection, output).await,
            Command::RestorePlan(command) => command.run(connection, output).await,
            Command::Generate(command) => command.run(connection, output).await,
            Command::Thaw(command) => command.run(connection, output).await,
            Command::Supervise { parent, command } => Ok(supervise::supervise(parent, &command).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn a_restore_names_one_copy_and_its_log_is_no_database() {
        let parses = |line: &str| Args::try_parse_from(format!("still restore {line}").split(' ')).is_ok();
        for right in [
            "orders --latest",
            "log back",
            "orders --snapshot first --database shop",
            "--latest -- log",
            "--to-claims --snapshot first",
            "--to-claims --snapshot first --claim copy=data:20Gi --claim wal --storage-class fast --name back",
        ] {
            assert!(parses(right), "{right}");
        }
        for wrong in [
            "orders",
            "--latest",
            "orders --latest --snapshot first",
            "orders --as-of 2026-11-29T03:00:00",
            "log",
            "orders --to-claims --snapshot first",
            "--to-claims --latest",
            "--to-claims --snapshot first --existing replace",
            "--to-claims --snapshot first --storage-class fast",
            "orders --snapshot first --claim copy",
        ] {
            assert!(!parses(wrong), "{wrong}");
        }
    }

    #[test]
    fn no_flag_takes_a_password() {
        fn flags(command: &clap::Command) -> Vec<String> {
            let own = command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_owned);
            own.chain(command.get_subcommands().flat_map(flags)).collect()
        }
        assert!(!flags(&Args::command()).iter().any(|flag| flag == "password"));
    }
}
