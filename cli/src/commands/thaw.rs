//! `thaw`: break-glass. Through the API, or straight at a server when the API is gone.

use std::time::Duration;

use api::{Engine, UnquiesceSpec};
use futures::future::join_all;
use serde_json::json;

use super::{ServerArgs, driver};
use crate::{
    client::Connection,
    failure::Failure,
    print::{self, Output},
};

/// How long one server may take to be thawed directly.
const DIRECT: Duration = Duration::from_secs(15);

#[derive(Debug, clap::Args)]
pub struct Command {
    // Before `direct`, which it reads.
    #[command(flatten)]
    server: OptionalServer,
    /// One Database.
    #[arg(required_unless_present_any = ["all", "direct"])]
    name: Option<String>,
    /// Every Database of the namespace; with --direct every freeze of Stillpoint in the server.
    #[arg(long, conflicts_with = "name")]
    all: bool,
    /// Without the API: connect to the server that the flags name, and end our sessions in it.
    #[arg(long, requires = "all")]
    direct: bool,
}

/// [`ServerArgs`], wanted only with `--direct`.
#[derive(Clone, Debug, Default)]
struct OptionalServer(Option<ServerArgs>);

impl clap::FromArgMatches for OptionalServer {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        if !matches.get_flag("direct") {
            return Ok(Self(None));
        }
        ServerArgs::from_arg_matches(matches).map(|server| Self(Some(server)))
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl clap::Args for OptionalServer {
    fn augment_args(command: clap::Command) -> clap::Command {
        let engine = |argument: clap::Arg| argument.required(false).requires("direct").required_if_eq("direct", "true");
        ServerArgs::augment_args(command).mut_arg("engine", engine)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        if let Some(server) = self.server.0 {
            let deadline = tokio::time::Instant::now() + DIRECT;
            let ended = driver(server.engine)?.thaw_all(&server.member()?, deadline).await?;
            if output == Output::Json {
                return print::json(&ended).map(|()| 0);
            }
            match ended.as_slice() {
                [] => println!("nothing of Stillpoint is held there"),
                ended => println!("ended: {}", ended.join(", ")),
            }
            if server.engine == Engine::MariaDB {
                println!("{RAISED}");
            }
            return Ok(0);
        }
        let api = connection.connect().await?;
        let names = match self.name {
            Some(name) => vec![name],
            None => {
                let held = api.live(None).await?.into_iter().filter(|database| database.status.state != "Idle");
                held.filter_map(|database| database.metadata.name).collect()
            }
        };
        // All at once, and each for itself: one that cannot be thawed is no reason to leave the others frozen.
        let thaws = names.iter().map(|name| async {
            let spec = UnquiesceSpec { force: true, ..UnquiesceSpec::default() };
            api.unquiesce(name, spec).await.map(|answer| answer.status.unwrap_or_default())
        });
        let thaws = join_all(thaws).await;
        let failed = thaws.iter().filter(|thaw| thaw.is_err()).count();
        if output == Output::Json {
            let told = names.iter().zip(&thaws).map(|(name, thaw)| match thaw {
                Ok(status) => json!({"database": name, "status": status}),
                Err(error) => json!({"database": name, "error": error.to_string()}),
            });
            print::json(&told.collect::<Vec<_>>())?;
        } else {
            if names.is_empty() {
                println!("nothing is held");
            }
            for (name, thaw) in names.iter().zip(&thaws) {
                match thaw {
                    Ok(status) => println!("{name}: {}", status.message.as_deref().unwrap_or("thawed")),
                    Err(error) => eprintln!("{name}: not thawed: {error}"),
                }
            }
        }
        if failed == 0 {
            return Ok(0);
        }
        Err(Failure::new(format!(
            "{failed} of {} could not be thawed; try again, or go to the server itself: kubectl still thaw --all --direct",
            names.len()
        )))
    }
}

/// What ending its session does not undo.
const RAISED: &str = "a freeze may have left innodb_flush_log_at_trx_commit and sync_binlog at 1, which is safe and slower: \
    stillpoint-apiserver puts them back when it runs again; without it, SET GLOBAL them to what your configuration says";
