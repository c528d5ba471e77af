//! `snapshot list`: the catalogue, what really is in repositories.

use api::LiveSnapshot;
use jiff::Timestamp;

use crate::{
    client::Api,
    failure::Failure,
    print::{self, Output},
    times,
};

/// List the copies that there are, also those that this server has no Snapshot of.
///
/// Examples:
///
///   kubectl still snapshot list
///
///   kubectl still snapshot list --repository nightly -l app=shop
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Command {
    /// Only those with these labels.
    #[arg(long, short = 'l', value_name = "SELECTOR")]
    selector: Option<String>,
    /// Only those in this Repository.
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
}

const COLUMNS: [&str; 8] = ["NAME", "DATABASES", "TAKEN", "CONSISTENCY", "SIZE", "REPOSITORY", "KNOWN-BY", "PHASE"];

impl Command {
    pub async fn run(self, api: &Api, output: Output) -> Result<u8, Failure> {
        let found = api.catalogue(self.selector.as_deref(), self.repository.as_deref()).await?;
        eprint!("{}", print::warnings(&found.warnings));
        match output {
            Output::Json => print::json(&found.copies)?,
            Output::Text if found.copies.is_empty() => println!("there are no copies here"),
            Output::Text => print!("{}", columns(&found.copies, Timestamp::now())),
        }
        Ok(0)
    }
}

/// Pure.
fn columns(copies: &[LiveSnapshot], now: Timestamp) -> String {
    let row = |copy: &LiveSnapshot| {
        let status = &copy.status;
        let what = if copy.spec.databases.is_empty() { &status.paths } else { &copy.spec.databases };
        vec![
            copy.metadata.name.clone().unwrap_or_default(),
            what.join(","),
            status.taken_at.as_ref().map(|taken| times::age(taken.0, now)).unwrap_or_default(),
            status.consistency.as_ref().map(|found| found.verdict.to_string()).unwrap_or_default(),
            status.size.map(print::bytes).unwrap_or_default(),
            copy.spec.repository.clone().unwrap_or_default(),
            format!("{:?}", status.known),
            status.phase.clone(),
        ]
    };
    print::table(&COLUMNS, &copies.iter().map(row).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_row_says_what_it_is_and_how_it_is_known() {
        let copies = json!([
            {
                "apiVersion": "live.stillpoint.dev/v1alpha1", "kind": "LiveSnapshot", "metadata": {"name": "first"},
                "spec": {"databases": ["orders", "billing"], "repository": "nightly"},
                "status": {
                    "known": "Snapshot", "phase": "Ready", "takenAt": "2026-11-29T03:00:00Z", "size": 1536,
                    "consistency": {"verdict": "application", "reason": "proved"},
                },
            },
            {
                "apiVersion": "live.stillpoint.dev/v1alpha1", "kind": "LiveSnapshot", "metadata": {"name": "nightly-12345678"},
                "spec": {"databases": [], "repository": "nightly"},
                "status": {"known": "Foreign", "phase": "Ready", "paths": ["/etc"]},
            },
        ]);
        let copies: Vec<LiveSnapshot> = serde_json::from_value(copies).unwrap();
        let text = columns(&copies, "2026-11-29T03:00:05Z".parse().unwrap());
        let cells: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(cells[0], COLUMNS);
        assert_eq!(
            cells[1],
            ["first", "orders,billing", "5s", "application", "1.5", "KiB", "nightly", "Snapshot", "Ready"]
        );
        assert_eq!(cells[2], ["nightly-12345678", "/etc", "nightly", "Foreign", "Ready"]);
    }
}
