//! `snapshot create | list | download | delete | log`: copies that are kept in Repositories.

mod create;
mod delete;
mod download;
mod files;
mod list;

use crate::{client::Connection, failure::Failure, print::Output};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Create(create::Command),
    List(list::Command),
    Download(download::Command),
    Delete(delete::Command),
    /// What the runs of a Snapshot said, as far as the server remembers them.
    Log {
        /// The Snapshot.
        name: String,
    },
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        match self {
            Self::Create(command) => command.run(&api, output).await,
            Self::List(command) => command.run(&api, output).await,
            Self::Download(command) => command.run(&api, output).await,
            Self::Delete(command) => command.run(&api, output).await,
            Self::Log { name } => {
                print!("{}", api.log("snapshots", &name).await?);
                Ok(0)
            }
        }
    }
}
