//! `repository check`: whether all that a repository should have is there, and as it was written.

use std::time::Duration;

use api::{CheckResult, RepositoryCheckSpec, RepositoryCheckStatus};

use crate::{
    client::Api,
    failure::Failure,
    print::{self, Output},
    progress::Shown,
};

/// A little more than the server takes for it.
pub const LONGEST: Duration = Duration::from_secs(3700);

/// Check a repository, each of its locations for itself. Exits with 1 when something cannot be restored from one of them.
///
/// Names, sizes, indexes and trees are looked at; with --read-data every byte is read, too. The server gives it an hour; for longer
/// there is restic check --read-data.
///
/// Examples:
///
///   kubectl still repository check nightly
///
///   kubectl still repository check nightly --read-data
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Command {
    /// The Repository.
    name: String,
    /// Read every byte of it, too.
    #[arg(long)]
    read_data: bool,
}

impl Command {
    pub async fn run(self, api: &Api, output: Output) -> Result<u8, Failure> {
        let mut shown = Shown::new();
        shown.show(&format!("checking {}", self.name), None);
        let checked = api.check(&self.name, RepositoryCheckSpec { read_data: self.read_data }).await;
        drop(shown);
        let checked = checked?;
        let Some(status) = &checked.status else {
            return Err(Failure::new("the server's answer says nothing; is it of this version?"));
        };
        match output {
            Output::Json => print::json(&checked)?,
            Output::Text => print!("{}", told(&self.name, self.read_data, status)),
        }
        Ok(u8::from(status.result == CheckResult::Fail))
    }
}

/// Pure.
fn told(name: &str, read_data: bool, status: &RepositoryCheckStatus) -> String {
    let rows: Vec<Vec<String>> = status
        .findings
        .iter()
        .map(|finding| vec![finding.location.clone(), format!("{:?}", finding.result), finding.message.clone()])
        .collect();
    let mut text =
        if rows.is_empty() { String::new() } else { print::table(&["LOCATION", "RESULT", "MESSAGE"], &rows) };
    if status.omitted > 0 {
        text += &format!("and {} more\n", status.omitted);
    }
    let how = if read_data { "every byte was read" } else { "--read-data reads every byte, too" };
    text + &match status.result {
        CheckResult::Fail => format!("{name} is damaged: something cannot be restored from some location ({how})\n"),
        CheckResult::Pass | CheckResult::Warn => {
            format!("{name} is whole in {} ({how})\n", status.locations.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_wrong_is_said_by_location() {
        let status = |result: &str, findings: serde_json::Value| {
            let status = json!({
                "result": result, "locations": ["disk", "offsite"], "findings": findings, "checkedAt": "2026-11-29T03:00:00Z",
                "milliseconds": 1, "omitted": 7,
            });
            serde_json::from_value(status).unwrap()
        };
        let lost = json!([{"location": "disk", "result": "Fail", "message": "pack 1234 is gone"}]);
        let text = told("nightly", true, &status("Fail", lost));
        assert!(text.contains("disk       Fail     pack 1234 is gone\nand 7 more\nnightly is damaged"), "{text}");
        assert!(told("nightly", false, &status("Pass", json!([]))).contains("is whole in disk, offsite (--read-data"));
    }
}
