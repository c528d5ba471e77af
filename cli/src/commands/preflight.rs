//! `preflight`: every check that a freeze would make, and nothing touched.

use api::{CheckResult, QuiesceSpec};

use super::WhatToHold;

use crate::{
    client::Connection,
    failure::Failure,
    print::{self, Output},
};

#[derive(Debug, clap::Args)]
pub struct Command {
    #[command(flatten)]
    what: WhatToHold,
}

impl Command {
    pub async fn run(self, connection: Connection, output: Output) -> Result<u8, Failure> {
        let api = connection.connect().await?;
        let spec = QuiesceSpec {
            level: self.what.level,
            copy: self.what.copy,
            with: self.what.with,
            ..QuiesceSpec::default()
        };
        let status = api.quiesce(&self.what.name, spec, true).await?.status.unwrap_or_default();
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
