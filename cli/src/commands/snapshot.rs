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
        let api = match self {
            // It tries again by itself, and says so.
            Self::Download(_) => connection.connect_for_one_try().await?,
            _ => connection.connect().await?,
        };
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

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::testing::{FakeApi, refusal};

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: Command,
    }

    async fn fails(api: &FakeApi, line: &[&str]) -> String {
        let command = Line::parse_from([&["snapshot"], line].concat()).command;
        format!("{:?}", command.run(api.connection(), Output::Text).await.unwrap_err())
    }

    #[tokio::test]
    async fn a_download_tries_again_by_its_own_rules_alone() {
        let api = FakeApi::start(|_| Some(refusal(503)));
        fails(&api, &["download", "first"]).await;
        assert_eq!(api.asked("GET", "/snapshots/first/download").len(), 1);
    }

    #[tokio::test]
    async fn what_is_deleted_is_what_was_looked_at() {
        let api = FakeApi::start(|asked| match asked.method.as_str() {
            "DELETE" => Some(refusal(409)),
            _ => {
                let spec = json!({"databases": ["orders"], "repository": "nightly"});
                let metadata = json!({"name": "first", "uid": "1234"});
                let kind = ("stillpoint.dev/v1alpha1", "Snapshot");
                Some((200, json!({"apiVersion": kind.0, "kind": kind.1, "metadata": metadata, "spec": spec})))
            }
        });
        let said = fails(&api, &["delete", "first", "--keep-copy", "--yes"]).await;
        assert!(said.contains("another Snapshot is called first now"), "{said}");
        let (kept, deleted) = (api.asked("PATCH", "/snapshots/first"), api.asked("DELETE", "/snapshots/first"));
        assert_eq!(kept[0].body, json!({"metadata": {"uid": "1234"}, "spec": {"deletionPolicy": "Retain"}}));
        assert_eq!(deleted[0].body["preconditions"]["uid"], "1234", "{deleted:?}");
    }
}
