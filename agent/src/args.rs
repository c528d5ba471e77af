//! The command line.

use std::{process::ExitCode, str::FromStr, time::Duration};

use anyhow::Context;
use api::{
    Level,
    agent::{Granted, LONGEST_WITHIN, Wish},
};
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{local, run, settings::Settings};

/// Freezes the database that it stands beside, and lets it go by itself when nobody asks for it to be kept.
#[derive(Debug, Parser)]
#[command(name = "stillpoint-agent", version)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Stands beside a database until it is told to end; everything is told to it by its environment.
    Run {
        /// What is logged (`RUST_LOG` syntax).
        #[arg(long, value_name = "FILTER", env = "STILLPOINT_LOG", default_value = "info")]
        log: String,
    },
    /// Holds the database still, for a hook before a copy; returns when it holds, or says why not.
    Freeze {
        /// It is let go after this at the latest: 90, 90s or 2m.
        #[arg(long = "for", value_name = "DURATION", env = "STILLPOINT_TTL", default_value = "60s")]
        long: Long,
        /// What is to be true of the copy; the Database's own level unless it is said.
        #[arg(long, value_name = "LEVEL", env = "STILLPOINT_LEVEL")]
        level: Option<Level>,
        /// It is given up when it does not hold within this, 10 minutes at most.
        #[arg(long, value_name = "DURATION", default_value = "90s", value_parser = within)]
        within: Long,
        /// Why, for people.
        #[arg(long, value_name = "TEXT", default_value = "a hook in its Pod")]
        reason: String,
    },
    /// Lets it go, for a hook after the copy. Nothing to let go is no error; a hold that did not last is.
    Thaw,
    /// Whether it is held.
    Status,
}

/// Whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Long(u32);

impl FromStr for Long {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
            Some(at) => text.split_at(at),
            None => (text, "s"),
        };
        let factor = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err("must be seconds, as 90, 90s, 2m or 1h"),
        };
        let seconds = number.parse::<u32>().ok().and_then(|number| number.checked_mul(factor));
        seconds.filter(|seconds| *seconds > 0).map(Self).ok_or("must be seconds, as 90, 90s, 2m or 1h")
    }
}

/// How long other commands wait for their answer.
const PATIENCE: Duration = Duration::from_secs(90);
/// An answer of the last moment has so long to come.
const WAY_BACK: Duration = Duration::from_secs(10);

fn within(text: &str) -> Result<Long, &'static str> {
    text.parse().and_then(|long: Long| (long.0 <= LONGEST_WITHIN).then_some(long).ok_or("must be 10 minutes at most"))
}

impl Args {
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let (wish, patience) = match self.command {
            Command::Run { log } => {
                let filter = EnvFilter::try_new(log).context("--log")?;
                tracing_subscriber::fmt().with_env_filter(filter).json().with_writer(std::io::stderr).init();
                run::run(Settings::read(|name| std::env::var(name).ok())?).await?;
                return Ok(ExitCode::SUCCESS);
            }
            Command::Freeze { long, level, within, reason } => {
                // The agent names it.
                let claim = String::new();
                let wish = Wish::Freeze { claim, seconds: long.0, within: within.0, level, reason };
                // Whoever gives up is the replica, and then the agent; we hear it.
                (wish, Duration::from_secs(within.0.into()) + WAY_BACK)
            }
            Command::Thaw => (Wish::Thaw { claims: Vec::new() }, PATIENCE),
            Command::Status => (Wish::Status, PATIENCE),
        };
        let granted = local::ask(&wish, patience).await?;
        println!("{}", said(&granted));
        Ok(if is_good(&granted) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

fn is_good(granted: &Granted) -> bool {
    !matches!(granted, Granted::Refused { .. } | Granted::Thawed { proved: Some(false), .. })
}

fn said(granted: &Granted) -> String {
    let until = |until: &Option<String>| until.as_ref().map(|until| format!(" until {until}")).unwrap_or_default();
    match granted {
        Granted::Frozen { freeze, level, until: end } => format!("frozen at {level} by Freeze {freeze}{}", until(end)),
        Granted::Thawed { freeze: None, proved: Some(false) } => {
            "it had ended before, and it is NOT proved that it was held all the time: throw the copy away".to_owned()
        }
        Granted::Thawed { freeze: None, .. } => "nothing was held".to_owned(),
        Granted::Thawed { freeze: Some(freeze), proved: Some(true) } => {
            format!("thawed; it was held all the time (Freeze {freeze})")
        }
        Granted::Thawed { freeze: Some(freeze), proved: Some(false) } => format!(
            "thawed, and it is NOT proved that it was held all the time: throw the copy away; Freeze {freeze} says why"
        ),
        Granted::Thawed { freeze: Some(freeze), proved: None } => {
            format!("let go; others hold it still (Freeze {freeze})")
        }
        Granted::Status { phase, freeze: Some(freeze), until: end } => {
            format!("{phase}: Freeze {freeze}{}", until(end))
        }
        Granted::Status { freeze: None, .. } => "nothing is held".to_owned(),
        Granted::Elsewhere { why } => format!("nothing was held: {why}"),
        Granted::Refused { why } => format!("refused: {why}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_whole_seconds_in_some_unit() {
        for (text, seconds) in [("90", 90), ("90s", 90), ("2m", 120), ("1h", 3600)] {
            assert_eq!(text.parse(), Ok(Long(seconds)), "{text}");
        }
        for wrong in ["", "s", "0", "-1", "1.5m", "1d", "99999999h", "1 m"] {
            assert!(wrong.parse::<Long>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn whoever_runs_it_as_a_hook_hears_whether_it_may_go_on() {
        let thawed = |proved| Granted::Thawed { freeze: Some("f".to_owned()), proved };
        assert!(is_good(&thawed(Some(true))) && is_good(&thawed(None)) && !is_good(&thawed(Some(false))));
        assert!(!is_good(&Granted::Refused { why: "no".to_owned() }));
        assert!(is_good(&Granted::Thawed { freeze: None, proved: None }), "nothing to let go is no error");
        assert!(said(&thawed(Some(false))).contains("NOT proved"));
    }
}
