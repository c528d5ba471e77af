//! `thaw`: break-glass. Through the API, or straight at a server when the API is gone.

use std::time::Duration;

use api::UnquiesceSpec;

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
        let mut answers = Vec::new();
        for name in &names {
            let spec = UnquiesceSpec { force: true, ..UnquiesceSpec::default() };
            answers.push(api.unquiesce(name, spec).await?.status.unwrap_or_default());
        }
        if output == Output::Json {
            return print::json(&answers).map(|()| 0);
        }
        if names.is_empty() {
            println!("nothing is held");
        }
        for (name, status) in names.iter().zip(&answers) {
            println!("{name}: {}", status.message.as_deref().unwrap_or("thawed"));
        }
        Ok(0)
    }
}
