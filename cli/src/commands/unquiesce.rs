//! `unquiesce` and `renew`: the end of a claim, now or later.

use api::{RenewSpec, Stage, UnquiesceSpec};

use crate::{
    client::Connection,
    failure::{Failure, NOT_HELD},
    print::{self, Output},
};

#[derive(Debug, clap::Args)]
pub struct Command {
    /// The Database.
    name: String,
    /// The claim to end, as quiesce printed it; your own when absent.
    #[arg(long, value_name = "UID")]
    uid: Option<String>,
    /// `stop` ends the data phase of a Files copy; then copy WAL, then unquiesce again.
    #[arg(long, value_name = "STAGE", value_parser = stage, default_value = "thaw")]
    stage: Stage,
}

#[derive(Debug, clap::Args)]
pub struct RenewCommand {
    /// The Database.
    name: String,
    /// The claim to renew; your own when absent.
    #[arg(long, value_name = "UID")]
    uid: Option<String>,
    /// How long from now, in seconds; as long as it was given at first when absent.
    #[arg(long, value_name = "SECONDS")]
    ttl: Option<u32>,
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        let spec = UnquiesceSpec { uid: self.uid, stage: self.stage, force: false };
        let status = api.unquiesce(&self.name, spec).await?.status.unwrap_or_default();
        if output == Output::Json {
            print::json(&status)?;
        } else {
            if let Some(message) = &status.message {
                println!("{}: {message}", self.name);
            }
            for artifact in &status.artifacts {
                println!("--- {} ({:?})\n{}", artifact.name, artifact.kind, artifact.content.trim_end());
            }
            if self.stage == Stage::Thaw && status.freeze.is_some() {
                print!("{}", print::proofs(&status.targets));
            }
            for claim in &status.still_claimed_by {
                println!("still claimed by {} until {}", claim.user, claim.until.0);
            }
        }
        let ended = self.stage == Stage::Thaw && status.proof.is_some();
        Ok(if ended && !print::proved(&status) { NOT_HELD } else { 0 })
    }
}

impl RenewCommand {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        let spec = RenewSpec { uid: self.uid, ttl_seconds: self.ttl };
        let status = api.renew(&self.name, spec).await?.status.unwrap_or_default();
        if output == Output::Json {
            return print::json(&status).map(|()| 0);
        }
        for warning in &status.warnings {
            eprintln!("warning: {warning}");
        }
        println!("{}: held until {}", self.name, status.expires_at.map(|at| at.0.to_string()).unwrap_or_default());
        Ok(0)
    }
}

fn stage(text: &str) -> Result<Stage, String> {
    match text.to_ascii_lowercase().as_str() {
        "stop" => Ok(Stage::Stop),
        "thaw" => Ok(Stage::Thaw),
        _ => Err("want stop or thaw".to_owned()),
    }
}
