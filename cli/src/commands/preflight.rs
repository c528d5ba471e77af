//! `preflight`: every check that a freeze would make, and nothing touched.

use api::{CheckResult, Copy, Level, QuiesceSpec};

use crate::{
    client::Connection,
    failure::Failure,
    print::{self, Output},
};

#[derive(Debug, clap::Args)]
pub struct Command {
    /// The Database.
    name: String,
    /// Others that would be held with it.
    #[arg(long, value_name = "NAME")]
    with: Vec<String>,
    /// Recoverable, Durable or WriteBlocked; the Database's own when absent.
    #[arg(long, value_name = "LEVEL")]
    level: Option<Level>,
    /// Atomic or Files.
    #[arg(long, value_name = "METHOD")]
    copy: Option<Copy>,
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        let spec = QuiesceSpec { level: self.level, copy: self.copy, with: self.with, ..QuiesceSpec::default() };
        let status = api.quiesce(&self.name, spec, true).await?.status.unwrap_or_default();
        let failed = status.checks.iter().any(|check| check.result == CheckResult::Fail);
        match output {
            Output::Json => print::json(&status)?,
            Output::Text => {
                print!("{}", print::checks(&status.checks));
                let level = status.level.unwrap_or_default();
                println!("{}", if failed { format!("not ready for {level}") } else { format!("ready for {level}") });
            }
        }
        Ok(u8::from(failed))
    }
}
