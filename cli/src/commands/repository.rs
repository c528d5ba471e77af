//! `repository create | check | scan`: where copies are kept.

mod check;
mod create;
mod place;
mod scan;

use crate::{client::Connection, failure::Failure, print::Output};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Create(create::Command),
    Check(check::Command),
    Scan(scan::Command),
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        match self {
            Self::Create(command) => command.run(&connection.connect().await?, output).await,
            // It answers when it is over.
            Self::Check(command) => command.run(&connection.connect_for(check::LONGEST).await?, output).await,
            Self::Scan(command) => command.run(&connection.connect().await?, output).await,
        }
    }
}
