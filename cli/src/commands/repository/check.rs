//! `repository check`: whether all that a repository should have is there, and as it was written.

use std::{collections::BTreeSet, time::Duration};

use api::{CheckResult, RepositoryCheckSpec, RepositoryCheckStatus};

use crate::{
    client::Api,
    failure::Failure,
    print::{self, Output},
    progress::Shown,
};

/// A little more than the server takes for it.
pub const LONGEST: Duration = Duration::from_secs(3700);

/// Check a repository, each of its locations for itself. Exits with 1 when something cannot be restored from one of them, or one could
/// not be looked at.
///
/// Names, sizes, indexes and trees are looked at; with --read-data every byte is read, too. The answer is waited for an hour; what takes
/// longer goes on without anybody hearing of it, and there is restic check --read-data.
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

/// How the server begins what it says of a location that did not answer (apiserver/src/copies/check.rs).
const UNSEEN: &str = "it could not be looked at";

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
    let at = |is_unseen: bool| {
        let failed = status.findings.iter().filter(|finding| finding.result == CheckResult::Fail);
        let of: BTreeSet<&str> = failed
            .filter(|finding| finding.message.starts_with(UNSEEN) == is_unseen)
            .map(|finding| finding.location.as_str())
            .collect();
        of
    };
    let (damaged, unseen) = (at(false), at(true));
    let joined = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(", ");
    let read_more = if read_data { "" } else { " (--read-data reads every byte, too)" };
    if !damaged.is_empty() || status.result == CheckResult::Fail && unseen.is_empty() {
        let from = if damaged.is_empty() { "some location".to_owned() } else { joined(&damaged) };
        text += &format!("{name} is damaged: something cannot be restored from {from}{read_more}\n");
    }
    if !unseen.is_empty() {
        let places = joined(&unseen);
        text +=
            &format!("{name} could not be looked at in {places}: nothing is known of what is there; check it again\n");
    }
    let is_whole = |location: &&str| !damaged.contains(location) && !unseen.contains(location);
    let whole: Vec<&str> = status.locations.iter().map(String::as_str).filter(is_whole).collect();
    // What was left out may be of any.
    if !whole.is_empty() && (status.result != CheckResult::Fail || status.omitted == 0) {
        let how = if read_data { " (every byte was read)" } else { read_more };
        text += &format!("{name} is whole in {}{how}\n", whole.join(", "));
    }
    text
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
        assert!(text.contains("restored from disk\n") && !text.contains("every byte"), "{text}");
        assert!(told("nightly", false, &status("Pass", json!([]))).contains("is whole in disk, offsite (--read-data"));
        assert!(
            told("nightly", true, &status("Warn", json!([]))).contains("is whole in disk, offsite (every byte was")
        );
    }

    #[test]
    fn what_did_not_answer_is_not_called_damaged() {
        let unseen =
            json!({"location": "offsite", "result": "Fail", "message": "it could not be looked at: timed out"});
        let of = |findings: serde_json::Value| {
            let status = json!({
                "result": "Fail", "locations": ["disk", "offsite"], "findings": findings, "checkedAt": "2026-11-29T03:00:00Z",
                "milliseconds": 1,
            });
            told("nightly", true, &serde_json::from_value(status).unwrap())
        };
        let text = of(json!([unseen]));
        assert!(text.contains("could not be looked at in offsite:") && !text.contains("damaged"), "{text}");
        assert!(text.contains("is whole in disk (every byte was read)"), "{text}");
        let text = of(json!([{"location": "disk", "result": "Fail", "message": "pack 1234 is gone"}, unseen]));
        assert!(text.contains("restored from disk\n") && text.contains("looked at in offsite:"), "{text}");
        assert!(!text.contains("every byte") && !text.contains("whole"), "{text}");
    }
}
